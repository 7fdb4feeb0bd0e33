"""Counts, durations and commands in messages."""

import sys
from pathlib import Path

import pytest

from affiliate_pipeline.domain import wording
from affiliate_pipeline.domain.wording import PROGRAM, command, count_of, duration, up_command


def test_one_is_singular_and_everything_else_is_plural():
    assert [count_of(number, "day") for number in (0, 1, 2)] == ["0 days", "1 day", "2 days"]
    assert [count_of(number, "query", "queries") for number in (1, 2)] == ["1 query", "2 queries"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "1 s"),
        (4.2, "5 s"),
        (20.0000001, "20 s"),
        (59.7, "1 min"),
        (150, "2 min 30 s"),
        (7199.9, "2 h"),
        (12_000, "3 h 20 min"),
        (604_800, "7 days"),
        (176_401, "2 days 2 h"),
    ],
)
def test_a_duration_is_readable_at_every_length(seconds, text):
    assert duration(seconds) == text


@pytest.fixture
def program(tmp_path, monkeypatch) -> Path:
    """The command in the virtual environment of the current folder; PATH is empty."""
    program = tmp_path / ".venv" / "bin" / PROGRAM
    program.parent.mkdir(parents=True)
    program.touch(0o755)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    monkeypatch.setenv("PATH", "")
    monkeypatch.chdir(tmp_path)
    return program


def test_a_command_that_is_not_on_path_has_its_path(program, tmp_path, monkeypatch):
    assert command("psql") == ".venv/bin/affiliate-pipeline psql"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert command("psql") == f"{program} psql"


def test_a_command_that_a_shell_finds_has_no_path(program, monkeypatch):
    monkeypatch.setenv("PATH", str(program.parent))
    assert command("psql") == "affiliate-pipeline psql"


def test_another_installation_on_path_is_not_suggested(program, tmp_path, monkeypatch):
    other = tmp_path / "bin" / PROGRAM
    other.parent.mkdir()
    other.touch(0o755)
    monkeypatch.setenv("PATH", str(other.parent))
    assert command("psql") == ".venv/bin/affiliate-pipeline psql"
    program.unlink()
    assert command("psql") == "affiliate-pipeline psql"


def test_make_up_is_suggested_only_in_a_checkout(program, tmp_path, monkeypatch):
    (tmp_path / "Makefile").touch()
    assert up_command("--once") == ".venv/bin/affiliate-pipeline up --once"
    monkeypatch.setattr(wording, "_CHECKOUT", tmp_path)
    assert (up_command(), up_command("--port 3001")) == ("make up", "make up ARGS='--port 3001'")
    (tmp_path / "Makefile").unlink()
    assert up_command() == ".venv/bin/affiliate-pipeline up"
