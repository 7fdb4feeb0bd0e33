"""The figures of a report, gathered from the database; `report` renders them."""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from typing import Self

from affiliate_pipeline.commission.customers import Customer, money_of
from affiliate_pipeline.commission.rollup import Commission, DayTotal, Sum
from affiliate_pipeline.domain.days import DAY, days_from
from affiliate_pipeline.exchanges.endpoint import Records

SPAN_DAYS = 30
MAX_CUSTOMERS = 20


@dataclass(frozen=True)
class Incomplete:
    """The missing and unsettled days of one kind of earnings; `name` has its assets."""

    name: str
    missing: Sequence[date]
    unsettled: Sequence[date]
    exchange: str = ""
    account: str = ""
    kind: str = ""
    # Until when (ms) the source promises each missing day; None: no limit is known.
    deadlines_ms: Mapping[date, int | None] = field(default_factory=dict[date, int | None])

    @property
    def title(self) -> str:
        """The account and the kind of earnings: `binance acme rebate`."""
        return " ".join(filter(None, (self.exchange, self.account, self.kind))) or self.name

    def within(self, days: Set[date]) -> Self | None:
        """The part about these days; None if none of them is missing or unsettled."""
        missing = [day for day in self.missing if day in days]
        unsettled = [day for day in self.unsettled if day in days]
        if not missing and not unsettled:
            return None
        deadlines_ms = {day: self.deadlines_ms[day] for day in missing if day in self.deadlines_ms}
        return replace(self, missing=missing, unsettled=unsettled, deadlines_ms=deadlines_ms)


@dataclass(frozen=True)
class Figures:
    """The figures of `days`, of which `day` is the last one.

    `sums` are the lines of `day`; `totals` are those of all `days`, added up. `as_of` (UTC) is the time of reading.
    """

    day: date
    days: Sequence[date]
    as_of: datetime
    sums: Sequence[Sum]
    totals: Sequence[Sum]
    # The customers of each account whose records of `days` are worth most, highest value first.
    customers: Sequence[Customer]
    incomplete: Sequence[Incomplete]
    # Days with landed rows or prices that have not been added up yet.
    stale: Sequence[date] = ()
    # Days with earnings whose market prices have not landed.
    unpriced: Sequence[date] = ()
    # Sandbox data, not real money.
    is_sandbox: bool = False
    # The total of each account on each of `days` that has earnings.
    by_day: Sequence[DayTotal] = ()

    def of(self, exchange: str, account: str | None = None) -> Self:
        """The figures of one exchange or of one of its accounts; `stale` and `unpriced` remain whole."""

        def is_part(each: DayTotal | Sum | Customer | Incomplete) -> bool:
            return each.exchange == exchange and (account is None or each.account == account)

        return replace(
            self,
            sums=[*filter(is_part, self.sums)],
            totals=[*filter(is_part, self.totals)],
            customers=[*filter(is_part, self.customers)],
            incomplete=[*filter(is_part, self.incomplete)],
            by_day=[*filter(is_part, self.by_day)],
        )

    def within(self, days: Sequence[date]) -> Self:
        """The figures of some of the days, without `sums`, `totals` and `customers`."""
        day_set = {*days}
        parts = [each.within(day_set) for each in self.incomplete]
        return replace(
            self,
            day=days[-1],
            days=days,
            sums=[],
            totals=[],
            customers=[],
            incomplete=[part for part in parts if part],
            stale=[day for day in self.stale if day in day_set],
            unpriced=[day for day in self.unpriced if day in day_set],
            by_day=[total for total in self.by_day if total.day in day_set],
        )


def gather(
    commission: Commission, configured: Sequence[Records], day: date, start: date, *, is_sandbox: bool = False
) -> Figures:
    """The current figures of the 30 days up to `day`, none before `start`."""
    first = max(start, day - (SPAN_DAYS - 1) * DAY)
    figures = _gather(commission, configured, days_from(first, day), is_sandbox=is_sandbox)
    return replace(
        figures,
        sums=commission.sums(day, day),
        totals=commission.totals(first, day),
        customers=commission.top_customers(first, day, MAX_CUSTOMERS),
    )


