"""What goes wrong raises an alert: a failed run with exactly the days that it did not land, from the real event log."""

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteJobOrigin,
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
from dagster._core.test_utils import create_run_for_test
from dagster._utils.error import SerializableErrorInfo

from affiliate_pipeline.definitions import build_definitions
from affiliate_pipeline.defs import checks
from affiliate_pipeline.defs import endpoint_assets as assets
from affiliate_pipeline.defs.dagster_internals import LOCATION
from affiliate_pipeline.defs.sensors import failures as sensors
from affiliate_pipeline.defs.sensors.alert_delivery import alert_delivery
from affiliate_pipeline.defs.sensors.failures import failed_run_alert
from affiliate_pipeline.domain.days import days_from, format_days
from affiliate_pipeline.monitoring import alerts
from affiliate_pipeline.monitoring.outbox import Outbox
from affiliate_pipeline_tests.conftest import RESOURCES
from affiliate_pipeline_tests.defs.conftest import materialized
from affiliate_pipeline_tests.defs.rebates import KEY, rebates

ROSTER = ["lbank", "roster"]
failing_tick_alert = next(each for each in build_definitions().sensors if each.name == "failing_tick_alert")
YESTERDAY = datetime.now(UTC).date() - timedelta(days=1)
SUCCESS, SKIPPED, FAILURE = TickStatus.SUCCESS, TickStatus.SKIPPED, TickStatus.FAILURE
DAYS = days_from(YESTERDAY - timedelta(days=4), YESTERDAY)


@pytest.fixture
def tick(instance, database_url, monkeypatch) -> Callable[..., list[alerts.Alert]]:
    """A tick of a sensor, from where its last one ended; all alerts raised so far."""
    monkeypatch.setenv("DAGSTER_UI_URL", "http://ui.example:3000/")
    cursor: list[str | None] = [None]

    def tick(sensor: dg.SensorDefinition = failed_run_alert) -> list[alerts.Alert]:
        context = dg.build_sensor_context(instance, cursor[0], repository_name="__repository__", resources=RESOURCES)
        sensor(context)
        cursor[0] = context.cursor
        with Outbox(database_url) as outbox:
            return [alert for alert, _ in outbox.due("nobody")]

    return tick


@pytest.mark.parametrize("instance", ["in memory", "dagster.yaml"], indirect=True)
def test_exactly_the_failed_days_are_told(sandbox, instance, tick):
    for day in (DAYS[1], DAYS[3]):
        sandbox.faults.fail_day(day, status=400, code=-1127)
    run_id = materialized(instance, DAYS)

    (alert,) = tick()
    failed_days = format_days([DAYS[1], DAYS[3]])
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
    assert f"\n{format_days(DAYS[:3])}: " in tick()[0].text


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
        broken.setattr(sensors, "MAX_COMMIT_DELAY_S", 0)
        broken.setenv("AFFILIATE_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nothing")
        with pytest.raises(Exception, match="database cannot be used"):
            tick()
    assert len(tick()) == 1


def test_a_run_is_read_no_more_once_nothing_can_appear_before_it(sandbox, instance, tick, monkeypatch):
    sandbox.faults.fail_day(DAYS[-1], status=400, code=-1127)
    materialized(instance, DAYS[-1:])
    read = []
    monkeypatch.setattr(sensors, "_alerts", lambda context, run, *_: read.append(run.run_id) or [])
    tick()
    tick()
    monkeypatch.setattr(sensors, "MAX_COMMIT_DELAY_S", -1)
    tick()
    assert len(read) == 3
    tick()
    assert len(read) == 3


def test_many_runs_are_told_over_several_ticks(instance, tick, monkeypatch):
    monkeypatch.setattr(sensors, "RUNS_PER_TICK", 2)
    monkeypatch.setattr(sensors, "MAX_COMMIT_DELAY_S", -1)
    for _ in range(5):
        dg.materialize([failing()], instance=instance, raise_on_error=False)
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
    assert alert.title == f"{KEY} failed for {format_days(DAYS[:3])}"
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

    monkeypatch.setattr(assets, "land_days", breaks)


def test_a_failure_that_is_none_of_ours_is_told_with_its_days_and_cause(sandbox, instance, tick, mistake):
    materialized(instance, DAYS[-2:])
    (alert,) = tick()
    assert alert.title == f"{KEY} failed for {format_days(DAYS[-2:])}"
    assert "2 days failed, 0 landed." in alert.text
    assert "a mistake in the code" in alert.text


