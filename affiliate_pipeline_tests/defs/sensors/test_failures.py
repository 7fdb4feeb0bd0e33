"""Failed runs, failed checks and failing ticks in real event logs and tick histories raise alerts."""

import time
from collections.abc import Callable
from datetime import timedelta

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
from dagster._core.storage.schedules import SqliteScheduleStorage
from dagster._core.test_utils import create_run_for_test
from dagster_shared.error import SerializableErrorInfo

from affiliate_pipeline.commission.prices import PRICE
from affiliate_pipeline.commission.rollup import COMMISSION, REPORT
from affiliate_pipeline.defs import checks
from affiliate_pipeline.defs import endpoint_assets as assets
from affiliate_pipeline.defs.dagster_internals import LOCATION
from affiliate_pipeline.defs.sensors import failures as sensors
from affiliate_pipeline.defs.sensors.failures import build_failed_run_alert
from affiliate_pipeline.domain.days import format_days
from affiliate_pipeline.exchanges.registry import DEFAULT
from affiliate_pipeline.monitoring import alerts
from affiliate_pipeline.monitoring.outbox import Outbox
from affiliate_pipeline_tests.code_location import loaded_definitions
from affiliate_pipeline_tests.conftest import RESOURCES
from affiliate_pipeline_tests.defs.conftest import run_rebates
from affiliate_pipeline_tests.defs.direct_runs import land
from affiliate_pipeline_tests.defs.rebates import DAYS, KEY, rebates

ROSTER = ["lbank", "roster"]
failed_run_alert = build_failed_run_alert(DEFAULT, (PRICE, COMMISSION, REPORT))
failing_tick_alert = loaded_definitions().resolve_sensor_def("failing_tick_alert")
SUCCESS, SKIPPED, FAILURE = TickStatus.SUCCESS, TickStatus.SKIPPED, TickStatus.FAILURE


@pytest.fixture
def tick(instance, database_url, monkeypatch) -> Callable[..., list[alerts.Alert]]:
    """Evaluates a sensor and returns all alerts raised so far; `failed_run_alert` continues from its last cursor."""
    monkeypatch.setenv("DAGSTER_UI_URL", "http://ui.example:3000/")
    cursor: list[str | None] = [None]

    def tick(sensor: dg.SensorDefinition = failed_run_alert) -> list[alerts.Alert]:
        context = dg.build_sensor_context(instance, cursor[0], repository_name="__repository__", resources=RESOURCES)
        sensor(context)
        cursor[0] = context.cursor
        with Outbox(database_url) as outbox:
            return [alert for alert, _ in outbox.due("a target without deliveries")]

    return tick


def failing_roster() -> dg.AssetsDefinition:
    @dg.asset(key=ROSTER)
    def fails() -> None:
        raise dg.Failure("the exchange refused")

    return fails


@pytest.mark.parametrize("instance", ["dagster.yaml"], indirect=True)
def test_failed_days_and_failed_ticks_in_dagsters_tables_in_postgresql_are_reported(
    sandbox, instance, tick, record_ticks
):
    for day in (DAYS[1], DAYS[3]):
        sandbox.faults.fail_day(day, status=400, code=-1127)
    run_id = run_rebates(instance, DAYS)

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
    assert not [secret for secret in sandbox.secrets if secret in str(alert)]

    record_ticks(SUCCESS, FAILURE, FAILURE)
    assert [each.title for each in tick(failing_tick_alert)] == [alert.title, "The sensor watch is failing"]
    record_ticks(SKIPPED)
    assert len(tick(failing_tick_alert)) == 2
    record_ticks(FAILURE, FAILURE)
    assert len(tick(failing_tick_alert)) == 3


def test_days_with_the_same_cause_are_grouped_whatever_had_landed_before(sandbox, instance, tick):
    assert land(KEY, DAYS[:2]).success
    for day in DAYS[:3]:
        sandbox.faults.fail_day(day, status=400, code=-1127)
    run_rebates(instance, DAYS[:3])
    assert f"\n{format_days(DAYS[:3])}: " in tick()[0].text


