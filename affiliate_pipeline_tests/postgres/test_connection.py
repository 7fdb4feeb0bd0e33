"""Connections whose client, server or network fails, and servers at several addresses."""

import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from affiliate_pipeline.postgres import connection
from affiliate_pipeline.postgres.connection import connect
from affiliate_pipeline.postgres.errors import StoreUnavailable
from affiliate_pipeline_tests import child_processes
from affiliate_pipeline_tests.conftest import materialize
from affiliate_pipeline_tests.defs.direct_runs import land
from affiliate_pipeline_tests.defs.rebates import DAYS, KEY, landed, rebates, sent
from affiliate_pipeline_tests.pgbouncer import needs_pgbouncer, pgbouncer

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="the names of socket options are Linux's")


@needs_linux
def test_a_dead_connection_is_noticed_by_client_and_server_within_a_minute(database_url):
    with connect(database_url, autocommit=True) as session:
        with socket.socket(fileno=os.dup(session.fileno())) as client:
            options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
            assert [client.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [30, 10, 3, 60_000]
        names = ("tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count", "tcp_user_timeout")
        shown = [session.execute("select current_setting(%s)", (name,)).fetchone() for name in names]
        assert shown == [("30",), ("10",), ("3",), ("60000",)]


@needs_linux
def test_timeouts_in_the_url_take_precedence(database_url):
    url = f"{database_url}?keepalives_idle=7&tcp_user_timeout=5000"
    with connect(url) as session, socket.socket(fileno=os.dup(session.fileno())) as client:
        assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 7
        assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 5000


@needs_linux
def test_a_session_that_waits_for_a_lock_ends_with_its_client_and_releases_the_lock_that_it_has(
    database_url, query, monkeypatch
):
    monkeypatch.setitem(connection._SETTINGS, "client_connection_check_interval", "100ms")
    query("select pg_advisory_lock(1)")
    with connect(database_url, autocommit=True) as session:
        session.execute("select pg_advisory_lock(2)")

        def wait() -> None:
            with pytest.raises(psycopg.OperationalError):
                session.execute("select pg_advisory_lock(1)")

        thread = threading.Thread(target=wait)
        thread.start()
        while not query("select 1 from pg_locks where locktype = 'advisory' and not granted"):
            assert thread.is_alive()
        with socket.socket(fileno=os.dup(session.fileno())) as client:
            client.shutdown(socket.SHUT_RDWR)
        thread.join()
    query("set lock_timeout = '30s'; select pg_advisory_lock(2)")
    query("select pg_advisory_unlock_all(); reset lock_timeout")


def test_processes_with_the_same_id_and_host_name_have_different_application_names(database_url):
    """`send_names` sets the same id and host name in each process, and sends the names of two of its sessions."""
    received, sent_by_process = child_processes.pipe()
    sent_names: list[list[tuple[str]]] = []
    for _ in range(2):
        process = child_processes.start(child_processes.send_names, database_url, sent_by_process)
        sent_names.append(received.recv())
        process.join()
    assert all(len(names) == 2 for names in sent_names)
    assert [len(set(names)) for names in sent_names] == [1, 1]
    assert sent_names[0] != sent_names[1]


@pytest.fixture
def read_only_address(database_url, query, tmp_path: Path) -> Iterator[str]:
    """Address and port of a server that, like a standby, accepts no writes."""
    query("drop role if exists reader")
    query("create role reader superuser login password 'r'")
    query("alter role reader set default_transaction_read_only = on")
    with pgbouncer(f"postgresql://reader:r@{database_url.partition('@')[2]}", tmp_path, "session") as url:
        yield url.partition("@")[2].partition("/")[0]
    query("drop role reader")


@needs_pgbouncer
def test_a_url_with_several_hosts_reaches_the_one_that_accepts_writes(
    sandbox, database_url, query, read_only_address, monkeypatch
):
    user = "{user}:{password}".format(**conninfo_to_dict(database_url))
    hosts = f"{read_only_address},{database_url.partition('@')[2]}"
    rows = rebates(DAYS[0], 3)
    sandbox.binance.set_rebates(rows)

    monkeypatch.setenv("AFFILIATE_DATABASE_URL", f"postgresql://{user}@{hosts}")
    run = materialize(KEY, DAYS[:1])
    assert "the database is read-only" in run.failed[DAYS[0]]
    assert "add target_session_attrs=read-write" in run.failed[DAYS[0]]
    assert sandbox.requests == []

    monkeypatch.setenv("AFFILIATE_DATABASE_URL", f"postgresql://{user}@{hosts}?target_session_attrs=read-write")
    run = land(KEY, DAYS[:1])
    assert run.success, run.message
    assert landed(query, DAYS[0]) == sent(rows)


@needs_pgbouncer
def test_the_lack_of_a_host_that_accepts_writes_is_reported_as_a_read_only_database(read_only_address):
    url = f"postgresql://any@{read_only_address},127.0.0.1:1/test?target_session_attrs=read-write"
    with pytest.raises(StoreUnavailable, match="the database is read-only") as raised:
        connect(url)
    assert "\n" not in f"{raised.value}" and "refused" in f"{raised.value}"
