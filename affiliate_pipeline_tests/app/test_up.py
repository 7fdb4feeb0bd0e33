"""`up` and `down` in one folder: which processes they stop, and when `up` does not start."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import date, datetime
from pathlib import Path

import pytest

from affiliate_pipeline import environment as settings
from affiliate_pipeline.app import extras, processes, up
from affiliate_pipeline.app import land as land_command
from affiliate_pipeline.app.__main__ import app
from affiliate_pipeline.app.cli import CommandError
from affiliate_pipeline.app.dagster_client import save_port
from affiliate_pipeline.app.landing import Landing, LandingInterrupted, Request, print_failures, request_of
from affiliate_pipeline.exchanges.endpoint import Snapshot
from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline.postgres.errors import StoreUnavailable
from affiliate_pipeline_tests.app.dagster_processes import DAEMON, WEBSERVER, running
from affiliate_pipeline_tests.defs.direct_runs import land
from affiliate_pipeline_tests.defs.rebates import DAYS, KEY, SETTLED
from affiliate_pipeline_tests.scripted_server import ScriptedServer, http

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


@pytest.mark.parametrize("services", [(WEBSERVER, DAEMON), (WEBSERVER,)])
def test_down_cancels_runs_only_if_it_stops_the_daemon_that_they_belong_to(home, tmp_path, services):
    with ExitStack() as stack:
        for each in services:
            stack.enter_context(running(tmp_path, *each))
        webserver = stack.enter_context(ScriptedServer(http(200, b'{"data":{"runsOrError":{"results":[]}}}')))
        save_port(home, webserver.port)

        app(["down"], standalone_mode=False)

    assert len(webserver.requests) == (DAEMON in services)
    assert not processes.running_processes(home)


@pytest.mark.parametrize(
    ("services", "message"),
    [((WEBSERVER, DAEMON), "launched here"), ((WEBSERVER,), "another `affiliate-pipeline` command is landing days")],
    ids=["up", "up --once"],
)
def test_land_uses_the_dagster_of_up_but_not_that_of_up_once(home, tmp_path, monkeypatch, capsys, services, message):
    monkeypatch.setattr(land_command, "READY_WAIT_S", 0)
    loaded = b'"workspaceLocationEntryOrError":{"loadStatus":"LOADED","locationOrLoadError":{"__typename":"Location"}}'
    launch = b'"launchRun":{"__typename":"PythonError","message":"launched here"}'
    no_runs = b'"runsOrError":{"results":[]}'
    with ExitStack() as stack:
        stack.enter_context(processes.exclusive(home))
        for each in services:
            stack.enter_context(running(tmp_path, *each))
        webserver = stack.enter_context(ScriptedServer(http(200, b'{"data":{%b,%b,%b}}' % (loaded, launch, no_runs))))
        save_port(home, webserver.port)
        try:
            app(["land", "lbank/roster"], standalone_mode=False)
        except CommandError as error:
            print(error)
        processes.stop_processes(home)

    assert message in capsys.readouterr().out


def test_a_signal_ends_a_land_that_waits_for_another_command(home, monkeypatch):
    interrupted = threading.Event()
    interrupted.set()
    monkeypatch.setattr(land_command, "stop_on_signals", lambda: interrupted)
    with processes.exclusive(home):
        assert app(["land", "lbank/roster"], standalone_mode=False) == 1


def test_up_replaces_the_pid_of_a_killed_up_before_it_stops_leftover_processes(home, monkeypatch):
    (home / "up.lock").write_text("1234567")
    pids = []
    monkeypatch.setattr(processes, "stop_processes", lambda home: pids.append((home / "up.lock").read_text()))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(CommandError, match="cannot be used"), socket.create_server(("127.0.0.1", 0)) as taken:
        app(["up", "--port", f"{taken.getsockname()[1]}"], standalone_mode=False)

    assert pids == [f"{os.getpid()}"]


@pytest.mark.empty_database
def test_up_does_not_start_the_sandbox_with_a_configured_database(home, tmp_path, monkeypatch, database_url, query):
    def state() -> tuple[list[tuple], list[Path]]:
        return query("select datname::text from pg_database order by 1"), sorted(home.iterdir())

    def refused_by_up() -> None:
        before = state()
        message = "AFFILIATE_DATABASE_URL is set, but no exchange is configured. Set .* or unset"
        with pytest.raises(CommandError, match=message):
            app(["up", "--once"], standalone_mode=False)
        assert state() == before
        assert query("select count(*) from pg_namespace where nspname = 'affiliate'") == [(0,)]

    with monkeypatch.context() as patch:
        patch.setenv("AFFILIATE_DATABASE_URL", database_url)
        refused_by_up()
    (tmp_path / ".env").write_text(f"AFFILIATE_DATABASE_URL={database_url}\n")
    refused_by_up()
    # With the variables that an earlier sandbox has left.
    settings.save_sandbox_variables({"BINANCE_BASE_URL": "http://127.0.0.1:9", "BINANCE_PARTNER_API_KEY": "key"})
    refused_by_up()
    (tmp_path / ".env").unlink()
    monkeypatch.setenv("AFFILIATE_DATABASE_URL", database_url)
    refused_by_up()


def test_without_the_extras_up_names_them_and_creates_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(extras, "find_spec", lambda _module: None)
    before = list(tmp_path.iterdir())
    with pytest.raises(CommandError, match=r"pip install 'affiliate-pipeline\[embedded,ui\]'"):
        app(["up"], standalone_mode=False)
    monkeypatch.setenv("AFFILIATE_DATABASE_URL", "postgresql://127.0.0.1:1/none")
    monkeypatch.setenv("LBANK_API_KEY", "key")
    with pytest.raises(CommandError, match=r"pip install 'affiliate-pipeline\[ui\]'"):
        app(["up", "--once"], standalone_mode=False)
    assert list(tmp_path.iterdir()) == before


class Dagster:
    """A stub of Dagster's webserver, whose runs have these statuses in launch order.

    `refused` makes a launch fail; a `deleted` run has no status.
    """

    def __init__(self, *statuses: str):
        self.run_statuses = [*statuses]
        self.launched: list[tuple[tuple[str, ...], tuple[date, ...]]] = []
        self.cancelled: list[str] = []

    def launch(self, keys, days) -> str:
        if self.run_statuses[len(self.launched)] == "refused":
            self.run_statuses.pop(len(self.launched))
            raise CommandError("Dagster refused to launch it")
        self.launched.append((tuple(keys), tuple(days)))
        return f"{len(self.launched) - 1}"

    def statuses(self, run_ids) -> dict[str, str]:
        statuses = {each: self.run_statuses[int(each)] for each in run_ids}
        return {each: status for each, status in statuses.items() if status != "deleted"}

    def failures(self, _run_id) -> list[str]:
        return ["the reason"]

    def cancel(self, run_ids) -> None:
        self.cancelled.extend(run_ids)


@pytest.fixture
def landing(database_url, monkeypatch):
    """Makes a `Landing`, and returns it with the stub of Dagster, whose runs have the given statuses."""
    monkeypatch.setattr("affiliate_pipeline.app.landing.POLL_S", 0.01)
    monkeypatch.setenv("AFFILIATE_DATABASE_URL", database_url)

    def make(*statuses: str, stopping: threading.Event | None = None) -> tuple[Landing, Dagster]:
        dagster = Dagster(*statuses)
        return Landing(settings.configured(), dagster, stopping or threading.Event()), dagster  # type: ignore[arg-type]

    return make


@pytest.mark.parametrize("launched_on", [29, 30])
def test_a_snapshot_that_fails_because_its_day_has_ended_is_taken_on_the_next_day(landing, monkeypatch, launched_on):
    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(2026, 11, 30, tzinfo=tz)

    monkeypatch.setattr("affiliate_pipeline.app.landing.datetime", Clock)
    snapshot = request_of(
        [next(each for each in ENDPOINTS if isinstance(each, Snapshot))], [date(2026, 11, launched_on)]
    )
    runs, dagster = landing("FAILURE", "SUCCESS")
    failures = runs.land([snapshot])
    days = [days for _, days in dagster.launched]
    assert days == [(date(2026, 11, launched_on),), (date(2026, 11, 30),)][: 31 - launched_on]
    assert bool(failures) is (launched_on == 30)


@pytest.mark.parametrize("failing", ["refused", "FAILURE", "CANCELED", "deleted"])
def test_a_run_that_fails_does_not_stop_the_others(landing, capsys, failing):
    requests = [Request(name, (name,)) for name in ("lbank/roster", "affiliate/daily_report", "other/asset")]
    runs, dagster = landing("SUCCESS", failing, "SUCCESS")
    print_failures(runs.land(requests))
    printed = capsys.readouterr().out
    assert "lbank/roster: done" in printed and "other/asset: done" in printed
    assert {
        "refused": "affiliate/daily_report failed.\nDagster refused to launch it",
        "FAILURE": "affiliate/daily_report failed.\nthe reason",
        "CANCELED": "affiliate/daily_report failed.\nthe run was canceled",
        "deleted": "affiliate/daily_report failed.\nthe run was deleted",
    }[failing] in printed
    assert dagster.cancelled == []


def test_interrupting_a_landing_cancels_its_runs(landing):
    stopping = threading.Event()
    runs, dagster = landing("STARTED", "STARTED", stopping=stopping)
    launch = dagster.launch

    def launch_and_stop(keys, days) -> str:
        if dagster.launched:
            stopping.set()
        return launch(keys, days)

    dagster.launch = launch_and_stop
    with pytest.raises(LandingInterrupted):
        runs.land([Request("first", ("lbank/roster",)), Request("second", ("affiliate/daily_report",))])
    assert dagster.cancelled == ["0", "1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["binance/rebate_recent_recrd"],
            "there is no asset binance/rebate_recent_recrd. Did you mean binance/rebate_recent_record",
        ),
        (["lbank/roster", "2026-11-01"], "lbank/roster has no days"),
        (
            ["lbank/trade_user", "2999-01-01"],
            "lbank/trade_user: 2999-01-01 has not ended. The last day that can land is 2",
        ),
        (["affiliate/daily_report", "2999-01-01"], "affiliate/daily_report: 2999-01-01 has not ended"),
        (["binance/if_new_user", "2025-01-02"], "binance/if_new_user: only today can land"),
        (["binance/if_new_user", "2999-01-01"], "binance/if_new_user: 2999-01-01 has not ended"),
        (["lbank/trade_user", "2024-12-31"], "lbank/trade_user: 2024-12-31 is before the first day, 2025-01-01"),
        (["lbank/trade_user", "yesterday"], "yesterday is neither a day"),
    ],
)
def test_land_refuses_what_cannot_land_before_anything_starts(home, arguments, message):
    with pytest.raises(CommandError, match=re.escape(message)):
        app(["land", *arguments], standalone_mode=False)
    assert list(home.iterdir()) == []


def test_up_fails_no_day_of_a_real_account(home, monkeypatch):
    monkeypatch.setenv("LBANK_API_KEY", "key")
    with pytest.raises(CommandError, match="--fail-day is for the sandbox, but an exchange is configured"):
        app(["up", "--fail-day", "yesterday"], standalone_mode=False)
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("start", ["2999-01-01", None])
def test_up_reports_the_reason_if_nothing_can_land(landing, monkeypatch, capsys, start):
    if start:
        monkeypatch.setenv("AFFILIATE_START_DATE", start)
        monkeypatch.setenv("BINANCE_PARTNER_API_KEY", "key")
    runs, dagster = landing()
    assert not up._land(runs, ())
    assert dagster.launched == []
    reason = "the first day, 2999-01-01, has not ended" if start else "no account has its API key set"
    assert f"Nothing can land: {reason}." in capsys.readouterr().out


def test_up_reports_if_no_day_is_due_and_lands_the_day_of_fail_day_again(landing, sandbox, monkeypatch, capsys):
    monkeypatch.setenv("AFFILIATE_START_DATE", f"{SETTLED}")
    land(KEY, DAYS)
    runs, dagster = landing("SUCCESS", "SUCCESS", "SUCCESS")
    monkeypatch.setattr(Landing, "_scheduled", lambda _: [ENDPOINTS[0]])

    assert up._land(runs, ())
    assert (KEY,) not in dict(dagster.launched)
    nothing = "Nothing to land: every fetchable day has settled or was read within the last hour."
    assert nothing in capsys.readouterr().out

    assert up._land(runs, (SETTLED,))
    assert dict(dagster.launched)[KEY,] == (SETTLED,)


def test_up_names_a_variable_that_belongs_to_no_account(home, monkeypatch, capsys):
    monkeypatch.setenv("AFFILIATE_DATABASE_URL", "postgresql://127.0.0.1:1/none")
    monkeypatch.setenv("LBANK_API_KEY__2ND", "key")
    with pytest.raises(StoreUnavailable):
        app(["up", "--once"], standalone_mode=False)
    assert "LBANK_API_KEY__2ND is ignored: 2ND is not the alias of an account." in " ".join(
        capsys.readouterr().out.split()
    )
