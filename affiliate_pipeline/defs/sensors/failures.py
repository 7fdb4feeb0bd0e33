"""The sensors that raise alerts about failed runs, failed checks and failing ticks.

One alert per failed run, with the days that Dagster does not show as landed; runs that lack only the prices of the same
days share one alert per date (UTC). One per run whose checks failed; one while a sensor or schedule fails. In a shared
Dagster instance, they cover only this package.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import dagster as dg
from dagster import AssetKey, DagsterEvent, DagsterEventType, DagsterInstance, DagsterRun

from affiliate_pipeline.commission.prices import PRICE
from affiliate_pipeline.defs.checks import DAY_IS_SOUND, SAME_ROWS
from affiliate_pipeline.defs.dagster_internals import (
    AUTO_RETRY_RUN_ID_TAG,
    WILL_RETRY_TAG,
    InstigatorState,
    InstigatorStatus,
    InstigatorType,
    TickStatus,
    days_of,
    innermost_message,
    is_own_repository,
    selected,
    sensor,
)
from affiliate_pipeline.defs.day_outcomes import problems_in
from affiliate_pipeline.defs.placement import OWN, Placement
from affiliate_pipeline.defs.resources import PipelineResource
from affiliate_pipeline.domain.days import format_days
from affiliate_pipeline.domain.problem import Problem
from affiliate_pipeline.exchanges.endpoint import Endpoint
from affiliate_pipeline.exchanges.registry import Catalog
from affiliate_pipeline.landing.pipeline import now_ms
from affiliate_pipeline.monitoring import alerts
from affiliate_pipeline.monitoring.outbox import Outbox

RUNS_PER_TICK = 200
FIRST_TICK_MAX_AGE_S = 86_400
# Event ids are assigned before the commit, so a lower id may still appear after a higher one was read.
MAX_COMMIT_DELAY_S = 60
# The daemon launches retries every 5 s. A retry that is not launched within this time is not expected any more: the
# daemon may be off, or the run's job or backfill gone.
MAX_RETRY_LAUNCH_S = 300
# `NO_DAY_MISSING` is not among them: the monitor raises its own alerts about overdue days, with deadlines.
REPORTED_CHECKS = {DAY_IS_SOUND, SAME_ROWS}
_Partitions = set[tuple[AssetKey, str | None]]
# Step failures, each with this package's assets that the step should have materialized.
_Failures = list[tuple[set[AssetKey], DagsterEvent]]


class _Undecided(Exception):
    """Dagster may still launch a retry of a failed run."""


@dataclass(frozen=True)
class _OwnAsset:
    """An asset of this package: its key without the prefix, and its endpoint if it has one."""

    key: str
    endpoint: Endpoint | None = None


_OwnAssets = Mapping[AssetKey, _OwnAsset]


def build_failed_run_alert(
    catalog: Catalog, derived: Iterable[str] = (), placement: Placement = OWN
) -> dg.SensorDefinition:
    """The sensor that raises alerts about runs of the catalog's assets, or of those `derived` from them."""
    keys_without_endpoint = [*(table.key for table in catalog.reference_tables), *derived]
    assets = [
        *(_OwnAsset(endpoint.key, endpoint) for endpoint in catalog.endpoints),
        *(_OwnAsset(key) for key in keys_without_endpoint),
    ]
    own: _OwnAssets = {placement.key(asset.key): asset for asset in assets}

    @sensor(
        name=placement.name("failed_run_alert"),
        default_status=placement.monitoring,
        required_resource_keys=placement.required,
        minimum_interval_seconds=15,
        description="Raises one alert per failed run, with the asset, exactly the days that failed, why, and until when "
        "they can be fetched; and one per run whose checks failed. Includes runs started from the command line.",
    )
    def failed_run_alert(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        return _evaluate(context, placement.pipeline(context), own)

    return failed_run_alert


def _evaluate(context: dg.SensorEvaluationContext, pipeline: PipelineResource, own: _OwnAssets) -> dg.SkipReason:
    """Raise the alerts about ended runs; a failed tick is repeated, unlike with Dagster's run failure sensor."""
    ui = pipeline.alerts().dagster_ui_url
    # Only the first tick sets `since`. Failures of more than a day before that tick are ignored: the overdue monitor
    # reports what is still missing.
    cursor: dict[str, Any] = json.loads(context.cursor or "null") or {"since": time.time() - FIRST_TICK_MAX_AGE_S}
    raised = 0
    with pipeline.outbox() as outbox:
        for event_type in (DagsterEventType.RUN_FAILURE, DagsterEventType.RUN_SUCCESS, DagsterEventType.RUN_CANCELED):
            all_decided = True
            for record in _unread_ends(context.instance, event_type, cursor):
                try:
                    raised += _raise_alerts(context, outbox, record, ui, own)
                except _Undecided:
                    # The cursor stays before this run, so that the next tick reads it again, with all later ones. Their
                    # alerts are not delayed, and none is raised twice.
                    all_decided = False
                lower_ids_are_committed = record.timestamp < time.time() - MAX_COMMIT_DELAY_S
                if all_decided and lower_ids_are_committed:
                    cursor[event_type.value] = record.storage_id
    context.update_cursor(json.dumps(cursor))
    return dg.SkipReason(f"{raised} alerts raised")


def _raise_alerts(
    context: dg.SensorEvaluationContext, outbox: Outbox, record: dg.EventLogRecord, ui: str, own: _OwnAssets
) -> int:
    """Add the alerts about the run whose end this is; return how many are new. Raises `_Undecided`."""
    run = context.instance.get_run_by_id(record.run_id)
    if run is None:  # deleted
        return 0
    ended_at = datetime.fromtimestamp(record.timestamp, UTC)
    about_run = _alerts(context, run, record.event_log_entry, f"{ui}/runs/{run.run_id}", own)
    return sum(outbox.add(alert, ended_at) for alert in about_run)


def _unread_ends(instance: DagsterInstance, event_type: Any, cursor: Mapping[str, Any]) -> Sequence[dg.EventLogRecord]:
    """The next events of this type after the cursor, oldest first; each is the end of a run."""
    unread = dg.RunStatusChangeRecordsFilter(
        event_type, after_storage_id=cursor.get(event_type.value), after_timestamp=cursor["since"]
    )
    return instance.fetch_run_status_changes(unread, limit=RUNS_PER_TICK, ascending=True).records


def _alerts(
    context: dg.SensorEvaluationContext, run: DagsterRun, end_event: dg.EventLogEntry, link: str, own: _OwnAssets
) -> Iterator[alerts.Alert]:
    """The alerts about a run that has ended: about its failure, and about its checks. Raises `_Undecided`."""
    if run.remote_job_origin and not is_own_repository(context, run.remote_job_origin.repository_origin):
        return
    if run.status == dg.DagsterRunStatus.FAILURE:
        alert = _alert_about_failure(context, run, end_event, link, own)
        if alert:
            yield alert
    checks = _failed_checks(context.instance, run.run_id, own)
    if checks:
        yield alerts.failed_checks(f"checks of run {run.run_id}", checks, link)


def _alert_about_failure(
    context: dg.SensorEvaluationContext, run: DagsterRun, end_event: dg.EventLogEntry, link: str, own: _OwnAssets
) -> alerts.Alert | None:
    """The alert about a failed run, unless it is retried or concerns only other packages. Raises `_Undecided`."""
    instance = context.instance
    plan = _events(instance, run.run_id, DagsterEventType.ASSET_MATERIALIZATION_PLANNED)
    # A run that failed before Dagster had planned anything has only its selection.
    planned = _partitions(plan) or _selected_partitions(context, run, own)
    landed = _partitions(_events(instance, run.run_id, DagsterEventType.ASSET_MATERIALIZATION))
    # If only other packages' assets are missing, this package reports nothing. If none is missing, the failure itself
    # is reported.
    concerned = (planned - landed) or planned
    is_own = any(key in own for key, _ in concerned)
    if not is_own or _is_retried(instance, run, end_event):
        return None

    failures = _own_failures(instance, run.run_id, plan, own)
    failed = list(_failed_assets(failures, planned, landed, own))
    return alerts.failed_run(_key(run, failed, end_event), failed, _cause(failures, end_event), link, now_ms())


def _selected_partitions(context: dg.SensorEvaluationContext, run: DagsterRun, own: _OwnAssets) -> _Partitions:
    """This package's assets that the run was to materialize, with each of its days, or None without days."""
    days = [f"{day}" for day in days_of(run)]
    return {(key, day) for key in selected(context, run, own.keys()) for day in days or [None]}


def _key(run: DagsterRun, failed: Sequence[alerts.FailedAsset], end_event: dg.EventLogEntry) -> str:
    """The alert's key, one per run; runs that lack only the prices of the same days share one per date (UTC)."""
    if [each.key for each in failed] != [PRICE]:
        return f"run {run.run_id}"
    # Missing prices are requested every hour.
    return f"{PRICE} {format_days(failed[0].days)} on {datetime.fromtimestamp(end_event.timestamp, UTC):%Y-%m-%d}"


def _is_retried(instance: DagsterInstance, run: DagsterRun, end_event: dg.EventLogEntry) -> bool:
    """Whether Dagster has launched a retry, whose own failure would be reported instead of the run's.

    Raises `_Undecided` as long as Dagster may still launch one. `WILL_RETRY_TAG` shows only that Dagster intends
    one. It launches none for a run without a code location's origin (from the command line), for a job or repository
    that is gone, or for a backfill that has ended. It only logs the last two reasons.
    """
    if run.tags.get(WILL_RETRY_TAG) == "false":
        return False
    retry_id = run.tags.get(AUTO_RETRY_RUN_ID_TAG)
    if retry_id and instance.has_run(retry_id):
        return True
    age_s = time.time() - end_event.timestamp
    if instance.run_retries_enabled and run.remote_job_origin and age_s < MAX_RETRY_LAUNCH_S:
        raise _Undecided
    return False


def _events(instance: DagsterInstance, run_id: str, event_type: DagsterEventType) -> list[DagsterEvent]:
    entries = instance.all_logs(run_id, of_type=event_type)
    return [entry.dagster_event for entry in entries if entry.dagster_event]


def _partitions(events: Iterable[DagsterEvent]) -> _Partitions:
    return {(event.asset_key, event.partition) for event in events if event.asset_key}


def _own_failures(instance: DagsterInstance, run_id: str, plan: Iterable[DagsterEvent], own: _OwnAssets) -> _Failures:
    assets_by_step: dict[str | None, set[AssetKey]] = {}
    for event in plan:
        if event.asset_key and event.asset_key in own:
            assets_by_step.setdefault(event.step_key, set()).add(event.asset_key)
    failures = _events(instance, run_id, DagsterEventType.STEP_FAILURE)
    return [(assets_by_step[event.step_key], event) for event in failures if event.step_key in assets_by_step]


def _failed_assets(
    failures: _Failures, planned: _Partitions, landed: _Partitions, own: _OwnAssets
) -> Iterator[alerts.FailedAsset]:
    """This package's assets that the run planned to materialize and did not, with their days and problems."""
    problems: dict[AssetKey, Mapping[date, Problem]] = {}
    for assets, event in failures:
        failure = event.step_failure_data.user_failure_data
        if failure:
            problems |= dict.fromkeys(assets, problems_in(failure.metadata))

    missing = planned - landed
    for key in sorted(own):
        missing_days = [_day(partition) for asset, partition in missing if asset == key]
        if missing_days:
            yield alerts.FailedAsset(
                own[key].key,
                sorted(day for day in missing_days if day),
                landed=sum(asset == key for asset, _ in landed),
                problems=problems.get(key, {}),
                endpoint=own[key].endpoint,
            )


def _day(partition: str | None) -> date | None:
    try:
        return date.fromisoformat(partition) if partition else None
    except ValueError:  # another team's asset with the same key
        return None


def _cause(failures: _Failures, end_event: dg.EventLogEntry) -> str:
    """The first line of the root cause of the first failed step, else of the run's failure."""
    message = end_event.dagster_event.message if end_event.dagster_event else None
    if failures:
        _, first_failure = failures[0]
        message = innermost_message(first_failure.step_failure_data.error) or message
    message = message or "The run failed without a message"
    return message.strip().splitlines()[0]


def _failed_checks(
    instance: DagsterInstance, run_id: str, own: _OwnAssets
) -> dict[tuple[str, str], dict[date | None, str]]:
    """By asset and check, the descriptions of its failed evaluations by day; None: the whole run's."""
    failed: dict[tuple[str, str], dict[date | None, str]] = {}
    for event in _events(instance, run_id, DagsterEventType.ASSET_CHECK_EVALUATION):
        check = event.asset_check_evaluation_data
        if check.passed or check.check_name not in REPORTED_CHECKS or check.asset_key not in own:
            continue
        asset_and_check = own[check.asset_key].key, check.check_name
        failed.setdefault(asset_and_check, {})[_day(check.partition)] = check.description or ""

    for descriptions in failed.values():
        if len(descriptions) > 1:
            descriptions.pop(None, None)  # the run's evaluation, which repeats those of its days
    return failed


def build_failing_tick_alert(
    others: Sequence[dg.SensorDefinition | dg.ScheduleDefinition], placement: Placement = OWN
) -> dg.SensorDefinition:
    """The sensor that reports when these sensors or schedules, or itself, fail."""

    @sensor(
        name=placement.name("failing_tick_alert"),
        default_status=placement.monitoring,
        required_resource_keys=placement.required,
        minimum_interval_seconds=30,
        description="Raises an alert when a sensor or schedule fails, once until a tick succeeds again.",
    )
    def failing_tick_alert(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        pipeline = placement.pipeline(context)
        own = {failing_tick_alert.name, *(each.name for each in others)}
        ui = pipeline.alerts().dagster_ui_url
        states = context.instance.all_instigator_state(
            instigator_statuses={InstigatorStatus.RUNNING, InstigatorStatus.DECLARED_IN_CODE}
        )
        # `others` includes the alert delivery: if it fails for one target only, the other targets get the alert. If it
        # fails for all, the heartbeat stops.
        failing: list[alerts.Alert] = []
        for state in states:
            if state.instigator_name in own and is_own_repository(context, state.origin.repository_origin):
                alert = _failing(context.instance, state, ui)
                if alert:
                    failing.append(alert)
        with pipeline.outbox() as outbox:
            raised = sum(map(outbox.add, failing))
        return dg.SkipReason(f"{raised} alerts raised")

    return failing_tick_alert


def _failing(instance: DagsterInstance, state: InstigatorState, ui: str) -> alerts.Alert | None:
    """The alert about a sensor or schedule, if its last ticks have all failed."""
    kind, name = state.instigator_type.value.lower(), state.instigator_name
    origin_and_selector = state.instigator_origin_id, state.selector_id
    succeeded = [TickStatus.SUCCESS, TickStatus.SKIPPED]
    # The next tick of a sensor repeats the work of a failed one. A schedule's does not: the failed tick's runs are lost.
    min_failed = 2 if state.instigator_type is InstigatorType.SENSOR else 1
    last_ticks = instance.get_ticks(*origin_and_selector, limit=min_failed, statuses=[*succeeded, TickStatus.FAILURE])
    if len(last_ticks) < min_failed or any(tick.status in succeeded for tick in last_ticks):
        return None

    last_success = instance.get_ticks(*origin_and_selector, limit=1, statuses=succeeded)
    last_success_id = last_success[0].tick_id if last_success else 0
    cause = innermost_message(last_ticks[0].error) or "It failed without a message"
    return alerts.failing_ticks(
        f"{kind} {name} since tick {last_success_id}", kind, name, cause, link=f"{ui}/automation"
    )