def test_each_failed_run_raises_one_alert(sandbox, instance, tick):
    sandbox.faults.fail_day(DAYS[-1], status=400, code=-1127)
    for _ in range(2):
        run_rebates(instance, DAYS[-1:])
        tick()
    assert len(tick()) == 2


def test_runs_on_one_date_that_fail_for_the_prices_of_the_same_day_share_an_alert(instance, tick):
    @dg.asset(key=PRICE.split("/"), partitions_def=dg.StaticPartitionsDefinition([f"{day}" for day in DAYS]))
    def fails() -> None:
        raise dg.Failure("no response")

    for day in (DAYS[0], DAYS[0], DAYS[1]):
        dg.materialize([fails], instance=instance, partition_key=f"{day}", raise_on_error=False)
    assert sorted(alert.title for alert in tick()) == [f"{PRICE} failed for {day}" for day in DAYS[:2]]


def test_the_tick_after_a_failed_tick_raises_its_alerts(sandbox, instance, tick, monkeypatch):
    sandbox.faults.fail_day(DAYS[-1], status=400, code=-1127)
    run_rebates(instance, DAYS[-1:])
    with monkeypatch.context() as broken:
        broken.setattr(sensors, "MAX_COMMIT_DELAY_S", 0)
        broken.setenv("AFFILIATE_DATABASE_URL", "postgresql://user@127.0.0.1:1/nothing")
        with pytest.raises(Exception, match="database cannot be used"):
            tick()
    assert len(tick()) == 1


def test_a_run_is_read_again_only_while_events_with_lower_ids_may_still_be_committed(
    sandbox, instance, tick, monkeypatch
):
    sandbox.faults.fail_day(DAYS[-1], status=400, code=-1127)
    run_rebates(instance, DAYS[-1:])
    read = []
    monkeypatch.setattr(sensors, "_alerts", lambda context, run, *_: read.append(run.run_id) or [])
    tick()
    tick()
    monkeypatch.setattr(sensors, "MAX_COMMIT_DELAY_S", -1)
    tick()
    assert len(read) == 3
    tick()
    assert len(read) == 3


def test_a_tick_reads_a_limited_number_of_runs(tick, launch_failing_run, monkeypatch):
    monkeypatch.setattr(sensors, "RUNS_PER_TICK", 2)
    monkeypatch.setattr(sensors, "MAX_COMMIT_DELAY_S", -1)
    for _ in range(5):
        launch_failing_run(asset_selection=SELECTION)
    assert [len(tick()) for _ in range(3)] == [2, 4, 5]


def test_the_first_tick_ignores_old_failures(sandbox, instance, tick, monkeypatch):
    sandbox.faults.fail_day(DAYS[-1], status=400, code=-1127)
    run_rebates(instance, DAYS[-1:])
    monkeypatch.setattr(sensors, "FIRST_TICK_MAX_AGE_S", -1)
    assert tick() == []


def test_later_ticks_report_failures_of_any_age(sandbox, instance, tick, monkeypatch):
    tick()
    monkeypatch.setattr(sensors, "FIRST_TICK_MAX_AGE_S", -1)
    sandbox.faults.fail_day(DAYS[-1], status=400, code=-1127)
    run_rebates(instance, DAYS[-1:])
    assert len(tick()) == 1


def test_a_rejected_key_is_reported_once_as_the_cause_of_every_day(sandbox, instance, tick, monkeypatch):
    monkeypatch.setenv("BINANCE_PARTNER_API_KEY", "unknown-key")
    run_rebates(instance, DAYS[:3])
    (alert,) = tick()
    assert alert.title == f"{KEY} failed for {format_days(DAYS[:3])}"
    assert alert.text.count("-2015") == 1
    assert "3 days failed, 0 landed." in alert.text
    assert "unknown-key" not in str(alert)


