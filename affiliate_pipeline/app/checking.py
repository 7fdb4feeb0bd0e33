"""The command `check`: what is wrong with the set-up, as a table. What of it concerns this machine is looked at here."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import psutil
import typer
from rich.markup import escape
from rich.table import Table

from affiliate_pipeline import environment as settings
from affiliate_pipeline.app.cli import Stop, app, console
from affiliate_pipeline.app.running import UI_PORT, check_disk, check_port, started
from affiliate_pipeline.domain.redaction import redact
from affiliate_pipeline.monitoring import doctor
from affiliate_pipeline.monitoring.doctor import Finding


@app.command()
def check(
    port: Annotated[int, typer.Option(help="Port of Dagster's UI on 127.0.0.1.", min=1, max=65535)] = UI_PORT,
) -> None:
    """What is wrong with this set-up, and what to do about it; 1 if anything is. Changes nothing.

    Asks each configured account once or twice for next to nothing.
    """
    table = Table("", "what", "found", "what to do", show_lines=True)
    wrong = 0
    for finding in (*_machine(port), *doctor.examine()):
        wrong += bool(finding.to_do)
        mark = "[bold red]wrong[/]" if finding.to_do else "[green]ok[/]"
        table.add_row(mark, *(escape(redact(text)) for text in (finding.about, finding.found, finding.to_do)))
    console.print(table, soft_wrap=False)
    console.print(f"{wrong} to mend." if wrong else "Nothing is wrong.")
    raise typer.Exit(1 if wrong else 0)


def _machine(port: int) -> Iterator[Finding]:
    home = settings.home()
    try:
        check_disk(home if home.exists() else settings.root())
        yield Finding("disk", "has room")
    except Stop as problem:
        yield Finding("disk", f"{problem}".partition(": ")[0], "Free some space")
    ours = _ports(home)
    if ours:
        yield Finding("port", f"Dagster of this folder runs and uses {', '.join(map(str, sorted(ours)))}")
        return
    try:
        check_port(port)
        yield Finding("port", f"{port} is free")
    except Stop as problem:
        yield Finding(
            "port",
            f"{problem}".partition(": ")[0],
            "Stop what uses it, or choose another: `make up ARGS='--port 3001'`",
        )


def _ports(home: Path) -> set[int]:
    """The ports on which what `up` has started here is listening."""
    found = set()
    for process in started(home):
        with suppress(psutil.Error):
            found |= {each.laddr.port for each in process.net_connections("inet") if each.status == psutil.CONN_LISTEN}
    return found
