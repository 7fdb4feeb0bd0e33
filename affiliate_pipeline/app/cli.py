"""What all commands share: the application they register with, console and error output."""

import errno
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import date
from importlib.metadata import version
from typing import Annotated, Any, NoReturn, cast

import typer
from rich.console import Console

from affiliate_pipeline.domain.days import days_from
from affiliate_pipeline.domain.problem import AffiliateError
from affiliate_pipeline.domain.redaction import redact
from affiliate_pipeline.domain.wording import PROGRAM, command

UI_PORT = 3000
Port = Annotated[int, typer.Option(help="Port of Dagster's UI on 127.0.0.1.", min=1, max=65535)]

app = typer.Typer(
    add_completion=False,
    help="Runs everything on one machine, and reports what has landed.",
    pretty_exceptions_enable=False,
)
console = Console(highlight=False, soft_wrap=True)
# The base class of errors about arguments, of which Typer exports only a subclass. It is not always click's: newer
# versions of Typer contain a copy of click.
UsageError = cast(type[Exception], typer.BadParameter.__base__)


class CommandError(AffiliateError):
    """A command cannot continue."""


@app.callback(invoke_without_command=True)
def program(
    context: typer.Context,
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Print the version or, without a command, the help."""
    if show_version:
        console.print(f"{PROGRAM} {version('affiliate_pipeline')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        context.get_help()  # prints it
        raise typer.Exit(2)


def main() -> None:
    """Run the command and exit with its code: 1 if it fails, 2 if the arguments are wrong.

    A failure is printed as one line on standard error.
    """
    try:
        raise SystemExit(app(prog_name=PROGRAM, standalone_mode=False))
    except UsageError as error:
        _fail(_usage_problem(error), exit_code=2)
    except typer.Abort:
        _fail("interrupted")
    except AffiliateError as error:
        _fail(redact(error))
    except OSError as error:
        _fail(_os_problem(error))


def _fail(problem: str, exit_code: int = 1) -> NoReturn:
    """Print the problem and exit."""
    print(f"{PROGRAM}: {problem}", file=sys.stderr)
    raise SystemExit(exit_code)


def _usage_problem(error: Any) -> str:
    """The error as one line, with the command that prints the help."""
    subcommand = error.ctx.command_path.removeprefix(PROGRAM).strip() if error.ctx else ""
    help_command = command(f"{subcommand} --help".strip())
    message = " ".join(error.format_message().split())
    return f"{message.rstrip('.')}. See `{help_command}`"


def _os_problem(error: OSError) -> str:
    """The error as one line, with its file if it has one."""
    file = error.filename or ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full ({file}): free some space, then start again".replace(" ()", "")
    return f"{error.strerror}: {file}".rstrip(": ")


def parse_days(text: str) -> list[date]:
    """The days of `2026-10-01` or `2026-10-01...2026-10-31`; raises `CommandError`."""
    first, _, last = text.partition("...")
    try:
        days = days_from(date.fromisoformat(first), date.fromisoformat(last or first))
    except ValueError:
        raise CommandError(
            f"{text} is neither a day (2026-10-01) nor a range of days (2026-10-01...2026-10-31)"
        ) from None
    if not days:
        raise CommandError(f"{text} is reversed: the first day comes after the last one", f"Write {last}...{first}")
    return days


@contextmanager
def doing(what: str) -> Generator[Callable[[str], None], None, None]:
    """Show what is in progress: a spinner on a terminal, whose text the yielded function replaces; otherwise a line."""
    if console.is_terminal:
        with console.status(what) as status:
            yield status.update
    else:
        console.print(what)
        yield lambda _: None
