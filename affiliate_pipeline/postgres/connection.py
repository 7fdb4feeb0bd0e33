"""Connections to PostgreSQL that hold a session of their own; every error of the driver becomes `StoreUnavailable`."""

import logging
import os
import re
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from affiliate_pipeline.domain.problem import AffiliateError
from affiliate_pipeline.domain.redaction import redact
from affiliate_pipeline.postgres import ddl

OLDEST_SERVER = 140000
# Identifies our sessions in `pg_stat_activity`.
APPLICATION = "affiliate_pipeline"
CONNECT_TIMEOUT_S = 10
# How often a process that waits for a lock checks the lock's holder.
LOCK_CHECK_S = 5
# A live run queries the database at every request, through one of its connections. Only the download of a large file
# keeps it silent for longer than a few minutes.
SILENT_HOLDER_S = 900
_ROUNDS = 3

RETRY = "Check that it runs and that AFFILIATE_DATABASE_URL is right, then materialize again"
DIRECT = (
    "Set AFFILIATE_DATABASE_URL to the direct address of the server, or to one that pools whole sessions (PgBouncer: "
    "pool_mode = session; Supabase: port 5432 instead of 6543)"
)
READ_ONLY = "the database is read-only"
READ_ONLY_ACTION = (
    "Usual causes are a hosting service that stopped writes because the disk is nearly full, a failover after which the "
    "address leads to a standby, and `default_transaction_read_only`. Make it writable or use the primary's address, then "
    "materialize again"
)
ENCODING = "which cannot hold every text that an exchange may send"
ENCODING_ACTION = (
    "Create a database with `create database … encoding 'UTF8' template template0` and set its address in "
    "AFFILIATE_DATABASE_URL"
)
ROLE_ACTION = (
    "Let the role of AFFILIATE_DATABASE_URL create schemas and temporary tables in the database and own what is in these "
    "schemas, then materialize again"
)
_PERCENT = (
    "Write it as postgresql://user:password@host:port/database; in the user name and the password, `% / ? # @ : [ ]` and "
    "blanks are written as %25 %2F %3F %23 %40 %3A %5B %5D and %20"
)

# What a lost or refused connection and the codes of PostgreSQL's errors mean; the first that fits counts.
# Codes: https://www.postgresql.org/docs/current/errcodes-appendix.html
_CAUSES: tuple[tuple[str, str, str, str], ...] = (
    ("53100", "", "the disk of the database is full", "Free space, then materialize again"),
    ("25006", "", READ_ONLY, READ_ONLY_ACTION),
    ("42501", "", "the database's role lacks a right", ROLE_ACTION),
    ("53400", "", "the database cannot be used", "Raise the limit that is named, for the role or the database"),
    (
        "53300|",
        "too many (clients|connections)|connection slots|no more connections allowed|query_wait_timeout|max_client_conn",
        "the database cannot be used",
        "Raise the limit of connections of the server, the database, the role or the pooler (a run uses up to six), or "
        "end sessions that are not needed; then materialize again",
    ),
    (
        "57P0[1235]|",
        "starting up|shutting down|not yet accepting|recovery mode",
        "the database cannot be used",
        "It is being started or stopped. Wait until it runs, then materialize again",
    ),
    ("55P03", "", "the database cannot be used", "Another session keeps a lock: end its transaction, then materialize again"),
    ("57014", "", "the database cannot be used", "A user or a timeout canceled the statement: materialize again"),
    ("26000|08P01|", "prepared statement|unsupported startup parameter|pooling mode", "the database cannot be used", DIRECT),
    (
        "28...|",
        "authentication failed|no password supplied|pg_hba.conf|not permitted to log in|role .* does not exist",
        "the database cannot be used",
        "Correct the user name and the password in AFFILIATE_DATABASE_URL, or what the server's pg_hba.conf demands",
    ),
    ("3D000|", "database .* does not exist", "the database cannot be used", "Create it, or correct its name in AFFILIATE_DATABASE_URL"),
    ("", "SSL|certificate", "the database cannot be used", "Correct sslmode and sslrootcert in AFFILIATE_DATABASE_URL"),
    ("", "resolve host|translate host name", "the database cannot be used", "Correct the host in AFFILIATE_DATABASE_URL"),
)  # fmt: skip

log = logging.getLogger(__name__)


class StoreUnavailable(AffiliateError):
    """The database cannot be used at all."""

    def __init__(self, what: str, action: str = RETRY):
        super().__init__(what, action)


@contextmanager
def unavailable() -> Iterator[None]:
    """Turns every error of the driver into `StoreUnavailable`."""
    try:
        yield
    except psycopg.Error as error:
        raise explained(error) from None


