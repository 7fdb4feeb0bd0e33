"""The sensor that sends a digest: what was earned on a day or in a week, the change, and what is missing."""

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from itertools import chain

import dagster as dg

from affiliate_pipeline.commission.figures import gather
from affiliate_pipeline.commission.headline import WEEK_DAYS, text, title
from affiliate_pipeline.commission.rollup import Commission
from affiliate_pipeline.defs.dagster_internals import sensor
from affiliate_pipeline.defs.placement import OWN, Placement
from affiliate_pipeline.defs.resources import PipelineResource
from affiliate_pipeline.domain.days import DAY, days_from, format_days
from affiliate_pipeline.domain.expected_days import newest_scheduled
from affiliate_pipeline.domain.settings import Digest
from affiliate_pipeline.exchanges.endpoint import Records
from affiliate_pipeline.landing import ledger
from affiliate_pipeline.landing.pipeline import now_ms
from affiliate_pipeline.monitoring.alerts import Alert, Kind

# A digest waits this many ticks (two hours) for what has not landed or has not been added up: the monitor requests
# missing days again after one hour. Ticks rather than a time: after a pause of the daemon, days need time to land.
MAX_WAITING_TICKS = 120
EVERY_S = 60


def build_digest(
    earning: Sequence[Records], digest: Digest, placement: Placement = OWN, *, has_prices: bool = False
) -> dg.SensorDefinition:
    """The sensor that adds the digest, which covers all accounts with landed days, to the alerts."""

    @sensor(
        name=placement.name("digest"),
        default_status=placement.monitoring,
        required_resource_keys=placement.required,
        minimum_interval_seconds=EVERY_S,
        description=f"Adds the {digest} digest to the alerts, once: the total in USDT, the change, and what is missing. After the "
        "last scheduled landing, or up to two hours later if days are missing then.",
    )
    def digest_sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        return dg.SkipReason(_evaluate(context, placement.pipeline(context), earning, digest, has_prices=has_prices))

    return digest_sensor


def _evaluate(
    context: dg.SensorEvaluationContext,
    pipeline: PipelineResource,
    earning: Sequence[Records],
    digest: Digest,
    *,
    has_prices: bool,
) -> str:
    """Add the newest digest that is due, unless it was ever added or waits for days; return what was done."""
    configured = [each for each in earning if pipeline.is_configured(each)]
    now = now_ms()
    today = datetime.fromtimestamp(now / 1000, UTC).date()
    with pipeline.outbox() as outbox, pipeline.store() as store:
        commission = Commission(store, earning, has_prices=has_prices)
        # Enough for the last two weeks that have ended, which a weekly digest compares.
        ledgers = ledger.entries_since(store.connection, today - 4 * WEEK_DAYS * DAY)
        expected = _expected(commission, ledgers, configured, today)
        timetables = [each.timetable for each in chain(*(expected or commission.alternative_groups))]
        last = newest_scheduled(timetables, now)
        if digest == "weekly":
            last -= last.isoweekday() % WEEK_DAYS * DAY  # to Sunday
        key = f"digest: {digest}, {last}"
        if outbox.has(key):
            return f"the {digest} digest of {last} is among the alerts"

        # `ledgers` also has each asset's first landed day, however old.
        landed = [day for each in chain(*commission.alternative_groups) for day in ledgers.get(each.key, ())]
        first_landed = min(landed, default=last + DAY)
        start = max(first_landed, min(map(pipeline.first_day, earning)))
        if last < start:
            return f"nothing has landed up to {last}"
        days = [last]
        if digest == "weekly":
            days = days_from(max(start, last - (WEEK_DAYS - 1) * DAY), last)

        ticks_waited = _ticks_waited(context.cursor, key)
        if ticks_waited < MAX_WAITING_TICKS:
            reasons = [*_reasons_to_wait(commission, expected, ledgers, start, days)]
            if reasons:
                context.update_cursor(f"{key}: {ticks_waited + 1}")
                return f"the {digest} digest of {last} waits: {'; '.join(reasons)}"

        figures = gather(commission, configured, last, start, is_sandbox=pipeline.is_sandbox)
        outbox.add(Alert(key, title(figures, len(days)), text(figures, len(days)), kind=Kind.DIGEST))
    return f"the {digest} digest of {last} was added to the alerts"


def _expected(
    commission: Commission, ledgers: ledger.Ledgers, configured: Sequence[Records], today: date
) -> list[list[Records]]:
    """The `alternative_groups` with an asset that is configured here or has landed within the last week.

    The endpoints of a group report the same money, so one of them is enough.
    """
    # Other definitions may land other accounts in the same database.
    recent = {asset for asset, entries in ledgers.items() if max(entries) >= today - WEEK_DAYS * DAY}
    included = recent | {endpoint.key for endpoint in configured}
    return [
        alternatives
        for alternatives in commission.alternative_groups
        if any(endpoint.key in included for endpoint in alternatives)
    ]


def _ticks_waited(cursor: str | None, key: str) -> int:
    """How many ticks the digest with this key has waited; `cursor` has those of the digest that waited last."""
    waiting_key, _, ticks = (cursor or "").rpartition(": ")
    return int(ticks) if waiting_key == key else 0


def _reasons_to_wait(
    commission: Commission,
    expected: Sequence[Sequence[Records]],
    ledgers: ledger.Ledgers,
    start: date,
    days: Sequence[date],
) -> Iterator[str]:
    """What has not landed since its scheduled time, or has not been added up."""
    for alternatives in expected:
        missing = [day for day in days if not any(_has_landed(each, ledgers, day) for each in alternatives)]
        if missing:
            keys = " or ".join(each.key for each in alternatives)
            yield f"{keys} has not landed {format_days(missing)}"
    # The total is compared with the days before, whose missing prices do not delay the digest. No run adds up the days
    # before `start`.
    compared_from = max(start, days[0] - WEEK_DAYS * DAY)
    outdated = {*commission.stale(compared_from, days[-1]), *commission.stale_or_unpriced(days[0], days[-1])}
    if outdated:
        yield f"{format_days(outdated)} not added up with the latest rows and prices"


def _has_landed(endpoint: Records, ledgers: ledger.Ledgers, day: date) -> bool:
    """Whether the day has landed since its scheduled time: what was read earlier may lack a part of the day."""
    entry = ledgers.get(endpoint.key, {}).get(day)
    scheduled_at_ms = endpoint.timetable.scheduled_at_ms(day) or 0
    return entry is not None and (entry.settled or entry.checked_at.timestamp() * 1000 >= scheduled_at_ms)
