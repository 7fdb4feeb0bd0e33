"""Dagster's storage is in the embedded database by default, and otherwise in the configured one."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import dagster as dg
import psycopg
import psycopg2
import pytest

from affiliate_pipeline import environment as settings
from affiliate_pipeline.app.embedded_server import cluster, server
from affiliate_pipeline.app.instance.storage import StorageUnavailable
from affiliate_pipeline.landing.store import Store

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
def embedded() -> Iterator[None]:
    """Stops and removes the embedded server that the test starts."""
    yield
    started = cluster.read(settings.home())
    server.stop(settings.home())
    if started:
        shutil.rmtree(started.folder, ignore_errors=True)


def succeeds(instance: dg.DagsterInstance) -> bool:
    """Whether a run succeeds, which requires that its events can be written."""

    @dg.asset
    def thing() -> None: ...

    result = dg.materialize([thing], instance=instance)
    stored = instance.get_run_by_id(result.run_id)
    return result.success and stored is not None and stored.status == dg.DagsterRunStatus.SUCCESS


def test_the_embedded_database_is_used_by_default(instance_of, embedded, tmp_path):
    instance = instance_of()
    assert succeeds(instance)
    assert server.url_if_running(tmp_path / ".affiliate", "affiliate")
    with psycopg.connect(server.ensure_database(tmp_path / ".affiliate", "affiliate")) as connection:
        assert connection.execute("select count(*) from runs where status = 'SUCCESS'").fetchone() == (1,)


def test_the_configured_database_is_used_whatever_its_driver(instance_of, monkeypatch, database_url, query):
    monkeypatch.setenv("AFFILIATE_DATABASE_URL", database_url.replace("postgresql", "postgresql+psycopg", 1))
    assert succeeds(instance_of())
    assert query("select count(*) from runs where status = 'SUCCESS'") == [(1,)]
    assert not settings.home().exists()


def test_an_invalid_env_file_is_named_in_the_error(instance_of):
    Path(".env").write_bytes("BINANCE_PARTNER_API_KEY=schlüssel\n".encode("latin-1"))
    with pytest.raises(StorageUnavailable, match=r"\.env"):
        instance_of()


def test_dagsters_tables_are_not_in_the_schema_of_the_data(instance_of, monkeypatch, database_url, query):
    monkeypatch.setenv("AFFILIATE_DATABASE_URL", database_url)
    with Store(database_url):
        pass
    instance_of().get_runs_count()
    assert query("select schemaname::text from pg_tables where tablename = 'runs'") == [("public",)]


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
