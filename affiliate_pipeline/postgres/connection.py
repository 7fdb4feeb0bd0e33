"""Connections to PostgreSQL that each have a session of their own, with fixed settings."""

import os
import re
import secrets
import socket
from collections.abc import Mapping
from functools import cache
from typing import Any, LiteralString

import psycopg
from psycopg.conninfo import make_conninfo

from affiliate_pipeline.postgres.errors import (
    DIRECT_ACTION,
    URL_NAME,
    StoreUnavailable,
    as_store_unavailable,
    explained,
)
from affiliate_pipeline.postgres.urls import name_of, with_timeouts

MIN_SERVER_VERSION = 140000
# Identifies our sessions in `pg_stat_activity`.
APPLICATION = "affiliate_pipeline"


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
            settings = _SETTINGS | {"synchronous_commit": None if durable else "off"}
            statement, values = settings_statement(settings)
            connection.execute(statement, values)
            connection.autocommit = autocommit
    except BaseException:
        connection.close()
        raise
    return connection


@cache
def _process(pid: int) -> str:
    """A random name of this process: in containers, host names and process ids are often the same."""
    return f"{secrets.token_hex(4)} {pid}@{socket.gethostname()}"


# Matches messages about a parameter's value. The message of a failed connection is `connection failed: …` or
# `connection is bad: connection to …`.
_UNUSABLE_VALUE = r"connection is bad: (?!connection)|.*\binvalid .* for connection option"


def _open(url: str) -> psycopg.Connection:
    # All connections of a process have the same name, by which `locks` finds out whether a lock's holder is alive.
    name = f"{APPLICATION} {_process(os.getpid())}"
    parameters = with_timeouts(url) | {"client_encoding": "utf8", "application_name": name}
    try:
        return psycopg.connect(make_conninfo(**parameters), autocommit=True)
    except (psycopg.Error, ValueError) as error:
        if isinstance(error, psycopg.OperationalError) and not re.match(_UNUSABLE_VALUE, f"{error}"):
            raise explained(error, name_of(url)) from None
        # A parameter was rejected before connecting. The message may contain its value, so it is not shown.
        raise StoreUnavailable(
            f"{name_of(url)} has a parameter whose value cannot be used",
            f"Correct {name_of(url)}; see https://www.postgresql.org/docs/current/libpq-connect.html for the values of sslmode and the others",
        ) from None


# URLs that this process has found to give each connection its own session.
_urls_with_own_sessions: set[str] = set()


def _prove_session(connection: psycopg.Connection, url: str) -> None:
    """Raise `StoreUnavailable` if a pooler shares sessions between connections, or passes them on with their state.

    Locks and settings would be lost, or leak into other connections. Checked once per process and URL.
    """
    if url in _urls_with_own_sessions:
        return
    mark = (secrets.token_hex(8),)
    with _open(url) as other:
        if _is_shared(connection, other):
            raise StoreUnavailable(
                "the address of the database leads through a pooler in transaction or statement mode, where "
                "locks are lost: two runs could land a day twice",
                DIRECT_ACTION.replace(URL_NAME, name_of(url)),
            )
        other.execute("select set_config('affiliate.session', %s, false)", mark)

    # A pooler gives the session that was released last to the next connection.
    with _open(url) as later:
        if later.execute("select current_setting('affiliate.session', true)").fetchone() == mark:
            raise StoreUnavailable(
                "the address of the database leads through a pooler that does not reset sessions before others use them: the "
                "locks of a run that is killed would remain",
                "Set server_reset_query = DISCARD ALL in the pooler's configuration, or use the server's direct address",
            )
    _urls_with_own_sessions.add(url)


def _is_shared(connection: psycopg.Connection, other: psycopg.Connection) -> bool:
    """Whether the first connection loses its session during a transaction of the other one."""
    mark = (secrets.token_hex(8),)
    read_mark = "select pg_backend_pid(), current_setting('affiliate.session', true)"
    [(own_pid, own_mark)] = connection.execute(
        "select pg_backend_pid(), set_config('affiliate.session', %s, false)", mark
    ).fetchall()
    try:
        # Repeat: a pooler that shares sessions may by chance assign the first connection its previous session.
        for _ in range(3):
            with other.transaction():
                # Compare ids first: in a shared session, the first connection could wait forever for this transaction.
                [(other_pid,)] = other.execute("select pg_backend_pid()").fetchall()
                if other_pid == own_pid or connection.execute(read_mark).fetchone() != (own_pid, own_mark):
                    return True
    except psycopg.Error as error:
        if "pooling mode" not in f"{error}":  # PgBouncer's "transaction blocks not allowed in statement pooling mode"
            raise
        return True
    return False


# A session whose client's machine or network is down ends after a minute, and with it its locks; otherwise it would last
# for hours.
NETWORK_SETTINGS = {
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
    # For unacknowledged data, which keepalives do not cover.
    "tcp_user_timeout": "60s",
    # For sessions that wait for a lock or run a long statement.
    "client_connection_check_interval": "10s",
}
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
    **NETWORK_SETTINGS,
}


def settings_statement(settings: Mapping[str, str | None]) -> tuple[LiteralString, tuple[list[Any], list[Any]]]:
    """A statement and its values, which apply these settings to the session.

    None sets `synchronous_commit` to on if it is off, and otherwise leaves it unchanged.
    """
    statement = (
        "select set_config(name, coalesce(value, nullif(current_setting(name), 'off'), 'on'), false) "
        "from unnest(%s::text[], %s::text[]) as setting (name, value) "
        # PostgreSQL before 17 has no transaction_timeout, and some systems cannot check connections.
        "where current_setting(name, true) is not null "
        "and (name <> 'client_connection_check_interval' or version() ~ 'linux')"
    )
    return statement, (list(settings), list(settings.values()))
