"""Advisory locks of a session, which end with the process that holds them, however that ends."""

import logging
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from affiliate_pipeline.postgres.connection import APPLICATION
from affiliate_pipeline.postgres.errors import StoreUnavailable, unavailable

# How often a process that waits for a lock checks the lock's holder.
LOCK_CHECK_S = 5
# A live run queries the database at every request, through one of its connections. Only the download of a large file
# keeps it silent for longer than a few minutes.
SILENT_HOLDER_S = 900

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lock:
    """An advisory lock of a session, by what it protects."""

    kind: str
    name: str | None = None

    @property
    def key(self) -> sql.Composed:
        """The arguments of PostgreSQL's functions for it."""
        parts = [self.kind] if self.name is None else [self.kind, self.name]
        return sql.SQL(", ").join(sql.SQL("hashtext({})").format(part) for part in parts)

    @property
    def held(self) -> sql.Composed:
        """`from pg_locks`, restricted to its holder."""
        held = sql.SQL(
            "from pg_locks where locktype = 'advisory' and granted and objsubid = {} and objid = hashtext({})::oid "
            "and database = (select oid from pg_database where datname = current_database())"
        ).format(1 if self.name is None else 2, self.name or self.kind)
        return held if self.name is None else held + sql.SQL(" and classid = hashtext({})::oid").format(self.kind)


@contextmanager
def locked(connection: psycopg.Connection[Any], lock: Lock, what: str) -> Generator[None]:
    """Holds the lock, after waiting for the run that holds it.

    Raises `StoreUnavailable`, which names the holder, if the holder is not a live run.
    """
    with try_locked(connection, lock, what) as is_locked:
        if is_locked:
            yield
            return
    log.info("%s: another run holds its lock; waiting for its end", what)
    while not _wait_for(connection, lock):
        _refuse_dead_holder(connection, lock, what)
    try:
        yield
    finally:
        _unlock(connection, lock)


@contextmanager
def try_locked(connection: psycopg.Connection[Any], lock: Lock, what: str) -> Generator[bool]:
    """Holds the lock if no other session does, and yields whether it does; raises like `locked`."""
    with unavailable(), connection.transaction():
        row = connection.execute(sql.SQL("select pg_try_advisory_lock({})").format(lock.key)).fetchone()
    if not (row and row[0]):
        _refuse_dead_holder(connection, lock, what)
        yield False
        return
    try:
        yield True
    finally:
        _unlock(connection, lock)


def _unlock(connection: psycopg.Connection[Any], lock: Lock) -> None:
    # A lost connection is noticed only when it is used.
    if not connection.closed:
        with unavailable(), connection.transaction():
            connection.execute(sql.SQL("select pg_advisory_unlock({})").format(lock.key))


def _wait_for(connection: psycopg.Connection[Any], lock: Lock) -> bool:
    with unavailable():
        try:
            # In a transaction of its own: one that began before would not see what the holder has committed.
            with connection.transaction():
                connection.execute("select set_config('lock_timeout', %s, true)", (f"{LOCK_CHECK_S * 1000:.0f}ms",))
                connection.execute(sql.SQL("select pg_advisory_lock({})").format(lock.key))
        except psycopg.errors.LockNotAvailable:
            return False
        return True


def _refuse_dead_holder(connection: psycopg.Connection[Any], lock: Lock, what: str) -> None:
    """Raises `StoreUnavailable` if the lock's holder is not a live run. Otherwise a run would wait forever, for example for
    a lock kept by a pooler's idle session."""
    with unavailable(), connection.transaction():
        holder = connection.execute(
            sql.SQL(
                "select pid, coalesce(nullif(application_name, ''), 'no name'), "
                "to_char(backend_start, 'YYYY-MM-DD HH24:MI TZ'), to_char(state_change, 'YYYY-MM-DD HH24:MI TZ') "
                "from pg_stat_activity holder where pid in (select pid {held}) and not (application_name like {ours} "
                "and exists (select from pg_stat_activity each where each.application_name = holder.application_name "
                "and pid <> pg_backend_pid() "
                "and (state = 'active' or state_change > clock_timestamp() - {silent} * interval '1 second')))"
            ).format(held=lock.held, ours=f"{APPLICATION}%", silent=SILENT_HOLDER_S)
        ).fetchone()
    if holder:
        pid, name, since, silent_since = holder
        raise StoreUnavailable(
            f"{what}: its lock is held by the database session {pid} ({name}, connected since {since or 'unknown'}, silent "
            f"since {silent_since or 'unknown'}), which is not a live run",
            f"If that session is not needed, end it with `select pg_terminate_backend({pid})`, then materialize again",
        )
