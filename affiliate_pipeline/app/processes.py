"""The processes of a project folder: at most one `up`, and the processes of Dagster that it has started."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import psutil
import yaml

from affiliate_pipeline.app import instance
from affiliate_pipeline.app.cli import CommandError
from affiliate_pipeline.app.dagster_client import LOCATION, drop_port, saved_client
from affiliate_pipeline.app.embedded_server import server
from affiliate_pipeline.domain.wording import command
from affiliate_pipeline.environment import process_environment, root

STOP_WAIT_S = 60
# Every process of Dagster that `up` starts, directly or not, inherits this variable with the folder as value. So these
# processes are found even if `up` was killed, and a reused pid is never mistaken for one of them.
STARTED_BY = "AFFILIATE_STARTED_BY"
CODE_SERVER, WEBSERVER, DAEMON = "code server", "webserver", "daemon"
# Dagster's processes, each with the arguments that Python starts it with, by which it is also recognized. The code
# server is the first: the others load the code location from it.
_SERVICES = {
    CODE_SERVER: ("-m", "dagster", "api", "grpc"),
    WEBSERVER: ("-m", "dagster_webserver"),
    DAEMON: ("-m", "dagster._daemon"),
}
# The folder for DAGSTER_HOME of a Dagster without daemon.
_WITHOUT_DAEMON = "dagster_without_daemon"
# A file whose modification time is when the daemon was last stopped.
_DAEMON_ENDED = "daemon.ended"


@contextmanager
def exclusive(home: Path) -> Generator[None, None, None]:
    """Lock the folder for one `up`, or one `land` with its own Dagster; raises `CommandError` if it is locked.

    If the last one was killed, its processes and the embedded server are stopped before the block.
    """
    with (home / "up.lock").open("a+") as lock:
        if not _try_lock(lock):
            raise CommandError(
                "`affiliate-pipeline up` or `land` is already running in this folder",
                f"To stop it: `{command('down')}`",
            )

        lock.seek(0)
        killed_pid = lock.read()
        # Write this process's pid first: until then, `down` reads the pid of the killed process, which may have been
        # reused.
        lock.truncate(0)
        lock.write(f"{os.getpid()}")
        lock.flush()
        if killed_pid:
            stop_processes(home)
            server.stop(home)

        try:
            yield
        finally:
            lock.truncate(0)


def is_locked(home: Path) -> bool:
    """Whether an `up`, or a `land` with its own Dagster, is running in the folder: each locks it."""
    with suppress(FileNotFoundError), (home / "up.lock").open() as lock:
        return not _try_lock(lock)
    return False


def stop_up(home: Path) -> bool:
    """Stop the folder's `up`, or `land` with its own Dagster, and wait for its end; True if one was running.

    The command is killed if it is still running after `STOP_WAIT_S`.
    """
    with suppress(FileNotFoundError), (home / "up.lock").open() as lock:
        deadline = time.monotonic() + STOP_WAIT_S
        signalled_pid = ""
        while not _try_lock(lock):
            lock.seek(0)
            # The lock's holder is alive. Just after locking, before it writes its pid, the file is empty or still has
            # the pid of an earlier, killed command: so signal again if the pid changes.
            pid = lock.read()
            is_late = time.monotonic() > deadline
            needs_signal = is_late or pid != signalled_pid
            if pid and needs_signal:
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL if is_late else signal.SIGTERM)
                signalled_pid = pid
            time.sleep(0.1)
        return bool(signalled_pid)
    return False


def _try_lock(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def running_processes(home: Path) -> list[psutil.Process]:
    """The running processes of Dagster that an `up` of the folder has started, directly or not."""
    processes: list[psutil.Process] = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # it has just ended, or belongs to another user
            if process.environ().get(STARTED_BY) == str(home):
                processes.append(process)
    return processes


def running_services(home: Path) -> set[str]:
    """The services of the folder's Dagster that run."""
    command_lines: list[str] = []
    for process in running_processes(home):
        with suppress(psutil.Error):  # it has just ended
            if process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
                command_lines.append(" ".join(process.cmdline()))
    return {
        service
        for service, arguments in _SERVICES.items()
        if any(" ".join(arguments) in line for line in command_lines)
    }


def missing_services(home: Path) -> list[str] | None:
    """The services of the folder's Dagster that have ended; None if Dagster does not run at all."""
    running = running_services(home)
    if not running:
        return None
    missing = [service for service in _SERVICES if service not in running]
    if DAEMON in missing and runs_without_daemon(home):
        missing.remove(DAEMON)
    return missing


def runs_without_daemon(home: Path) -> bool:
    """Whether the folder's Dagster was started without daemon: by `land` or `up --once`."""
    for process in running_processes(home):
        with suppress(psutil.Error, OSError):  # it has just ended
            if process.environ().get("DAGSTER_HOME") == f"{home / _WITHOUT_DAEMON}":
                return True
    return False


