"""What every command does with wrong arguments: one line with what is wrong and what to do."""

import sys
from importlib.metadata import version

import pytest

from affiliate_pipeline.app.__main__ import main


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the program; returns the exit code and what it printed."""

    def run(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["affiliate-pipeline", *arguments])
        with pytest.raises(SystemExit) as exited:
            main()
        return exited.value.code, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["up", "--port", "99999"], "--port"),
        (["up", "--nothing"], "--nothing"),
        (["nothing"], "'nothing'"),
        (["plan"], "Missing argument"),
        (["sandbox", "--port", "99999"], "--port"),
        (["sandbox", "--port", "x"], "--port"),
        (["sandbox", "--rows-per-day", "-5"], "--rows-per-day"),
        (["sandbox", "--users", "-1"], "--users"),
        (["sandbox", "--rate-scale", "0"], "--rate-scale"),
        (["sandbox", "--error-rate", "5"], "--error-rate"),
    ],
)
def test_wrong_arguments_are_reported_in_one_line_with_the_command_that_lists_the_right_ones(run, arguments, what):
    code, printed, error = run(*arguments)
    assert (code, printed, error.count("\n")) == (2, "", 1)
    assert what in error
    name = f"{arguments[0]} " if arguments[0] != "nothing" else ""
    assert error.endswith(f"affiliate-pipeline {name}--help`\n")


@pytest.mark.parametrize("days", ["2026-10-31...2026-10-01", "2026-10-02...2026-10-01"])
def test_a_reversed_range_is_reported_as_reversed_with_the_right_one(run, days):
    first, _, last = days.partition("...")
    code, _, error = run("plan", "lbank/trade_user", days)
    assert code == 1
    assert error == (
        f"affiliate-pipeline: {days} is reversed: the first day comes after the last one. Write {last}...{first}\n"
    )


@pytest.mark.parametrize("days", ["2026-10", "2026-10-32", "2026-10-01..2026-10-02", "2026-10-01...x"])
def test_what_is_no_day_is_reported_with_an_example(run, days):
    code, _, error = run("plan", "lbank/trade_user", days)
    assert code == 1
    assert error.startswith(f"affiliate-pipeline: {days} is neither a day (2026-10-01) nor a range")


def test_the_version_is_that_of_the_installed_package(run):
    assert run("--version") == (0, f"affiliate-pipeline {version('affiliate-pipeline')}\n", "")


def test_without_a_command_the_help_lists_them(run):
    code, printed, _ = run()
    assert code == 2 and "Usage: affiliate-pipeline" in printed and "export" in printed
