"""The sensor that advances and lands kickback exports, and the schedule for missed days."""

import dagster as dg

from affiliate_pipeline.defs.dagster_internals import NOT_FINISHED_STATUSES, range_tags, schedule, selected, sensor
from affiliate_pipeline.defs.resources import PipelineResource
from affiliate_pipeline.domain.days import day_ranges, format_days, utc_text
from affiliate_pipeline.domain.expected_days import expected_days
from affiliate_pipeline.domain.problem import SettingsError
from affiliate_pipeline.exchanges.binance.endpoints import HISTORY, HISTORY_REQUEST, RECENT_KICKBACKS
from affiliate_pipeline.exchanges.binance.kickback_export.advance import advance
from affiliate_pipeline.exchanges.binance.kickback_export.exports import (
    KickbackExport,
    KickbackExports,
    needs_attention,
)
from affiliate_pipeline.http.errors import ExchangeError
from affiliate_pipeline.monitoring.alerts import Alert
from affiliate_pipeline.monitoring.outbox import Outbox

EXPORT_TAG = "affiliate/collection"
MAX_RUNS = 3
# A longer pause of the rate limit ends the tick; the next tick polls again.
MAX_PAUSE_S = 5
HISTORY_KEY = dg.AssetKey.from_user_string(HISTORY.key)
_UNSET = f"{' and '.join(HISTORY.credentials)} are not set"


@sensor(
    asset_selection=[HISTORY_KEY],
    minimum_interval_seconds=10,
    description="Requests waiting exports, polls for their files, and starts the runs that land them.",
)
def kickback_history(
    context: dg.SensorEvaluationContext, pipeline: dg.ResourceParam[PipelineResource]
) -> dg.RunRequest | dg.SkipReason:
    """Advance the exports, request the run that lands a ready file, and report expired exports."""
    environment = pipeline.environment
    if not environment.is_any_set(HISTORY.credentials):
        return dg.SkipReason(_UNSET)
    if not needs_attention(environment.database_url()):
        return dg.SkipReason("no export is open")
    try:
        with (
            pipeline.store() as store,
            pipeline.session(HISTORY, store, MAX_PAUSE_S) as session,
            Outbox(store.url) as outbox,
        ):
            exports = session.exports()
            try:
                advance(session, wait=False)
            except ExchangeError as error:
                context.log.warning(f"the export could not be requested: {error}")
            # Before the alerts, so that an export that expires here gets one.
            request = _landing(context, exports)
            for export in filter(lambda each: each.is_just_expired, exports.refresh()):
                outbox.add(expired_alert(export, session.now_ms()))
            return request
    except SettingsError as error:
        return dg.SkipReason(str(error))


def _landing(context: dg.SensorEvaluationContext, exports: KickbackExports) -> dg.RunRequest | dg.SkipReason:
    """The run that lands a file that is ready, or why there is none."""
    instance, opened = context.instance, exports.open()
    ready = next((export for export in opened if export.state == "ready" and not export.has_stored_file), None)
    if ready is None:
        last = next((f": {export.note}" for export in opened if export.state != "ready" and export.note), "")
        return dg.SkipReason(f"{len(opened)} exports are open, and no file is ready{last}")
    unfinished = instance.get_runs(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES))
    if any(selected(context, run, {HISTORY_KEY}) for run in unfinished):
        return dg.SkipReason("a run is landing an export")
    finished = len(instance.get_runs(dg.RunsFilter(tags={EXPORT_TAG: str(ready.id)})))
    if finished >= MAX_RUNS:
        if any(export.state == "waiting" for export in opened):
            # Give up: days of the waiting exports may expire meanwhile.
            note = f"its file arrived, but {finished} runs could not land it, and other exports wait: see the errors of these runs"
            exports.update(ready, state="expired", note=note)
        return dg.SkipReason(
            f"{finished} runs could not land the file of export {ready.id}: see the errors of these runs"
        )
    return dg.RunRequest(
        run_key=f"{ready.id}-{finished + 1}",
        asset_selection=[HISTORY_KEY],
        tags={**range_tags(ready.days), EXPORT_TAG: str(ready.id)},
    )


def expired_alert(export: KickbackExport, now_ms: int) -> Alert:
    """The alert for an export that was given up."""
    if HISTORY.timetable.is_retained(export.last_day, now_ms):
        next_step = (
            f"Fix the cause, then materialize {HISTORY_REQUEST.key} for these days. The exchange retains the first of them "
            f"until {utc_text(HISTORY.timetable.deadline_ms(export.first_day) or now_ms)}; days that {RECENT_KICKBACKS.key} "
            "missed are requested again daily, at 00:45 UTC"
        )
    else:
        next_step = f"These days can no longer be requested; {RECENT_KICKBACKS.key} may have landed them before"
    return Alert(
        key=f"{HISTORY.key} collection {export.id}",
        title=f"{HISTORY.key}: the export of {format_days(export.days)} was given up",
        text=f"{export.note}. Rows that had landed are unchanged. {next_step}.",
        failed={HISTORY.key: export.days},
    )


def build_missed_days_schedule(status: dg.DefaultScheduleStatus) -> dg.ScheduleDefinition:
    """The daily schedule that requests the days that only an export can still return."""

    @schedule(
        name="binance_kickback_history_0045",
        cron_schedule="45 0 * * *",
        execution_timezone="UTC",
        target=[dg.AssetKey.from_user_string(HISTORY_REQUEST.key)],
        default_status=status,
        description=f"Requests days that {RECENT_KICKBACKS.key} missed, at 00:45 UTC: one run per range of days.",
    )
    def missed_days(
        context: dg.ScheduleEvaluationContext, pipeline: dg.ResourceParam[PipelineResource]
    ) -> list[dg.RunRequest] | dg.SkipReason:
        if not pipeline.environment.is_any_set(HISTORY.credentials):
            return dg.SkipReason(_UNSET)
        tick = context.scheduled_execution_time
        with pipeline.store() as store, pipeline.session(HISTORY_REQUEST, store) as session:
            requested = {day for export in session.exports().open() for day in export.days}
            recent, exported = store.ledger(RECENT_KICKBACKS), store.ledger(HISTORY)
        now_ms = int(tick.timestamp() * 1000)
        # Days before the first that landed may be older than the account.
        first = max(pipeline.environment.start_date, min(recent, default=tick.date()))
        missed = expected_days(RECENT_KICKBACKS.timetable, first, now_ms, recent)
        only_exported = {each.day for each in missed if each.fallback and not each.is_retained(now_ms)}
        requests = [
            dg.RunRequest(run_key=f"{each[0]}...{each[-1]} {tick.isoformat()}", tags=range_tags(each))
            for each in day_ranges(only_exported - requested - exported.keys())
        ]
        return requests or dg.SkipReason(
            f"{RECENT_KICKBACKS.key} has missed no day that only an export can still return"
        )

    return missed_days
