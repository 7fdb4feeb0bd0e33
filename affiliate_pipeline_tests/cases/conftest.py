"""Fixtures that run commands in the test's process."""

import sys
from collections.abc import Callable

import pytest

from affiliate_pipeline.app.__main__ import app, main
from affiliate_pipeline.sandbox import Sandbox


@pytest.fixture
def run_check(
    both_exchanges: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[], str]:
    """Runs `check` for the accounts of both exchanges, and returns what it prints."""
    monkeypatch.setenv("COLUMNS", "1000")

    def run() -> str:
        capsys.readouterr()
        app(["check"], standalone_mode=False)
        return capsys.readouterr().out

    return run


@pytest.fixture
def run_failing_command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that exits with 1 and without a traceback, and returns what it prints."""
    monkeypatch.setenv("COLUMNS", "1000")

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["affiliate-pipeline", *arguments])
        with pytest.raises(SystemExit) as exited:
            main()
        printed = "".join(capfd.readouterr())
        assert exited.value.code == 1
        assert "Traceback" not in printed
        return printed

    return run
