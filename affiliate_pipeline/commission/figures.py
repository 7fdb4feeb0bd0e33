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
        missing, unsettled = [[day for day in each if day in days] for each in (self.missing, self.unsettled)]
        deadlines = {day: self.deadlines_ms[day] for day in missing if day in self.deadlines_ms}
        part = replace(self, missing=missing, unsettled=unsettled, deadlines_ms=deadlines)
        return part if missing or unsettled else None


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
            return each.exchange == exchange and account in (None, each.account)

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
        among = {*days}
        return replace(
            self,
            day=days[-1],
            days=days,
            sums=[],
            totals=[],
            customers=[],
            incomplete=[found for each in self.incomplete if (found := each.within(among))],
            stale=[day for day in self.stale if day in among],
            unpriced=[day for day in self.unpriced if day in among],
            by_day=[each for each in self.by_day if each.day in among],
        )


def gather(
    commission: Commission, configured: Sequence[Records], day: date, start: date, *, is_sandbox: bool = False
) -> Figures:
    """The current figures of the 30 days up to `day`, none before `start`."""
    days = days_from(max(start, day - (SPAN_DAYS - 1) * DAY), day)
    figures = _gather(commission, configured, days, is_sandbox=is_sandbox)
    return replace(
        figures,
        sums=commission.sums(day, day),
        totals=commission.totals(days[0], day),
        customers=commission.top_customers(days[0], day, MAX_CUSTOMERS),
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

    All days: from the first one added up, but not before `start`, until yesterday (UTC) or the last one added up. Only
    the months have `totals`.
    """
    oldest, newest = commission.added_up() or (start, start)
    days = days_from(max(start, oldest), max(newest, datetime.now(UTC).date() - DAY))
    figures = _gather(commission, configured, days, is_sandbox=is_sandbox)
    months: list[Figures] = []
    for year, month in sorted({(day.year, day.month) for day in reported}):
        if of_month := [day for day in days if (day.year, day.month) == (year, month)]:
            months.append(replace(figures.within(of_month), totals=commission.totals(of_month[0], of_month[-1])))
    return figures, months


def _gather(
    commission: Commission, configured: Sequence[Records], days: Sequence[date], *, is_sandbox: bool
) -> Figures:
    """The current figures of consecutive days, without `sums`, `totals` and `customers`."""
    first, last, as_of = days[0], days[-1], datetime.now(UTC)
    # Read before the sums, so that a day added up in between is reported as incomplete rather than wrongly as complete.
    gaps, stale = incomplete(commission, configured, days), list(commission.stale(first, last))
    unpriced = list(commission.prices.missing(first, last)) if commission.prices else []
    by_day = commission.by_day(first, last)
    return Figures(last, days, as_of, [], [], [], gaps, stale, unpriced, is_sandbox, by_day)


def incomplete(commission: Commission, configured: Sequence[Records], days: Sequence[date]) -> list[Incomplete]:
    """The missing and unsettled days of each kind of earnings that is configured or has landed any of `days`.

    Kinds without such days are omitted. Landed days count, so that a report made without credentials covers what other
    machines land. If no kind is configured or landed, all days of every kind are missing.
    """
    landed = commission.landed(days[0], days[-1])
    configured_or_landed = {endpoint.key for endpoint in configured}.union(*landed.values())
    kinds = [(alternatives, [endpoint.key for endpoint in alternatives]) for alternatives in commission.alternatives]
    found: list[Incomplete] = []
    for alternatives, assets in [each for each in kinds if configured_or_landed & {*each[1]}] or kinds:
        finality = {day: [final for key, final in landed.get(day, {}).items() if key in assets] for day in days}
        missing = [day for day, entries in finality.items() if not entries]
        unsettled = [day for day, entries in finality.items() if entries and not any(entries)]
        if missing or unsettled:
            name, first = " or ".join(assets), alternatives[0]
            kind = money_of(first).kind
            deadlines = {day: _deadline_ms(alternatives, day) for day in missing}
            found.append(Incomplete(name, missing, unsettled, first.exchange.name, first.alias, kind, deadlines))
    return found


def _deadline_ms(alternatives: Sequence[Records], day: date) -> int | None:
    """Until when at least one of the sources promises the day; None: no limit is known."""
    deadlines = [endpoint.timetable.deadline_ms(day) for endpoint in alternatives]
    known = [each for each in deadlines if each is not None]
    return max(known) if len(known) == len(deadlines) else None


def masked(customer: str) -> str:
    """The customer's name shortened for display; the exchange has already masked emails."""
    name, at, domain = customer.partition("@")
    shown = f"{name[:2]}***{name[-2:]}" if len(name) >= 8 and not at else f"{name[:2]}***"
    return f"{shown}{at}{domain}"
