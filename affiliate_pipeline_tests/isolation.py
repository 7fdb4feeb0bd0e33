"""Nothing of the developer's reaches a test: no variable, no file of the home folder, no `.env` or `.affiliate`."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import chdir

# What an interpreter, a browser and pytest need. All else may change what is tested: proxies, certificates, PG*, TZ, …
KEPT = ("PATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "TMPDIR", "USER", "LOGNAME", "HOME", "LC_ALL")
KEPT_PREFIXES = ("PYTHON", "PYTEST_", "HYPOTHESIS_", "COVERAGE_", "PLAYWRIGHT_", "PICTURES")

NOWHERE = tempfile.mkdtemp(prefix="affiliate_pipeline_tests_")
atexit.register(shutil.rmtree, NOWHERE, ignore_errors=True)


def kept(environment: Mapping[str, str]) -> dict[str, str]:
    """The part of an environment that tests may see."""
    return {name: value for name, value in environment.items() if name in KEPT or name.startswith(KEPT_PREFIXES)}


def isolate() -> None:
    """Removes everything else from the environment of this process, and imports the definitions, which read settings, where
    there are none."""
    environment = kept(os.environ) | {"HOME": NOWHERE, "LC_ALL": "C.UTF-8"}
    os.environ.clear()
    os.environ.update(environment)
    with chdir(NOWHERE):
        import affiliate_pipeline.definitions  # noqa: F401
