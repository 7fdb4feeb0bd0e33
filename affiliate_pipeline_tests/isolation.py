"""Isolates the tests from the developer's machine: its variables, its home folder, its `.env` and its `.affiliate`."""

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from contextlib import chdir

# What an interpreter, a browser and pytest need. Other variables may change what is tested: proxies, certificates, PG*, TZ, …
INHERITED = ("PATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "TMPDIR", "USER", "LOGNAME", "HOME", "LC_ALL")
INHERITED_PREFIXES = ("PYTHON", "PYTEST_", "HYPOTHESIS_", "COVERAGE_", "PLAYWRIGHT_", "PICTURES")

EMPTY_FOLDER = tempfile.mkdtemp(prefix="affiliate_pipeline_tests_")
# The names of the modules loaded once `isolate` has imported the definitions, before any test module is imported.
IMPORTED_WITH_DEFINITIONS: set[str] = set()
atexit.register(shutil.rmtree, EMPTY_FOLDER, ignore_errors=True)


def inherited(environment: Mapping[str, str]) -> dict[str, str]:
    """The part of an environment that tests may see."""
    return {
        name: value for name, value in environment.items() if name in INHERITED or name.startswith(INHERITED_PREFIXES)
    }


def isolate() -> None:
    """Reduce this process's environment to what tests may see, and import the definitions from an empty folder.

    The definitions read settings when they are imported.
    """
    environment = inherited(os.environ) | {"HOME": EMPTY_FOLDER, "LC_ALL": "C.UTF-8"}
    os.environ.clear()
    os.environ.update(environment)
    with chdir(EMPTY_FOLDER):
        import affiliate_pipeline.definitions  # noqa: F401
    IMPORTED_WITH_DEFINITIONS.update(sys.modules)
