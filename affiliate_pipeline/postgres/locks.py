"""Session-level advisory locks: PostgreSQL releases them when a process ends or crashes."""

import logging
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from affiliate_pipeline.postgres.connection import APPLICATION
from affiliate_pipeline.postgres.errors import StoreUnavailable, as_store_unavailable

# How often a process that waits for a lock checks the lock's holder.
LOCK_CHECK_S = 5
# A process counts as dead once none of its sessions has run a query for this long. A live run queries the database
# while it sends requests to an exchange; only the download of a large file takes longer than a few minutes without a
# query.
SILENT_HOLDER_S = 1800

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lock:
    """An advisory lock, identified by the kind and the name of what it protects."""

    kind: str
    name: str | None = None

    @property
    def key(self) -> sql.Composed:
        """The arguments of PostgreSQL's functions for it."""
        parts = [self.kind] if self.name is None else [self.kind, self.name]
        return sql.SQL(", ").join(sql.SQL("hashtext({})").format(part) for part in parts)

    @property
    def from_pg_locks(self) -> sql.Composed:
        """The end of a query: `from pg_locks`, restricted to the session that holds this lock."""
        query = sql.SQL(
            "from pg_locks where locktype = 'advisory' and granted and objsubid = {} and objid = hashtext({})::oid "
            "and database = (select oid from pg_database where datname = current_database())"
        )
        # `objsubid` is the number of the lock's keys.
        if self.name is None:
            return query.format(1, self.kind)
        return query.format(2, self.name) + sql.SQL(" and classid = hashtext({})::oid").format(self.kind)


@contextmanager
def locked(connection: psycopg.Connection[Any], lock: Lock, what: str) -> Generator[None]:
    """Hold the lock during the `with` block, after waiting for the run that holds it.

    Raises `StoreUnavailable` if its holder is not a live run.
    """
    if not _acquired(connection, lock, what):
        log.info("%s: another process holds its lock; waiting until the lock is released", what)
        while not _acquired(connection, lock, what, wait_s=LOCK_CHECK_S):
            pass
    try:
        yield
    finally:
        _unlock(connection, lock)


@contextmanager
def try_locked(connection: psycopg.Connection[Any], lock: Lock, what: str) -> Generator[bool]:
    """Hold the lock if it is free; yields whether it was free. Raises like `locked`."""
    is_locked = _acquired(connection, lock, what)
    try:
        yield is_locked
    finally:
        if is_locked:
            _unlock(connection, lock)


def _unlock(connection: psycopg.Connection[Any], lock: Lock) -> None:
    # A closed connection, such as one found to be lost, has no session and so no lock to release.
    if not connection.closed:
        with as_store_unavailable(), connection.transaction():
            connection.execute(sql.SQL("select pg_advisory_unlock({})").format(lock.key))


def _acquired(connection: psycopg.Connection[Any], lock: Lock, what: str, wait_s: float = 0) -> bool:
    """Acquire the lock, waiting up to `wait_s`; return whether this session has it.

    Raises `StoreUnavailable` if its holder is not a live run: a pooler may leave the session of a dead run open, and
    waiting for that would never end.
    """
    with as_store_unavailable():
        if _requested(connection, lock, wait_s):
            return True
        holder = _own_or_dead_holder(connection, lock)
    if holder is None:  # a live run has the lock, or it was released meanwhile
        return False
    is_own, pid, name, since, silent_since = holder
    if is_own:
        # PostgreSQL may grant the lock at the moment at which it reports the timeout; the session then holds it.
        return True
    raise StoreUnavailable(
        f"{what}: its lock is held by the database session {pid} ({name}, connected since {since}, silent since "
        f"{silent_since}), which is not a live run",
        f"If that session is not needed, end it with `select pg_terminate_backend({pid})`, then materialize again",
    )


def _requested(connection: psycopg.Connection[Any], lock: Lock, wait_s: float) -> bool:
    """Request the lock, waiting up to `wait_s`; return whether PostgreSQL reported that it is granted."""
    request = "select true from pg_advisory_lock({})" if wait_s else "select pg_try_advisory_lock({})"
    # In a transaction of its own: the timeout is set only for it, and aborts only it.
    with suppress(psycopg.errors.LockNotAvailable), connection.transaction():
        connection.execute("select set_config('lock_timeout', %s, true)", (f"{wait_s * 1000:.0f}ms",))
        return connection.execute(sql.SQL(request).format(lock.key)).fetchone() == (True,)
    return False


def _own_or_dead_holder(connection: psycopg.Connection[Any], lock: Lock) -> tuple[bool, int, str, str, str] | None:
    """The session that has the lock, if it is this one or is not of a live run; otherwise None.

    The items are whether it is this session, its process id, its name, and since when it is connected and silent.
    """
    query = sql.SQL(
        "with live_run as ("
        "select application_name "
        "from pg_stat_activity "
        "where application_name like {application} "
        # Not this session: it is active while it runs this query, and all sessions of this process have the same name.
        # So with this session included, a session whose connection was lost would never count as dead.
        "and pid <> pg_backend_pid() "
        # Other roles' states are hidden, and with track_activities off, all are: these count as live.
        "and (coalesce(state, 'disabled') in ('active', 'disabled') "
        "or state_change > clock_timestamp() - {silent} * interval '1 second')) "
        "select pid = pg_backend_pid(), pid, coalesce(nullif(application_name, ''), 'no name'), "
        "coalesce(to_char(backend_start, 'YYYY-MM-DD HH24:MI TZ'), 'unknown'), "
        "coalesce(to_char(state_change, 'YYYY-MM-DD HH24:MI TZ'), 'unknown') "
        "from pg_stat_activity "
        "where pid in (select pid {from_pg_locks}) "
        "and (pid = pg_backend_pid() "
        # A session may have no name: `null not in (…)` would be null.
        "or coalesce(application_name, '') not in (select application_name from live_run))"
    ).format(from_pg_locks=lock.from_pg_locks, application=f"{APPLICATION}%", silent=SILENT_HOLDER_S)
    with connection.transaction():
        return connection.execute(query).fetchone()
