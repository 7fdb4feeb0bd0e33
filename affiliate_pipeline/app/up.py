"""The commands `up` and `down`: everything on one machine, and nothing left behind."""

import os
import signal
import socket
import subprocess
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated

import typer

from affiliate_pipeline import environment as settings
from affiliate_pipeline.app.check import check_disk, check_port
from affiliate_pipeline.app.cli import UI_PORT, Stop, app, console, doing
from affiliate_pipeline.app.embedded_server import server
from affiliate_pipeline.app.landing import Landing, Stopped
from affiliate_pipeline.app.processes import exclusive, run_dagster, stop_started, stop_up
from affiliate_pipeline.app.sandbox import serving
from affiliate_pipeline.exchanges.registry import EXCHANGE_VARIABLES
from affiliate_pipeline.landing.store import Store

READY_WAIT_S = 180


@app.command()
def up(
    once: Annotated[bool, typer.Option("--once", help="Land the last days and exit: 0 if all landed.")] = False,
    port: Annotated[int, typer.Option(help="Port of Dagster's UI on 127.0.0.1.", min=1, max=65535)] = UI_PORT,
) -> None:
    """Database, the sandbox while no exchange is configured, the last days landed, Dagster's UI; until Ctrl-C."""
    os.chdir(settings.root())
    configured = settings.configured()
    is_sandbox = not configured.is_any_set(EXCHANGE_VARIABLES)
    if is_sandbox and not server.is_embedded(configured):
        raise Stop(
            "AFFILIATE_DATABASE_URL is set and no exchange is",
            "Set the variables of an exchange (README, Real accounts), or unset AFFILIATE_DATABASE_URL to try the "
            "sandbox, which writes only to its own embedded database",
        )
    home = configured.home
    home.mkdir(mode=0o700, exist_ok=True)
    check_disk(home)
    stopping = _stopped_by_signals()
    with ExitStack() as stack:
        stack.enter_context(exclusive(home))
        if not once:
            check_port(port)
        if settings.save_env_file_as_utf8():
            console.print("Saved .env, which was UTF-16, as UTF-8: Dagster reads no other encoding.")
        if is_sandbox:
            stack.enter_context(serving())
        environment = settings.application()
        if server.is_embedded(environment) and not server.if_running(environment):
            stack.callback(server.stop, home)
        with doing("PostgreSQL is starting"):
            environment = server.started(environment)
        with Store(environment.database_url()) as store:
            store.require_ready()
        stack.callback(stop_started, home)
        landing = Landing(environment, stopping)
        if once:
            raise typer.Exit(0 if _land(landing) else 1)
        log = home / "dagster.log"
        dagster = _start_ui(home, log, port, stopping)
        with suppress(Stopped):
            _land_in_background(stack, landing, port)
        while not stopping.wait(2):
            if dagster.poll() is not None:
                raise Stop(f"Dagster has stopped by itself; its log is {log}")
            server.started(environment)  # restarts the embedded server if it was killed
        console.print("Stopping")


def _stopped_by_signals() -> threading.Event:
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, lambda number, frame: stopping.set())
    return stopping


def _land(landing: Landing) -> bool:
    """Whether all of the last days have landed and are added up."""
    try:
        complete = landing.land(landing.missing_days())
        complete &= landing.add_up()
    except Stopped:
        return False
    landing.summarize()
    return complete


def _land_in_background(stack: ExitStack, landing: Landing, port: int) -> None:
    """Lands the newest days, then the earlier ones in a thread, which ends before what it has started is stopped."""
    if landing.stopping.is_set():
        raise Stopped
    console.print(f"Dagster's UI is ready: [bold]http://localhost:{port}[/bold]")
    missing = landing.missing_days()
    landing.land((endpoint, days[-1:]) for endpoint, days in missing)
    landing.add_up()

    def land_earlier() -> None:
        with suppress(Stopped):
            landing.land((endpoint, days[:-1]) for endpoint, days in missing)
            landing.summarize()

    background = threading.Thread(target=land_earlier)
    background.start()
    stack.callback(background.join)
    stack.callback(landing.stopping.set)
    console.print(
        f"\nDagster's UI: [bold]http://localhost:{port}[/bold]   The money: affiliate-pipeline report --open   "
        "Data: affiliate-pipeline psql   Stop: Ctrl-C"
    )


def _start_ui(home: Path, log: Path, port: int, stopping: threading.Event) -> subprocess.Popen[bytes]:
    """Dagster's webserver and daemon, ready."""
    arguments = ["dev", "-w", "workspace.yaml", "-h", "127.0.0.1", "-p", str(port)]
    variables = {"DAGSTER_UI_URL": f"http://localhost:{port}", "AFFILIATE_SCHEDULES": "true"}
    dagster = run_dagster(home, log, arguments, **variables)
    deadline = time.monotonic() + READY_WAIT_S
    with doing("Dagster's UI is starting"):
        while not stopping.wait(0.2):
            if dagster.poll() is not None or time.monotonic() > deadline:
                raise Stop(f"Dagster did not start; its log is {log}")
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
    return dagster


@app.command()
def down() -> None:
    """Stop whatever `up` or a command of Dagster's left running here: Dagster and the embedded PostgreSQL."""
    home = settings.home()
    stopped = [stop_up(home), stop_started(home), server.stop(home)]
    console.print("Stopped." if any(stopped) else "Nothing was running.")
