"""What all commands share: the application they register with, console and error output."""

import errno
import sys
from collections.abc import Generator
from contextlib import contextmanager
from datetime import date
from typing import Annotated

import typer
from rich.console import Console

from affiliate_pipeline.domain.days import days_from
from affiliate_pipeline.domain.problem import AffiliateError
from affiliate_pipeline.domain.redaction import redact

UI_PORT = 3000
Port = Annotated[int, typer.Option(help="Port of Dagster's UI on 127.0.0.1.", min=1, max=65535)]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Runs everything on one machine, and reports what has landed.",
    pretty_exceptions_enable=False,
)
console = Console(highlight=False, soft_wrap=True)


class CommandError(AffiliateError):
    """A command cannot continue."""


def main() -> None:
    """Run the command; print a failure as one line on standard error and exit with 1."""
    try:
        app()
    except AffiliateError as error:
        problem = redact(error)
    except OSError as error:
        problem = f"{error.strerror}: {error.filename or ''}".rstrip(": ")
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            problem = f"the disk is full ({error.filename}): free some space, then start again"
    else:
        return
    print(f"affiliate-pipeline: {problem}", file=sys.stderr)
    raise SystemExit(1)


def parse_days(text: str) -> list[date]:
    """The days of `2026-10-01` or `2026-10-01...2026-10-31`; raises `CommandError`."""
    first, _, last = text.partition("...")
    try:
        days = days_from(date.fromisoformat(first), date.fromisoformat(last or first))
    except ValueError:
        days = []
    if not days:
        raise CommandError(f"{text} is neither a day (2026-10-01) nor a range of days (2026-10-01...2026-10-31)")
    return days


@contextmanager
def doing(what: str) -> Generator[None, None, None]:
    """Show what is in progress: a spinner on a terminal, otherwise a line."""
    if console.is_terminal:
        with console.status(what):
            yield
    else:
        console.print(what)
        yield
