"""PostgreSQL crashes while a run waits or writes: the run's days fail with that cause, and land once it is back."""

import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
from psycopg import sql

from affiliate_pipeline.app.embedded_server import server
from affiliate_pipeline.landing.day_writer import DayWriter
from affiliate_pipeline.postgres import locks
from affiliate_pipeline.postgres.errors import StoreUnavailable
from affiliate_pipeline.postgres.rate_limiter import RateLimiter
from affiliate_pipeline_tests.defs.direct_runs import DirectRun, land
from affiliate_pipeline_tests.defs.rebates import DAYS as ALL_DAYS
from affiliate_pipeline_tests.defs.rebates import KEY, landed, rebates, sent

DAYS = ALL_DAYS[:2]
ROWS = {day: rebates(day, 30) for day in DAYS}


@pytest.fixture
def restart(sandbox, database_url, postgres_home: Path) -> Iterator[Callable[[], None]]:
    """Stops the server as `pg_ctl stop -m immediate` does, and starts it again."""
    sandbox.binance.set_rebates(row for day in DAYS for row in ROWS[day])

    def restart() -> None:
        with psycopg.connect(database_url) as session:
            postmaster = psutil.Process(session.info.backend_pid).parent()
        assert postmaster
        postmaster.send_signal(signal.SIGQUIT)
        while postmaster.is_running() and postmaster.status() != psutil.STATUS_ZOMBIE:
            continue
        assert server.ensure_database(postgres_home, "test") == database_url

    yield restart
    server.ensure_database(postgres_home, "test")


def assert_failed_and_land(query, run: DirectRun) -> None:
    """Assert that all days of the run failed and none landed, then land them."""
    assert sorted(run.failed) == DAYS and "the database cannot be used" in run.message
    assert query("select count(*) from binance.rebate_recent_record") == [(0,)]
    assert query("select 1 from pg_locks where locktype = 'advisory'") == []
    assert land(KEY, DAYS).success
    assert {day: landed(query, day) for day in DAYS} == {day: sent(ROWS[day]) for day in DAYS}


def test_a_crash_before_the_commit_of_a_day(query, restart, monkeypatch):
    verify = DayWriter._verify

    def restart_and_verify(*args, **kwargs):
        monkeypatch.setattr(DayWriter, "_verify", verify)
        restart()
        return verify(*args, **kwargs)

    monkeypatch.setattr(DayWriter, "_verify", restart_and_verify)
    assert_failed_and_land(query, land(KEY, DAYS))


def test_a_crash_while_a_run_waits_for_its_lock(query, database_url, restart):
    runs: list[DirectRun] = []
    # `holder` has the name of a live run: waiting for the lock of any other session is an error.
    with psycopg.connect(database_url, autocommit=True, application_name="affiliate_pipeline 1@elsewhere") as holder:
        lock = locks.Lock("affiliate_pipeline.asset", KEY)
        holder.execute(sql.SQL("select pg_advisory_lock({})").format(lock.key))
        thread = threading.Thread(target=lambda: runs.append(land(KEY, DAYS)))
        thread.start()
        while not query("select 1 from pg_locks where locktype = 'advisory' and not granted"):
            assert thread.is_alive()
        restart()
        thread.join()
    assert_failed_and_land(query, runs[0])


def test_a_crash_while_a_request_waits_for_the_rate_limit(database_url, restart):
    limiter = RateLimiter(database_url, "test", 1, 60, sleep=lambda _: restart())
    with limiter.slot():
        pass
    with pytest.raises(StoreUnavailable, match="the database cannot be used"), limiter.slot():
        pass
    limiter.close()
    with RateLimiter(database_url, "other", 1, 60) as again, again.slot():
        pass
