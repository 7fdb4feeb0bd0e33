"""The command `check`, and the disk and port checks that `up` also runs."""

import shutil
import socket
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import typer
from rich.markup import escape
from rich.table import Table

from affiliate_pipeline.app.cli import UI_PORT, CommandError, Port, app, console
from affiliate_pipeline.app.embedded_server.cluster import SYSTEM_FOLDER, ServerError
from affiliate_pipeline.app.embedded_server.server import running_database
from affiliate_pipeline.app.processes import (
    DAEMON,
    daemon_ended_at,
    missing_services,
    running_services,
    runs_without_daemon,
)
from affiliate_pipeline.domain.problem import SettingsError
from affiliate_pipeline.domain.redaction import redact
from affiliate_pipeline.domain.settings import CELERY_VARIABLES, Environment, execution_in
from affiliate_pipeline.domain.wording import command, count_of, up_command
from affiliate_pipeline.environment import application, home, unreadable_lines
from affiliate_pipeline.monitoring import doctor
from affiliate_pipeline.monitoring.doctor import Finding

MIN_FREE_BYTES = 500_000_000


@app.command()
def check(port: Port = UI_PORT) -> None:
    """Report what is wrong with this set-up and how to fix it; exits with 1 if anything is wrong. Changes nothing.

    Sends each configured account a few small requests.
    """
    missing = missing_services(home())
    findings = _consistent([*_machine(port, missing), *_setup(missing)])

    table = Table("", "what", "found", "what to do", show_lines=True)
    wrong = 0
    for finding in findings:
        mark = "[green]ok[/]"
        if finding.to_do:
            mark = "[bold red]wrong[/]"
            wrong += 1
        cells = [escape(redact(text)) for text in (finding.about, finding.found, finding.to_do)]
        table.add_row(mark, *cells)
    console.print(table, soft_wrap=False)
    console.print(f"{wrong} to fix." if wrong else "Nothing is wrong.")
    raise typer.Exit(1 if wrong else 0)


