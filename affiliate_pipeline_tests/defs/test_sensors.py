"""What goes wrong raises an alert: a failed run with exactly the days that it did not land, from the real event log."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorType,
    ScheduleInstigatorData,
    TickData,
    TickStatus,
)
from dagster._utils.error import SerializableErrorInfo

from affiliate_pipeline import alerts
from affiliate_pipeline.days import days_from, fold
from affiliate_pipeline.definitions import build_definitions
from affiliate_pipeline.defs import assets, sensors
from affiliate_pipeline.defs.delivery import alert_delivery
from affiliate_pipeline.defs.sensors import failed_assets, failed_run_alert, failing_tick_alert
from affiliate_pipeline.postgres.outbox import Outbox
from affiliate_pipeline_tests.defs.conftest import materialized
from affiliate_pipeline_tests.defs.rebates import KEY, rebates

YESTERDAY = datetime.now(UTC).date() - timedelta(days=1)
SUCCESS, SKIPPED, FAILURE = TickStatus.SUCCESS, TickStatus.SKIPPED, TickStatus.FAILURE
DAYS = days_from(YESTERDAY - timedelta(days=4), YESTERDAY)


@pytest.fixture
def tick(instance, database_url, monkeypatch) -> Callable[..., list[alerts.Alert]]:
    """A tick of a sensor, from where its last one ended; all alerts raised so far."""
    monkeypatch.setenv("DAGSTER_UI_URL", "http://ui.example:3000/")
    cursor: list[str | None] = [None]

    def tick(sensor: dg.SensorDefinition = failed_run_alert) -> list[alerts.Alert]:
        context = dg.build_sensor_context(instance=instance, cursor=cursor[0])
        sensor(context)
        cursor[0] = context.cursor
        with Outbox(database_url) as outbox:
            return outbox.waiting("nobody")

    return tick


@pytest.mark.parametrize(
    ("instance", "events_per_read"), [("in memory", 1000), ("dagster.yaml", 2)], indirect=["instance"]
)
def test_exactly_the_failed_days_are_told(sandbox, instance, tick, monkeypatch, events_per_read):
    monkeypatch.setattr(sensors, "EVENTS_PER_READ", events_per_read)
    for day in (DAYS[1], DAYS[3]):
        sandbox.faults.fail_day(day, status=400, code=-1127)
    run_id = materialized(instance, DAYS)

    (failed,) = failed_assets(instance, run_id)
    assert (failed.key, list(failed.days), failed.landed) == (KEY, [DAYS[1], DAYS[3]], 3)
    assert failed.reasons.keys() == {DAYS[1], DAYS[3]}

    (alert,) = tick()
    failed_days = fold([DAYS[1], DAYS[3]])
    assert alert.title == f"{KEY} failed for {failed_days}"
    counted, cause, until, to_do, run = alert.text.splitlines()
    assert counted.startswith(f"{KEY}: 2 days failed, 3 landed.")
    assert cause.startswith(f"{failed_days}: ") and "-1127" in cause
    assert f"fetchable at least until {DAYS[1] + timedelta(days=6)} 23:59 UTC" in until
    assert "missing and failed only" in to_do
    assert run == f"Run: http://ui.example:3000/runs/{run_id}"
    assert alert.failed == {KEY: (DAYS[1], DAYS[3])}
    secrets = {*sandbox.binance.accounts, *sandbox.binance.accounts.values()}
    assert not [secret for secret in secrets if secret in str(alert)]


def test_days_that_failed_alike_are_told_together_whatever_they_held(sandbox, instance, tick):
    materialized(instance, DAYS[:2])
    for day in DAYS[:3]:
        sandbox.faults.fail_day(day, status=400, code=-1127)
    materialized(instance, DAYS[:3])
    assert f"\n{fold(DAYS[:3])}: " in tick()[0].text


def test_each_run_is_told_once(sandbox, instance, tick):
    sandbox.faults.fail_day(DAYS[-1], status=400, code=-1127)
    for _ in range(2):
        materialized(instance, DAYS[-1:])
        tick()
    assert len(tick()) == 2


def test_a_tick_that_fails_loses_nothing(sandbox, instance, tick, monkeypatch):
    sandbox.faults.fail_day(DAYS[-1], status=400, code=-1127)
    materialized(instance, DAYS[-1:])
    with monkeypatch.context() as broken:
        broken.setattr(sensors, "APPEARED_S", 0)
        broken.setenv("AFFILIATE_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nothing")
        with pytest.raises(Exception, match="database cannot be used"):
            tick()
    assert len(tick()) == 1


def test_a_run_is_read_no_more_once_nothing_can_appear_before_it(sandbox, instance, tick, monkeypatch):
    sandbox.faults.fail_day(DAYS[-1], status=400, code=-1127)
    materialized(instance, DAYS[-1:])
    read = []
    monkeypatch.setattr(sensors, "failed_assets", lambda _, run_id: read.append(run_id) or [])
    tick()
    tick()
    monkeypatch.setattr(sensors, "APPEARED_S", -1)
    tick()
    assert len(read) == 3
    tick()
    assert len(read) == 3


def test_many_runs_are_told_over_several_ticks(instance, tick, monkeypatch):
    @dg.asset
    def roster() -> None:
        raise dg.Failure("the exchange refused")

    monkeypatch.setattr(sensors, "RUNS_PER_TICK", 2)
    monkeypatch.setattr(sensors, "APPEARED_S", -1)
    for _ in range(5):
        dg.materialize([roster], instance=instance, raise_on_error=False)
    assert [len(tick()) for _ in range(3)] == [2, 4, 5]


def test_what_failed_long_before_the_first_tick_is_not_told(sandbox, instance, tick, monkeypatch):
    sandbox.faults.fail_day(DAYS[-1], status=400, code=-1127)
    materialized(instance, DAYS[-1:])
    monkeypatch.setattr(sensors, "DAY_S", -1)
    assert tick() == []


def test_a_failure_during_a_long_silence_is_told(sandbox, instance, tick, monkeypatch):
    tick()
    monkeypatch.setattr(sensors, "DAY_S", -1)
    sandbox.faults.fail_day(DAYS[-1], status=400, code=-1127)
    materialized(instance, DAYS[-1:])
    assert len(tick()) == 1


def test_a_wrong_key_fails_every_day_with_one_cause(sandbox, instance, tick, monkeypatch):
    monkeypatch.setenv("BINANCE_PARTNER_API_KEY", "nobodys-key")
    materialized(instance, DAYS[:3])
    (alert,) = tick()
    assert alert.title == f"{KEY} failed for {fold(DAYS[:3])}"
    assert alert.text.count("-2015") == 1
    assert "3 days failed, 0 landed." in alert.text
    assert "nobodys-key" not in str(alert)


def test_a_run_without_settings_says_what_to_set(sandbox, instance, tick, monkeypatch):
    monkeypatch.delenv("BINANCE_PARTNER_API_SECRET")
    materialized(instance, DAYS[-1:])
    assert "BINANCE_PARTNER_API_SECRET is not set" in tick()[0].text


@pytest.fixture
def mistake(monkeypatch) -> None:
    """Ingesting breaks in a way that nobody foresaw."""

    def breaks(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a mistake in the code")

    monkeypatch.setattr(assets, "ingest", breaks)


def test_a_failure_that_is_none_of_ours_is_told_with_its_days_and_cause(sandbox, instance, tick, mistake):
    materialized(instance, DAYS[-2:])
    (alert,) = tick()
    assert alert.title == f"{KEY} failed for {fold(DAYS[-2:])}"
    assert "2 days failed, 0 landed." in alert.text
    assert "a mistake in the code" in alert.text


def test_an_asset_that_was_skipped_has_failed_too(sandbox, instance, tick):
    @dg.asset(
        deps=[dg.AssetKey(KEY.split("/"))],
        partitions_def=build_definitions().get_assets_def(dg.AssetKey(KEY.split("/"))).partitions_def,
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def downstream() -> dg.MaterializeResult:
        return dg.MaterializeResult()

    sandbox.faults.fail_day(DAYS[-1], status=400, code=-1127)
    materialized(instance, DAYS[-2:], downstream)
    assert tick()[0].failed == {KEY: (DAYS[-1],), "downstream": tuple(DAYS[-2:])}


def test_assets_without_days_that_failed_are_named(instance, tick):
    @dg.asset(partitions_def=dg.StaticPartitionsDefinition(["north"]))
    def region() -> None:
        raise dg.Failure("no report of the north")

    @dg.asset
    def roster() -> None:
        raise dg.Failure("the exchange refused")

    dg.materialize([roster], instance=instance, raise_on_error=False)
    dg.materialize([region], instance=instance, raise_on_error=False, partition_key="north")
    one, other = tick()
    assert (one.title, one.failed) == ("roster failed", {"roster": ()})
    assert "the exchange refused" in one.text
    assert other.title == "region failed"


def test_a_run_that_dagster_runs_again_is_told_when_its_last_attempt_has_failed(instance, tick, monkeypatch):
    @dg.asset
    def roster() -> None:
        raise dg.Failure("the exchange refused")

    def attempt(**tags: str) -> None:
        dg.materialize([roster], instance=instance, raise_on_error=False, tags=tags)

    monkeypatch.setattr(sensors, "APPEARED_S", -1)
    monkeypatch.setattr(type(instance), "run_retries_enabled", True)
    # The instance decides for itself, as its settings have it.
    attempt(**{"dagster/max_retries": "1"})
    assert tick() == []
    attempt(**{"dagster/max_retries": "0"})
    assert len(tick()) == 1


def test_a_run_of_which_dagster_has_not_decided_yet_is_told_later(instance, tick, monkeypatch):
    @dg.asset
    def roster() -> None:
        raise dg.Failure("the exchange refused")

    monkeypatch.setattr(sensors, "APPEARED_S", -1)
    run_id = dg.materialize([roster], instance=instance, raise_on_error=False).run_id
    monkeypatch.setattr(type(instance), "run_retries_enabled", True)
    assert tick() == []
    instance.add_run_tags(run_id, {sensors.WILL_RETRY_TAG: "false"})
    assert len(tick()) == 1


def test_a_run_that_lands_everything_is_not_told(sandbox, instance, tick):
    assert failed_assets(instance, materialized(instance, DAYS[-2:])) == []
    assert tick() == []


def test_a_cancelled_run_is_not_told(instance, tick):
    @dg.job
    def cancelled() -> None: ...

    instance.report_run_canceled(instance.create_run_for_job(cancelled))
    assert tick() == []


def test_failed_checks_of_a_run_that_lands_everything_are_told_once_with_their_days(sandbox, instance, tick):
    sandbox.binance.set_rebates(row | {"tier": "gold"} for day in DAYS[:2] for row in rebates(day, 2))
    run_id = materialized(instance, DAYS[:2])
    (alert,) = tick()
    assert f"{KEY}: check day_is_sound failed for " in alert.title
    assert "tier" in alert.text
    assert alert.text.endswith(f"/runs/{run_id}")
    assert alert.failed == {}


def test_the_standing_check_is_left_to_the_watch(instance, tick):
    @dg.asset(
        check_specs=[dg.AssetCheckSpec(assets.NO_DAY_MISSING, asset="kept"), dg.AssetCheckSpec("own", asset="kept")]
    )
    def kept():
        for name in (assets.NO_DAY_MISSING, "own"):
            yield dg.AssetCheckResult(check_name=name, passed=False, description=f"{name} says no")
        yield dg.MaterializeResult()

    dg.materialize([kept], instance=instance)
    (alert,) = tick()
    assert alert.title == "kept: check own failed"
    assert assets.NO_DAY_MISSING not in alert.text


# Only the real instance keeps ticks.
with_ticks = pytest.mark.parametrize("instance", ["dagster.yaml"], indirect=True)


@pytest.fixture
def ticked(instance) -> Callable[..., None]:
    """An instigator has ticked, and this is how its ticks ended."""
    location = RegisteredCodeLocationOrigin("affiliate_pipeline.definitions")

    def ticked(*ends: TickStatus, kind: InstigatorType = InstigatorType.SENSOR, name: str = "poll") -> None:
        origin = RemoteInstigatorOrigin(RemoteRepositoryOrigin(location, "__repository__"), name)
        data = ScheduleInstigatorData("0 0 * * *", None) if kind == InstigatorType.SCHEDULE else None
        state = InstigatorState(origin, kind, InstigatorStatus.DECLARED_IN_CODE, data)
        if not instance.get_instigator_state(state.instigator_origin_id, state.selector_id):
            instance.add_instigator_state(state)
        for end in ends:
            error = SerializableErrorInfo("ValueError: it broke?token=abcdef0123\n", [], "ValueError")
            instance.create_tick(
                TickData(
                    state.instigator_origin_id,
                    name,
                    kind,
                    end,
                    time.time(),
                    selector_id=state.selector_id,
                    run_ids=["4711"] if end == SUCCESS else [],
                    error=error if end == FAILURE else None,
                )
            )

    return ticked


@with_ticks
def test_a_failing_sensor_is_told_once_until_it_ticks_well_again(tick, ticked):
    ticked(SUCCESS, FAILURE, FAILURE)
    (alert,) = tick(failing_tick_alert)
    assert alert.title == "The sensor poll fails"
    assert "it broke" in alert.text and "abcdef0123" not in alert.text
    assert alert.text.endswith("http://ui.example:3000/automation")

    ticked(FAILURE)
    assert len(tick(failing_tick_alert)) == 1
    ticked(SKIPPED)
    assert len(tick(failing_tick_alert)) == 1
    ticked(FAILURE, FAILURE)
    assert len(tick(failing_tick_alert)) == 2


@with_ticks
def test_one_failed_tick_of_a_sensor_is_not_told(tick, ticked):
    ticked(FAILURE, SUCCESS, FAILURE)
    assert tick(failing_tick_alert) == []


@with_ticks
def test_one_failed_tick_of_a_schedule_is_told(tick, ticked):
    ticked(FAILURE, kind=InstigatorType.SCHEDULE, name="daily")
    assert tick(failing_tick_alert)[0].title == "The schedule daily fails"


@with_ticks
def test_a_delivery_that_fails_is_told_of_to_whom_it_reaches(tick, ticked):
    ticked(FAILURE, FAILURE, name=alert_delivery.name)
    (alert,) = tick(failing_tick_alert)
    assert alert.title == "The sensor alert_delivery fails"


def test_the_sensors_run_by_themselves():
    running = {sensor.name: sensor for sensor in build_definitions().sensors}
    for sensor in (failed_run_alert, failing_tick_alert, alert_delivery):
        assert running[sensor.name].default_status == dg.DefaultSensorStatus.RUNNING
        assert sensor.minimum_interval_seconds <= 30
