"""A missing variable is named in the failure: no server is started, and no value of the sandbox replaces it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
from dagster_postgres import PostgresEventLogStorage

from affiliate_pipeline import environment as settings
from affiliate_pipeline.app.embedded_server import cluster, server
from affiliate_pipeline.domain.problem import SettingsError
from affiliate_pipeline.domain.settings import Mode
from affiliate_pipeline.exchanges.shared_state import SharedState
from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline_tests.code_location import loaded_definitions
from affiliate_pipeline_tests.defs.events import (
    failed_partitions,
    failure_message,
    only_step_failure,
    recorded_events,
)
from affiliate_pipeline_tests.defs.rebates import ENDPOINT, KEY

ROOT = Path(__file__).parents[2]
TODAY = datetime.now(UTC).date()
YESTERDAY = TODAY - timedelta(days=1)
DATABASE = "AFFILIATE_DATABASE_URL is not set"
PARTNER = ("BINANCE_PARTNER_API_KEY", "BINANCE_PARTNER_API_SECRET")


@pytest.fixture(scope="module", autouse=True)
def no_schema_version() -> Iterator[None]:
    """Do not record a schema version in storages that are used once: it takes most of the time of their creation."""
    with pytest.MonkeyPatch.context() as patch:
        for storage in ("run_storage", "event_log", "schedule_storage"):
            patch.setattr(f"dagster_postgres.{storage}.{storage}.stamp_alembic_rev", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def other_url(postgres_home: Path) -> str:
    """The database of another team's Dagster."""
    return server.ensure_database(postgres_home, "another_team")


