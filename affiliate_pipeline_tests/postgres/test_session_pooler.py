"""A pooler in session mode: each connection has a whole session, which is reset before the next connection uses it."""

import psycopg
import pytest

from affiliate_pipeline.landing.store import Store
from affiliate_pipeline.postgres import connection
from affiliate_pipeline.postgres.errors import StoreUnavailable
from affiliate_pipeline_tests import child_processes
from affiliate_pipeline_tests.conftest import materialize
from affiliate_pipeline_tests.defs.direct_runs import land
from affiliate_pipeline_tests.defs.rebates import DAYS, ENDPOINT, KEY, landed, rebates, sent
from affiliate_pipeline_tests.pgbouncer import needs_pgbouncer, pgbouncer

pytestmark = needs_pgbouncer

KICKBACKS = "binance/kickback_recent_record"
LOCKS = "select 1 from pg_locks where locktype = 'advisory'"


def test_the_next_run_lands_after_a_run_was_killed_in_or_between_transactions(
    sandbox, database_url, query, tmp_path, monkeypatch
):
    rows = rebates(DAYS[0], 20)
    sandbox.binance.set_rebates(rows)
    # The victim's session for the first key has an open transaction; the one for the second key has none.
    keys = [KEY, KICKBACKS]
    with pgbouncer(database_url, tmp_path, "session", default_pool_size=8) as url:
        monkeypatch.setenv("AFFILIATE_DATABASE_URL", url)
        received, sent_by_victim = child_processes.pipe()
        victim = child_processes.start(child_processes.lock_assets, url, keys, sent_by_victim)
        assert received.recv() == "locked"
        assert len(query(LOCKS)) == len(keys)
        victim.kill()
        victim.join()
        runs = {key: land(key, DAYS[:1]) for key in keys}
    assert {key: run.message for key, run in runs.items()} == dict.fromkeys(keys, "")
    assert landed(query, DAYS[0]) == sent(rows)


def test_a_reused_session_has_no_settings_or_locks_of_the_connection_before(database_url, query, tmp_path):
    with pgbouncer(database_url, tmp_path, "session", default_pool_size=2) as url:
        with Store(url) as store, store.exclusive(ENDPOINT):
            store.connection.execute("create temporary table superseded (n int)")
            [(pid,)] = store.connection.execute("select pg_backend_pid()").fetchall()
            store.connection.commit()
            store.close()
        with psycopg.connect(url) as one, psycopg.connect(url) as other:
            sessions = [one, other]
            assert (pid,) in [session.execute("select pg_backend_pid()").fetchone() for session in sessions]
            for session in sessions:
                assert session.execute("show lock_timeout").fetchone() == ("0",)
                assert session.execute("select to_regclass('superseded')").fetchone() == (None,)
        assert query(LOCKS) == []


def test_a_pooler_that_does_not_reset_sessions_is_refused(sandbox, database_url, tmp_path, monkeypatch):
    monkeypatch.setattr(connection, "_urls_with_own_sessions", set())
    with pgbouncer(database_url, tmp_path, "session", server_reset_query="") as url:
        with pytest.raises(StoreUnavailable, match="server_reset_query = DISCARD ALL"):
            Store(url)
        monkeypatch.setenv("AFFILIATE_DATABASE_URL", url)
        assert "does not reset sessions" in materialize(KEY, DAYS[:1]).failed[DAYS[0]]
    assert sandbox.requests == []
