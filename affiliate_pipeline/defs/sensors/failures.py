"""Sensors that raise alerts: of runs that failed, with exactly the days they did not land, of checks that failed, and of
sensors and schedules that do. They put alerts into the outbox; `delivery.py` sends them. In a shared Dagster instance
they cover only this package's own runs, checks, sensors and schedules."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

import dagster as dg
from dagster import AssetKey, DagsterEventType, DagsterInstance, DagsterRun
from dagster._core.scheduler.instigation import InstigatorState, InstigatorStatus, InstigatorType, TickStatus
from dagster._core.storage.tags import AUTO_RETRY_RUN_ID_TAG, WILL_RETRY_TAG

from affiliate_pipeline.defs.commission_assets import COMMISSION, REPORT
from affiliate_pipeline.defs.endpoint_assets import DAY_IS_SOUND
from affiliate_pipeline.defs.environment import environment_of_tick
from affiliate_pipeline.defs.failed_days import problems_in
from affiliate_pipeline.defs.ownership import days_of, is_own_repository, selected
from affiliate_pipeline.defs.reconciliation import SAME_ROWS
from affiliate_pipeline.defs.roster import roster
from affiliate_pipeline.environment import Alerts
from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline.landing.pipeline import now_ms
from affiliate_pipeline.monitoring import alerts
from affiliate_pipeline.monitoring.outbox import Outbox

EVENTS_PER_READ = 1000
RUNS_PER_TICK = 200
DAY_S = 86_400
# Ids are given before events are committed: one below what has been read may still appear.
APPEARED_S = 60
# The daemon launches retries every 5 s; it may also be off, or find nothing to launch. After this time, no retry comes.
RETRY_LAUNCHED_S = 300
# A single failed tick of a sensor is made good by the next one; one of a schedule is a run that did not start.
FAILED_TICKS = {InstigatorType.SENSOR: 2, InstigatorType.SCHEDULE: 1}
FINISHED = [TickStatus.SUCCESS, TickStatus.SKIPPED, TickStatus.FAILURE]
ENDPOINT_OF = {dg.AssetKey(endpoint.key.split("/")): endpoint for endpoint in ENDPOINTS}
OWN_ASSETS = frozenset({*ENDPOINT_OF, COMMISSION, REPORT, roster.key})
# Overdue days, the third check, have alerts of their own, with deadlines.
REPORTED_CHECKS = {DAY_IS_SOUND, SAME_ROWS}


class _Undecided(Exception):
    """Dagster may still launch a retry of a failed run."""


@dg.sensor(
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=15,
    description="Raises one alert per failed run, with the asset, exactly the days that failed, why, and until when "
    "they can be fetched; and one per run whose checks failed. Runs of the command line are heard as well.",
)
def failed_run_alert(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Unlike Dagster's own sensor of failed runs this one reads a run again if its tick failed."""
    ui = Alerts.load().dagster_ui_url
    # Nobody acts on older failures that were never heard; what is missing the watch tells.
    cursor: dict[str, Any] = json.loads(context.cursor or "null") or {"since": time.time() - DAY_S}
    raised = 0
    with Outbox(environment_of_tick(context).database_url()) as outbox:
        for event_type in (DagsterEventType.RUN_FAILURE, DagsterEventType.RUN_SUCCESS, DagsterEventType.RUN_CANCELED):
            is_decided = True
            for record in _ended(context.instance, event_type, cursor):
                run = context.instance.get_run_by_id(record.run_id)
                try:
                    if run:
                        ended_at = datetime.fromtimestamp(record.timestamp, UTC)
                        found = _alerts(context, run, record.event_log_entry, f"{ui}/runs/{run.run_id}")
                        raised += sum(outbox.add(alert, ended_at) for alert in found)
                except _Undecided:
                    # The next tick reads the run again, without delaying later runs. No alert is raised twice.
                    is_decided = False
                if is_decided and record.timestamp < time.time() - APPEARED_S:
                    cursor[event_type.value] = record.storage_id
    context.update_cursor(json.dumps(cursor))
    return dg.SkipReason(f"{raised} alerts raised")


