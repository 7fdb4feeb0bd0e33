"""What is not configured fails by its name: no server is started for it, and no value of the sandbox is used instead."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import dagster as dg
import psycopg
import pytest

from affiliate_pipeline import environment as settings
from affiliate_pipeline.app.embedded_server import cluster, server
from affiliate_pipeline.definitions import build_definitions
from affiliate_pipeline.domain.problem import SettingsError
from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline_tests.defs.rebates import KEY

ROOT = Path(__file__).parents[2]
TODAY = datetime.now(UTC).date()
YESTERDAY = TODAY - timedelta(days=1)
DATABASE = "AFFILIATE_DATABASE_URL is not set"
PARTNER = ("BINANCE_PARTNER_API_KEY", "BINANCE_PARTNER_API_SECRET")


@pytest.fixture(scope="module")
def other_url(postgres_home: Path) -> str:
    """The database of another team's Dagster."""
    return server.ensure(postgres_home, "another_team")


@pytest.fixture(scope="module")
def other_home(other_url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The DAGSTER_HOME of another team's Dagster, with its own PostgreSQL storage."""
    home = tmp_path_factory.mktemp("another_team")
    (home / "dagster.yaml").write_text(f"storage:\n  postgres:\n    postgres_url: {other_url}\n")
    return home


@pytest.fixture(scope="module")
def others(other_home: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.from_config(str(other_home)) as instance:
        yield instance


@pytest.fixture
def ours(
    database_url: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dg.DagsterInstance]:
    """This project's Dagster, on a configured database."""
    monkeypatch.setenv("AFFILIATE_DATABASE_URL", database_url)
    home = tmp_path_factory.mktemp("ours")
    shutil.copyfile(ROOT / "dagster.yaml", home / "dagster.yaml")
    with dg.DagsterInstance.from_config(str(home)) as instance:
        yield instance


@pytest.fixture
def leftover(tmp_path: Path) -> Iterator[Sandbox]:
    """A sandbox that would answer, and the `.affiliate/settings.env` in which an earlier `up` chose it."""
    with Sandbox(rows_per_day=10) as exchange:
        (tmp_path / ".affiliate").mkdir()
        settings.save_sandbox_variables({"AFFILIATE_START_DATE": f"{YESTERDAY}", **exchange.variables})
        yield exchange


@pytest.fixture
def nothing_is_made(tmp_path: Path, database_url: str, other_url: str) -> Iterator[None]:
    """No file, embedded server or database is there afterwards that was not there before, and no day has landed."""

    def there() -> dict[str, object]:
        with psycopg.connect(database_url) as connection:
            databases = connection.execute("select datname::text from pg_database order by 1").fetchall()
            (ledger,) = connection.execute("select to_regclass('affiliate.landing')::text").fetchone()
            landed = connection.execute(f"select count(*) from {ledger}").fetchone() if ledger else (0,)
        # An embedded server's address is written to `.affiliate` before anything else of it is made.
        files = [path for folder in (tmp_path, tmp_path / ".affiliate") for path in sorted(folder.glob("*"))]
        return {"files": files, "databases": databases, "landed": landed}

    before = there()
    yield
    assert there() == before


def run(instance: dg.DagsterInstance, key: dg.AssetKey, partition: str | None) -> str:
    """What a run of the asset that must fail says; it has materialized nothing."""
    definitions = build_definitions()
    result = dg.materialize(
        [definitions.get_assets_def(key)],
        instance=instance,
        resources=definitions.resources,
        partition_key=partition,
        selection=[key],
        raise_on_error=False,
    )
    assert not result.success
    events = [entry.dagster_event for entry in instance.all_logs(result.run_id) if entry.dagster_event]
    assert [event for event in events if event.is_step_materialization] == []
    (failure,) = [event.step_failure_data for event in events if event.is_step_failure]
    if partition is not None:
        assert list(failure.user_failure_data.metadata["failed_partitions"].value) == [partition]
    return failure.error.message


def rebates(instance: dg.DagsterInstance) -> str:
    return run(instance, dg.AssetKey(KEY.split("/")), f"{YESTERDAY}")


def test_without_a_database_a_day_of_another_teams_instance_fails_by_the_variables_name(others, nothing_is_made):
    assert DATABASE in rebates(others)


def test_a_leftover_sandbox_lands_nothing_in_another_teams_instance(others, leftover, nothing_is_made):
    assert DATABASE in rebates(others)
    assert leftover.requests == []


@pytest.mark.parametrize("where", ["others", "ours"])
def test_a_leftover_sandbox_lands_nothing_in_a_configured_database(
    where, request, database_url, monkeypatch, leftover, nothing_is_made
):
    monkeypatch.setenv("AFFILIATE_DATABASE_URL", database_url)
    told = rebates(request.getfixturevalue(where))
    assert all(f"{name} is not set" in told for name in PARTNER)
    assert leftover.requests == []


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({"BINANCE_PARTNER_API_KEY": "key"}, PARTNER[1:]),
        ({"BINANCE_PARTNER_API_SECRET": "secret"}, PARTNER[:1]),
        ({"BINANCE_BASE_URL": "https://api.binance.com"}, PARTNER),
        ({"BINANCE_API_AGENT_CODE": "code"}, PARTNER),
        ({"BINANCE_PARTNER_API_KEY": "", "BINANCE_PARTNER_API_SECRET": ""}, PARTNER),
        ({"LBANK_OPEN_ID": "LBA1"}, PARTNER),
        ({"AFFILIATE_RATE_SCALE": "1", "AFFILIATE_START_DATE": "2025-01-01"}, PARTNER),
    ],
    ids=lambda value: "+".join(value),
)
@pytest.mark.parametrize("place", ["environment", ".env"])
@pytest.mark.parametrize("database", [True, False])
def test_what_is_partly_configured_is_never_completed(
    others, leftover, monkeypatch, database_url, nothing_is_made, given: Mapping[str, str], missing, place, database
):
    given = given | ({"AFFILIATE_DATABASE_URL": database_url} if database else {})
    for name, value in given.items() if place == "environment" else ():
        monkeypatch.setenv(name, value)
    file = Path(".env")
    file.write_text("".join(f"{name}={value}\n" for name, value in given.items()) if place == ".env" else "")
    told = rebates(others)
    assert [name for name in PARTNER if f"{name} is not set" in told] == (list(missing) if database else [])
    assert (DATABASE in told) == (not database)
    assert leftover.requests == []
    file.unlink()


