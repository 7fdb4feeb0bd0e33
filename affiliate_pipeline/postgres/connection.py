"""Connections to PostgreSQL that each have a session of their own, with fixed settings."""

import os
import re
import secrets
import socket

import psycopg

from affiliate_pipeline.postgres.errors import (
    DIRECT_ACTION,
    URL_NAME,
    StoreUnavailable,
    as_store_unavailable,
    explained,
)
from affiliate_pipeline.postgres.urls import name_of, parameters

MIN_SERVER_VERSION = 140000
# Identifies our sessions in `pg_stat_activity`.
APPLICATION = "affiliate_pipeline"
CONNECT_TIMEOUT_S = 10


def connect(url: str, *, autocommit: bool = False, durable: bool = True) -> psycopg.Connection:
    """A connection whose session uses UTC and ISO dates, whatever the server or URL configures.

    Unless `durable`, commits do not wait for the disk, and a crash of the server may lose the last ones. Raises
    `StoreUnavailable`, also if a pooler runs each transaction in another session.
    """
    connection = _open(url)
    try:
        with as_store_unavailable():
            version = connection.info.server_version
            if version < MIN_SERVER_VERSION:
                raise StoreUnavailable(
                    f"PostgreSQL {version // 10000} is too old",
                    "Use version 14 or newer",
                )
            _prove_session(connection, url)
            _apply_settings(connection, durable)
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
            # All connections of a process have the same name, by which `locks` finds out whether a lock's holder is alive.
            application_name=f"{APPLICATION} {os.getpid()}@{socket.gethostname()}",
        )
    except (psycopg.Error, ValueError) as error:
        if isinstance(error, psycopg.OperationalError) and not re.match(
            r"connection is bad: (?!connection)|.*\binvalid .* for connection option", f"{error}"
        ):
            raise explained(error, name_of(url)) from None
        # libpq checks the values of parameters before it connects, and quotes them.
        raise StoreUnavailable(
            f"{name_of(url)} has a parameter whose value cannot be used",
            f"Correct {name_of(url)}; see https://www.postgresql.org/docs/current/libpq-connect.html for the values of sslmode and the others",
        ) from None


# URLs that this process has found to give each connection its own session.
_proven: set[str] = set()


def _prove_session(connection: psycopg.Connection, url: str) -> None:
    """Raise `StoreUnavailable` if the address shares sessions between connections.

    Locks and settings would be lost, or leak into other connections. Checked once per process and URL.
    """
    if url in _proven:
        return
    with _open(url) as other:
        if _is_shared(connection, other):
            raise StoreUnavailable(
                "the address of the database leads through a pooler in transaction or statement mode, where "
                "locks are lost: two runs could land a day twice",
                DIRECT_ACTION.replace(URL_NAME, name_of(url)),
            )
    _proven.add(url)


def _is_shared(connection: psycopg.Connection, other: psycopg.Connection) -> bool:
    """Whether the first connection loses its session during a transaction of the other one."""
    mark = (secrets.token_hex(8),)
    read_mark = "select pg_backend_pid(), current_setting('affiliate.session', true)"
    [own] = connection.execute("select pg_backend_pid(), set_config('affiliate.session', %s, false)", mark).fetchall()
    try:
        for _ in range(3):
            with other.transaction():
                # Compare ids first: in a shared session, the first connection could wait forever for this transaction.
                [(pid,)] = other.execute("select pg_backend_pid()").fetchall()
                if pid == own[0] or connection.execute(read_mark).fetchone() != own:
                    return True
    except psycopg.Error as error:
        if "pooling mode" not in f"{error}":  # PgBouncer's "transaction blocks not allowed in statement pooling mode"
            raise
        return True
    return False


# Settings that our statements rely on: a role, database or URL may set any of them differently.
_SETTINGS = {
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
    "transaction_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    # Do not wait forever for a table that another session has locked.
    "lock_timeout": "10min",
    # Without keepalives, a crashed machine's session would hold its locks for hours.
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}


def _apply_settings(connection: psycopg.Connection, durable: bool) -> None:
    # Null leaves synchronous_commit unchanged, or turns it on if it is off.
    settings = _SETTINGS | {"synchronous_commit": None if durable else "off"}
    connection.execute(
        "select set_config(name, coalesce(value, nullif(current_setting(name), 'off'), 'on'), false) "
        "from unnest(%s::text[], %s::text[]) as setting (name, value) "
        # PostgreSQL before 17 has no transaction_timeout.
        "where current_setting(name, true) is not null",
        (list(settings), list(settings.values())),
    )