def _ended(instance: DagsterInstance, event_type: Any, cursor: Mapping[str, Any]) -> list[dg.EventLogRecord]:
    unread = dg.RunStatusChangeRecordsFilter(
        event_type, after_storage_id=cursor.get(event_type.value), after_timestamp=cursor["since"]
    )
    return list(instance.fetch_run_status_changes(unread, limit=RUNS_PER_TICK, ascending=True).records)


def _alerts(
    context: dg.SensorEvaluationContext, run: DagsterRun, ended: dg.EventLogEntry, link: str
) -> Iterator[alerts.Alert]:
    """The alerts of an ended run, if it is ours. A cancelled run has none: it was cancelled on purpose."""
    instance = context.instance
    if run.remote_job_origin and not is_own_repository(context, run.remote_job_origin.repository_origin):
        return
    if run.status == dg.DagsterRunStatus.FAILURE:
        planned = _partitions(instance, run.run_id, DagsterEventType.ASSET_MATERIALIZATION_PLANNED) or {
            # The run failed before Dagster had planned anything.
            (key, day and f"{day}")
            for key in selected(context, run, OWN_ASSETS)
            for day in days_of(run) or [None]
        }
        landed = _partitions(instance, run.run_id, DagsterEventType.ASSET_MATERIALIZATION)
        # If only other packages' assets are missing, the failure is not ours.
        is_own = any(key in OWN_ASSETS for key, _ in planned - landed or planned)
        if is_own and not _is_retried(instance, run, ended):
            failed = _failed_assets(instance, run.run_id, planned, landed)
            yield alerts.failed_run(f"run {run.run_id}", failed, _cause(instance, ended), link, now_ms())
    if checks := _failed_checks(instance, run.run_id):
        yield alerts.failed_checks(f"checks of run {run.run_id}", checks, link)


def _is_retried(instance: DagsterInstance, run: DagsterRun, ended: dg.EventLogEntry) -> bool:
    """Whether Dagster has launched a retry of the run; if the retry fails, that failure is reported instead.

    The tag shows only that Dagster intends one. It launches none for a run without a code location's origin (from the
    command line), nor for reasons that it only logs: a job or repository that is gone, a backfill that has ended.
    """
    if run.tags.get(WILL_RETRY_TAG) == "false":
        return False
    retry = run.tags.get(AUTO_RETRY_RUN_ID_TAG)
    if retry and instance.has_run(retry):
        return True
    if instance.run_retries_enabled and run.remote_job_origin and time.time() - ended.timestamp < RETRY_LAUNCHED_S:
        raise _Undecided
    return False


_Partitions = set[tuple[AssetKey, str | None]]


def _failed_assets(
    instance: DagsterInstance, run_id: str, planned: _Partitions, landed: _Partitions
) -> list[alerts.FailedAsset]:
    """Our assets and days that the run planned to materialize and did not."""
    reasons = _reasons(instance, run_id)
    assets = []
    for key in sorted(OWN_ASSETS):
        missing = [day for asset, day in planned - landed if asset == key]
        if missing:
            assets.append(
                alerts.FailedAsset(
                    key.to_user_string(),
                    sorted(day for day in map(_day, missing) if day),
                    landed=sum(asset == key for asset, _ in landed),
                    reasons=reasons.get(key, {}),
                    endpoint=ENDPOINT_OF.get(key),
                )
            )
    return assets


def _day(partition: str | None) -> date | None:
    try:
        return date.fromisoformat(partition) if partition else None
    except ValueError:  # another team's asset
        return None


def _records(instance: DagsterInstance, run_id: str, event_type: DagsterEventType) -> list[dg.DagsterEvent]:
    events, cursor, more = [], None, True
    while more:
        page = instance.get_records_for_run(run_id, cursor=cursor, of_type=event_type, limit=EVENTS_PER_READ)
        events += [record.event_log_entry.dagster_event for record in page.records]
        cursor, more = page.cursor, page.has_more
    return [event for event in events if event]


def _partitions(instance: DagsterInstance, run_id: str, event_type: DagsterEventType) -> _Partitions:
    return {(event.asset_key, event.partition) for event in _records(instance, run_id, event_type) if event.asset_key}


