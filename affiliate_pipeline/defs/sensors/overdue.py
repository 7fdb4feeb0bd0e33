"""The monitor for overdue days, and the heartbeat.

The monitor carries out what `monitoring.overdue` decides: it requests runs, adds alerts and evaluates checks. The
heartbeat calls a dead man's switch as long as no day is at risk and alerts are delivered.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Self

import dagster as dg

from affiliate_pipeline.defs.checks import NO_DAY_MISSING
from affiliate_pipeline.defs.dagster_internals import (
    NOT_FINISHED_STATUSES,
    CheckStatus,
    days_of,
    failed_days,
    range_tags,
    selected,
    sensor,
)
from affiliate_pipeline.defs.day_outcomes import daily
from affiliate_pipeline.defs.placement import OWN, Placement
from affiliate_pipeline.defs.resources import PipelineResource
from affiliate_pipeline.domain.days import DAY, day_of, days_from, format_days
from affiliate_pipeline.domain.expected_days import ExpectedDay
from affiliate_pipeline.domain.wording import count_of
from affiliate_pipeline.exchanges.endpoint import Endpoint
from affiliate_pipeline.http.download import ping_heartbeat
from affiliate_pipeline.landing.pipeline import now_ms
from affiliate_pipeline.monitoring.outbox import Outbox
from affiliate_pipeline.monitoring.overdue import (
    FIRST_PAUSE,
    MAX_ATTEMPTS,
    MONITORED_DAYS,
    NotificationLevel,
    OverdueActions,
    OverdueStore,
    State,
    actions_for,
    alerts_of,
    at_risk,
    described,
    overdue_days,
)

# How soon a change is noticed, and how often the heartbeat is called. A tick requests a day only if the day is overdue
# and the pause since the day's last request is over.
EVERY_S = 30
# Longer than the pauses of the delivery, so that a short outage of a target does not stop the heartbeat.
DELIVERED_WITHIN = timedelta(hours=1)
ATTEMPT_TAG = "affiliate/watch"
_Monitored = Mapping[dg.AssetKey, Endpoint]


def build_watch(endpoints: Sequence[Endpoint], placement: Placement = OWN) -> dg.SensorDefinition:
    """The sensor that monitors the endpoints' assets for overdue days."""
    monitored = _monitored(endpoints, placement)

    @sensor(
        name=placement.name("watch"),
        asset_selection=[*monitored],
        default_status=placement.monitoring,
        required_resource_keys=placement.required,
        minimum_interval_seconds=EVERY_S,
        description=f"Requests overdue days at most {MAX_ATTEMPTS} times with growing pauses, and once more after the "
        "promised retention if the exchange may retain them longer; warns before a day expires at the exchange, and "
        "reports when one is lost.",
    )
    def watch(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        return _watch(context, placement.pipeline(context), monitored)

    return watch


def build_heartbeat(endpoints: Sequence[Endpoint], placement: Placement = OWN) -> dg.SensorDefinition:
    """The sensor that calls HEARTBEAT_URL while no day of the endpoints is at risk and alerts are delivered."""
    monitored = _monitored(endpoints, placement)

    @sensor(
        name=placement.name("heartbeat"),
        default_status=placement.monitoring,
        required_resource_keys=placement.required,
        minimum_interval_seconds=EVERY_S,
        description="Calls the heartbeat URL while no day is at risk and alerts are delivered; the service behind it notices when "
        "the calls stop.",
    )
    def heartbeat(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        return _heartbeat(context, placement.pipeline(context), monitored)

    return heartbeat


def _monitored(endpoints: Sequence[Endpoint], placement: Placement) -> _Monitored:
    return {placement.key(each.key): each for each in endpoints if each.timetable.is_monitored}


def _watch(context: dg.SensorEvaluationContext, pipeline: PipelineResource, monitored: _Monitored) -> dg.SensorResult:
    """Request overdue days, add alerts about them and evaluate `NO_DAY_MISSING`."""
    now = now_ms()
    now_utc = datetime.fromtimestamp(now / 1000, UTC)
    failed_runs = _just_failed(context.instance, now_utc)
    # A run that is unfinished for more than a day may never end: it must not block requests forever.
    unfinished = context.instance.get_runs(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES, created_after=now_utc - DAY))

    requests: list[dg.RunRequest] = []
    checks: list[dg.AssetCheckEvaluation] = []
    summaries: list[str] = []
    with OverdueStore(pipeline.database_url()) as store, pipeline.outbox() as outbox:
        for key, overdue, states, landed in _overdue_by_asset(store, now, pipeline, monitored):
            endpoint = monitored[key]
            actions = actions_for(
                endpoint,
                overdue,
                states,
                now,
                in_progress=any(selected(context, run, {key}) for run in unfinished),
                just_failed={day for run in failed_runs if selected(context, run, {key}) for day in days_of(run)},
            )

            if pipeline.has_alerts:
                _add_alerts(outbox, endpoint, actions, now)
            # Persist before requesting runs: losing one retry beats retrying forever.
            if actions.states != states:
                store.save(endpoint.key, actions.states)
            requests += [_request(key, days, actions.states, now) for days in actions.request]

            partitions = _Partitions.read(context.instance, key, endpoint, pipeline.first_day(endpoint), landed, now)
            checks.append(_evaluation(key, overdue, actions.states, partitions, now))
            if overdue:
                summaries.append(f"{endpoint.key}: {format_days(each.day for each in overdue)}")

    skip_reason = None if requests else dg.SkipReason("; ".join(summaries) or "no day is missing")
    return dg.SensorResult(requests, skip_reason, asset_events=_to_record(context.instance, checks, now_utc.date()))


def _just_failed(instance: dg.DagsterInstance, now: datetime) -> list[dg.DagsterRun]:
    """The runs that failed or were canceled less than `FIRST_PAUSE` ago, without those that the monitor requested."""
    statuses = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
    failed = instance.get_runs(dg.RunsFilter(statuses=statuses, updated_after=now - FIRST_PAUSE))
    # The monitor's own pauses apply to the days that it has requested.
    return [run for run in failed if ATTEMPT_TAG not in run.tags]


def _add_alerts(outbox: Outbox, endpoint: Endpoint, actions: OverdueActions, now: int) -> None:
    for level, days in actions.report.items():
        for alert in alerts_of(endpoint, level, days, now):
            outbox.add(alert)


def _heartbeat(context: dg.SensorEvaluationContext, pipeline: PipelineResource, monitored: _Monitored) -> dg.SkipReason:
    """Call HEARTBEAT_URL unless days are at risk or alerts undelivered; the skip reason reports what was done."""
    variable = pipeline.variable("HEARTBEAT_URL")
    url = pipeline.alerts().heartbeat(variable)
    if url is None:
        return dg.SkipReason(f"{variable} is not set")
    with OverdueStore(pipeline.database_url()) as store, pipeline.outbox() as outbox:
        risks: list[str] = []
        for key, overdue, states, _ in _overdue_by_asset(store, now_ms(), pipeline, monitored):
            days = at_risk(overdue, states)
            if days:
                risks.append(f"{monitored[key].key}: {format_days(days)}")
        undelivered = outbox.count_undelivered_after(DELIVERED_WITHIN)
    if risks:
        return dg.SkipReason(f"not called, since days are at risk: {'; '.join(risks)}")
    if undelivered:
        return dg.SkipReason(
            f"not called, since alerts that are more than an hour old have not been delivered: {undelivered}. The failed "
            "ticks of alert_delivery give the reason"
        )
    if problem := ping_heartbeat(url, pipeline.network()):
        context.log.error(f"{variable} could not be called: {problem}")
        return dg.SkipReason(f"{variable} could not be called: {problem}")
    return dg.SkipReason(f"{variable} was called: no day is at risk, and alerts are delivered")


def _overdue_by_asset(
    store: OverdueStore, now: int, pipeline: PipelineResource, monitored: _Monitored
) -> Iterator[tuple[dg.AssetKey, list[ExpectedDay], Mapping[date, State], Collection[date]]]:
    """The configured assets that have landed days: each with its overdue days (or none), states and landed days."""
    # `overdue_days` requires the entries of one day more than it monitors.
    ledgers = store.ledgers(datetime.fromtimestamp(now / 1000, UTC).date() - (MONITORED_DAYS + 1) * DAY)
    states = store.states()
    for key, endpoint in monitored.items():
        if endpoint.key in ledgers and pipeline.is_configured(endpoint):
            days = overdue_days(endpoint, ledgers, pipeline.first_day(endpoint), now)
            yield key, days, states.get(endpoint.key, {}), ledgers[endpoint.key]


def _request(key: dg.AssetKey, days: Sequence[date], states: Mapping[date, State], now: int) -> dg.RunRequest:
    return dg.RunRequest(
        # Unique per attempt: Dagster never runs the same key again.
        run_key=f"{key.to_user_string()} {days[0]}...{days[-1]} at {now}",
        asset_selection=[key],
        tags={**range_tags(days), ATTEMPT_TAG: f"attempt {max(states[day].attempts for day in days)}"},
    )


@dataclass(frozen=True)
class _Partitions:
    """The monitored days of an asset, and which of them have failed or are missing.

    A day has failed if its last run has, according to Dagster. Any other day has landed if the ledger has it, else it
    is missing.
    """

    days: Sequence[date]
    failed: Sequence[date]
    missing: Sequence[date]

    @classmethod
    def read(
        cls,
        instance: dg.DagsterInstance,
        key: dg.AssetKey,
        endpoint: Endpoint,
        start: date,
        landed: Collection[date],
        now: int,
    ) -> Self:
        zone = endpoint.exchange.zone
        today = day_of(now, zone)
        days = days_from(max(start, today - MONITORED_DAYS * DAY), today - DAY)
        failed = failed_days(instance, key, days, daily(zone, start, today=False))
        landed_or_failed = {*landed, *failed}
        missing = [day for day in days if day not in landed_or_failed]
        return cls(days, failed, missing)

    def described(self, overdue: Collection[date]) -> Iterator[str]:
        """Lines: how many days have landed, and which have not, without those that are overdue."""
        landed = len(self.days) - len(self.failed) - len(self.missing)
        since = f" since {self.days[0]}" if self.days else ""
        yield f"Landed: {landed} of {count_of(len(self.days), 'day')}{since}."

        other_failed = [day for day in self.failed if day not in overdue]
        if other_failed:
            yield f"{format_days(other_failed)}: the last run failed; the partition's events have the reason."
        other_missing = [day for day in self.missing if day not in overdue]
        if other_missing:
            yield f"Not expected to have landed: {format_days(other_missing)}."


def _evaluation(
    key: dg.AssetKey, overdue: Sequence[ExpectedDay], states: Mapping[date, State], partitions: _Partitions, now: int
) -> dg.AssetCheckEvaluation:
    """The evaluation of `NO_DAY_MISSING`, which fails if a day is overdue or a partition has failed."""
    lines = [*partitions.described({each.day for each in overdue})]
    is_urgent = False
    for each in overdue:
        state = states.get(each.day, State())
        lines.append(f"{described(each, now)}; {_progress(state)}")
        if state.level >= NotificationLevel.BELOW_48_HOURS:
            is_urgent = True
    return dg.AssetCheckEvaluation(
        asset_key=key,
        check_name=NO_DAY_MISSING,
        passed=not overdue and not partitions.failed,
        severity=dg.AssetCheckSeverity.ERROR if is_urgent else dg.AssetCheckSeverity.WARN,
        description="\n".join(lines),
        metadata={
            "failed": len(partitions.failed),
            "missing": len(partitions.missing),
            "overdue": len(overdue),
            "at_risk": len(at_risk(overdue, states)),
        },
    )


def _progress(state: State) -> str:
    if state.level is NotificationLevel.LOST:
        return "lost"
    # The attempt after the promised retention may exceed `MAX_ATTEMPTS`.
    return f"requested {state.attempts} of at most {max(MAX_ATTEMPTS, state.attempts)} times"


def _to_record(
    instance: dg.DagsterInstance, checks: Sequence[dg.AssetCheckEvaluation], today: date
) -> list[dg.AssetCheckEvaluation]:
    """The evaluations to record: those that differ from their check's last one, or are its first of today (UTC)."""
    last = instance.event_log_storage.get_latest_asset_check_execution_by_key([each.asset_check_key for each in checks])

    def is_recorded(check: dg.AssetCheckEvaluation) -> bool:
        record: Any = last.get(check.asset_check_key)
        if record is None or record.status == CheckStatus.PLANNED:
            return False
        recorded = record.event.dagster_event.event_specific_data
        recorded_on = datetime.fromtimestamp(record.create_timestamp, UTC).date()
        is_same = (recorded.description, recorded.severity) == (check.description, check.severity)
        return is_same and recorded_on == today

    return [check for check in checks if not is_recorded(check)]