def explained(error: psycopg.Error) -> StoreUnavailable:
    """What the error means for a person."""
    words = redact((error.diag.message_primary or str(error) or type(error).__name__).strip())
    state = error.sqlstate or ""
    for states, texts, what, action in _CAUSES:
        if re.fullmatch(states, state) and (state or re.search(texts, words)):
            return StoreUnavailable(f"{what}: {words}", action)
    return StoreUnavailable(f"the database cannot be used: {words}")


def is_unusable(error: psycopg.Error) -> bool:
    """Whether the error concerns the whole database, and not what one transaction did."""
    return re.fullmatch(r"|08...|25006|28...|3D...|53[123]..|57P..|58...|XX...", error.sqlstate or "") is not None


def parameters(url: str) -> dict[str, str]:
    """The parameters in the URL by libpq's names.

    Raises `StoreUnavailable`, which quotes no part of the URL: what cannot be parsed may be a piece of the password.
    """
    try:
        given = {name: str(value) for name, value in conninfo_to_dict(url).items()}
    except (psycopg.Error, ValueError):
        raise _unparsable() from None
    # An `@` or `/` in a password moves the parts after it: pieces of the password would be taken for host, port or
    # database, and be quoted in connection errors.
    authority, _, path = url.partition("://")[2].partition("/")
    hosts = given.get("host", "").split(",")
    ports = given.get("port", "").split(",")
    if (
        authority.count("@") > 1
        or "@" in path.partition("?")[0]
        or not all(host.startswith("/") or re.fullmatch(r"[\w.:-]*", host) for host in hosts)
        or not all(re.fullmatch("[0-9]{0,5}", port) and int(port or 1) in range(1, 65536) for port in ports)
    ):
        raise _unparsable()
    return given


def _unparsable() -> StoreUnavailable:
    return StoreUnavailable("AFFILIATE_DATABASE_URL cannot be parsed", _PERCENT)


def connect(url: str, *, autocommit: bool = False, durable: bool = True) -> psycopg.Connection:
    """A connection whose session speaks UTC and ISO dates, whatever the server, the role or the URL prefer.

    Not durable: what it wrote last may be lost if the server crashes, and a commit does not wait for the disk. Raises
    `StoreUnavailable`, also where a pooler would give each transaction another session.
    """
    connection = _open(url)
    try:
        with unavailable():
            version = connection.info.server_version
            if version < OLDEST_SERVER:
                raise StoreUnavailable(
                    f"PostgreSQL {version // 10000} is too old",
                    "Use version 14 or newer, or unset AFFILIATE_DATABASE_URL for the embedded one",
                )
            _prove_session(connection, url)
            connection.execute(_settings(version, durable))
            connection.autocommit = autocommit
    except BaseException:
        connection.close()
        raise
    return connection


def _open(url: str) -> psycopg.Connection:
    parameters(url)
    try:
        return psycopg.connect(
            url,
            autocommit=True,
            connect_timeout=CONNECT_TIMEOUT_S,
            client_encoding="utf8",
            # All connections of a process have the same name: `_refuse_dead_holder` relies on it.
            application_name=f"{APPLICATION} {os.getpid()}@{socket.gethostname()}",
        )
    except (psycopg.Error, ValueError) as error:
        if isinstance(error, psycopg.OperationalError) and not re.match(
            r"connection is bad: (?!connection)|.*\binvalid .* for connection option", f"{error}"
        ):
            raise explained(error) from None
        # libpq checks the values of parameters before it connects, and quotes them.
        raise StoreUnavailable(
            "AFFILIATE_DATABASE_URL has a parameter whose value cannot be used",
            "See https://www.postgresql.org/docs/current/libpq-connect.html for the values of sslmode and the others",
        ) from None


# Addresses that are proven, in this process, to give each connection its own session.
_proven: set[str] = set()


def _prove_session(connection: psycopg.Connection, url: str) -> None:
    """Raises `StoreUnavailable` if the address shares sessions between connections; checked once per process.

    There, a session's locks and settings are lost, and leak into other connections.
    """
    if url in _proven:
        return
    with _open(url) as other:
        if _is_shared(connection, other):
            raise StoreUnavailable(
                "the address of the database leads through a pooler in transaction or statement mode, where locks do not "
                "hold: two runs could land a day twice",
                DIRECT,
            )
    _proven.add(url)


def _is_shared(connection: psycopg.Connection, other: psycopg.Connection) -> bool:
    """Whether the first connection loses its session while the other one has a transaction open."""
    mark = secrets.token_hex(8)
    look = "select pg_backend_pid(), current_setting('affiliate.session', true)"
    own = (_value(connection, f"select pg_backend_pid() from set_config('affiliate.session', '{mark}', false)"), mark)
    try:
        for _ in range(_ROUNDS):
            with other.transaction():
                # Compare the ids first: in a shared session, the first connection might wait forever for this transaction.
                if _value(other, "select pg_backend_pid()") == own[0] or connection.execute(look).fetchone() != own:
                    return True
    except psycopg.Error as error:
        if "pooling mode" not in f"{error}":  # PgBouncer's "transaction blocks not allowed in statement pooling mode"
            raise
        return True
    return False