def _reasons(instance: DagsterInstance, run_id: str) -> dict[AssetKey, Mapping[date, str]]:
    reasons: dict[AssetKey, Mapping[date, str]] = {}
    for event in _own_failures(instance, run_id):
        failure = event.step_failure_data.user_failure_data
        if failure:
            # Without the impact, which differs by day: days that failed alike are named together.
            reasons[_step_asset(event)] = {
                day: f"{replace(problem, impact='')}." for day, problem in problems_in(failure.metadata).items()
            }
    return reasons


def _own_failures(instance: DagsterInstance, run_id: str) -> list[dg.DagsterEvent]:
    """The failures of our steps."""
    failures = _records(instance, run_id, DagsterEventType.STEP_FAILURE)
    return [event for event in failures if _step_asset(event) in OWN_ASSETS]


def _step_asset(event: dg.DagsterEvent) -> AssetKey:
    return AssetKey((event.step_key or "").split("__"))


def _cause(instance: DagsterInstance, failure: dg.EventLogEntry) -> str:
    """The first line of the innermost error of the first of our steps that failed, else of the run."""
    message = failure.dagster_event.message if failure.dagster_event else None
    for event in _own_failures(instance, failure.run_id)[:1]:
        message = _innermost(event.step_failure_data.error) or message
    return (message or "The run failed without a message").strip().splitlines()[0]


def _innermost(error: Any) -> str | None:
    while error and error.cause:
        error = error.cause
    return error.message if error else None


def _failed_checks(instance: DagsterInstance, run_id: str) -> dict[tuple[str, str], dict[date | None, str]]:
    failed: dict[tuple[str, str], dict[date | None, str]] = {}
    for event in _records(instance, run_id, DagsterEventType.ASSET_CHECK_EVALUATION):
        check = event.asset_check_evaluation_data
        if check.passed or check.check_name not in REPORTED_CHECKS or check.asset_key not in OWN_ASSETS:
            continue
        name = check.asset_key.to_user_string(), check.check_name
        failed.setdefault(name, {})[_day(check.partition)] = check.description or ""
    return failed


def build_failing_tick_alert(others: Sequence[dg.SensorDefinition | dg.ScheduleDefinition]) -> dg.SensorDefinition:
    """The sensor over these sensors and schedules, and itself."""

    @dg.sensor(
        name="failing_tick_alert",
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=30,
        description="Raises an alert when a sensor or schedule fails, once until it ticks well again.",
    )
    def failing_tick_alert(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        own = {failing_tick_alert.name, *(each.name for each in others)}
        ui = Alerts.load().dagster_ui_url
        raised = 0
        with Outbox(environment_of_tick(context).database_url()) as outbox:
            for state in context.instance.all_instigator_state(
                instigator_statuses={InstigatorStatus.RUNNING, InstigatorStatus.DECLARED_IN_CODE}
            ):
                if state.instigator_name not in own or not is_own_repository(context, state.origin.repository_origin):
                    continue
                # Include the alert delivery: usually only one of several targets fails. If all do, the heartbeat stops.
                if alert := _failing(context.instance, state, ui):
                    raised += outbox.add(alert)
        return dg.SkipReason(f"{raised} alerts raised")

    return failing_tick_alert


def _failing(instance: DagsterInstance, state: InstigatorState, ui: str) -> alerts.Alert | None:
    which = state.instigator_origin_id, state.selector_id
    number = FAILED_TICKS.get(state.instigator_type, 1)
    # One that was taken out of the code keeps its last ticks.
    last = instance.get_ticks(*which, after=time.time() - DAY_S, limit=number, statuses=FINISHED)
    if len(last) < number or any(tick.status != TickStatus.FAILURE for tick in last):
        return None
    well = instance.get_ticks(*which, limit=1, statuses=[TickStatus.SUCCESS, TickStatus.SKIPPED])
    kind = state.instigator_type.value.lower()
    return alerts.failing_ticks(
        f"{kind} {state.instigator_name} since tick {well[0].tick_id if well else 0}",
        kind,
        state.instigator_name,
        _innermost(last[0].error) or "It failed without a message",
        f"{ui}/automation",
    )
