"""The figures of a report, gathered from the database; `report` renders them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime

from affiliate_pipeline.commission.rollup import Commission, Earner, Sum
from affiliate_pipeline.domain.days import DAY, days_from
from affiliate_pipeline.exchanges.endpoint import Records

SPAN_DAYS = 30
MAX_EARNERS = 3


@dataclass(frozen=True)
class Incomplete:
    """The missing and unsettled days of one kind of earnings; `name` has its assets."""

    name: str
    missing: Sequence[date]
    unsettled: Sequence[date]


@dataclass(frozen=True)
class Figures:
    """The figures of `day` and the charts' `days`; `totals` are over `days`, coins of the greatest value first.

    `as_of` is when they were read (UTC).
    """

    day: date
    days: Sequence[date]
    as_of: datetime
    sums: Sequence[Sum]
    totals: Sequence[Sum]
    earners: Sequence[Earner]
    incomplete: Sequence[Incomplete]
    # Days with landed rows that have not been added up yet.
    stale: Sequence[date] = ()
    # Sandbox data, not real money.
    is_sandbox: bool = False

    @property
    def of_the_day(self) -> list[Sum]:
        """The sums of `day` only."""
        return [each for each in self.sums if each.day == self.day]


def gather(
    commission: Commission, configured: Sequence[Records], day: date, start: date, *, is_sandbox: bool = False
) -> Figures:
    """The current figures of the 30 days up to `day`, none before `start`."""
    days = days_from(max(start, day - (SPAN_DAYS - 1) * DAY), day)
    first, as_of = days[0], datetime.now(UTC)
    # Read before the sums, so that a day added up in between is reported as incomplete rather than wrongly as complete.
    gaps, stale = incomplete(commission, configured, days), list(commission.stale(first, day))
    sums, totals = commission.sums(first, day), commission.totals(first, day)
    return Figures(day, days, as_of, sums, totals, commission.earners(day, MAX_EARNERS), gaps, stale, is_sandbox)


def incomplete(commission: Commission, configured: Sequence[Records], days: Sequence[date]) -> list[Incomplete]:
    """The missing and unsettled days of each kind that is configured or has landed any day.

    Landed days count, so that a report made without credentials covers what other machines land. If no kind is
    configured or landed, all days of every kind are missing.
    """
    landed = commission.landed(days[0], days[-1])
    expected = {endpoint.key for endpoint in configured}.union(*landed.values())
    kinds = [[endpoint.key for endpoint in alternatives] for alternatives in commission.alternatives]
    found: list[Incomplete] = []
    for assets in [each for each in kinds if expected & {*each}] or kinds:
        settled = {day: [final for key, final in landed.get(day, {}).items() if key in assets] for day in days}
        missing = [day for day, entries in settled.items() if not entries]
        unsettled = [day for day, entries in settled.items() if entries and not any(entries)]
        if missing or unsettled:
            found.append(Incomplete(" or ".join(assets), missing, unsettled))
    return found


def masked(earner: str) -> str:
    """The customer's name shortened for display; the exchange has already masked emails."""
    if not earner:
        return "without a name"
    name, at, domain = earner.partition("@")
    shown = f"{name[:2]}***{name[-2:]}" if len(name) >= 8 and not at else f"{name[:2]}***"
    return f"{shown}{at}{domain}"