def _value(connection: psycopg.Connection, statement: str) -> Any:
    row = connection.execute(statement).fetchone()
    assert row
    return row[0]


def _settings(version: int, durable: bool) -> str:
    """A statement that sets what ours rely on: a role, database or URL may set any of it differently."""
    settings = {
        "timezone": "UTC",
        "datestyle": "ISO, YMD",
        "intervalstyle": "postgres",
        "bytea_output": "hex",
        "extra_float_digits": "1",
        "standard_conforming_strings": "on",
        "search_path": "pg_catalog, public",
        # Row-level security would silently omit rows: the statement has to fail instead.
        "row_security": "off",
        # After waiting for a lock, statements have to see what its last holder committed.
        "default_transaction_isolation": "read committed",
        "statement_timeout": "0",
        "idle_in_transaction_session_timeout": "0",
        "idle_session_timeout": "0",
        # Do not wait forever for a table that another session keeps locked.
        "lock_timeout": "10min",
        # Without keepalives, a crashed machine's session would hold its locks for hours.
        "tcp_keepalives_idle": "30",
        "tcp_keepalives_interval": "10",
        "tcp_keepalives_count": "3",
    }
    if version >= 170000:
        settings["transaction_timeout"] = "0"
    each = ", ".join(f"set_config('{name}', '{value}', false)" for name, value in settings.items())
    commit = "'off'" if not durable else "case current_setting(s) when 'off' then 'on' else current_setting(s) end"
    return f"select {each}, set_config(s, {commit}, false) from (values ('synchronous_commit')) v(s)"


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
def locked(connection: psycopg.Connection, lock: Lock, what: str) -> Iterator[None]:
    """Holds the lock, after waiting for the run that holds it.

    Raises `StoreUnavailable`, which names the holder, if the holder is not a live run.
    """
    if not try_lock(connection, lock, what):
        log.info("%s: another run holds its lock; waiting for its end", what)
        while not _wait_for(connection, lock):
            _refuse_dead_holder(connection, lock, what)
    try:
        yield
    finally:
        unlock(connection, lock)


def try_lock(connection: psycopg.Connection, lock: Lock, what: str) -> bool:
    """Whether the session now holds the lock; raises `StoreUnavailable` if the holder is not a live run."""
    with unavailable(), connection.transaction():
        row = connection.execute(sql.SQL("select pg_try_advisory_lock({})").format(lock.key)).fetchone()
    if row and row[0]:
        return True
    _refuse_dead_holder(connection, lock, what)
    return False


def unlock(connection: psycopg.Connection, lock: Lock) -> None:
    # A lost connection is noticed only when it is used.
    if not connection.closed:
        with unavailable(), connection.transaction():
            connection.execute(sql.SQL("select pg_advisory_unlock({})").format(lock.key))


def _wait_for(connection: psycopg.Connection, lock: Lock) -> bool:
    with unavailable():
        try:
            # In a transaction of its own: one that began before would not see what the holder has committed.
            with connection.transaction():
                connection.execute(f"set local lock_timeout = '{LOCK_CHECK_S * 1000:.0f}ms'")
                connection.execute(sql.SQL("select pg_advisory_lock({})").format(lock.key))
        except psycopg.errors.LockNotAvailable:
            return False
        return True


def _refuse_dead_holder(connection: psycopg.Connection, lock: Lock, what: str) -> None:
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


def execute_once(connection: psycopg.Connection, statements: str | sql.Composed) -> None:
    """Runs DDL that says `if not exists`, which alone is not safe from two processes at once."""
    lock = Lock("affiliate_pipeline.ddl")
    with unavailable():
        # Waited for in a transaction of its own: one that began before would not see what the other has created.
        with connection.transaction():
            connection.execute(sql.SQL("select pg_advisory_lock({})").format(lock.key))
        try:
            with connection.transaction():
                connection.execute(statements)
        finally:
            unlock(connection, lock)


def connect_prepared(url: str, *, autocommit: bool = False) -> psycopg.Connection:
    """`connect`, to a database that has the tables of `ddl.BOOKKEEPING`."""
    connection = connect(url, autocommit=autocommit)
    try:
        with unavailable(), connection.transaction():
            row = connection.execute(
                "select obj_description(to_regnamespace('affiliate'), 'pg_namespace') = %s", (ddl.BOOKKEEPING_VERSION,)
            ).fetchone()
        if not (row and row[0]):
            encoding = connection.info.parameter_status("server_encoding")
            if encoding != "UTF8":
                raise StoreUnavailable(f"the database's encoding is {encoding}, {ENCODING}", ENCODING_ACTION)
            execute_once(connection, ddl.BOOKKEEPING)
    except BaseException:
        connection.close()
        raise
    return connection