def test_a_missing_setting_is_reported(sandbox, instance, tick, monkeypatch):
    monkeypatch.delenv("BINANCE_PARTNER_API_SECRET")
    run_rebates(instance, DAYS[-1:])
    assert "BINANCE_PARTNER_API_SECRET is not set" in tick()[0].text


def test_an_internal_error_is_reported_with_its_days_and_cause(sandbox, instance, tick, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a defect in the code")

    monkeypatch.setattr(assets, "land_days", fail)
    run_rebates(instance, DAYS[-2:])
    (alert,) = tick()
    assert alert.title == f"{KEY} failed for {format_days(DAYS[-2:])}"
    assert "2 days failed, 0 landed." in alert.text
    assert "a defect in the code" in alert.text


def test_a_skipped_downstream_asset_is_reported_as_failed(instance, tick):
    @dg.asset(key=["affiliate", "daily_commission"])
    def upstream() -> None:
        raise dg.Failure("nothing to add up")

    @dg.asset(key=["affiliate", "daily_report"], deps=[upstream])
    def downstream() -> None: ...

    dg.materialize([upstream, downstream], instance=instance, raise_on_error=False)
    assert tick()[0].failed == {"affiliate/daily_commission": (), "affiliate/daily_report": ()}


def test_a_failed_asset_without_days_is_reported(instance, tick):
    dg.materialize([failing_roster()], instance=instance, raise_on_error=False)
    (alert,) = tick()
    assert (alert.title, alert.failed) == ("lbank/roster failed", {"lbank/roster": ()})
    assert "the exchange refused" in alert.text


def test_other_teams_assets_are_not_reported(instance, tick):
    @dg.asset(key=["sales", "orders"], check_specs=[dg.AssetCheckSpec("day_is_sound", asset=["sales", "orders"])])
    def orders():
        yield dg.AssetCheckResult(passed=False, description="of another team")
        raise dg.Failure("another team's failure", metadata={"failed_partitions": 3})

    @dg.asset(partitions_def=dg.StaticPartitionsDefinition(["north"]))
    def region() -> None:
        raise dg.Failure("another team's failure")

    @dg.job
    def job() -> None: ...

    dg.materialize([orders], instance=instance, raise_on_error=False)
    dg.materialize([region], instance=instance, raise_on_error=False, partition_key="north")
    instance.report_run_failed(instance.create_run_for_job(job))
    assert tick() == []


def test_only_own_assets_of_a_shared_run_are_reported(sandbox, instance, tick):
    @dg.asset(
        key=["sales", "daily"],
        partitions_def=loaded_definitions().get_assets_def(dg.AssetKey(KEY.split("/"))).partitions_def,
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def sales() -> dg.MaterializeResult:
        raise dg.Failure("another team's failure")

    run_rebates(instance, DAYS[-2:], sales)
    assert tick() == []

    sandbox.faults.fail_day(DAYS[-1], status=400, code=-1127)
    run_rebates(instance, DAYS[-2:], sales)
    (alert,) = tick()
    assert alert.failed == {KEY: (DAYS[-1],)}
    assert "-1127" in alert.text and "sales" not in alert.text + alert.title and "another" not in alert.text


def test_other_teams_checks_are_not_reported(instance, tick):
    @dg.asset(key=ROSTER, check_specs=[dg.AssetCheckSpec("check_of_another_team", asset=ROSTER)])
    def own():
        yield dg.AssetCheckResult(passed=False)
        yield dg.MaterializeResult()

    @dg.asset(key=["sales", "orders"], check_specs=[dg.AssetCheckSpec("day_is_sound", asset=["sales", "orders"])])
    def orders():
        yield dg.AssetCheckResult(passed=False)
        yield dg.MaterializeResult()

    assert dg.materialize([own, orders], instance=instance).success
    assert tick() == []


def origin(location: str = LOCATION, repository: str = "__repository__") -> RemoteRepositoryOrigin:
    return RemoteRepositoryOrigin(RegisteredCodeLocationOrigin(location), repository)


@pytest.fixture
def launch_failing_run(instance) -> Callable[..., str]:
    """Launches a run as the daemon or the UI does, fails it before any step, and returns its id."""

    def launch_failing_run(of: RemoteRepositoryOrigin | None = None, job: str = "__ASSET_JOB", tags=None, **run) -> str:
        remote = RemoteJobOrigin(of or origin(), job)
        created = create_run_for_test(
            instance, job, status=dg.DagsterRunStatus.STARTED, remote_job_origin=remote, tags=tags or {}, **run
        )
        instance.report_run_failed(created, "it could not start")
        return created.run_id

    return launch_failing_run


SELECTION = {dg.AssetKey(KEY.split("/")), dg.AssetKey(["sales", "orders"])}


def test_a_run_that_failed_before_planning_is_reported_with_its_days(tick, launch_failing_run):
    launch_failing_run(
        asset_selection=SELECTION,
        tags={"dagster/asset_partition_range_start": f"{DAYS[0]}", "dagster/asset_partition_range_end": f"{DAYS[1]}"},
    )
    (alert,) = tick()
    assert alert.failed == {KEY: tuple(DAYS[:2])}
    assert "it could not start" in alert.text


def test_a_run_without_a_selection_that_failed_before_planning_is_reported_for_all_own_assets(tick, launch_failing_run):
    launch_failing_run()
    (alert,) = tick()
    assert KEY in alert.failed and "lbank/roster" in alert.failed


def test_other_teams_runs_that_failed_before_planning_are_not_reported(tick, launch_failing_run):
    launch_failing_run(of=origin("sales"))
    launch_failing_run(of=origin("sales"), asset_selection=SELECTION)
    launch_failing_run(of=origin(repository="sales"), asset_selection=SELECTION)
    launch_failing_run(job="nightly")
    launch_failing_run(asset_selection={dg.AssetKey(["sales", "orders"])})
    assert tick() == []


@pytest.fixture
def retries(instance, monkeypatch) -> None:
    """The instance retries failed runs once."""
    monkeypatch.setattr(sensors, "MAX_COMMIT_DELAY_S", -1)
    monkeypatch.setattr(type(instance), "run_retries_enabled", True)
    monkeypatch.setattr(type(instance), "run_retries_max_retries", 1)


def will_retry(instance: dg.DagsterInstance, run_id: str) -> str | None:
    run = instance.get_run_by_id(run_id)
    assert run
    return run.tags.get(sensors.WILL_RETRY_TAG)


def test_a_run_started_on_the_command_line_is_reported_because_it_is_never_retried(instance, tick, retries):
    run_id = dg.materialize([failing_roster()], instance=instance, raise_on_error=False).run_id
    # The tag shows only what Dagster intends: it launches no retry of a run from the command line.
    assert will_retry(instance, run_id) == "true"
    assert len(tick()) == 1
    assert len(tick()) == 1


@pytest.mark.filterwarnings("ignore:Error parsing int from tag")
def test_a_run_that_dagster_will_not_retry_is_reported(instance, tick, launch_failing_run, retries):
    run_ids = {
        max_retries: launch_failing_run(asset_selection=SELECTION, tags={"dagster/max_retries": max_retries})
        for max_retries in ("0", "many", "-1")
    }
    decisions = {max_retries: will_retry(instance, run_id) for max_retries, run_id in run_ids.items()}
    assert decisions == dict.fromkeys(run_ids, "false")
    keys = {alert.key for alert in tick()}
    assert {max_retries: f"run {run_id}" in keys for max_retries, run_id in run_ids.items()} == dict.fromkeys(
        run_ids, True
    )
    assert len(keys) == len(run_ids)


def test_the_failure_of_the_retry_is_reported_instead_of_the_first_failure(
    instance, tick, launch_failing_run, retries, monkeypatch
):
    first = launch_failing_run(asset_selection=SELECTION)
    assert will_retry(instance, first) == "true"
    assert tick() == []

    retry = launch_failing_run(
        asset_selection=SELECTION, parent_run_id=first, root_run_id=first, tags={"dagster/max_retries": "0"}
    )
    instance.add_run_tags(first, {sensors.AUTO_RETRY_RUN_ID_TAG: retry})
    assert will_retry(instance, retry) == "false"
    assert [alert.key for alert in tick()] == [f"run {retry}"]

    # The first failure stays unreported after the time limit for a retry.
    monkeypatch.setattr(sensors, "MAX_RETRY_LAUNCH_S", 0)
    monkeypatch.setattr(type(instance), "run_retries_enabled", False)
    assert [alert.key for alert in tick()] == [f"run {retry}"]


def test_a_run_whose_retry_is_never_launched_is_reported_later_without_delaying_others(
    instance, tick, launch_failing_run, retries, monkeypatch
):
    """No retry is launched if the daemon is stopped, or the job, its repository or the backfill no longer exists.

    The tag of the failed run then still states that Dagster will retry it.
    """
    first = launch_failing_run(asset_selection=SELECTION)
    other = launch_failing_run(asset_selection=SELECTION, tags={"dagster/max_retries": "0"})
    assert will_retry(instance, first) == "true"
    for _ in range(2):
        assert [alert.key for alert in tick()] == [f"run {other}"]
    monkeypatch.setattr(sensors, "MAX_RETRY_LAUNCH_S", 0)
    for _ in range(2):
        assert {alert.key for alert in tick()} == {f"run {other}", f"run {first}"}
        assert len(tick()) == 2


def test_a_run_whose_retry_could_not_be_submitted_or_was_deleted_is_reported(
    instance, tick, launch_failing_run, retries, monkeypatch
):
    failed, deleted = launch_failing_run(asset_selection=SELECTION), launch_failing_run(asset_selection=SELECTION)
    retry = create_run_for_test(instance, "__ASSET_JOB", parent_run_id=failed, root_run_id=failed)
    # Dagster sets these tags if it cannot submit the new run.
    instance.add_run_tags(failed, {sensors.AUTO_RETRY_RUN_ID_TAG: retry.run_id, sensors.WILL_RETRY_TAG: "false"})
    instance.add_run_tags(deleted, {sensors.AUTO_RETRY_RUN_ID_TAG: "4711"})
    assert [alert.key for alert in tick()] == [f"run {failed}"]
    monkeypatch.setattr(sensors, "MAX_RETRY_LAUNCH_S", 0)
    assert {alert.key for alert in tick()} == {f"run {failed}", f"run {deleted}"}


def test_a_run_is_reported_once_dagster_has_decided_not_to_retry_it(instance, tick, launch_failing_run, monkeypatch):
    monkeypatch.setattr(sensors, "MAX_COMMIT_DELAY_S", -1)
    run_id = launch_failing_run(asset_selection=SELECTION)
    monkeypatch.setattr(type(instance), "run_retries_enabled", True)
    assert tick() == []
    instance.add_run_tags(run_id, {sensors.WILL_RETRY_TAG: "false"})
    assert len(tick()) == 1


def test_a_successful_run_raises_no_alert(sandbox, instance, tick):
    run_rebates(instance, DAYS[-2:])
    assert tick() == []


def test_a_cancelled_run_raises_no_alert(instance, tick):
    @dg.job
    def cancelled() -> None: ...

    instance.report_run_canceled(instance.create_run_for_job(cancelled))
    assert tick() == []


def test_the_failed_checks_of_a_successful_run_raise_one_alert_with_their_days(sandbox, instance, tick):
    sandbox.binance.set_rebates(row | {"tier": "gold"} for day in DAYS[:2] for row in rebates(day, 2))
    run_id = run_rebates(instance, DAYS[:2])
    (alert,) = tick()
    assert f"{KEY}: check day_is_sound failed for " in alert.title
    assert "tier" in alert.text
    assert alert.text.endswith(f"/runs/{run_id}")
    assert alert.failed == {}


def test_a_failed_check_for_missing_days_raises_no_alert(instance, tick):
    names = (checks.NO_DAY_MISSING, checks.DAY_IS_SOUND)

    @dg.asset(key=ROSTER, check_specs=[dg.AssetCheckSpec(name, asset=ROSTER) for name in names])
    def roster():
        for name in names:
            yield dg.AssetCheckResult(check_name=name, passed=False, description=f"{name} failed")
        yield dg.MaterializeResult()

    dg.materialize([roster], instance=instance)
    (alert,) = tick()
    assert alert.title == f"lbank/roster: check {checks.DAY_IS_SOUND} failed"
    assert checks.NO_DAY_MISSING not in alert.text


@pytest.fixture
def record_ticks(instance, tmp_path, monkeypatch) -> Callable[..., None]:
    """Records ticks of a sensor or schedule with these statuses."""
    if not instance.schedule_storage:
        # The ephemeral instance does not store ticks.
        storage = SqliteScheduleStorage.from_local(str(tmp_path))
        storage.register_instance(instance)
        monkeypatch.setattr(instance, "_schedule_storage", storage)

    def record_ticks(
        *statuses: TickStatus,
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
        for status in statuses:
            error = SerializableErrorInfo("ValueError: it broke?token=abcdef0123\n", [], "ValueError")
            instance.create_tick(
                TickData(
                    state.instigator_origin_id,
                    name,
                    kind,
                    status,
                    time.time(),
                    selector_id=state.selector_id,
                    run_ids=["4711"] if status == SUCCESS else [],
                    error=error if status == FAILURE else None,
                )
            )

    return record_ticks


def test_a_failing_sensor_is_reported_once_until_a_tick_succeeds(tick, record_ticks):
    record_ticks(SUCCESS, FAILURE, FAILURE)
    (alert,) = tick(failing_tick_alert)
    assert alert.title == "The sensor watch is failing"
    assert "it broke" in alert.text and "abcdef0123" not in alert.text
    assert alert.text.endswith("http://ui.example:3000/automation")

    record_ticks(FAILURE)
    assert len(tick(failing_tick_alert)) == 1
    record_ticks(SKIPPED)
    assert len(tick(failing_tick_alert)) == 1
    record_ticks(FAILURE, FAILURE)
    assert len(tick(failing_tick_alert)) == 2


def test_one_failed_tick_of_a_sensor_is_not_reported(tick, record_ticks):
    record_ticks(FAILURE, SUCCESS, FAILURE)
    assert tick(failing_tick_alert) == []


def test_one_failed_tick_of_a_schedule_is_reported(tick, record_ticks):
    record_ticks(FAILURE, kind=InstigatorType.SCHEDULE, name="binance_records_0015_utc")
    assert tick(failing_tick_alert)[0].title == "The schedule binance_records_0015_utc is failing"


def test_other_teams_sensors_and_schedules_are_not_reported(tick, record_ticks):
    record_ticks(FAILURE, FAILURE, name="poll")
    record_ticks(FAILURE, FAILURE, of=origin("sales"))
    record_ticks(FAILURE, FAILURE, of=origin(repository="sales"))
    record_ticks(FAILURE, kind=InstigatorType.SCHEDULE, name="binance_records_0015_utc", of=origin("sales"))
    record_ticks(FAILURE, kind=InstigatorType.SCHEDULE, name="daily")
    assert tick(failing_tick_alert) == []


def test_every_own_sensor_is_reported(tick, record_ticks):
    names = {each.name for each in loaded_definitions().sensors or ()}
    for name in names:
        record_ticks(FAILURE, FAILURE, name=name)
    assert {alert.title for alert in tick(failing_tick_alert)} == {f"The sensor {name} is failing" for name in names}
