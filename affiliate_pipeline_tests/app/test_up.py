"""`up` and `down` in one folder: which processes they stop, and when `up` does not start."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from affiliate_pipeline import environment as settings
from affiliate_pipeline.app import extras, processes
from affiliate_pipeline.app.__main__ import app
from affiliate_pipeline.app.cli import CommandError
from affiliate_pipeline.app.up import Landing
from affiliate_pipeline.exchanges.endpoint import Snapshot
from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline.postgres.errors import StoreUnavailable

# An `up` that has the lock and writes its pid only after a line on its standard input.
SLOW_UP = """
import fcntl, os, signal, sys
lock = open("up.lock", "a")
fcntl.flock(lock, fcntl.LOCK_EX)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
print("locked", flush=True)
input()
lock.write(str(os.getpid()))
lock.flush()
signal.pause()
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / ".affiliate"
    home.mkdir()
    return home


@pytest.fixture
def slow_up(home: Path) -> Iterator[subprocess.Popen]:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", SLOW_UP], cwd=home, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout and process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_down_waits_for_the_pid_of_an_up_that_has_just_started(slow_up, monkeypatch, capsys):
    sleeps = iter(range(100))

    def write_pid_later(_: float) -> None:
        if next(sleeps) == 3:
            print(file=slow_up.stdin, flush=True)
        threading.Event().wait(0.01)

    monkeypatch.setattr(processes.time, "sleep", write_pid_later)

    app(["down"], standalone_mode=False)

    assert "Stopped." in capsys.readouterr().out
    assert slow_up.wait(60) == 7


def test_up_replaces_the_pid_of_a_killed_up_before_it_stops_leftover_processes(home, monkeypatch):
    (home / "up.lock").write_text("1234567")
    pids = []
    monkeypatch.setattr(processes, "stop_processes", lambda home: pids.append((home / "up.lock").read_text()))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(CommandError, match="cannot be used"), socket.create_server(("127.0.0.1", 0)) as taken:
        app(["up", "--port", f"{taken.getsockname()[1]}"], standalone_mode=False)

    assert pids == [f"{os.getpid()}"]


@pytest.mark.empty_database
@pytest.mark.parametrize("leftover", [True, False])
@pytest.mark.parametrize("place", ["environment", ".env"])
def test_up_does_not_start_the_sandbox_with_a_configured_database(
    home, tmp_path, monkeypatch, database_url, query, leftover, place
):
    if place == ".env":
        (tmp_path / ".env").write_text(f"AFFILIATE_DATABASE_URL={database_url}\n")
    else:
        monkeypatch.setenv("AFFILIATE_DATABASE_URL", database_url)
    if leftover:
        settings.save_sandbox_variables({"BINANCE_BASE_URL": "http://127.0.0.1:9", "BINANCE_PARTNER_API_KEY": "key"})
    before = query("select datname::text from pg_database order by 1"), sorted(home.iterdir())

    with pytest.raises(
        CommandError, match="AFFILIATE_DATABASE_URL is set, but no exchange is configured. Set .* or unset"
    ):
        app(["up", "--once"], standalone_mode=False)

    assert (query("select datname::text from pg_database order by 1"), sorted(home.iterdir())) == before
    assert query("select count(*) from pg_namespace where nspname = 'affiliate'") == [(0,)]


def test_without_the_extras_up_names_them_and_creates_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(extras, "find_spec", lambda _module: None)
    before = list(tmp_path.iterdir())
    with pytest.raises(CommandError, match=r"pip install 'affiliate-pipeline\[embedded,ui\]'"):
        app(["up"], standalone_mode=False)
    with pytest.raises(CommandError, match=r"pip install 'affiliate-pipeline\[embedded\]'"):
        app(["up", "--once"], standalone_mode=False)
    assert list(tmp_path.iterdir()) == before


@pytest.mark.parametrize(("hours", "snapshots"), [((23, 0, 0), ["2026-11-29", "2026-11-30"]), ((9, 9), ["2026-11-29"])])
def test_a_snapshot_that_fails_because_its_day_has_ended_is_taken_on_the_next_day(monkeypatch, hours, snapshots):
    clock = (datetime(2026, 11, 30 if hour == 0 else 29, hour) for hour in hours)

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return next(clock).replace(tzinfo=tz)

    taken: list[str] = []

    def land(_self, _endpoints, days) -> bool:
        taken.extend(map(str, days))
        return f"{days[0]}" == "2026-11-30"

    monkeypatch.setattr("affiliate_pipeline.app.up.datetime", Clock)
    monkeypatch.setattr(Landing, "_land", land)
    endpoint = next(each for each in ENDPOINTS if isinstance(each, Snapshot))
    landed = Landing(settings.configured(), threading.Event()).land([(endpoint, [datetime(2026, 11, 29).date()])])
    assert (taken, landed) == (snapshots, len(snapshots) == 2)


def test_up_names_a_variable_that_belongs_to_no_account(home, monkeypatch, capsys):
    monkeypatch.setenv("AFFILIATE_DATABASE_URL", "postgresql://127.0.0.1:1/none")
    monkeypatch.setenv("LBANK_API_KEY__2ND", "key")
    with pytest.raises(StoreUnavailable):
        app(["up", "--once"], standalone_mode=False)
    assert "LBANK_API_KEY__2ND is ignored: 2ND is not the alias of an account." in " ".join(
        capsys.readouterr().out.split()
    )
