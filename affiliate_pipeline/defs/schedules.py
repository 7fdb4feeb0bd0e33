"""Daily schedules that land the last days of each configured asset until they have settled."""

from collections.abc import Sequence
from datetime import time
from itertools import groupby

import dagster as dg

from affiliate_pipeline.defs.dagster_internals import range_tags, schedule
from affiliate_pipeline.defs.placement import OWN, Placement
from affiliate_pipeline.domain.days import day_of
from affiliate_pipeline.domain.expected_days import expected_days
from affiliate_pipeline.exchanges.endpoint import Endpoint, Records
from affiliate_pipeline.landing.pipeline import now_ms


def build_schedules(endpoints: Sequence[Endpoint], placement: Placement = OWN) -> list[dg.ScheduleDefinition]:
    """One schedule per account, kind (records or snapshots) and time of day."""

    def schedule_key(endpoint: Endpoint) -> tuple[str, bool, time | None]:
        return endpoint.group, not isinstance(endpoint, Records), endpoint.lands_at

    daily = sorted((endpoint for endpoint in endpoints if endpoint.lands_at), key=schedule_key)
    schedules: list[dg.ScheduleDefinition] = []
    for (_, _, at), group in groupby(daily, schedule_key):
        if at:  # for the type checker: each of these endpoints has a time
            schedules.append(_schedule(list(group), at, placement))
    return schedules


def _schedule(endpoints: Sequence[Endpoint], at: time, placement: Placement) -> dg.ScheduleDefinition:
    """The schedule of these endpoints, which are of the same account and kind, and land at the same time of day."""
    first_endpoint = endpoints[0]
    zone = first_endpoint.exchange.zone
    if isinstance(first_endpoint, Records):
        kind, what = "records", "the last days, until they have settled"
    else:
        kind, what = "snapshots", "today"
    account = f" (account {first_endpoint.alias})" if first_endpoint.alias else ""

    @schedule(
        name=placement.name_of_schedule(f"{first_endpoint.group}_{kind}", at, zone),
        cron_schedule=f"{at.minute} {at.hour} * * *",
        execution_timezone=zone.key,
        target=[placement.key(endpoint.key) for endpoint in endpoints],
        default_status=placement.schedules,
        required_resource_keys=placement.required,
        description=f"Lands {what}{account}, at {at:%H:%M} {zone.key}: one run per asset whose API key is configured.",
    )
    def land(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
        return _run_requests(context, endpoints, placement)

    return land


def _run_requests(
    context: dg.ScheduleEvaluationContext, endpoints: Sequence[Endpoint], placement: Placement
) -> list[dg.RunRequest] | dg.SkipReason:
    """One run request per configured endpoint of a schedule, or why its tick requests none."""
    tick = context.scheduled_execution_time
    tick_ms = int(tick.timestamp() * 1000)
    zone = endpoints[0].exchange.zone
    today = day_of(tick_ms, zone)
    is_snapshot = not isinstance(endpoints[0], Records)
    if is_snapshot and day_of(now_ms(), zone) > today:
        # Dagster evaluates a missed tick later, when a run for a day that is over can only fail.
        return dg.SkipReason(f"{today} is over, so its snapshot can no longer be taken")

    pipeline = placement.pipeline(context)
    # If no exchange is configured, request the runs anyway: they fail and report what to set.
    is_any_configured = pipeline.is_any_exchange_configured
    configured = [each for each in endpoints if pipeline.is_configured(each) or not is_any_configured]
    if not configured:
        names = dict.fromkeys(name for endpoint in endpoints for name in endpoint.credentials)
        return dg.SkipReason(f"none of {', '.join(names)} is set")

    requests: list[dg.RunRequest] = []
    for endpoint in configured:
        first = max(pipeline.first_day(endpoint), endpoint.timetable.lookback_start(tick_ms))
        days = [each.day for each in expected_days(endpoint.timetable, first, tick_ms)]
        if days:
            key = placement.key(endpoint.key)
            # Derived from the tick, so that evaluating it again requests no second run.
            run_key = f"{endpoint.key} {tick.isoformat()}"
            requests.append(dg.RunRequest(run_key, asset_selection=[key], tags=range_tags(days)))
    return requests or dg.SkipReason("the days are before the first partition")
