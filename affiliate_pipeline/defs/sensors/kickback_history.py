"""The sensor that advances and lands an account's kickback exports, and the schedule for missed days."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import time
from typing import Any

import dagster as dg

from affiliate_pipeline.defs.dagster_internals import NOT_FINISHED_STATUSES, range_tags, schedule, selected, sensor
from affiliate_pipeline.defs.placement import OWN, Placement
from affiliate_pipeline.domain.days import day_ranges, format_days, utc_text
from affiliate_pipeline.domain.expected_days import expected_days
from affiliate_pipeline.domain.problem import SettingsError
from affiliate_pipeline.domain.wording import count_of
from affiliate_pipeline.exchanges.binance.endpoints import HISTORY, HISTORY_REQUEST, RECENT_KICKBACKS
from affiliate_pipeline.exchanges.binance.exchange import BinanceSession
from affiliate_pipeline.exchanges.binance.kickback_export.advance import advance
from affiliate_pipeline.exchanges.binance.kickback_export.exports import (
    KickbackExport,
    KickbackExports,
    needs_attention,
)
from affiliate_pipeline.exchanges.endpoint import Endpoint, Records
from affiliate_pipeline.http.errors import ExchangeError
from affiliate_pipeline.monitoring.alerts import Alert

# Stored names call an export a `collection`: this tag, the keys of alerts, the lock and the table.
EXPORT_TAG = "affiliate/collection"
MISSED_DAYS_AT = time(0, 45)
MAX_RUNS = 3
# A longer pause of the rate limit ends the tick; the next tick polls again.
MAX_PAUSE_S = 5


@dataclass(frozen=True)
class ExportEndpoints:
    """An account's endpoints of kickbacks: the recent ones, the request of an export, and its file."""

    recent: Records[BinanceSession]
    request: Records[BinanceSession]
    history: Records[BinanceSession]

    @property
    def reason_to_skip(self) -> str:
        """Why a tick does nothing if the account has no credentials."""
        return f"{' and '.join(self.history.credentials)} are not set"

    @property
    def account_suffix(self) -> str:
        """The account, for the description of a schedule or sensor; empty for the default one."""
        return f" (account {self.history.alias})" if self.history.alias else ""


def export_endpoints(endpoints: Sequence[Endpoint[Any]]) -> Iterator[ExportEndpoints]:
    """The three endpoints of kickbacks of each account with the history."""
    for each in endpoints:
        if each.table == HISTORY.table:  # the same table for each account
            yield ExportEndpoints(
                recent=RECENT_KICKBACKS.for_account(each.alias, each.names),
                request=HISTORY_REQUEST.for_account(each.alias, each.names),
                history=HISTORY.for_account(each.alias, each.names),
            )


def build_kickback_history(account: ExportEndpoints, placement: Placement = OWN) -> dg.SensorDefinition:
    """The sensor that requests the account's exports, polls for their files and requests the runs that land them."""
    alias = account.history.alias
    name = f"kickback_history_{alias}" if alias else "kickback_history"

    @sensor(
        name=placement.name_without_scope(name),
        asset_selection=[placement.key(account.history.key)],
        default_status=placement.requesting,
        required_resource_keys=placement.required,
        minimum_interval_seconds=10,
        description=f"Requests waiting exports{account.account_suffix}, polls for their files, and starts the runs that land "
        "them.",
    )
    def kickback_history(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        return _evaluate(context, account, placement)

    return kickback_history


def _evaluate(
    context: dg.SensorEvaluationContext, account: ExportEndpoints, placement: Placement
) -> dg.RunRequest | dg.SkipReason:
    """Advance the exports, request the run that lands a ready file, and report expired exports."""
    pipeline = placement.pipeline(context)
    if not pipeline.has_credentials(account.history):
        return dg.SkipReason(account.reason_to_skip)
    if not needs_attention(pipeline.database_url()):
        return dg.SkipReason("no export is open")
    try:
        with (
            pipeline.store() as store,
            pipeline.session(account.history, store, MAX_PAUSE_S) as session,
            pipeline.outbox() as outbox,
        ):
            try:
                exports = session.exports()
            except ExchangeError as error:
                return dg.SkipReason(f"the account of the key could not be verified: {error}")
            try:
                advance(session, is_run=False)
            except ExchangeError as error:
                context.log.warning(f"the export could not be requested or polled: {error}")

            # Before the alerts, so that an export that expires in this call gets one.
            request = _request_landing(context, exports, placement.key(account.history.key))
            just_expired = [export for export in exports.refresh() if export.is_just_expired]
            if pipeline.has_alerts:
                for export in just_expired:
                    outbox.add(expired_alert(account, export, session.now_ms()))
            return request
    except SettingsError as error:
        return dg.SkipReason(str(error))


def _request_landing(
    context: dg.SensorEvaluationContext, exports: KickbackExports, key: dg.AssetKey
) -> dg.RunRequest | dg.SkipReason:
    """The request of a run that lands the first ready file, or why there is none.

    If `MAX_RUNS` runs could not land the file, its export expires as soon as another one is waiting.
    """
    instance = context.instance
    open_exports = exports.all_open()
    # A file is stored only if a run could not read it: another run would fail again.
    ready = next((export for export in open_exports if export.state == "ready" and not export.has_stored_file), None)
    if ready is None:
        notes = [export.note for export in open_exports if export.state != "ready" and export.note]
        first_note = f": {notes[0]}" if notes else ""
        return dg.SkipReason(f"no file of {count_of(len(open_exports), 'open export')} is ready{first_note}")

    unfinished = instance.get_runs(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES))
    if any(selected(context, run, {key}) for run in unfinished):
        return dg.SkipReason("a run is landing an export")

    tagged = instance.get_runs(dg.RunsFilter(tags={EXPORT_TAG: str(ready.id)}))
    # Only this code location's runs: an export in another one's database may have the same id. All of them have ended,
    # as checked above.
    finished = [run for run in tagged if selected(context, run, {key})]
    if len(finished) >= MAX_RUNS:
        could_not_land = f"{count_of(len(finished), 'run')} could not land"
        if any(export.state == "waiting" for export in open_exports):
            # Give up: days of the waiting exports may expire meanwhile.
            note = f"its file arrived, but {could_not_land} it, and other exports wait: see the errors of these runs"
            exports.update(ready, state="expired", note=note)
        return dg.SkipReason(f"{could_not_land} the file of export {ready.id}: see the errors of these runs")

    return dg.RunRequest(
        run_key=f"{ready.id}-{len(finished) + 1}",
        asset_selection=[key],
        tags={**range_tags(ready.days), EXPORT_TAG: str(ready.id)},
    )


