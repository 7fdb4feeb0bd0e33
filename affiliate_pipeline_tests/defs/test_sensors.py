"""A failed run is heard: with exactly the days that it did not land, through Apprise, from the real event log."""

import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from affiliate_pipeline.days import days_from, fold
from affiliate_pipeline.definitions import build_definitions
from affiliate_pipeline.defs import assets, sensors
from affiliate_pipeline.defs.sensors import failed_assets, failed_run_alert

pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")

KEY = "binance/rebate_recent_record"
YESTERDAY = datetime.now(UTC).date() - timedelta(days=1)
DAYS = days_from(YESTERDAY - timedelta(days=4), YESTERDAY)


@pytest.fixture
def instance(sandbox, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[dg.DagsterInstance]:
    """One in memory; with the parameter "dagster.yaml" the real one, in the test's database, which takes long."""
    if getattr(request, "param", None) == "dagster.yaml":
        shutil.copyfile(Path(__file__).parents[2] / "dagster.yaml", tmp_path / "dagster.yaml")
        made = dg.DagsterInstance.from_config(str(tmp_path))
    else:
        made = dg.DagsterInstance.ephemeral()
    with made as instance:
        yield instance


def materialized(instance: dg.DagsterInstance, days: list[date], *more: dg.AssetsDefinition) -> str:
    """The id of a run over the days."""
    definitions = build_definitions()
    result = dg.materialize(
        [definitions.get_assets_def(dg.AssetKey(KEY.split("/"))), *more],
        instance=instance,
        resources=definitions.resources,
        tags={"dagster/asset_partition_range_start": f"{days[0]}", "dagster/asset_partition_range_end": f"{days[-1]}"},
        raise_on_error=False,
    )
    return result.run_id


@pytest.fixture
def alert(instance, webhook, monkeypatch) -> Callable[[str], dict]:
    """What the sensor sends about a run."""
    monkeypatch.setenv("ALERT_URLS", webhook.url)
    monkeypatch.setenv("DAGSTER_UI_URL", "http://ui.example:3000/")

    def alert(run_id: str) -> dict:
        (failure,) = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.PIPELINE_FAILURE).records
        context = dg.build_run_status_sensor_context(
            sensor_name=failed_run_alert.name,
            dagster_event=failure.event_log_entry.dagster_event,
            dagster_instance=instance,
            dagster_run=instance.get_run_by_id(run_id),
        ).for_run_failure()
        failed_run_alert(context)
        return webhook.messages[-1]

    return alert


@pytest.mark.parametrize(
    ("instance", "events_per_read"), [("in memory", 1000), ("dagster.yaml", 2)], indirect=["instance"]
)
def test_exactly_the_failed_days_are_told(sandbox, instance, alert, monkeypatch, events_per_read):
    monkeypatch.setattr(sensors, "EVENTS_PER_READ", events_per_read)
    for day in (DAYS[1], DAYS[3]):
        sandbox.faults.fail_day(day, status=400, code=-1127)
    run_id = materialized(instance, DAYS)

    (failed,) = failed_assets(instance, run_id)
    assert (failed.key, list(failed.days), failed.landed) == (KEY, [DAYS[1], DAYS[3]], 3)
    assert failed.reasons.keys() == {DAYS[1], DAYS[3]}

    message = alert(run_id)
    assert message["title"].startswith(f"{KEY} failed for {DAYS[1]}, ")
    assert "2 days failed, 3 landed." in message["message"]
    assert "-1127" in message["message"]
    assert message["message"].endswith(f"Run: http://ui.example:3000/runs/{run_id}")
    secrets = {*sandbox.binance.accounts, *sandbox.binance.accounts.values()}
    assert not [secret for secret in secrets if secret in str(message)]


def test_a_wrong_key_fails_every_day_with_one_cause(instance, alert, monkeypatch):
    monkeypatch.setenv("BINANCE_PARTNER_API_KEY", "nobodys-key")
    message = alert(materialized(instance, DAYS[:3]))
    assert message["title"] == f"{KEY} failed for {fold(DAYS[:3])}"
    assert message["message"].count("-2015") == 1
    assert "3 days failed, 0 landed." in message["message"]
    assert "nobodys-key" not in str(message)


def test_a_run_without_settings_says_what_to_set(instance, alert, monkeypatch):
    monkeypatch.delenv("BINANCE_PARTNER_API_SECRET")
    assert "BINANCE_PARTNER_API_SECRET is not set" in alert(materialized(instance, DAYS[-1:]))["message"]


@pytest.fixture
def mistake(monkeypatch) -> None:
    """Ingesting breaks in a way that nobody foresaw."""

    def breaks(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a mistake in the code")

    monkeypatch.setattr(assets, "ingest", breaks)


def test_a_failure_that_is_none_of_ours_is_told_with_its_days(instance, alert, mistake):
    message = alert(materialized(instance, DAYS[-2:]))
    assert message["title"] == f"{KEY} failed for {fold(DAYS[-2:])}"
    assert "2 days failed, 0 landed." in message["message"]


def test_a_failure_that_is_none_of_ours_is_told_with_its_cause(instance, alert, mistake):
    assert "a mistake in the code" in alert(materialized(instance, DAYS[-1:]))["message"]


def test_an_asset_that_was_skipped_has_failed_too(sandbox, instance, alert):
    @dg.asset(
        deps=[dg.AssetKey(KEY.split("/"))],
        partitions_def=build_definitions().get_assets_def(dg.AssetKey(KEY.split("/"))).partitions_def,
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def downstream() -> dg.MaterializeResult:
        return dg.MaterializeResult()

    sandbox.faults.fail_day(DAYS[-1], status=400, code=-1127)
    run_id = materialized(instance, DAYS[-2:], downstream)
    failed = {asset.key: (list(asset.days), asset.landed) for asset in failed_assets(instance, run_id)}
    assert failed == {KEY: ([DAYS[-1]], 1), "downstream": (DAYS[-2:], 0)}


def test_an_asset_without_days_that_failed_is_named(instance, alert):
    @dg.asset
    def roster() -> None:
        raise dg.Failure("the exchange refused")

    run_id = dg.materialize([roster], instance=instance, raise_on_error=False).run_id
    assert "roster" in alert(run_id)["title"]


def test_an_alert_that_cannot_be_delivered_does_not_stop_the_sensor(sandbox, instance, alert, webhook, caplog):
    sandbox.faults.fail_day(DAYS[-1], status=400, code=-1127)
    webhook.status = 500
    alert(materialized(instance, DAYS[-1:]))
    assert len(webhook.messages) == 1
    assert f"{KEY} failed for {DAYS[-1]}" in caplog.text


def test_a_run_that_lands_everything_has_no_failed_day(instance):
    assert failed_assets(instance, materialized(instance, DAYS[-2:])) == []


def test_the_sensor_runs_by_itself_and_hears_runs_of_the_command_line():
    sensor = next(each for each in build_definitions().sensors if each.name == failed_run_alert.name)
    assert sensor.default_status == dg.DefaultSensorStatus.RUNNING
    assert sensor.minimum_interval_seconds <= 30