@pytest.fixture(scope="module")
def other_home(other_url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The DAGSTER_HOME of another team's Dagster, with its own PostgreSQL storage."""
    home = tmp_path_factory.mktemp("another_team")
    (home / "dagster.yaml").write_text(f"storage:\n  postgres:\n    postgres_url: {other_url}\n")
    return home


@pytest.fixture(scope="module")
def other_instance(other_home: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.from_config(str(other_home)) as instance:
        yield instance


@pytest.fixture
def own_instance(
    database_url: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dg.DagsterInstance]:
    """This project's Dagster, on a configured database."""
    monkeypatch.setenv("AFFILIATE_DATABASE_URL", database_url)
    home = tmp_path_factory.mktemp("own_instance")
    shutil.copyfile(ROOT / "dagster.yaml", home / "dagster.yaml")
    with dg.DagsterInstance.from_config(str(home)) as instance:
        yield instance


@pytest.fixture
def leftover(tmp_path: Path) -> Iterator[Sandbox]:
    """A running sandbox, and the `.affiliate/settings.env` that an earlier `up` wrote for it."""
    with Sandbox(rows_per_day=10, users=5) as exchange:
        (tmp_path / ".affiliate").mkdir()
        settings.save_sandbox_variables({"AFFILIATE_START_DATE": f"{YESTERDAY}", **exchange.variables})
        yield exchange


@pytest.fixture
def nothing_is_created(tmp_path: Path, database_url: str, other_url: str) -> Iterator[None]:
    """Assert that the test creates no file, embedded server or database, and that no day lands."""

    def existing() -> dict[str, object]:
        with psycopg.connect(database_url) as connection:
            databases = connection.execute("select datname::text from pg_database order by 1").fetchall()
            [(ledger,)] = connection.execute("select to_regclass('affiliate.landing')").fetchall()
            landed = connection.execute("select count(*) from affiliate.landing").fetchall() if ledger else [(0,)]
        # An embedded server first writes its address to `.affiliate`.
        files = [path for folder in (tmp_path, tmp_path / ".affiliate") for path in sorted(folder.glob("*"))]
        return {"files": files, "databases": databases, "landed": landed}

    before = existing()
    yield
    assert existing() == before


def failure_of(instance: dg.DagsterInstance, key: dg.AssetKey, partition: str | None) -> str:
    """The error message of a run of the asset, which must fail without a materialization."""
    definitions = loaded_definitions()
    result = dg.materialize(
        [definitions.get_assets_def(key)],
        instance=instance,
        resources=definitions.resources,
        partition_key=partition,
        selection=[key],
        raise_on_error=False,
    )
    assert not result.success
    events = recorded_events(instance, result.run_id)
    assert [event for event in events if event.is_step_materialization] == []
    failure = only_step_failure(events)
    if partition is not None:
        assert failed_partitions(failure) == {partition}
    return failure_message(failure)


def failure_of_rebates(instance: dg.DagsterInstance) -> str:
    return failure_of(instance, dg.AssetKey(KEY.split("/")), f"{YESTERDAY}")


def test_a_leftover_sandbox_lands_nothing_in_another_teams_instance(other_instance, leftover, nothing_is_created):
    assert DATABASE in failure_of_rebates(other_instance)
    assert leftover.requests == []


def test_a_leftover_sandbox_lands_nothing_in_a_configured_database(own_instance, leftover, nothing_is_created):
    failure = failure_of_rebates(own_instance)
    assert all(f"{name} is not set" in failure for name in PARTNER)
    assert leftover.requests == []


GIVEN: Mapping[str, tuple[Mapping[str, str], Sequence[str]]] = {
    "only the key": ({"BINANCE_PARTNER_API_KEY": "key"}, PARTNER[1:]),
    "only the secret": ({"BINANCE_PARTNER_API_SECRET": "secret"}, PARTNER[:1]),
    "a base URL": ({"BINANCE_BASE_URL": "https://api.binance.com"}, PARTNER),
    "an agent code": ({"BINANCE_API_AGENT_CODE": "code"}, PARTNER),
    "empty credentials": ({"BINANCE_PARTNER_API_KEY": "", "BINANCE_PARTNER_API_SECRET": ""}, PARTNER),
    "another exchange": ({"LBANK_OPEN_ID": "LBA1"}, PARTNER),
    "no exchange": ({"AFFILIATE_RATE_SCALE": "1", "AFFILIATE_START_DATE": "2025-01-01"}, PARTNER),
}


def named_as_missing(instance: dg.DagsterInstance) -> list[str]:
    """The variables that a run of the instance would report as missing, determined without a run."""
    environment = settings.of_instance(instance)
    problems = ""
    for use in (
        environment.database_url,
        lambda: ENDPOINT.exchange.connect(ENDPOINT, SharedState(), environment.variables),
    ):
        try:
            use()
        except SettingsError as error:
            problems += f"{error}; "
    return [name for name in ("AFFILIATE_DATABASE_URL", *PARTNER) if f"{name} is not set" in problems]


@pytest.mark.parametrize("place", ["environment", ".env"])
@pytest.mark.parametrize("database", [True, False])
def test_a_partial_configuration_is_never_completed_from_the_sandbox(
    other_instance, leftover, monkeypatch, database_url, place, database
):
    named, expected = {}, {}
    for case, (given, missing) in GIVEN.items():
        variables = {**given, "AFFILIATE_DATABASE_URL": database_url} if database else given
        with monkeypatch.context() as patch:
            for name, value in variables.items() if place == "environment" else ():
                patch.setenv(name, value)
            lines = [f"{name}={value}\n" for name, value in variables.items()] if place == ".env" else []
            Path(".env").write_text("".join(lines))
            named[case] = named_as_missing(other_instance)
        expected[case] = [*([] if database else ["AFFILIATE_DATABASE_URL"]), *missing]
    assert named == expected
    assert leftover.requests == []


def test_a_partial_configuration_in_env_lands_nothing(other_instance, leftover, database_url, nothing_is_created):
    file = Path(".env")
    file.write_text(f"AFFILIATE_DATABASE_URL={database_url}\nBINANCE_PARTNER_API_KEY=key\n")
    failure = failure_of_rebates(other_instance)
    assert [name for name in PARTNER if f"{name} is not set" in failure] == [PARTNER[1]]
    assert DATABASE not in failure
    assert leftover.requests == []
    file.unlink()


def step_of(spec: dg.AssetSpec) -> str:
    """The name of the step that materializes the asset, perhaps with others."""
    return loaded_definitions().get_assets_def(spec.key).op.name


def groups_of_assets() -> list[list[dg.AssetSpec]]:
    """All assets in groups that can run together: their partitions are the same, and no step depends on another."""
    groups: dict[object, list[dg.AssetSpec]] = {}
    for spec in loaded_definitions().resolve_all_asset_specs():
        # Derived assets would be skipped after the failure of an asset that they depend on.
        group = step_of(spec) if spec.deps else spec.partitions_def
        groups.setdefault(group, []).append(spec)
    return list(groups.values())


def failures_of(instance: dg.DagsterInstance, specs: Sequence[dg.AssetSpec]) -> dict[str, str]:
    """By step, its error message in one run of the assets over the last partition, in which each of them must fail."""
    definitions = loaded_definitions()
    keys, steps = [spec.key for spec in specs], {step_of(spec) for spec in specs}
    partitions = specs[0].partitions_def
    last = partitions.get_last_partition_key() if partitions else None
    result = dg.materialize(
        list({step_of(spec): definitions.get_assets_def(spec.key) for spec in specs}.values()),
        instance=instance,
        resources=definitions.resources,
        partition_key=last,
        selection=keys,
        raise_on_error=False,
    )
    events = recorded_events(instance, result.run_id)
    assert [event for event in events if event.is_step_materialization] == []
    failures = {event.step_key: event.step_failure_data for event in events if event.is_step_failure}
    assert last is None or all(failed_partitions(failure) == {last} for failure in failures.values())
    messages = {step: failure_message(failure) for step, failure in failures.items() if step}
    assert messages.keys() == steps
    return messages


def test_no_asset_uses_a_database_or_an_account_that_is_not_configured(
    leftover, nothing_is_created, monkeypatch, database_url
):
    with dg.DagsterInstance.ephemeral() as instance:
        without_database = {
            step: message for group in groups_of_assets() for step, message in failures_of(instance, group).items()
        }
        monkeypatch.setenv("AFFILIATE_DATABASE_URL", database_url)
        without_account = {
            step: message for group in groups_of_assets() for step, message in failures_of(instance, group).items()
        }
    assert [step for step, message in without_database.items() if DATABASE not in message] == []
    causes = ("API_KEY is not set", "Materialize one of them first")
    assert [step for step, message in without_account.items() if not any(cause in message for cause in causes)] == []
    assert leftover.requests == []


def test_no_sensor_uses_a_database_that_is_not_configured(other_instance, leftover, nothing_is_created, monkeypatch):
    definitions = loaded_definitions()
    monkeypatch.setenv("HEARTBEAT_URL", "http://127.0.0.1:9")
    context = partial(dg.build_sensor_context, other_instance, definitions=definitions, resources=definitions.resources)
    causes = {}
    for sensor in definitions.sensors or ():
        with monkeypatch.context() as patch:
            if sensor.name == "kickback_history":
                skipped = sensor.evaluate_tick(context()).skip_message
                assert skipped == "BINANCE_CLIENT_API_KEY and BINANCE_CLIENT_API_SECRET are not set"
                patch.setenv("BINANCE_CLIENT_API_KEY", "key")
            with pytest.raises(Exception) as raised:
                sensor.evaluate_tick(context())
        causes[sensor.name] = raised.value if isinstance(raised.value, SettingsError) else raised.value.__cause__
    assert len(causes) > 1
    assert [name for name, cause in causes.items() if DATABASE not in str(cause)] == []


def test_schedules_request_days_regardless_of_the_sandbox_or_report_what_is_missing(
    other_instance, leftover, nothing_is_created
):
    definitions = loaded_definitions()
    now = datetime.now(UTC)
    for schedule in definitions.schedules or ():
        assert isinstance(schedule, dg.ScheduleDefinition)
        # Closed, since its copy of the instance would otherwise stay Dagster's current one and fail a later run.
        with dg.build_schedule_context(
            other_instance, scheduled_execution_time=now, resources=definitions.resources
        ) as context:
            tick = schedule.evaluate_tick(context)
        assert tick.run_requests or "are not set" in (tick.skip_message or "")
        for request in tick.run_requests or ():
            first, last = (request.tags[f"dagster/asset_partition_range_{end}"] for end in ("start", "end"))
            # Several days, or a snapshot of today: the sandbox's start date, yesterday, does not limit them.
            assert first < last or first > f"{YESTERDAY}"
    assert leftover.requests == []


@pytest.mark.e2e
def test_a_run_of_dagsters_command_fails_and_names_the_variables(
    other_home, other_instance, leftover, nothing_is_created, database_url, tmp_path
):
    """The process of Dagster's command executes the step; the day is before the start date of the sandbox."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "DAGSTER_HOME": str(other_home),
        "AFFILIATE_DATABASE_URL": database_url,
    }
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
    assert f"{PARTNER[0]} is not set; {PARTNER[1]} is not set" in done.stderr
    (last,) = other_instance.get_runs(limit=1)
    assert other_instance.get_run_by_id(last.run_id).status == dg.DagsterRunStatus.FAILURE
    assert (
        other_instance.get_records_for_run(last.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION).records == []
    )
    assert leftover.requests == []


@pytest.fixture
def embedded(leftover, postgres_home) -> Iterator[dg.DagsterInstance]:
    """This project's Dagster without a configured database; its embedded server is that of the tests, already running."""
    running = cluster.read(postgres_home.resolve())
    assert running is not None
    cluster.write(settings.home(), running)
    home = Path("dagster_home")
    home.mkdir()
    shutil.copyfile(ROOT / "dagster.yaml", home / "dagster.yaml")
    with dg.DagsterInstance.from_config(str(home.absolute())) as instance:
        yield instance
    with psycopg.connect(server.ensure_database(postgres_home, "postgres"), autocommit=True) as connection:
        for mode in Mode:
            connection.execute(f"drop database if exists {mode} with (force)".encode())


def database_of(instance: dg.DagsterInstance) -> str:
    storage: Any = instance.event_log_storage
    assert isinstance(storage, PostgresEventLogStorage)
    return storage.postgres_url


def test_the_application_lands_the_sandbox_in_its_own_database(embedded, leftover, monkeypatch, other_instance):
    definitions = loaded_definitions()
    asset = definitions.get_assets_def(dg.AssetKey(KEY.split("/")))
    assert dg.materialize(
        [asset], instance=embedded, resources=definitions.resources, partition_key=f"{YESTERDAY}"
    ).success
    assert leftover.requests != []
    with psycopg.connect(server.ensure_database(settings.home(), "affiliate_sandbox")) as connection:
        [(rows,)] = connection.execute("select rows from affiliate.landing").fetchall()
        assert connection.execute("select count(*) from binance.rebate_recent_record").fetchall() == [(rows,)]
        assert rows > 0
    # The running server changes nothing for another instance.
    assert "AFFILIATE_DATABASE_URL" in named_as_missing(other_instance)
    # Once an exchange is configured, the loaded instance continues with the settings read at its start. The next instance
    # has its storage in another database.
    monkeypatch.setenv("BINANCE_PARTNER_API_KEY", "a real key")
    assert named_as_missing(embedded) == []
    with dg.DagsterInstance.from_config(str(Path("dagster_home").absolute())) as production:
        assert named_as_missing(production) == [PARTNER[1]]
        assert database_of(production) != database_of(embedded)
