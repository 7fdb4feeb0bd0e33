"""The sensors of the watch: what `watch.py` decides becomes runs, alerts and the standing checks; and the heartbeat."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import dagster as dg
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

from affiliate_pipeline.defs.endpoint_assets import NO_DAY_MISSING
from affiliate_pipeline.defs.environment import environment_of_tick
from affiliate_pipeline.defs.ownership import days_of, selected
from affiliate_pipeline.domain.days import DAY, fold
from affiliate_pipeline.environment import Alerts, Environment, Project, network_variables
from affiliate_pipeline.exchanges.spec import Endpoint
from affiliate_pipeline.http.heartbeat import beat
from affiliate_pipeline.http.network import Network
from affiliate_pipeline.landing.pipeline import now_ms
from affiliate_pipeline.monitoring.notifications import Said, State, WatchStore
from affiliate_pipeline.monitoring.outbox import Outbox
from affiliate_pipeline.monitoring.overdue import (
    FIRST_PAUSE,
    MOST_DAYS_BACK,
    MOST_TRIES,
    MissingDay,
    alerts_of,
    at_risk,
    is_watched,
    landed_elsewhere,
    missing,
    turn,
)

# Between two looks. What to do about a day is decided by its own times, so that looking often only finds it soon.
EVERY_S = 30
# Longer than the pauses of the delivery: a channel that is down for a while is not worth a second one.
DELIVERED_WITHIN = timedelta(hours=1)
TRY_TAG = "affiliate/watch"


def build_watch(endpoints: Sequence[Endpoint]) -> list[dg.SensorDefinition]:
    """The sensors over the endpoints whose days can be missing."""
    watched = [endpoint for endpoint in endpoints if is_watched(endpoint)]
    return [_watch(watched), _heartbeat(watched)]


def _watch(endpoints: Sequence[Endpoint]) -> dg.SensorDefinition:
    @dg.sensor(
        name="watch",
        asset_selection=dg.AssetSelection.assets(*map(_key, endpoints)),
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=EVERY_S,
        description=f"Asks again for days that should have landed and have not, at most {MOST_TRIES} times with growing "
        "pauses; warns before the exchange forgets one, and says when one is lost.",
    )
    def watch(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        now = now_ms()
        environment = environment_of_tick(context)
        url = environment.database_url()
        with WatchStore(url) as store, Outbox(url) as outbox:
            runs = _Runs(context, now)
            requests: list[dg.RunRequest] = []
            standing: list[dg.AssetCheckEvaluation] = []
            told: list[str] = []
            for endpoint, days, states in _configured(store, endpoints, now, environment):
                key = _key(endpoint)
                done = turn(
                    endpoint,
                    days,
                    states,
                    now,
                    under_way=runs.is_under_way(key),
                    just_failed=runs.just_failed(key),
                )
                for said, of in done.say.items():
                    for alert in alerts_of(endpoint, said, of):
                        outbox.add(alert)
                # Before the runs are requested: a try too few is better than tries without end.
                if done.states != states:
                    store.keep(endpoint.key, done.states)
                requests += [_request(endpoint, asked, done.states, now) for asked in done.ask]
                standing.append(_evaluation(endpoint, days, done.states))
                told += [f"{endpoint.key}: {fold(each.day for each in days)}"] if days else []
        skipped = None if requests else dg.SkipReason("; ".join(told) or "no day is missing")
        return dg.SensorResult(requests, skipped, asset_events=_news(context.instance, standing, now))

    return watch


def _heartbeat(endpoints: Sequence[Endpoint]) -> dg.SensorDefinition:
    @dg.sensor(
        name="heartbeat",
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=EVERY_S,
        description="Calls HEARTBEAT_URL while no day is at risk and alerts are delivered; whoever waits for the call notices "
        "when it stops.",
    )
    def heartbeat(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        heartbeat_url = Alerts.load().heartbeat_url
        if heartbeat_url is None:
            return dg.SkipReason("HEARTBEAT_URL is not set")
        environment = environment_of_tick(context)
        url = environment.database_url()
        with WatchStore(url) as store:
            risks = [
                f"{endpoint.key}: {fold(risky)}"
                for endpoint, days, states in _configured(store, endpoints, now_ms(), environment)
                if (risky := at_risk(days, states))
            ]
        if risks:
            return dg.SkipReason(f"not called, since days are at risk: {'; '.join(risks)}")
        with Outbox(url) as outbox:
            overdue = outbox.overdue(DELIVERED_WITHIN)
        if overdue:
            return dg.SkipReason(
                f"not called, since alerts that are more than an hour old have not been delivered: {overdue}. The failed "
                "ticks of alert_delivery say why"
            )
        problem = beat(heartbeat_url.get_secret_value(), Network(network_variables(environment.variables)))
        if problem:
            context.log.error(f"HEARTBEAT_URL could not be called: {problem}")
            return dg.SkipReason(f"HEARTBEAT_URL could not be called: {problem}")
        return dg.SkipReason("HEARTBEAT_URL was called: no day is at risk, and alerts are delivered")

    return heartbeat


def _configured(
    store: WatchStore, endpoints: Sequence[Endpoint], now: int, environment: Environment
) -> Iterator[tuple[Endpoint, list[MissingDay], Mapping[date, State]]]:
    """The endpoints that can be asked and of which something has landed, with their missing days and what was done."""
    start = Project.load(variables=environment.variables).affiliate_start_date
    ledgers = store.ledgers(datetime.fromtimestamp(now / 1000, UTC).date() - (MOST_DAYS_BACK + 1) * DAY)
    states = store.states()
    for endpoint in endpoints:
        if endpoint.key in ledgers and environment.is_any_set(endpoint.credentials):
            days = missing(endpoint, ledgers[endpoint.key], start, now, landed_elsewhere(endpoint, ledgers))
            yield endpoint, days, states.get(endpoint.key, {})


def _key(endpoint: Endpoint) -> dg.AssetKey:
    return dg.AssetKey(endpoint.key.split("/"))


class _Runs:
    """The runs that have not ended, and those that failed within the first pause."""

    def __init__(self, context: dg.SensorEvaluationContext, now: int):
        instance = context.instance
        self._context = context
        at = datetime.fromtimestamp(now / 1000, UTC)
        self._under_way = instance.get_runs(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES, created_after=at - DAY))
        failed = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
        self._failed = instance.get_runs(dg.RunsFilter(statuses=failed, updated_after=at - FIRST_PAUSE))

    def is_under_way(self, key: dg.AssetKey) -> bool:
        return any(selected(self._context, run, {key}) for run in self._under_way)

    def just_failed(self, key: dg.AssetKey) -> set[date]:
        """The days of the asset that these runs were over."""
        runs = [run for run in self._failed if TRY_TAG not in run.tags and selected(self._context, run, {key})]
        return {day for run in runs for day in days_of(run)}


def _request(endpoint: Endpoint, days: Sequence[date], states: Mapping[date, State], now: int) -> dg.RunRequest:
    return dg.RunRequest(
        # Another one for each try: Dagster never runs the same key again.
        run_key=f"{endpoint.key} {days[0]}...{days[-1]} at {now}",
        asset_selection=[_key(endpoint)],
        tags={
            ASSET_PARTITION_RANGE_START_TAG: f"{days[0]}",
            ASSET_PARTITION_RANGE_END_TAG: f"{days[-1]}",
            TRY_TAG: f"try {max(states[day].tries for day in days)}",
        },
    )


def _evaluation(
    endpoint: Endpoint, days: Sequence[MissingDay], states: Mapping[date, State]
) -> dg.AssetCheckEvaluation:
    """The standing check of the asset: the same list that runs and alerts are made of."""
    told = {each.day: states.get(each.day, State()) for each in days}
    urgent = any(state.said > Said.GIVEN_UP for state in told.values())
    return dg.AssetCheckEvaluation(
        asset_key=_key(endpoint),
        check_name=NO_DAY_MISSING,
        passed=not days,
        severity=dg.AssetCheckSeverity.ERROR if urgent else dg.AssetCheckSeverity.WARN,
        description="\n".join(f"{each}; {_done(told[each.day])}" for each in days)
        or "No day that is due is missing, since the first that landed and of the last 30.",
        metadata={"missing": len(days), "at_risk": len(at_risk(days, states))},
    )


def _done(state: State) -> str:
    if state.said is Said.LOST:
        return "lost"
    return f"asked for {state.tries} of at most {MOST_TRIES} times"


def _news(
    instance: dg.DagsterInstance, evaluations: Sequence[dg.AssetCheckEvaluation], now: int
) -> list[dg.AssetCheckEvaluation]:
    """Those that say something else than the check's last evaluation, or the first of a day (UTC)."""
    last = instance.event_log_storage.get_latest_asset_check_execution_by_key(
        [evaluation.asset_check_key for evaluation in evaluations]
    )
    today = datetime.fromtimestamp(now / 1000, UTC).date()

    def is_told(evaluation: dg.AssetCheckEvaluation) -> bool:
        record: Any = last.get(evaluation.asset_check_key)
        if record is None or record.status == AssetCheckExecutionRecordStatus.PLANNED:
            return False
        before = record.event.dagster_event.event_specific_data
        told_on = datetime.fromtimestamp(record.create_timestamp, UTC).date()
        return before.description == evaluation.description and told_on == today

    return [evaluation for evaluation in evaluations if not is_told(evaluation)]