def all_assets() -> Iterator[tuple[dg.AssetKey, str | None]]:
    """Each asset with its last partition."""
    for spec in sorted(build_definitions().resolve_all_asset_specs(), key=lambda spec: spec.key):
        yield spec.key, spec.partitions_def.get_last_partition_key() if spec.partitions_def else None


def test_no_asset_uses_a_database_or_an_account_that_is_not_configured(
    leftover, nothing_is_made, monkeypatch, database_url
):
    with dg.DagsterInstance.ephemeral() as instance:
        for key, partition in all_assets():
            assert DATABASE in run(instance, key, partition), key
        monkeypatch.setenv("AFFILIATE_DATABASE_URL", database_url)
        for key, partition in all_assets():
            told = run(instance, key, partition)
            assert "API_KEY is not set" in told or "Materialize one of them first" in told, key
    assert leftover.requests == []


@pytest.mark.parametrize("number", range(len(build_definitions().sensors)))
def test_no_sensor_uses_a_database_that_is_not_configured(others, leftover, nothing_is_made, monkeypatch, number):
    definitions = build_definitions()
    sensor = definitions.sensors[number]
    monkeypatch.setenv("HEARTBEAT_URL", "http://127.0.0.1:9")
    context = partial(dg.build_sensor_context, others, definitions=definitions, resources=definitions.resources)
    if sensor.name == "kickback_history":
        skipped = sensor.evaluate_tick(context()).skip_message
        assert skipped == "BINANCE_CLIENT_API_KEY and BINANCE_CLIENT_API_SECRET are not set"
        monkeypatch.setenv("BINANCE_CLIENT_API_KEY", "key")
    with pytest.raises(Exception) as raised:
        sensor.evaluate_tick(context())
    cause = raised.value if isinstance(raised.value, SettingsError) else raised.value.__cause__
    assert DATABASE in str(cause)


