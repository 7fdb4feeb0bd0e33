"""The command `check`, and the disk and port checks that `up` also runs."""

import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import typer
from rich.markup import escape
from rich.table import Table

from affiliate_pipeline.app.cli import UI_PORT, CommandError, Port, app, console
from affiliate_pipeline.app.embedded_server.cluster import SYSTEM_FOLDER, ServerError
from affiliate_pipeline.app.embedded_server.server import running_database
from affiliate_pipeline.app.processes import running_processes
from affiliate_pipeline.domain.problem import SettingsError
from affiliate_pipeline.domain.redaction import redact
from affiliate_pipeline.environment import application, home
from affiliate_pipeline.monitoring import doctor
from affiliate_pipeline.monitoring.doctor import Finding

MIN_FREE_BYTES = 500_000_000


@app.command()
def check(port: Port = UI_PORT) -> None:
    """Report what is wrong with this set-up and how to fix it; exits with 1 if anything is wrong. Changes nothing.

    Sends each configured account a few small requests.
    """
    table = Table("", "what", "found", "what to do", show_lines=True)
    wrong = 0
    for finding in (*_machine(port), *_setup()):
        wrong += bool(finding.to_do)
        mark = "[bold red]wrong[/]" if finding.to_do else "[green]ok[/]"
        table.add_row(mark, *(escape(redact(text)) for text in (finding.about, finding.found, finding.to_do)))
    console.print(table, soft_wrap=False)
    console.print(f"{wrong} to fix." if wrong else "Nothing is wrong.")
    raise typer.Exit(1 if wrong else 0)


def _setup() -> Iterator[Finding]:
    try:
        environment = application()
    except SettingsError as error:
        yield Finding("settings", error.problem.what, error.problem.action or "Correct it")
        return
    yield from doctor.alerts(environment)
    yield from doctor.accounts(environment)
    try:
        running = running_database(environment)
    except ServerError as error:
        yield Finding("database", error.problem.what, error.problem.action or "See the server's log, then check again")
        return
    if running:
        yield from doctor.database(running)
    else:
        yield Finding("database", "the embedded PostgreSQL is not running", "Start it: `make up`")


def _machine(port: int) -> Iterator[Finding]:
    yield _finding("disk", "has room", lambda: check_disk(home()))
    if running_processes(home()):
        yield Finding("port", "Dagster is running in this folder")
    else:
        yield _finding("port", f"{port} is free", lambda: check_port(port))


def _finding(about: str, found: str, run_check: Callable[[], None]) -> Finding:
    try:
        run_check()
    except CommandError as error:
        return Finding(about, error.problem.what, error.problem.action)
    return Finding(about, found)


def check_disk(home: Path) -> None:
    """Raise `CommandError` if a disk is nearly full."""
    for folder in (home if home.exists() else home.parent, SYSTEM_FOLDER):  # root's data are in the second one
        if folder.exists() and shutil.disk_usage(folder).free < MIN_FREE_BYTES:
            raise CommandError(
                f"less than {MIN_FREE_BYTES // 1_000_000} MB are free on the disk of {folder}",
                "Free some space, then start again",
            )


def check_port(port: int) -> None:
    """Raise `CommandError` if no server can listen on the port."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise CommandError(
            f"port {port} cannot be used ({error.strerror})",
            "Stop what uses it, or choose another with --port (`make up ARGS='--port 3001'`)",
        ) from None