def gather_overview(
    commission: Commission,
    configured: Sequence[Records],
    reported: Iterable[date],
    start: date,
    *,
    is_sandbox: bool = False,
) -> tuple[Figures, list[Figures]]:
    """The current figures of all days, and those of each month that contains a day of `reported`.

    All days: from the first one added up, but not before `start`, until yesterday (UTC) or the last one added up,
    whichever is later. Only the months have `totals`.
    """
    oldest, newest = commission.added_up() or (start, start)
    yesterday = datetime.now(UTC).date() - DAY
    days = days_from(max(start, oldest), max(newest, yesterday))
    figures = _gather(commission, configured, days, is_sandbox=is_sandbox)

    reported_months = {(day.year, day.month) for day in reported}
    months: list[Figures] = []
    for year, month in sorted(reported_months):
        month_days = [day for day in days if (day.year, day.month) == (year, month)]
        if month_days:
            totals = commission.totals(month_days[0], month_days[-1])
            months.append(replace(figures.within(month_days), totals=totals))
    return figures, months


def _gather(
    commission: Commission, configured: Sequence[Records], days: Sequence[date], *, is_sandbox: bool
) -> Figures:
    """The current figures of consecutive days, without `sums`, `totals` and `customers`."""
    as_of = datetime.now(UTC)
    first, last = days[0], days[-1]
    # Read before the sums, so that a day added up in between is reported as incomplete rather than wrongly as complete.
    gaps = incomplete(commission, configured, days)
    stale = list(commission.stale(first, last))
    unpriced = list(commission.prices.missing(first, last)) if commission.prices else []
    return Figures(
        day=last,
        days=days,
        as_of=as_of,
        sums=[],
        totals=[],
        customers=[],
        incomplete=gaps,
        stale=stale,
        unpriced=unpriced,
        is_sandbox=is_sandbox,
        by_day=commission.by_day(first, last),
    )


def incomplete(commission: Commission, configured: Sequence[Records], days: Sequence[date]) -> list[Incomplete]:
    """The missing and unsettled days of each account's kinds of earnings, if configured or if any of `days` has landed.

    Kinds of which no day is missing or unsettled are omitted. A kind that is not configured is included if it has
    landed any of `days`, so that a report rendered without credentials covers what other machines land. If no kind is
    configured and none has landed any of `days`, then all of `days` are missing for every kind.
    """
    landed = commission.landed(days[0], days[-1])
    configured_or_landed = {endpoint.key for endpoint in configured}.union(*landed.values())
    kinds = [
        alternatives
        for alternatives in commission.alternative_groups
        if any(endpoint.key in configured_or_landed for endpoint in alternatives)
    ]
    parts = [_incomplete_kind(alternatives, landed, days) for alternatives in kinds or commission.alternative_groups]
    return [part for part in parts if part]


def _incomplete_kind(
    alternatives: Sequence[Records], landed: Mapping[date, Mapping[str, bool]], days: Sequence[date]
) -> Incomplete | None:
    """The missing and unsettled days of the kind that these endpoints report; None if none is missing or unsettled.

    `landed`: by day, the assets that have landed it, each with whether the day has settled.
    """
    assets = [endpoint.key for endpoint in alternatives]
    missing: list[date] = []
    unsettled: list[date] = []
    for day in days:
        settled = [is_settled for asset, is_settled in landed.get(day, {}).items() if asset in assets]
        if not settled:
            missing.append(day)
        elif not any(settled):
            unsettled.append(day)
    if not missing and not unsettled:
        return None

    first = alternatives[0]
    return Incomplete(
        name=" or ".join(assets),
        missing=missing,
        unsettled=unsettled,
        exchange=first.exchange.name,
        account=first.alias,
        kind=money_of(first).kind,
        deadlines_ms={day: _deadline_ms(alternatives, day) for day in missing},
    )


def _deadline_ms(alternatives: Sequence[Records], day: date) -> int | None:
    """Until when at least one of the sources promises the day; None: no limit is known."""
    deadlines: list[int] = []
    for endpoint in alternatives:
        deadline = endpoint.timetable.deadline_ms(day)
        if deadline is None:
            return None
        deadlines.append(deadline)
    return max(deadlines)


def masked(customer: str) -> str:
    """The customer's name shortened for display; the exchange has already masked emails."""
    name, at, domain = customer.partition("@")
    if at:
        return f"{name[:2]}***@{domain}"
    return f"{name[:2]}***{name[-2:]}" if len(name) >= 8 else f"{name[:2]}***"
