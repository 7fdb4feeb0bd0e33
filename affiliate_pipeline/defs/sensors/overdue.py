"""The monitor for overdue days: a sensor that turns the decisions of `monitoring.overdue` into runs, alerts and checks."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

import dagster as dg

from affiliate_pipeline.defs.checks import NO_DAY_MISSING
from affiliate_pipeline.defs.dagster_internals import NOT_FINISHED_STATUSES, CheckStatus, days_of, range_tags, sensor
from affiliate_pipeline.defs.ownership import selected
from affiliate_pipeline.defs.resources import Installation
from affiliate_pipeline.domain.days import DAY, fold
from affiliate_pipeline.domain.expected_days import ExpectedDay
from affiliate_pipeline.exchanges.endpoint import Endpoint
from affiliate_pipeline.landing.pipeline import now_ms
from affiliate_pipeline.monitoring.outbox import Outbox
from affiliate_pipeline.monitoring.overdue import (
    FIRST_PAUSE,
    MAX_ATTEMPTS,
    MONITORED_DAYS,
    NotificationLevel,
    State,
    WatchStore,
    alerts_of,
    at_risk,
    decide,
    described,
    overdue_days,
)

# Only how soon a change is noticed: when a day is requested follows from its own times.
EVERY_S = 30
ATTEMPT_TAG = "affiliate/watch"


def build_watch(endpoints: Sequence[Endpoint]) -> dg.SensorDefinition:
    """The sensor over the endpoints whose days can be overdue."""

    @sensor(
        name="watch",
        asset_selection=dg.AssetSelection.assets(*map(_key, endpoints)),
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=EVERY_S,
        description=f"Asks again for days that should have landed and have not, at most {MAX_ATTEMPTS} times with growing "
        "pauses; warns before the exchange forgets one, and says when one is lost.",
    )
    def watch(context: dg.SensorEvaluationContext, installation: dg.ResourceParam[Installation]) -> dg.SensorResult:
        now = now_ms()
        url = installation.database_url()
        runs = _Runs(context, now)
        requests: list[dg.RunRequest] = []
        checks: list[dg.AssetCheckEvaluation] = []
        overdue: list[str] = []
        with WatchStore(url) as store, Outbox(url) as outbox:
            for endpoint, days, states in overdue_by_endpoint(store, endpoints, now, installation):
                in_progress, just_failed = runs.of(_key(endpoint))
                decision = decide(endpoint, days, states, now, in_progress=in_progress, just_failed=just_failed)
                for level, reported in decision.report.items():
                    for alert in alerts_of(endpoint, level, reported, now):
                        outbox.add(alert)
                # Persist before requesting runs: losing one retry beats retrying forever.
                if decision.states != states:
                    store.save(endpoint.key, decision.states)
                requests += [_request(endpoint, each, decision.states, now) for each in decision.request]
                checks.append(_evaluation(endpoint, days, decision.states, now))
                overdue += [f"{endpoint.key}: {fold(each.day for each in days)}"] if days else []
        skipped = None if requests else dg.SkipReason("; ".join(overdue) or "no day is missing")
        return dg.SensorResult(requests, skipped, asset_events=_changed(context.instance, checks, now))

    return watch


def overdue_by_endpoint(
    store: WatchStore, endpoints: Sequence[Endpoint], now: int, installation: Installation
) -> Iterator[tuple[Endpoint, list[ExpectedDay], Mapping[date, State]]]:
    """The configured endpoints of which something has landed, with their overdue days and what was done about them."""
    start = installation.start_date
    ledgers = store.ledgers(datetime.fromtimestamp(now / 1000, UTC).date() - (MONITORED_DAYS + 1) * DAY)
    states = store.states()
    for endpoint in endpoints:
        if endpoint.key in ledgers and installation.is_configured(endpoint):
            yield endpoint, overdue_days(endpoint, ledgers, start, now), states.get(endpoint.key, {})


def _key(endpoint: Endpoint) -> dg.AssetKey:
    return dg.AssetKey.from_user_string(endpoint.key)


class _Runs:
    """The runs that have not ended, and those that failed within the first pause."""

    def __init__(self, context: dg.SensorEvaluationContext, now: int):
        instance = context.instance
        self._context = context
        at = datetime.fromtimestamp(now / 1000, UTC)
        self._in_progress = instance.get_runs(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES, created_after=at - DAY))
        failed = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
        self._failed = instance.get_runs(dg.RunsFilter(statuses=failed, updated_after=at - FIRST_PAUSE))

    def of(self, key: dg.AssetKey) -> tuple[bool, set[date]]:
        """Whether a run of the asset has not ended, and the days of its failed runs that the monitor did not request."""
        failed = [run for run in self._failed if ATTEMPT_TAG not in run.tags and selected(self._context, run, {key})]
        in_progress = any(selected(self._context, run, {key}) for run in self._in_progress)
        return in_progress, {day for run in failed for day in days_of(run)}


def _request(endpoint: Endpoint, days: Sequence[date], states: Mapping[date, State], now: int) -> dg.RunRequest:
    return dg.RunRequest(
        # Unique per attempt: Dagster never runs the same key again.
        run_key=f"{endpoint.key} {days[0]}...{days[-1]} at {now}",
        asset_selection=[_key(endpoint)],
        tags={**range_tags(days), ATTEMPT_TAG: f"try {max(states[day].attempts for day in days)}"},
    )


def _evaluation(
    endpoint: Endpoint, days: Sequence[ExpectedDay], states: Mapping[date, State], now: int
) -> dg.AssetCheckEvaluation:
    """The standing check of the asset: the same days that runs and alerts are about."""
    urgent = any(states.get(each.day, State()).level > NotificationLevel.GIVEN_UP for each in days)
    return dg.AssetCheckEvaluation(
        asset_key=_key(endpoint),
        check_name=NO_DAY_MISSING,
        passed=not days,
        severity=dg.AssetCheckSeverity.ERROR if urgent else dg.AssetCheckSeverity.WARN,
        description="\n".join(f"{described(each, now)}; {_done(states.get(each.day, State()))}" for each in days)
        or "No day that is due is missing, since the first that landed and of the last 30.",
        metadata={"missing": len(days), "at_risk": len(at_risk(days, states))},
    )


def _done(state: State) -> str:
    if state.level is NotificationLevel.LOST:
        return "lost"
    return f"asked for {state.attempts} of at most {MAX_ATTEMPTS} times"


def _changed(
    instance: dg.DagsterInstance, checks: Sequence[dg.AssetCheckEvaluation], now: int
) -> list[dg.AssetCheckEvaluation]:
    """The evaluations that differ from the last one of their check, or are the first of a day (UTC)."""
    last = instance.event_log_storage.get_latest_asset_check_execution_by_key([each.asset_check_key for each in checks])
    today = datetime.fromtimestamp(now / 1000, UTC).date()

    def is_recorded(check: dg.AssetCheckEvaluation) -> bool:
        record: Any = last.get(check.asset_check_key)
        if record is None or record.status == CheckStatus.PLANNED:
            return False
        before = record.event.dagster_event.event_specific_data
        recorded_on = datetime.fromtimestamp(record.create_timestamp, UTC).date()
        return before.description == check.description and recorded_on == today

    return [check for check in checks if not is_recorded(check)]
