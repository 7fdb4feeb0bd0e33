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
    # `if at` is for the type checker: each of these endpoints has a time.
    return [_schedule(list(group), at, placement) for (_, _, at), group in groupby(daily, schedule_key) if at]


def _schedule(endpoints: Sequence[Endpoint], at: time, placement: Placement) -> dg.ScheduleDefinition:
    exchange, is_snapshot = endpoints[0].exchange, not isinstance(endpoints[0], Records)
    what = "today" if is_snapshot else "the last days, until they have settled"
    account = f" (account {endpoints[0].alias})" if endpoints[0].alias else ""

    @schedule(
        name=placement.name_of_schedule(
            f"{endpoints[0].group}_{'snapshots' if is_snapshot else 'records'}", at, exchange.zone
        ),
        cron_schedule=f"{at.minute} {at.hour} * * *",
        execution_timezone=exchange.zone.key,
        target=[placement.key(endpoint.key) for endpoint in endpoints],
        default_status=placement.schedules,
        required_resource_keys=placement.required,
        description=f"Lands {what}{account}, at {at:%H:%M} {exchange.zone.key}: one run per asset whose API key is "
        "configured.",
    )
    def land(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
        tick = context.scheduled_execution_time
        tick_ms = int(tick.timestamp() * 1000)
        today = day_of(tick_ms, exchange.zone)
        if is_snapshot and day_of(now_ms(), exchange.zone) > today:
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
            if days := [each.day for each in expected_days(endpoint.timetable, first, tick_ms)]:
                key = placement.key(endpoint.key)
                # Derived from the tick, so that evaluating it again requests no second run.
                run_key = f"{endpoint.key} {tick.isoformat()}"
                requests.append(dg.RunRequest(run_key, asset_selection=[key], tags=range_tags(days)))
        return requests or dg.SkipReason("the days are before the first partition")

    return land