def daemon_ended_at(home: Path) -> datetime | None:
    """When the folder's daemon was last stopped; None if it never was."""
    try:
        return datetime.fromtimestamp((home / _DAEMON_ENDED).stat().st_mtime, UTC)
    except OSError:
        return None


def stop_processes(home: Path) -> bool:
    """Stop `running_processes`, gracefully if possible; True if there were any.

    If the daemon is one of them, all runs in progress are cancelled first: Dagster would count an interrupted run as
    failed. If it is not, no run is cancelled, since those in progress may be of a daemon elsewhere that uses the same
    database. Also removes the webserver's saved port, and records when the daemon was stopped.
    """
    processes = running_processes(home)
    has_daemon = DAEMON in running_services(home)
    dagster = saved_client(home) if has_daemon else None
    if dagster:
        with suppress(CommandError):
            dagster.cancel()
    drop_port(home)

    remaining = processes
    # Dagster expects SIGINT, as from Ctrl-C on a terminal.
    for number, wait_s in ((signal.SIGINT, 15), (signal.SIGTERM, 5), (signal.SIGKILL, 5)):
        for process in remaining:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        remaining = _remaining_processes(home, wait_s)
        if not remaining:
            break

    if has_daemon:
        (home / _DAEMON_ENDED).touch()
    return bool(processes)


def _remaining_processes(home: Path, wait_s: float) -> list[psutil.Process]:
    """Wait until `running_processes` have ended, at most this long; return those that have not."""
    deadline = time.monotonic() + wait_s
    while True:
        processes = running_processes(home)
        if not processes or time.monotonic() >= deadline:
            return processes
        time.sleep(0.1)


def dagster_home(home: Path, *, without_daemon: bool = False) -> Path:
    """Create or update the folder for DAGSTER_HOME, with the project's `dagster.yaml`; return it.

    Without a daemon, a queued run would never start, so runs are launched at once.
    """
    folder = home / (_WITHOUT_DAEMON if without_daemon else "dagster")
    folder.mkdir(exist_ok=True)
    settings: dict[str, Any] = yaml.safe_load(_dagster_yaml().read_text(encoding="utf-8")) or {}
    if without_daemon:
        settings["run_coordinator"] = {"module": "dagster.core.run_coordinator", "class": "DefaultRunCoordinator"}
        settings.pop("concurrency", None)
    (folder / "dagster.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return folder


def _dagster_yaml() -> Path:
    """The project's `dagster.yaml`; the package's own if the project has none."""
    file = root() / "dagster.yaml"
    return file if file.is_file() else Path(instance.__file__).with_name("dagster.yaml")


def start_dagster(
    home: Path, folder: Path, log: Path, port: int, *, without_daemon: bool = False
) -> dict[str, subprocess.Popen[bytes]]:
    """Start Dagster's code server, its webserver on this port of 127.0.0.1, and its daemon with schedules and sensors.

    Returns their processes by service, without waiting until they are ready.

    `dagster dev` would start them one after the other, and two more processes, which reload changed code. Each process
    runs in its own session: Ctrl-C then reaches only `up`.

    Args:
        home: The folder of the project's state.
        folder: An empty folder that other users cannot open; its path is short enough for a Unix socket in it.
        log: The file for what the processes print.
        port: The port of the webserver.
        without_daemon: Start only code server and webserver.
    """
    code_server = folder / "code_server"
    workspace = folder / "workspace.yaml"
    location = {"socket": f"{code_server}", "location_name": LOCATION}
    workspace.write_text(yaml.safe_dump({"load_from": [{"grpc_server": location}]}), encoding="utf-8")

    arguments = {
        CODE_SERVER: ["-s", code_server, "--location-name", LOCATION, "-m", LOCATION, "-d", root()]
        + ["--lazy-load-user-code", "--inject-env-vars-from-instance", "--log-level", "warning"],
        WEBSERVER: ["-w", workspace, "-h", "127.0.0.1", "-p", f"{port}"],
        DAEMON: ["run", "-w", workspace],
    }
    variables = {
        "DAGSTER_HOME": f"{dagster_home(home, without_daemon=without_daemon)}",
        STARTED_BY: f"{home}",
        "DAGSTER_UI_URL": f"http://localhost:{port}",
        "AFFILIATE_SCHEDULES": "false" if without_daemon else "true",
    }
    environment = process_environment(**variables)

    services = [*_SERVICES]
    if without_daemon:
        services.remove(DAEMON)
    with log.open("wb") as output:
        return {
            service: subprocess.Popen(
                [sys.executable, *_SERVICES[service], *arguments[service]],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=environment,
            )
            for service in services
        }