def expired_alert(account: ExportEndpoints, export: KickbackExport, now_ms: int) -> Alert:
    """The alert about an export that has expired before its days landed."""
    history, recent = account.history, account.recent
    retained = [day for day in export.days if history.timetable.is_retained(day, now_ms)]
    if not retained:
        next_step = f"These days can no longer be requested; {recent.key} may have landed them before"
    else:
        # Never None: the retention of the history is defined.
        deadline_ms = history.timetable.deadline_ms(retained[0]) or now_ms
        which = "these days" if retained == [*export.days] else format_days(retained)
        next_step = (
            f"Fix the cause, then materialize {account.request.key} for {which}. The exchange retains the first of them "
            f"until {utc_text(deadline_ms)}; days that {recent.key} missed are requested again daily, at "
            f"{MISSED_DAYS_AT:%H:%M} UTC"
        )
    return Alert(
        key=f"{history.key} collection {export.id}",
        title=f"{history.key}: the export of {format_days(export.days)} was given up",
        text=f"{export.note}. Rows that had landed are unchanged. {next_step}.",
        failed={history.key: export.days},
    )


def build_missed_days_schedule(account: ExportEndpoints, placement: Placement = OWN) -> dg.ScheduleDefinition:
    """The daily schedule that requests the account's days that only an export can still return."""
    recent, history = account.recent, account.history

    @schedule(
        name=placement.name_of_schedule(f"{history.group}_kickback_history", MISSED_DAYS_AT, history.exchange.zone),
        cron_schedule=f"{MISSED_DAYS_AT.minute} {MISSED_DAYS_AT.hour} * * *",
        execution_timezone=history.exchange.zone.key,
        target=[placement.key(account.request.key)],
        default_status=placement.schedules,
        required_resource_keys=placement.required,
        description=f"Requests days that {recent.key} missed, at {MISSED_DAYS_AT:%H:%M} UTC: one run per range of days.",
    )
    def missed_days(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
        pipeline = placement.pipeline(context)
        if not pipeline.has_credentials(history):
            return dg.SkipReason(account.reason_to_skip)

        tick = context.scheduled_execution_time
        with pipeline.store() as store, pipeline.session(account.request, store) as session:
            requested = {day for export in session.exports().all_open() for day in export.days}
            landed = store.ledger(recent)
            landed_by_export = store.ledger(history)

        now_ms = int(tick.timestamp() * 1000)
        # Days before the first that landed may be older than the account.
        first = max(pipeline.first_day(account.request), min(landed, default=tick.date()))
        missed = expected_days(recent.timetable, first, now_ms, landed)
        needs_export = {each.day for each in missed if each.fallback and not each.is_retained(now_ms)}
        to_request = needs_export - requested - landed_by_export.keys()

        requests = [
            dg.RunRequest(run_key=f"{days[0]}...{days[-1]} {tick.isoformat()}", tags=range_tags(days))
            for days in day_ranges(to_request)
        ]
        return requests or dg.SkipReason(f"{recent.key} has missed no day that only an export can still return")

    return missed_days
