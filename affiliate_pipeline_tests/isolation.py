"""Isolates the tests from the developer's machine: its variables, its home folder, its `.env` and its `.affiliate`."""

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from contextlib import chdir
from importlib import import_module

# What an interpreter, a browser and pytest need, and PICTURES, where `e2e/test_browser.py` saves pictures.
# Other variables may change what is tested: proxies, certificates, PG*, TZ, …
INHERITED = ("PATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "TMPDIR", "USER", "LOGNAME", "HOME", "LC_ALL")
INHERITED_PREFIXES = ("PYTHON", "PYTEST_", "HYPOTHESIS_", "COVERAGE_", "PLAYWRIGHT_", "PICTURES")

EMPTY_FOLDER = tempfile.mkdtemp(prefix="affiliate_pipeline_tests_")
# What the commands, Dagster's daemon, web server and code server, and a run import when they start.
ENTRY_MODULES = ("definitions", "app.__main__", "app.instance.storage", "app.instance.launcher")
# All modules that are loaded once `isolate` has imported these, before any test module is imported.
LOADED_AT_START: set[str] = set()
atexit.register(shutil.rmtree, EMPTY_FOLDER, ignore_errors=True)


def inherited(environment: Mapping[str, str]) -> dict[str, str]:
    """The part of an environment that tests may see."""
    return {
        name: value for name, value in environment.items() if name in INHERITED or name.startswith(INHERITED_PREFIXES)
    }


def isolate() -> None:
    """Reduce this process's environment to what tests may see, and import `ENTRY_MODULES` from an empty folder.

    The definitions read settings when they are imported. A process that a test has started, as `PYTEST_CURRENT_TEST`
    shows, retains its environment and imports from its folder: the test chose both.
    """
    folder = os.getcwd()
    if "PYTEST_CURRENT_TEST" not in os.environ:
        environment = inherited(os.environ) | {"HOME": EMPTY_FOLDER, "LC_ALL": "C.UTF-8"}
        folder = EMPTY_FOLDER
        os.environ.clear()
        os.environ.update(environment)
    with chdir(folder):
        for name in ENTRY_MODULES:
            import_module(f"affiliate_pipeline.{name}")
    LOADED_AT_START.update(sys.modules)
