"""Processes that look like those of Dagster under `up`. Contains no tests."""

import subprocess
import sys
from pathlib import Path

from affiliate_pipeline.app.processes import STARTED_BY

WEBSERVER, DAEMON, CODE_SERVER = (
    ("-m", "dagster_webserver", "-p", "1"),
    ("-m", "dagster._daemon", "run"),
    ("-m", "dagster", "api", "grpc", "-s", "x"),
)


def running(folder: Path, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
    """A process that looks like one that `up` has started in the folder; ends with its standard input."""
    environment = {STARTED_BY: str(folder / ".affiliate"), **variables}
    command = [sys.executable, "-c", "input()", *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