def test_schedules_request_only_runs_that_name_what_is_missing(others, leftover, nothing_is_made):
    definitions = build_definitions()
    at = datetime.now(UTC)
    for schedule in definitions.schedules:
        context = dg.build_schedule_context(others, scheduled_execution_time=at, resources=definitions.resources)
        tick = schedule.evaluate_tick(context)
        # From 2025-01-01 on, whatever first day was chosen for the sandbox.
        assert tick.run_requests or "are not set" in tick.skip_message
        for request in tick.run_requests:
            first, last = (request.tags[f"dagster/asset_partition_range_{end}"] for end in ("start", "end"))
            assert first < last or first >= f"{YESTERDAY}"
    assert leftover.requests == []


@pytest.mark.parametrize("database", [True, False])
def test_a_run_of_several_processes_fails_by_the_variables_name(
    other_home, others, leftover, nothing_is_made, database_url, tmp_path, database
):
    """By Dagster's own command, for a day before the first that was chosen for the sandbox."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DAGSTER_HOME": str(other_home)}
    if database:
        environment["AFFILIATE_DATABASE_URL"] = database_url
    select = ["--select", f'key:"{KEY}"', "--partition", f"{YESTERDAY - timedelta(days=3)}"]
    done = subprocess.run(
        [sys.executable, "-m", "dagster", "asset", "materialize", "-m", "affiliate_pipeline.definitions", *select],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode != 0
    assert (f"{PARTNER[0]} is not set; {PARTNER[1]} is not set" if database else DATABASE) in done.stderr
    (last,) = others.get_runs(limit=1)
    assert others.get_run_by_id(last.run_id).status == dg.DagsterRunStatus.FAILURE
    assert others.get_records_for_run(last.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION).records == []
    assert leftover.requests == []


@pytest.fixture
def embedded(leftover) -> Iterator[dg.DagsterInstance]:
    """This project's Dagster with no database configured; its server is removed afterwards."""
    home = Path("dagster_home")
    home.mkdir()
    shutil.copyfile(ROOT / "dagster.yaml", home / "dagster.yaml")
    try:
        with dg.DagsterInstance.from_config(str(home.absolute())) as instance:
            yield instance
    finally:
        folder = cluster.read(settings.home()).folder
        server.stop(settings.home())
        shutil.rmtree(folder, ignore_errors=True)


def test_the_application_lands_the_sandbox_in_a_database_of_its_own(embedded, leftover, monkeypatch, others):
    definitions = build_definitions()
    asset = definitions.get_assets_def(dg.AssetKey(KEY.split("/")))

    def lands(instance: dg.DagsterInstance) -> bool:
        return dg.materialize(
            [asset],
            instance=instance,
            resources=definitions.resources,
            partition_key=f"{YESTERDAY}",
            raise_on_error=False,
        ).success

    assert lands(embedded)
    assert leftover.requests != []
    with psycopg.connect(server.ensure(settings.home(), "affiliate_sandbox")) as connection:
        (rows,) = connection.execute("select rows from affiliate.landing").fetchone()
        assert connection.execute("select count(*) from binance.rebate_recent_record").fetchone() == (rows,) > (0,)
    # The running server changes nothing for another instance …
    assert DATABASE in rebates(others)
    # … and once an exchange is configured, the loaded instance keeps what was read with its storage, and the next one has
    # its storage in another database.
    monkeypatch.setenv("BINANCE_PARTNER_API_KEY", "a real key")
    assert lands(embedded)
    with dg.DagsterInstance.from_config(str(Path("dagster_home").absolute())) as production:
        assert f"{PARTNER[1]} is not set" in rebates(production)
        assert production.event_log_storage.postgres_url != embedded.event_log_storage.postgres_url