def test_an_asset_that_was_skipped_has_failed_too(instance, tick):
    @dg.asset(key=["affiliate", "daily_commission"])
    def upstream() -> None:
        raise dg.Failure("nothing to add up")

    @dg.asset(key=["affiliate", "daily_report"], deps=[upstream])
    def downstream() -> None: ...

    dg.materialize([upstream, downstream], instance=instance, raise_on_error=False)
    assert tick()[0].failed == {"affiliate/daily_commission": (), "affiliate/daily_report": ()}


def test_an_asset_without_days_that_failed_is_named(instance, tick):
    dg.materialize([failing()], instance=instance, raise_on_error=False)
    (alert,) = tick()
    assert (alert.title, alert.failed) == ("lbank/roster failed", {"lbank/roster": ()})
    assert "the exchange refused" in alert.text


def failing(key: Sequence[str] = ROSTER) -> dg.AssetsDefinition:
    """An asset that fails."""

    @dg.asset(key=key)
    def fails() -> None:
        raise dg.Failure("the exchange refused")

    return fails


def another_teams() -> dg.AssetsDefinition:
    """Another team's asset and its failing check; it fails after it."""

    @dg.asset(key=["sales", "orders"], check_specs=[dg.AssetCheckSpec("day_is_sound", asset=["sales", "orders"])])
    def orders():
        yield dg.AssetCheckResult(passed=False, description="of another team")
        raise dg.Failure("another team's password-in-an-error", metadata={"failed_partitions": 3})

    return orders


def test_other_teams_assets_are_not_reported(instance, tick):
    @dg.asset(partitions_def=dg.StaticPartitionsDefinition(["north"]))
    def region() -> None:
        raise dg.Failure("no report of the north")

    @dg.job
    def job() -> None: ...

    dg.materialize([another_teams()], instance=instance, raise_on_error=False)
    dg.materialize([region], instance=instance, raise_on_error=False, partition_key="north")
    instance.report_run_failed(instance.create_run_for_job(job))
    assert tick() == []


