"""The commands `up` and `down`: run everything on one machine, and stop it."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Collection, Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.markup import escape

from affiliate_pipeline import environment as settings
from affiliate_pipeline.app import first_days
from affiliate_pipeline.app.check import check_disk, check_port
from affiliate_pipeline.app.cli import UI_PORT, CommandError, Port, app, console, doing
from affiliate_pipeline.app.dagster_client import DagsterClient, DagsterUnavailable, save_port
from affiliate_pipeline.app.embedded_server import server
from affiliate_pipeline.app.extras import require_extras
from affiliate_pipeline.app.landing import Landing, LandingInterrupted, print_failures
from affiliate_pipeline.app.processes import exclusive, start_dagster, stop_processes, stop_up
from affiliate_pipeline.app.sandbox import FailDays, failing_days, serving
from affiliate_pipeline.domain.problem import AffiliateError
from affiliate_pipeline.domain.redaction import redact
from affiliate_pipeline.domain.settings import Environment
from affiliate_pipeline.domain.wording import command
from affiliate_pipeline.exchanges.registry import is_any_exchange_configured, unusable_variables
from affiliate_pipeline.landing.store import Store

READY_WAIT_S = 180
NO_DAYS: Mapping[date, int] = {}


@app.command()
def up(
    once: Annotated[
        bool, typer.Option("--once", help="Land the missing days, then exit: with 0 if all have landed, else 1.")
    ] = False,
    port: Port = UI_PORT,
    fail_day: FailDays = None,
) -> None:
    """Start the database, the sandbox if no exchange is configured, and Dagster; land the missing days. Ctrl-C stops it."""
    os.chdir(settings.root())
    stopping = stop_on_signals()
    with ExitStack() as stack:
        failing = failing_days(fail_day)
        project = stack.enter_context(running(stopping, None if once else port, failing))
        # The days of --fail-day land again: those that have settled would otherwise not be requested, and so not fail.
        if once:
            succeeded = not stopping.is_set() and _land(project.landing, again=failing)
            raise typer.Exit(0 if succeeded else 1)

        if not stopping.is_set():
            console.print(f"Dagster's UI is ready: [bold]http://localhost:{port}[/bold]")
            background = threading.Thread(target=_land, args=(project.landing, failing, port))
            background.start()
            stack.callback(background.join)
            stack.callback(stopping.set)
        while not stopping.wait(2):
            project.require_dagster()
            server.start_database(project.landing.environment)  # restarts the embedded server if it was killed
        console.print("Stopping")


@dataclass(frozen=True)
class Project:
    """A project folder whose database and Dagster are running."""

    landing: Landing
    dagster: Mapping[str, subprocess.Popen[bytes]]
    log: Path

    def require_dagster(self) -> None:
        """Raise `CommandError` if one of Dagster's processes has ended."""
        for service, process in self.dagster.items():
            if process.poll() is not None:
                raise CommandError(f"Dagster's {service} has stopped unexpectedly; its log is {self.log}")


@contextmanager
def running(stopping: threading.Event, port: int | None, failing: Mapping[date, int] = NO_DAYS) -> Generator[Project]:
    """Run the database, the sandbox if no exchange is configured, and Dagster; at the end, stop what was started.

    Chooses a first day for each asset that needs one and has none, then waits until Dagster is ready or `stopping` is
    set. Raises `CommandError`, for example if another command runs in the folder.

    Args:
        stopping: Set by a signal.
        port: The port of Dagster's UI. None: only runs are needed, so the webserver, which launches them, uses any free
            port, and the daemon (schedules, sensors) is not started.
        failing: By day, the HTTP status with which the sandbox's Binance fails every request for it; its LBank sends an
            error code. Refused with real accounts.
    """
    configured = settings.configured()
    is_sandbox = not is_any_exchange_configured(configured.variables)
    _refuse_contradictions(configured, failing, is_sandbox=is_sandbox)
    extras = ["embedded", "ui"] if server.is_embedded(configured) else ["ui"]
    require_extras(*extras)
    home = configured.home
    home.mkdir(mode=0o700, exist_ok=True)
    check_disk(home)

    with ExitStack() as stack:
        stack.enter_context(exclusive(home))
        if port:
            check_port(port)
        if settings.save_env_file_as_utf8():
            console.print("Saved .env, which was UTF-16, as UTF-8: Dagster reads no other encoding.")

        if is_sandbox:
            stack.enter_context(serving(failing))
        environment = settings.application()
        for unusable in unusable_variables(environment.variables):
            console.print(escape(f"{unusable.name} is ignored: {unusable.problem}. {unusable.action}."))

        if server.is_embedded(environment) and not server.running_database(environment):
            stack.callback(server.stop, home)
        with doing("PostgreSQL is starting"):
            environment = server.start_database(environment)
        with Store(environment.database_url()) as store:
            store.require_ready()
            environment = first_days.ensure(environment, store)

        folder = Path(stack.enter_context(TemporaryDirectory(prefix="affiliate_")))
        stack.callback(stop_processes, home)
        log = home / "dagster.log"
        ui_port = port or server.free_port()
        landing = Landing(environment, DagsterClient(ui_port), stopping)
        dagster = start_dagster(home, folder, log, ui_port, without_daemon=port is None)
        project = Project(landing, dagster, log)
        _wait_until_ready(project)
        save_port(home, ui_port)
        yield project


