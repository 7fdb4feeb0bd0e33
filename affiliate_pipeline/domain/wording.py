"""Wording shared by the messages of all packages."""

import math
import shlex
import shutil
import sys
from pathlib import Path

PROGRAM = "affiliate-pipeline"
# The folder of the checkout, if the package is installed from one.
_CHECKOUT = Path(__file__).resolve().parents[2]


def count_of(number: int, noun: str, plural: str = "") -> str:
    """The number with its noun, in the plural (by default with an s) unless it is 1: `1 row`, `2 rows`."""
    if number == 1:
        return f"{number} {noun}"
    return f"{number} {plural or f'{noun}s'}"


def duration(seconds: float) -> str:
    """A length of time in at most two units, rounded up: `4 s`, `2 min 30 s`, `3 h 20 min`, `2 days 1 h`."""
    # Without `round`, an inexact float such as 3.0000000000000004 would be 4 s.
    whole = math.ceil(round(seconds, 3))
    if whole < 60:
        return f"{whole} s"
    if whole < 2 * 3600:
        return _of_two(whole, 60, "min", "s")
    if whole < 2 * 86_400:
        return _of_two(math.ceil(whole / 60), 60, "h", "min")
    return _of_two(math.ceil(whole / 3600), 24, "days", "h")


def _of_two(number: int, size: int, unit: str, smaller: str) -> str:
    whole, rest = divmod(number, size)
    return f"{whole} {unit} {rest} {smaller}" if rest else f"{whole} {unit}"


def command(arguments: str, name: str = PROGRAM) -> str:
    """A command line for the current folder that runs a program of this virtual environment.

    The program has its path, relative if possible, unless a shell finds it on PATH.
    """
    program = Path(sys.prefix, "bin", name)
    on_path = shutil.which(name)
    if not program.exists() or (on_path and program.samefile(on_path)):
        return f"{name} {arguments}"
    here = Path.cwd()
    path = program.relative_to(here) if program.is_relative_to(here) else program
    return f"{shlex.quote(str(path))} {arguments}"


def up_command(options: str = "") -> str:
    """The command that starts everything; in a checkout `make up`, which also installs what is missing."""
    if Path.cwd() == _CHECKOUT and (_CHECKOUT / "Makefile").is_file():
        return f"make up ARGS='{options}'" if options else "make up"
    return command(f"up {options}".strip())
