"""The history of kickbacks: the sensor that waits for its file and has it landed, and the schedule that asks for the days
which the recent records missed. What the next step is stands in `exchanges/binance/history.py`."""

from collections.abc import Iterator, Sequence
from datetime import date

import dagster as dg
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

from affiliate_pipeline.defs.environment import environment_of_tick
from affiliate_pipeline.defs.ownership import selected
from affiliate_pipeline.defs.resources import Exchanges, Postgres
from affiliate_pipeline.defs.schedules import default_status
from affiliate_pipeline.domain.days import fold, instant, runs
from affiliate_pipeline.environment import Project, SettingsError
from affiliate_pipeline.exchanges.binance.endpoints import HISTORY, HISTORY_REQUEST, RECENT_KICKBACKS
from affiliate_pipeline.exchanges.binance.kickback_export.advance import advance, give_up, missed_days
from affiliate_pipeline.exchanges.binance.kickback_export.model import Collection, CollectionStore
from affiliate_pipeline.exchanges.binance.kickback_export.store import is_any_open
from affiliate_pipeline.http.errors import ExchangeError
from affiliate_pipeline.monitoring.alerts import Alert
from affiliate_pipeline.monitoring.outbox import Outbox

COLLECTION_TAG = "affiliate/collection"
MOST_ATTEMPTS = 3
# A pause of the rate limit that a tick sits out; after a longer one the next tick looks again.
LONGEST_WAIT_S = 5
HISTORY_KEY = dg.AssetKey(HISTORY.key.split("/"))


@dg.sensor(
    asset_selection=[HISTORY_KEY],
    minimum_interval_seconds=10,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Asks for the history that waits to be asked for, looks whether its file is there, and has it landed.",
)
def kickback_history(
    context: dg.SensorEvaluationContext, postgres: dg.ResourceParam[Postgres], exchanges: dg.ResourceParam[Exchanges]
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    environment = environment_of_tick(context)
    if not environment.is_any_set(HISTORY.credentials):
        yield dg.SkipReason(f"{' and '.join(HISTORY.credentials)} are not set")
        return
    if not is_any_open(environment.database_url()):
        yield dg.SkipReason("nothing is asked for, or all of it has landed")
        return
    try:
        with (
            postgres.store(environment) as store,
            exchanges.session(HISTORY, store, environment, LONGEST_WAIT_S) as session,
        ):
            collections = session.collections()
            try:
                advance(session, patient=False)
            except ExchangeError as error:
                context.log.warning(f"the exchange could not be asked: {error}")
            with Outbox(store.url) as outbox:
                for expired in collections.expired_untold():
                    outbox.add(expired_alert(expired, session.now_ms()))
                    collections.told(expired.id)
            yield from _landing(context, collections)
    except SettingsError as error:
        yield dg.SkipReason(str(error))


def _landing(
    context: dg.SensorEvaluationContext, collections: CollectionStore
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    instance, opened = context.instance, collections.open()
    ready = next((each for each in opened if each.state == "ready" and not each.is_kept), None)
    if ready is None:
        last = next((f": {each.note}" for each in opened if each.state != "ready" and each.note), "")
        yield dg.SkipReason(f"{len(opened)} collections are open, and no file is there{last}")
        return
    under_way = instance.get_runs(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES))
    if any(selected(context, run, {HISTORY_KEY}) for run in under_way):
        yield dg.SkipReason("a run is landing the history")
        return
    attempts = len(instance.get_runs(dg.RunsFilter(tags={COLLECTION_TAG: str(ready.id)})))
    if attempts >= MOST_ATTEMPTS:
        if any(each.state == "waiting" for each in opened):
            # The days that wait behind it may be forgotten meanwhile.
            note = f"its file came, {attempts} runs could not land it, and others wait: see why the runs failed"
            give_up(collections, ready, note)
        yield dg.SkipReason(f"{attempts} runs could not land the file of collection {ready.id}: see why they failed")
        return
    yield dg.RunRequest(
        run_key=f"{ready.id}-{attempts + 1}",
        asset_selection=[HISTORY_KEY],
        tags={**_range(ready.days), COLLECTION_TAG: str(ready.id)},
    )


def expired_alert(collection: Collection, now_ms: int) -> Alert:
    """What people are told of a collection that was given up."""
    days = collection.days
    until_ms = HISTORY.fetchable_until_ms(days[0])
    assert until_ms is not None
    if not HISTORY.is_remembered(days[-1], now_ms):
        next_step = f"No request brings these days any more; {RECENT_KICKBACKS.key} may have landed them in its time."
    else:
        next_step = (
            "It is asked for again by itself"
            if collection.is_followed
            else f"It is not asked for again: mend the cause, then materialize {HISTORY_REQUEST.key} for these days"
        ) + f"; the exchange forgets the first of these days at {instant(until_ms)}."
    return Alert(
        key=f"{HISTORY.key} collection {collection.id}",
        title=f"{HISTORY.key}: the history of {fold(days)} did not come",
        text=f"{collection.note}. What had landed is untouched. {next_step}",
        failed={HISTORY.key: days},
    )


def build_missed_days_schedule() -> dg.ScheduleDefinition:
    """Asks daily for the days that only the history still has."""

    @dg.schedule(
        name="binance_kickback_history_0045",
        cron_schedule="45 0 * * *",
        execution_timezone="UTC",
        target=[dg.AssetKey(HISTORY_REQUEST.key.split("/"))],
        default_status=default_status(),
        description=f"Asks for days that {RECENT_KICKBACKS.key} missed, at 00:45 UTC: one run per range of days.",
    )
    def missed(
        context: dg.ScheduleEvaluationContext,
        postgres: dg.ResourceParam[Postgres],
        exchanges: dg.ResourceParam[Exchanges],
    ) -> Iterator[dg.RunRequest | dg.SkipReason]:
        environment = environment_of_tick(context)
        if not environment.is_any_set(HISTORY.credentials):
            yield dg.SkipReason(f"{' and '.join(HISTORY.credentials)} are not set")
            return
        now_ms = int(context.scheduled_execution_time.timestamp() * 1000)
        with (
            postgres.store(environment) as store,
            exchanges.session(HISTORY_REQUEST, store, environment) as session,
        ):
            asked = {day for collection in session.collections().open() for day in collection.days}
            start = Project.load(variables=environment.variables).affiliate_start_date
            recent = {day: row.settled for day, row in store.ledger(RECENT_KICKBACKS).items()}
            days = missed_days(RECENT_KICKBACKS, recent, store.ledger(HISTORY), asked, now_ms)
        ranges = runs(day for day in days if day >= start)
        for each in ranges:
            yield dg.RunRequest(
                run_key=f"{each[0]}...{each[-1]} {context.scheduled_execution_time.isoformat()}", tags=_range(each)
            )
        if not ranges:
            yield dg.SkipReason(f"{RECENT_KICKBACKS.key} has missed no day that only the history has")

    return missed


def _range(days: Sequence[date]) -> dict[str, str]:
    return {ASSET_PARTITION_RANGE_START_TAG: f"{days[0]}", ASSET_PARTITION_RANGE_END_TAG: f"{days[-1]}"}
