"""Advisory locks of a session are exclusive and are released, even after very short waits."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from affiliate_pipeline.postgres import locks
from affiliate_pipeline.postgres.connection import connect
from affiliate_pipeline.postgres.locks import Lock, locked, try_locked

WORKERS = 4
LOCK = Lock("test.kind", "name")


def test_a_lock_that_is_granted_during_its_timeout_is_exclusive_and_released(database_url, monkeypatch):
    """PostgreSQL can report a timeout for a session's lock and still grant it at the same moment."""
    monkeypatch.setattr(locks, "LOCK_CHECK_S", 0.001)
    inside = threading.Lock()

    def work(_: int) -> int:
        with connect(database_url, autocommit=True) as connection:
            for _ in range(20):
                with locked(connection, LOCK, "the test"):
                    assert inside.acquire(blocking=False)
                    connection.execute("select pg_sleep(0.001)")
                    inside.release()
            # The session is still open, so the lock was really released.
            [(held,)] = connection.execute(
                "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()"
            ).fetchall()
            return held

    with ThreadPoolExecutor(WORKERS) as pool:
        assert list(pool.map(work, range(WORKERS))) == [0] * WORKERS


@pytest.mark.parametrize("lock", [LOCK, Lock("test.kind")])
def test_a_lock_is_tried_without_waiting(database_url, lock):
    with connect(database_url, autocommit=True) as one, connect(database_url, autocommit=True) as other:
        with try_locked(one, lock, "the test") as is_first:
            with try_locked(other, lock, "the test") as is_second:
                assert (is_first, is_second) == (True, False)
        with try_locked(other, lock, "the test") as is_second:
            assert is_second


def test_a_run_of_another_role_counts_as_live(database_url, query):
    """PostgreSQL hides the state of another role's sessions."""
    query("drop role if exists other")
    query("create role other login password 'o'")
    with connect(database_url, autocommit=True) as holder, locked(holder, LOCK, "the test"):
        url = f"postgresql://other:o@{database_url.partition('@')[2]}"
        with connect(url, autocommit=True) as session, try_locked(session, LOCK, "the test") as is_acquired:
            assert not is_acquired
    query("drop role other")