def _refuse_contradictions(configured: Environment, failing: Mapping[date, int], *, is_sandbox: bool) -> None:
    """Raise `CommandError` if the sandbox would use another database, or days should fail at real exchanges."""
    if is_sandbox and not server.is_embedded(configured):
        raise CommandError(
            "AFFILIATE_DATABASE_URL is set, but no exchange is configured",
            "Set the variables of an exchange (README, Real accounts), or unset AFFILIATE_DATABASE_URL to try the "
            "sandbox, which writes only to its own embedded database",
        )
    if failing and not is_sandbox:
        raise CommandError(
            "--fail-day is for the sandbox, but an exchange is configured",
            "Leave it out, or unset the variables of the exchanges",
        )


def _wait_until_ready(project: Project) -> None:
    """Return once Dagster is ready, or `stopping` is set; raises `CommandError`."""
    deadline = time.monotonic() + READY_WAIT_S
    with doing("Dagster is starting"):
        while not project.landing.stopping.wait(0.2):
            project.require_dagster()
            if time.monotonic() > deadline:
                raise CommandError(f"Dagster did not start; its log is {project.log}")
            with suppress(DagsterUnavailable):
                if project.landing.dagster.is_ready():
                    return


def _land(landing: Landing, again: Collection[date], port: int | None = None) -> bool:
    """Land the missing days, add up the stale ones and print what has landed; return whether all of that succeeded.

    Args:
        landing: What launches the runs.
        again: Days that are landed again, even if they are not missing.
        port: The port of Dagster's UI, if there is one.
    """
    try:
        missing = landing.missing(again)
        if not missing:
            reason = landing.why_nothing_can_land()
            if reason:
                console.print(f"Nothing can land: {reason}. Correct the variables (README, Real accounts).")
                return False
            console.print("Nothing to land: every fetchable day has settled or was read within the last hour.")

        failures = landing.land(missing)
        failures += landing.land(landing.stale())
        landing.summarize()
        print_failures(failures)
        is_complete = not failures
    except LandingInterrupted:
        return False
    except AffiliateError as error:
        is_complete = False
        console.print(escape(f"The landing has ended early: {redact(error)}"))

    if port:
        console.print(
            f"\nDagster's UI: [bold]http://localhost:{port}[/bold]   Report: {command('report --open')}   "
            f"Data: {command('psql')}   Stop: Ctrl-C"
        )
    return is_complete


def stop_on_signals() -> threading.Event:
    """An event that SIGINT, SIGTERM and, unless it is ignored, SIGHUP set instead of ending this process."""
    stopping = threading.Event()
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
        numbers.append(signal.SIGHUP)
    for number in numbers:
        signal.signal(number, lambda _number, _frame: stopping.set())
    return stopping


@app.command()
def down() -> None:
    """Stop what `up` or a Dagster command has left running in this folder: Dagster and the embedded PostgreSQL."""
    home = settings.home()
    stopped = [stop_up(home), stop_processes(home), server.stop(home)]
    console.print("Stopped." if any(stopped) else "Nothing was running.")
