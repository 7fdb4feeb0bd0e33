"""Dagster's storage is in the embedded database by default, and otherwise in the configured one."""

import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import psycopg2
import pytest

from affiliate_pipeline import environment as settings
from affiliate_pipeline.app.embedded_server import server
from affiliate_pipeline.app.instance.storage import StorageUnavailable
from affiliate_pipeline.landing.store import Store
from affiliate_pipeline_tests.pgbouncer import needs_pgbouncer, pgbouncer_with_tls

DAGSTER_YAML = Path(__file__).parents[3] / "dagster.yaml"


@pytest.fixture
def instance_of(tmp_path: Path) -> Iterator[Callable[[], dg.DagsterInstance]]:
    """Loads an instance as Dagster's commands do, with the project's `dagster.yaml` in DAGSTER_HOME."""
    with ExitStack() as stack:

        def load() -> dg.DagsterInstance:
            home = tmp_path / "dagster_home"
            home.mkdir(exist_ok=True)
            shutil.copyfile(DAGSTER_YAML, home / "dagster.yaml")
            return stack.enter_context(dg.DagsterInstance.from_config(str(home)))

        yield load


@pytest.fixture
def stopped_embedded(postgres_home: Path) -> Iterator[None]:
    """The embedded server is that of the tests, stopped: a new one would take seconds."""
    settings.home().symlink_to(postgres_home)
    server.stop(postgres_home)
    yield
    with psycopg.connect(server.ensure_database(postgres_home, "test"), autocommit=True) as connection:
        connection.execute("drop database affiliate with (force)")


def succeeds(instance: dg.DagsterInstance) -> bool:
    """Whether a run succeeds, which requires that its events can be written."""

    @dg.asset
    def thing() -> None: ...

    result = dg.materialize([thing], instance=instance)
    stored = instance.get_run_by_id(result.run_id)
    return result.success and stored is not None and stored.status == dg.DagsterRunStatus.SUCCESS


def test_the_embedded_database_is_started_and_used_by_default(instance_of, stopped_embedded):
    assert not server.url_if_running(settings.home(), "affiliate")
    instance = instance_of()
    assert succeeds(instance)
    url = server.url_if_running(settings.home(), "affiliate")
    assert url
    with psycopg.connect(url) as connection:
        assert connection.execute("select count(*) from runs where status = 'SUCCESS'").fetchone() == (1,)


def test_the_configured_database_is_used_whatever_its_driver(instance_of, monkeypatch, database_url, query):
    monkeypatch.setenv("AFFILIATE_DATABASE_URL", database_url.replace("postgresql", "postgresql+psycopg", 1))
    with Store(database_url):
        pass
    instance = instance_of()
    assert succeeds(instance)
    assert query("select count(*) from runs where status = 'SUCCESS'") == [(1,)]
    assert not settings.home().exists()
    # Not in the schema of the data.
    assert query("select schemaname::text from pg_tables where tablename = 'runs'") == [("public",)]
    # A session ends soon after its client is down.
    with instance.event_log_storage.index_connection() as connection:
        names = ["tcp_keepalives_idle", "tcp_user_timeout", "client_connection_check_interval", "search_path"]
        shown = [connection.exec_driver_sql(f"show {name}").scalar() for name in names]
    assert shown == ["30", "60000", "10s", "public"]


def test_an_invalid_env_file_is_named_in_the_error(instance_of):
    Path(".env").write_bytes("BINANCE_PARTNER_API_KEY=schlüssel\n".encode("latin-1"))
    with pytest.raises(StorageUnavailable, match=r"\.env"):
        instance_of()


def test_the_materializations_of_a_range_are_written_by_one_statement_over_few_connections(
    instance_of, monkeypatch, database_url, query
):
    """Regression: each event opened two or three connections, which dominated the duration of a range without rows."""
    monkeypatch.setenv("AFFILIATE_DATABASE_URL", database_url)
    days = dg.DailyPartitionsDefinition("2026-01-01", end_date="2026-02-10")

    @dg.asset(partitions_def=days, backfill_policy=dg.BackfillPolicy.single_run())
    def thing(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        return dg.MaterializeResult()

    instance = instance_of()
    assert instance.get_runs_count() == 0
    opened = []
    connect = psycopg2.connect
    monkeypatch.setattr(psycopg2, "connect", lambda *a, **k: opened.append(1) or connect(*a, **k))
    keys = days.get_partition_keys()
    result = dg.materialize(
        [thing],
        instance=instance,
        tags={"dagster/asset_partition_range_start": keys[0], "dagster/asset_partition_range_end": keys[-1]},
    )
    assert result.success
    written = (
        "select count(distinct partition), count(*), count(distinct xmin::text) from event_logs "
        "where dagster_event_type = 'ASSET_MATERIALIZATION'"
    )
    assert query(written) == [(40, 40, 1)]
    assert len(opened) < len(keys)


def test_the_storage_reaches_the_host_that_accepts_writes_and_soon_notices_a_dead_connection(
    instance_of, monkeypatch, database_url, query
):
    authority, _, address = database_url.partition("@")
    url = f"{authority}@127.0.0.1:1,{address}?target_session_attrs=read-write"
    monkeypatch.setenv("AFFILIATE_DATABASE_URL", url)
    socket_options = set()

    def connect(*args: Any, _connect: Any = psycopg2.connect, **kwargs: Any) -> Any:
        connection = _connect(*args, **kwargs)
        with socket.socket(fileno=os.dup(connection.fileno())) as client:
            options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
            socket_options.add(tuple(client.getsockopt(socket.IPPROTO_TCP, option) for option in options))
        return connection

    if sys.platform == "linux":  # the names of socket options are Linux's
        monkeypatch.setattr(psycopg2, "connect", connect)
    assert succeeds(instance_of())
    assert query("select count(*) from runs where status = 'SUCCESS'") == [(1,)]
    assert socket_options == ({(30, 10, 3, 60_000)} if sys.platform == "linux" else set())


@needs_pgbouncer
def test_the_storage_works_through_a_session_pooler_with_tls(instance_of, monkeypatch, database_url, query, tmp_path):
    """Regression: the pooler ignores `options`, and Dagster's tables were in the schema named like the role."""
    with pgbouncer_with_tls(database_url, tmp_path, key_password="k%y p/w") as url:
        monkeypatch.setenv("AFFILIATE_DATABASE_URL", url)
        assert succeeds(instance_of())
    assert query("select count(*) from runs where status = 'SUCCESS'") == [(1,)]