def test_of_a_run_with_other_teams_assets_only_ours_are_reported(sandbox, instance, tick):
    @dg.asset(
        key=["sales", "daily"],
        partitions_def=build_definitions().get_assets_def(dg.AssetKey(KEY.split("/"))).partitions_def,
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def sales() -> dg.MaterializeResult:
        raise dg.Failure("another team's failure")

    materialized(instance, DAYS[-2:], sales)
    assert tick() == []

    sandbox.faults.fail_day(DAYS[-1], status=400, code=-1127)
    materialized(instance, DAYS[-2:], sales)
    (alert,) = tick()
    assert alert.failed == {KEY: (DAYS[-1],)}
    assert "-1127" in alert.text and "sales" not in alert.text + alert.title and "another" not in alert.text


def test_other_teams_checks_are_not_reported(instance, tick):
    @dg.asset(key=ROSTER, check_specs=[dg.AssetCheckSpec("theirs", asset=ROSTER)])
    def ours():
        yield dg.AssetCheckResult(passed=False)
        yield dg.MaterializeResult()

    @dg.asset(key=["sales", "orders"], check_specs=[dg.AssetCheckSpec("day_is_sound", asset=["sales", "orders"])])
    def theirs():
        yield dg.AssetCheckResult(passed=False)
        yield dg.MaterializeResult()

    assert dg.materialize([ours, theirs], instance=instance).success
    assert tick() == []


def origin(location: str = LOCATION, repository: str = "__repository__") -> RemoteRepositoryOrigin:
    return RemoteRepositoryOrigin(RegisteredCodeLocationOrigin(location), repository)


@pytest.fixture
def launched(instance) -> Callable[..., str]:
    """A run that a daemon or the UI has launched has failed before any step; its id."""

    def launched(of: RemoteRepositoryOrigin | None = None, job: str = "__ASSET_JOB", tags=None, **run) -> str:
        remote = RemoteJobOrigin(of or origin(), job)
        made = create_run_for_test(
            instance, job, status=dg.DagsterRunStatus.STARTED, remote_job_origin=remote, tags=tags or {}, **run
        )
        instance.report_run_failed(made, "it could not start")
        return made.run_id

    return launched


SELECTION = {dg.AssetKey(KEY.split("/")), dg.AssetKey(["sales", "orders"])}


def test_a_run_that_failed_before_anything_was_planned_is_reported_with_its_days(tick, launched):
    launched(
        asset_selection=SELECTION,
        tags={"dagster/asset_partition_range_start": f"{DAYS[0]}", "dagster/asset_partition_range_end": f"{DAYS[1]}"},
    )
    (alert,) = tick()
    assert alert.failed == {KEY: tuple(DAYS[:2])}
    assert "it could not start" in alert.text


def test_a_run_of_everything_that_failed_before_anything_was_planned_is_ours_in_our_location(tick, launched):
    launched()
    (alert,) = tick()
    assert KEY in alert.failed and "lbank/roster" in alert.failed


def test_a_run_that_failed_before_anything_was_planned_may_be_another_teams(tick, launched):
    launched(of=origin("sales"))
    launched(of=origin("sales"), asset_selection=SELECTION)
    launched(of=origin(repository="sales"), asset_selection=SELECTION)
    launched(job="nightly")
    launched(asset_selection={dg.AssetKey(["sales", "orders"])})
    assert tick() == []


@pytest.fixture
def retries(instance, monkeypatch) -> None:
    """The instance retries failed runs once."""
    monkeypatch.setattr(sensors, "MAX_COMMIT_DELAY_S", -1)
    monkeypatch.setattr(type(instance), "run_retries_enabled", True)
    monkeypatch.setattr(type(instance), "run_retries_max_retries", 1)


def will_retry(instance: dg.DagsterInstance, run_id: str) -> str | None:
    return instance.get_run_by_id(run_id).tags.get(sensors.WILL_RETRY_TAG)


def test_a_run_of_the_command_line_is_never_retried_and_so_reported(instance, tick, retries):
    run_id = dg.materialize([failing()], instance=instance, raise_on_error=False).run_id
    assert will_retry(instance, run_id) == "true"
    assert len(tick()) == 1
    assert len(tick()) == 1


@pytest.mark.parametrize(
    "tags", [{"dagster/max_retries": "0"}, {"dagster/max_retries": "many"}, {"dagster/max_retries": "-1"}]
)
@pytest.mark.filterwarnings("ignore:Error parsing int from tag")
def test_a_run_that_dagster_says_it_will_not_retry_is_reported(instance, tick, launched, retries, tags):
    run_id = launched(asset_selection=SELECTION, tags=tags)
    assert will_retry(instance, run_id) == "false"
    assert len(tick()) == 1


def test_a_run_whose_retry_was_launched_is_not_reported_but_the_retrys_own_failure_is(
    instance, tick, launched, retries, monkeypatch
):
    first = launched(asset_selection=SELECTION)
    assert will_retry(instance, first) == "true"
    assert tick() == []

    retry = launched(
        asset_selection=SELECTION, parent_run_id=first, root_run_id=first, tags={"dagster/max_retries": "0"}
    )
    instance.add_run_tags(first, {sensors.AUTO_RETRY_RUN_ID_TAG: retry})
    assert will_retry(instance, retry) == "false"
    assert [alert.key for alert in tick()] == [f"run {retry}"]

    # Nor is it once nobody expects a retry any more.
    monkeypatch.setattr(sensors, "MAX_RETRY_LAUNCH_S", 0)
    monkeypatch.setattr(type(instance), "run_retries_enabled", False)
    assert [alert.key for alert in tick()] == [f"run {retry}"]


def test_a_run_whose_retry_was_not_launched_is_reported_and_holds_up_no_other(
    instance, tick, launched, retries, monkeypatch
):
    """The daemon is off, or the job, its repository or the backfill is gone: Dagster leaves the tag as it is."""
    first = launched(asset_selection=SELECTION)
    other = launched(asset_selection=SELECTION, tags={"dagster/max_retries": "0"})
    assert will_retry(instance, first) == "true"
    for _ in range(2):
        assert [alert.key for alert in tick()] == [f"run {other}"]
    monkeypatch.setattr(sensors, "MAX_RETRY_LAUNCH_S", 0)
    for _ in range(2):
        assert {alert.key for alert in tick()} == {f"run {other}", f"run {first}"}
        assert len(tick()) == 2


def test_a_run_whose_retry_could_not_be_submitted_or_was_deleted_is_reported(
    instance, tick, launched, retries, monkeypatch
):
    failed, deleted = launched(asset_selection=SELECTION), launched(asset_selection=SELECTION)
    retry = create_run_for_test(instance, "__ASSET_JOB", parent_run_id=failed, root_run_id=failed)
    # As Dagster leaves it when the new run cannot be submitted.
    instance.add_run_tags(failed, {sensors.AUTO_RETRY_RUN_ID_TAG: retry.run_id, sensors.WILL_RETRY_TAG: "false"})
    instance.add_run_tags(deleted, {sensors.AUTO_RETRY_RUN_ID_TAG: "4711"})
    assert [alert.key for alert in tick()] == [f"run {failed}"]
    monkeypatch.setattr(sensors, "MAX_RETRY_LAUNCH_S", 0)
    assert {alert.key for alert in tick()} == {f"run {failed}", f"run {deleted}"}


def test_a_run_of_which_dagster_has_not_decided_yet_is_reported_later(instance, tick, launched, monkeypatch):
    monkeypatch.setattr(sensors, "MAX_COMMIT_DELAY_S", -1)
    run_id = launched(asset_selection=SELECTION)
    monkeypatch.setattr(type(instance), "run_retries_enabled", True)
    assert tick() == []
    instance.add_run_tags(run_id, {sensors.WILL_RETRY_TAG: "false"})
    assert len(tick()) == 1


def test_a_run_that_lands_everything_is_not_told(sandbox, instance, tick):
    materialized(instance, DAYS[-2:])
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
    names = (checks.NO_DAY_MISSING, checks.DAY_IS_SOUND)

    @dg.asset(key=ROSTER, check_specs=[dg.AssetCheckSpec(name, asset=ROSTER) for name in names])
    def kept():
        for name in names:
            yield dg.AssetCheckResult(check_name=name, passed=False, description=f"{name} says no")
        yield dg.MaterializeResult()

    dg.materialize([kept], instance=instance)
    (alert,) = tick()
    assert alert.title == f"lbank/roster: check {checks.DAY_IS_SOUND} failed"
    assert checks.NO_DAY_MISSING not in alert.text


# Only the real instance keeps ticks.
with_ticks = pytest.mark.parametrize("instance", ["dagster.yaml"], indirect=True)


@pytest.fixture
def ticked(instance) -> Callable[..., None]:
    """An instigator has ticked, and this is how its ticks ended."""

    def ticked(
        *ends: TickStatus,
        kind: InstigatorType = InstigatorType.SENSOR,
        name: str = "watch",
        of: RemoteRepositoryOrigin | None = None,
    ) -> None:
        data = ScheduleInstigatorData("0 0 * * *", None) if kind == InstigatorType.SCHEDULE else None
        state = InstigatorState(
            RemoteInstigatorOrigin(of or origin(), name), kind, InstigatorStatus.DECLARED_IN_CODE, data
        )
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
    assert alert.title == "The sensor watch is failing"
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
    ticked(FAILURE, kind=InstigatorType.SCHEDULE, name="binance_records_0015")
    assert tick(failing_tick_alert)[0].title == "The schedule binance_records_0015 is failing"


@with_ticks
def test_other_teams_sensors_and_schedules_are_not_reported(tick, ticked):
    ticked(FAILURE, FAILURE, name="poll")
    ticked(FAILURE, FAILURE, of=origin("sales"))
    ticked(FAILURE, FAILURE, of=origin(repository="sales"))
    ticked(FAILURE, kind=InstigatorType.SCHEDULE, name="binance_records_0015", of=origin("sales"))
    ticked(FAILURE, kind=InstigatorType.SCHEDULE, name="daily")
    assert tick(failing_tick_alert) == []


@with_ticks
@pytest.mark.parametrize("name", [each.name for each in build_definitions().sensors])
def test_each_of_our_sensors_is_reported(tick, ticked, name):
    ticked(FAILURE, FAILURE, name=name)
    assert tick(failing_tick_alert)[0].title == f"The sensor {name} is failing"


@with_ticks
def test_a_delivery_that_fails_is_told_of_to_whom_it_reaches(tick, ticked):
    ticked(FAILURE, FAILURE, name=alert_delivery.name)
    (alert,) = tick(failing_tick_alert)
    assert alert.title == "The sensor alert_delivery is failing"


def test_the_sensors_run_by_themselves():
    running = {sensor.name: sensor for sensor in build_definitions().sensors}
    for sensor in (failed_run_alert, failing_tick_alert, alert_delivery):
        assert running[sensor.name].default_status == dg.DefaultSensorStatus.RUNNING
        assert sensor.minimum_interval_seconds <= 30
