"""Case transaction-pooler: through a transaction pooler, no day lands twice and no run waits forever."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psycopg
import pytest

from affiliate_pipeline.environment import configured
from affiliate_pipeline.landing import endpoint_tables
from affiliate_pipeline.landing.day_writer import DayWriter
from affiliate_pipeline.landing.pipeline import Failed, Landed, Outcome, connected, land_days
from affiliate_pipeline.landing.store import Store
from affiliate_pipeline.postgres import connection, locks
from affiliate_pipeline.postgres.errors import StoreUnavailable
from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline_tests.conftest import materialize
from affiliate_pipeline_tests.defs.direct_runs import land
from affiliate_pipeline_tests.defs.rebates import DAYS, ENDPOINT, KEY, SETTLED, landed, rebates, sent
from affiliate_pipeline_tests.pgbouncer import needs_pgbouncer, pgbouncer

ROWS = rebates(SETTLED, 399)
REFUSED = "leads through a pooler in transaction or statement mode"


@pytest.fixture(autouse=True)
def no_cached_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make each test check its addresses again: a process caches the addresses that do not lead to a transaction pooler."""
    monkeypatch.setattr(connection, "_urls_with_own_sessions", set())


@pytest.fixture
def pooled(database_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The database's URL through a pooler in transaction mode, or with the settings of the parameter."""
    with pgbouncer(database_url, tmp_path, **{"mode": "transaction"} | getattr(request, "param", {})) as url:
        yield url


@pytest.fixture
def two_runs(sandbox: Sandbox, database_url: str) -> Callable[[str], list[Outcome]]:
    """Lands `ROWS` in two concurrent runs through this URL, and returns the outcomes."""
    sandbox.binance.set_rebates(ROWS)
    with Store(database_url) as store:
        endpoint_tables.ensure(store.connection, ENDPOINT)

    def run(url: str) -> list[Outcome]:
        outcomes: list[Outcome] = []

        def land() -> None:
            with Store(url) as store, connected(ENDPOINT, store, configured().variables) as session:
                outcomes.extend(land_days(ENDPOINT, [SETTLED], session=session, store=store, run_id="r"))

        threads = [threading.Thread(target=land) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return outcomes

    return run


@pytest.mark.empty_database
@needs_pgbouncer
@pytest.mark.parametrize(
    "pooled",
    [
        {"mode": "transaction"},
        {"mode": "statement"},
        {"mode": "transaction", "default_pool_size": 1},
        {"mode": "transaction", "server_round_robin": 1, "min_pool_size": 5},
    ],
    indirect=True,
    ids=["transaction", "statement", "one session", "many sessions, round robin"],
)
def test_two_stores_through_a_transaction_pooler_are_refused(pooled, query):
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match=REFUSED) as raised, Store(pooled):
            pass
        assert "direct address" in f"{raised.value.problem.action}"
    assert query("select to_regclass('affiliate.landing')") == [(None,)]


@needs_pgbouncer
@pytest.mark.parametrize("pooled", [{"mode": "session"}], indirect=True)
def test_two_runs_through_a_session_pooler_land_the_day_once(pooled, two_runs, query):
    outcomes = two_runs(pooled)
    assert sorted(outcome.changed for outcome in outcomes if isinstance(outcome, Landed)) == [False, True]
    assert landed(query, SETTLED) == sent(ROWS)


@needs_pgbouncer
def test_every_command_refuses_a_transaction_pooler(sandbox, pooled, monkeypatch, run_failing_command):
    monkeypatch.setenv("AFFILIATE_DATABASE_URL", pooled)
    commands = [
        ["check"],
        ["up", "--once"],
        ["report"],
        ["psql", "-c", "select 1"],
        ["pg_dump"],
        ["plan", KEY, f"{SETTLED}"],
        ["export", KEY, f"{SETTLED}"],
    ]
    printed = {command[0]: run_failing_command(*command) for command in commands}
    refused = {command: REFUSED in text and "direct address" in text for command, text in printed.items()}
    assert refused == {command[0]: True for command in commands}


@needs_pgbouncer
def test_a_run_refuses_a_transaction_pooler_before_any_request(sandbox, pooled, monkeypatch):
    monkeypatch.setenv("AFFILIATE_DATABASE_URL", pooled)
    run = materialize(KEY, DAYS)
    assert sorted(run.failed) == DAYS
    assert run.message.count(REFUSED) == 1
    assert sandbox.requests == []


@needs_pgbouncer
def test_landing_is_correct_through_an_undetected_pooler(pooled, two_runs, query, monkeypatch):
    monkeypatch.setattr(connection, "_prove_session", lambda *_: None)
    # Psycopg prepares frequent statements in a session, which a transaction pooler does not support.
    monkeypatch.setattr(psycopg, "connect", partial(psycopg.connect, prepare_threshold=None))
    monkeypatch.setattr(locks, "LOCK_CHECK_S", 0.2)
    monkeypatch.setattr(locks, "SILENT_HOLDER_S", 1)

    outcomes = two_runs(pooled)

    assert len(outcomes) == 2
    failures = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    reasons = [each.problem.what for each in failures]
    assert all("no longer holds the asset's lock" in each or "is not a live run" in each for each in reasons)
    if any(isinstance(outcome, Landed) for outcome in outcomes):
        assert landed(query, SETTLED) == sent(ROWS)
    assert query("select count(*) from affiliate.rejected_row") in ([(0,)], [(399,)])


def test_a_run_that_has_lost_its_lock_changes_nothing_and_stores_the_received_rows(sandbox, query, monkeypatch):
    rows = rebates(SETTLED, 300)
    sandbox.binance.set_rebates(rows)
    write = DayWriter.write

    def unlock_and_write(writer, *args, **kwargs):
        writer.connection.execute("select pg_advisory_unlock_all()")
        writer.connection.commit()
        return write(writer, *args, **kwargs)

    monkeypatch.setattr(DayWriter, "write", unlock_and_write)
    run = land(KEY, [SETTLED])
    assert "no longer holds the asset's lock" in run.failed[SETTLED]
    assert query("select count(*) from binance.rebate_recent_record") == [(0,)]
    assert query("select count(*) from affiliate.rejected_row") == [(len(rows),)]


def idle_holder(database_url: str, name: str) -> psycopg.Connection:
    """An idle session that holds the asset's lock."""
    holder = psycopg.connect(database_url, autocommit=True, application_name=name)
    holder.execute("select pg_advisory_lock(hashtext('affiliate_pipeline.asset'), hashtext(%s))", (KEY,))
    return holder


def test_a_run_does_not_wait_for_a_lock_that_no_live_run_holds(sandbox, database_url, monkeypatch):
    monkeypatch.setattr(locks, "SILENT_HOLDER_S", 0)
    with idle_holder(database_url, "") as holder:
        run = materialize(KEY, DAYS)
        pid = holder.info.backend_pid
    assert sorted(run.failed) == DAYS
    assert "its lock is held by the database session" in run.failed[SETTLED]
    assert "), which is not a live run" in run.failed[SETTLED]
    assert f" {pid} (no name, connected since" in run.failed[SETTLED]
    assert f"pg_terminate_backend({pid})" in run.failed[SETTLED]
    assert sandbox.requests == []


@pytest.mark.parametrize("name", ["psql", "affiliate_pipeline"])
def test_a_session_that_is_silent_for_too_long_is_not_a_live_run_whatever_its_name(database_url, monkeypatch, name):
    monkeypatch.setattr(locks, "SILENT_HOLDER_S", 0)
    with idle_holder(database_url, name) as holder, Store(database_url) as store:
        with pytest.raises(StoreUnavailable) as raised, store.exclusive(ENDPOINT):
            pass
        pid = holder.info.backend_pid
    assert f" {pid} ({name}, connected since" in raised.value.problem.what
    assert "), which is not a live run" in raised.value.problem.what


def test_a_run_waits_for_the_lock_of_a_live_run(sandbox, database_url, query, monkeypatch):
    monkeypatch.setattr(locks, "LOCK_CHECK_S", 0.1)
    sandbox.binance.set_rebates(rebates(SETTLED, 10))
    runs = Counter()

    def run() -> None:
        runs[land(KEY, [SETTLED]).success] += 1

    # Live by its name and because it has not been silent for `SILENT_HOLDER_S`.
    with idle_holder(database_url, "affiliate_pipeline 1@elsewhere"):
        thread = threading.Thread(target=run)
        thread.start()
        while not query("select 1 from pg_locks where locktype = 'advisory' and not granted"):
            assert thread.is_alive()
        assert not runs
    thread.join()
    assert runs == {True: 1}