def _consistent(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Each finding once; of a subject with a problem, only the problems."""
    distinct = list(dict.fromkeys(findings))
    subjects_with_problem = {finding.about for finding in distinct if finding.to_do}
    for finding in distinct:
        if finding.to_do or finding.about not in subjects_with_problem:
            yield finding


def _setup(missing: Collection[str] | None) -> Iterator[Finding]:
    """Findings about the configuration and the database; `missing` is from `missing_services`."""
    try:
        environment = application()
        for place in unreadable_lines():
            yield Finding(".env", f"{place}, is not NAME=value, and is ignored", "Correct the line, or remove it")
    except SettingsError as error:
        yield from doctor.of_settings(".env", error)
        return

    yield from doctor.settings(environment)
    yield from doctor.accounts(environment)
    if "AFFILIATE_EXECUTOR" in environment.variables:
        yield from _executor(environment)

    try:
        environment_with_database = running_database(environment)
    except ServerError as error:
        yield Finding("database", error.problem.what, error.problem.action or "See the server's log, then check again")
        return
    if not environment_with_database:
        yield Finding("database", "the embedded PostgreSQL is not running", f"Start it: `{up_command()}`")
        return
    if missing is not None and not runs_without_daemon(home()):
        # `up` has started Dagster with this default.
        variables = {"AFFILIATE_SCHEDULES": "true", **environment_with_database.variables}
        environment_with_database = replace(environment_with_database, variables=variables)
    yield from doctor.database(environment_with_database, _daemon_stopped_at(missing))


def _executor(environment: Environment) -> Iterator[Finding]:
    """Findings about the executor's settings and, if it is Celery, about its servers and workers."""
    from affiliate_pipeline.defs.executor import executor_of  # imports Dagster

    try:
        executor_of(environment.variables, str)  # only validates: no run is executed, so `str` is never called
    except SettingsError as error:
        yield from doctor.of_settings("settings", error)
        return
    settings = execution_in(environment.variables)
    if settings.affiliate_executor == "celery":
        broker, backend = map(settings.secret, CELERY_VARIABLES)
        yield from _celery(broker, backend)
    else:
        yield Finding("executor", settings.affiliate_executor)


def _celery(broker: str, backend: str) -> Iterator[Finding]:
    """Findings about Celery's broker, result backend and workers; the arguments are URLs."""
    from affiliate_pipeline.defs.celery_executor import BROKER_ERRORS, ping_backend, responding_workers  # an extra

    broker_variable, backend_variable = CELERY_VARIABLES
    workers: list[str] | None = None
    try:
        workers = responding_workers(broker)
    except (ValueError, *BROKER_ERRORS) as error:
        yield _unusable_server(broker_variable, error)
    try:
        ping_backend(broker, backend)
    except (ValueError, *BROKER_ERRORS) as error:
        yield _unusable_server(backend_variable, error)

    if workers is None:
        return
    if workers:
        yield Finding("executor", f"celery: {count_of(len(workers), 'worker')}: {', '.join(workers)}")
    else:
        start = "dagster-celery worker start -A dagster_celery.app -y celery.yaml"
        yield Finding(
            "executor",
            "celery: no worker responds, so every step waits",
            f"Start a worker (see docs/deploying.md): `{start}`",
        )


def _unusable_server(variable: str, error: Exception) -> Finding:
    """The finding about the server whose URL the variable has."""
    if isinstance(error, ValueError):  # its text has a part of the URL
        return Finding(variable, f"{variable} is malformed", f"Correct {variable}")
    return Finding(variable, f"the server cannot be used: {error}", f"Start the server, or correct {variable}")


def _machine(port: int, missing: Collection[str] | None) -> Iterator[Finding]:
    """Findings about disk, port and processes; `missing` is from `missing_services`."""
    yield _finding("disk", "has room", lambda: check_disk(home()))
    if missing is None:  # Dagster does not run, so the port has to be free
        yield _finding("port", f"{port} is free", lambda: check_port(port))
        return
    for service in missing:
        if service != DAEMON:  # the daemon is reported by the database checks
            yield Finding(
                service,
                f"Dagster's {service} is not running",
                f"Start it again: `{command('down')}`, then `{up_command()}`",
            )
    if not missing:
        yield Finding("Dagster", "runs in this folder")


def _daemon_stopped_at(missing: Collection[str] | None) -> datetime | None:
    """When the Dagster daemon of this folder stopped; None if it is running or was never stopped.

    Later heartbeats are of a daemon that runs elsewhere.
    """
    if missing is not None and DAEMON in missing:
        return datetime.now(UTC)  # it crashed or was killed, at a time that was not recorded: at the latest now
    return None if DAEMON in running_services(home()) else daemon_ended_at(home())


def _finding(about: str, found_if_ok: str, run_check: Callable[[], None]) -> Finding:
    """The finding: the problem if the check raises `CommandError`, otherwise `found_if_ok`."""
    try:
        run_check()
    except CommandError as error:
        return Finding(about, error.problem.what, error.problem.action)
    return Finding(about, found_if_ok)


def check_disk(home: Path) -> None:
    """Raise `CommandError` if a disk is nearly full."""
    existing = home if home.exists() else home.parent
    for folder in (existing, SYSTEM_FOLDER):  # root's data are in the second one
        if folder.exists() and shutil.disk_usage(folder).free < MIN_FREE_BYTES:
            raise CommandError(
                f"less than {MIN_FREE_BYTES // 1_000_000} MB are free on the disk of {folder}",
                "Free some space, then start again",
            )


def check_port(port: int) -> None:
    """Raise `CommandError` if a server could not listen on the port, for example because another one does."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise CommandError(
            f"port {port} cannot be used ({error.strerror})",
            f"Stop what uses it, or choose another with --port (`{up_command('--port 3001')}`)",
        ) from None
