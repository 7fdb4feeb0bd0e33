"""The headline of a report: total, change, and what the total lacks; pure functions of figures."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal

from affiliate_pipeline.commission.amounts import change_text, exact_sum, usdt
from affiliate_pipeline.commission.figures import Figures, Incomplete
from affiliate_pipeline.commission.rollup import DayTotal
from affiliate_pipeline.domain.days import DAY, days_from, format_days, last_minute_before
from affiliate_pipeline.domain.wording import count_of

WEEK_DAYS, MONTH_DAYS = 7, 30
MAX_NAMES = 3


@dataclass(frozen=True)
class Total:
    """A total in USDT, of which exchanges state a part; `coins_without_value` have records without any value."""

    usdt: Decimal
    stated_usdt: Decimal
    coins_without_value: Sequence[str]
    count: int


@dataclass(frozen=True)
class Headline:
    """The total of `days`, compared with the complete ones among the seven days before.

    `is_partial`: some of `days` has not landed, has not been added up or lacks market prices. `usual` is the mean of
    the `compared_days` complete earlier days, times the number of `days`; None if none of them is complete. `lacks` are
    the lines about what of `days` is partial or may still change, and `completeness` is one line about all days of the
    figures.
    """

    days: Sequence[date]
    total: Total
    is_partial: bool
    usual: Decimal | None
    compared_days: int
    by_exchange: Mapping[str, Total]
    week: Total
    month: Total
    lacks: Sequence[str]
    completeness: str

    @property
    def change(self) -> str:
        """The change as a phrase: `+12.4 % against the mean of the 7 days before`."""
        if self.usual is None:
            return "no complete day before to compare with"
        has_several_days = len(self.days) > 1
        if self.compared_days < WEEK_DAYS:
            times = f"{len(self.days)} times " if has_several_days else ""
            compared_with = f"{times}the mean of {count_of(self.compared_days, 'complete day')} of the {WEEK_DAYS}"
        elif has_several_days:
            # Here `days` is always a week of 7 days: before a month, or before a first week of fewer days, the figures
            # have no days, so `usual` is None. `usual` is 7 times the mean of the 7 days before `days`, that is, the
            # total of the 7 days before `days`.
            compared_with = f"the {WEEK_DAYS} days"
        else:
            compared_with = f"the mean of the {WEEK_DAYS} days"
        return f"{change_text(self.total.usdt, self.usual)} against {compared_with} before"


def headline(figures: Figures, days: int = 1) -> Headline:
    """The headline of the last `days` days of the figures, or of all if the figures have fewer days."""
    span = figures.days[-days:]
    before = days_from(span[0] - WEEK_DAYS * DAY, span[0] - DAY)
    lacking = lacking_days(figures)
    complete = [day for day in before if day in figures.days and day not in lacking]
    usual = None
    if complete:
        usual = total_of(figures.by_day, complete).usdt * len(span) / len(complete)

    by_exchange: dict[str, Total] = {}
    for exchange in sorted({total.exchange for total in figures.by_day}):
        totals = [total for total in figures.by_day if total.exchange == exchange]
        by_exchange[exchange] = total_of(totals, span)

    return Headline(
        days=span,
        total=total_of(figures.by_day, span),
        is_partial=any(day in lacking for day in span),
        usual=usual,
        compared_days=len(complete),
        by_exchange=by_exchange,
        week=total_of(figures.by_day, figures.days[-WEEK_DAYS:]),
        month=total_of(figures.by_day, figures.days[-MONTH_DAYS:]),
        lacks=lacks(figures, span),
        completeness=completeness(figures),
    )


def total_of(by_day: Iterable[DayTotal], days: Iterable[date]) -> Total:
    """The total of these days."""
    day_set = {*days}
    totals = [total for total in by_day if total.day in day_set]
    return Total(
        usdt=exact_sum(total.usdt for total in totals),
        stated_usdt=exact_sum(total.stated_usdt for total in totals),
        coins_without_value=sorted({coin for total in totals for coin in total.coins_without_value}),
        count=sum(total.count for total in totals),
    )


def lacking_days(figures: Figures) -> set[date]:
    """The days of which something has not landed, has not been added up or lacks market prices."""
    missing = {day for gap in figures.incomplete for day in gap.missing}
    return missing.union(figures.stale, figures.unpriced)


def lacks(figures: Figures, days: Sequence[date]) -> list[str]:
    """What of these days has not landed, may still change, is not added up or lacks prices: at most one line each."""
    missing = {gap.title: _common_days(gap.missing, days) for gap in figures.incomplete}
    unsettled = {gap.title: _common_days(gap.unsettled, days) for gap in figures.incomplete}
    stale = _common_days(figures.stale, days)
    unpriced = _common_days(figures.unpriced, days)

    lines: list[str] = []
    if any(missing.values()):
        missing_days = sorted({day for days_of_kind in missing.values() for day in days_of_kind})
        until = fetchable_until(figures.incomplete, missing_days, figures)
        lines.append(f"not landed: {_names(missing, days)}{until}")
    if any(unsettled.values()):
        lines.append(f"may still change: {_names(unsettled, days)}")
    if stale:
        lines.append(f"not added up yet: {_with_days('some landed rows', stale, days)}")
    if unpriced:
        lines.append(f"not landed: {_with_days('market prices', unpriced, days)}, so values may be missing")
    return lines


def gaps(figures: Figures) -> list[str]:
    """One line per gap: missing or unsettled days of a kind of earnings, days not added up, days without prices."""
    lines: list[str] = []
    for gap in figures.incomplete:
        if gap.missing:
            until = fetchable_until([gap], gap.missing, figures)
            lines.append(f"{gap.title}: {format_days(gap.missing)} not landed{until}")
        if gap.unsettled:
            lines.append(f"{gap.title}: {format_days(gap.unsettled)} landed, may still change")
    if figures.stale:
        lines.append(f"{format_days(figures.stale)}: some landed rows or prices have not been added up yet")
    if figures.unpriced:
        lines.append(
            f"market prices: {format_days(figures.unpriced)} not landed, so some values in USDT may be missing"
        )
    return lines


def completeness(figures: Figures) -> str:
    """One line on whether all days of the figures have landed and are final."""
    missing = sorted({day for gap in figures.incomplete for day in gap.missing})
    unsettled = sorted({day for gap in figures.incomplete for day in gap.unsettled})

    parts: list[str] = []
    if missing:
        until = fetchable_until(figures.incomplete, missing, figures)
        parts.append(f"{count_of(len(missing), 'day')} missing: {format_days(missing)}{until}")
    if unsettled:
        parts.append(f"{count_of(len(unsettled), 'day')} may still change: {format_days(unsettled)}")
    if figures.stale:
        parts.append(f"Not added up yet: {format_days(figures.stale)}")
    if figures.unpriced:
        parts.append(f"Market prices missing: {format_days(figures.unpriced)}")
    if parts:
        return ". ".join(parts)

    days_have = "The day has" if len(figures.days) == 1 else f"All {len(figures.days)} days have"
    return f"{days_have} landed and will not change"


def fetchable_until(incomplete: Sequence[Incomplete], days: Sequence[date], figures: Figures) -> str:
    """How long these missing days can be fetched: the first deadline, and the days that have expired.

    A text in parentheses to append, or empty if no deadline is known. Of a day that several kinds of earnings lack, a
    part may be fetchable for longer than the rest.
    """
    now_ms = int(figures.as_of.timestamp() * 1000)
    expired: set[date] = set()
    retained: set[date] = set()
    pending_ms: set[int] = set()
    for gap in incomplete:
        for day in gap.deadlines_ms.keys() & days:
            deadline_ms = gap.deadlines_ms[day]
            if deadline_ms is None:
                retained.add(day)
            elif deadline_ms < now_ms:
                expired.add(day)
            else:
                retained.add(day)
                pending_ms.add(deadline_ms)

    parts: list[str] = []
    if pending_ms:
        first = "the first " if len(pending_ms) > 1 else ""
        parts.append(f"{first}fetchable until {last_minute_before(min(pending_ms))}")
    entirely_expired = sorted(expired - retained)
    if entirely_expired:
        which = "" if entirely_expired == [*days] else f"{format_days(entirely_expired)} "
        parts.append(f"{which}no longer fetchable")
    partly_expired = sorted(expired & retained)
    if partly_expired:
        parts.append(f"a part of {format_days(partly_expired)} no longer fetchable")
    return f" ({'; '.join(parts)})" if parts else ""


def valuation(summary: Headline) -> list[str]:
    """Lines about the value stated by exchanges, coins without a value, and further such coins on earlier days."""
    total = summary.total
    coins = total.coins_without_value
    coins_of_earlier_days = {*summary.week.coins_without_value, *summary.month.coins_without_value} - {*coins}

    lines: list[str] = []
    if total.stated_usdt:
        lines.append(f"{usdt(total.stated_usdt)} USDT of the total as stated by exchanges: no market price")
    if coins:
        lines.append(f"Without a value in USDT, so not in the total: {joined_names(coins, MAX_NAMES)}")
    if coins_of_earlier_days:
        names = joined_names(sorted(coins_of_earlier_days), MAX_NAMES)
        lines.append(f"Without a value in USDT on earlier days, so not in the longer totals: {names}")
    return lines


def title(figures: Figures, days: int = 1) -> str:
    """The total as the title of a message."""
    summary = headline(figures, days)
    sandbox = "Sandbox data: " if figures.is_sandbox else ""
    incomplete = ", incomplete" if summary.is_partial else ""
    return f"{sandbox}{usdt(summary.total.usdt)} USDT earned on {format_days(summary.days)}{incomplete}"


def text(figures: Figures, days: int = 1) -> str:
    """The headline as a few lines of plain text, for a message."""
    summary = headline(figures, days)
    lines = ["Sandbox data. Not real earnings."] if figures.is_sandbox else []

    so_far = " so far" if summary.is_partial else ""
    lines.append(f"{format_days(summary.days)}: {usdt(summary.total.usdt)} USDT{so_far}, {summary.change}.")
    if len(summary.by_exchange) > 1:
        totals = [f"{name} {usdt(total.usdt)}" for name, total in summary.by_exchange.items()]
        lines.append(f"{', '.join(totals)} USDT.")

    longer_totals: list[str] = []
    for length, total in ((WEEK_DAYS, summary.week), (MONTH_DAYS, summary.month)):
        if length > days:
            longer_totals.append(f"{count_of(len(figures.days[-length:]), 'day')} {usdt(total.usdt)}")
    # With figures of few days, both totals are of the same days: shown once.
    lines.append(f"{', '.join(dict.fromkeys(longer_totals))} USDT.")

    for line in (*summary.lacks, *valuation(summary), summary.completeness):
        lines.append(f"{line[:1].upper()}{line[1:]}.")
    return "\n".join(lines)


def _common_days(some: Iterable[date], days: Sequence[date]) -> list[date]:
    """The days that both contain, in the order of `days`."""
    day_set = {*some}
    return [day for day in days if day in day_set]


def _names(days_by_name: Mapping[str, Sequence[date]], days: Sequence[date]) -> str:
    """The names that have any days, as text: at most `MAX_NAMES`, each name with its days as in `_with_days`."""
    names = [_with_days(name, own_days, days) for name, own_days in days_by_name.items() if own_days]
    return joined_names(names, MAX_NAMES)


def _with_days(name: str, own_days: Sequence[date], days: Sequence[date]) -> str:
    """The name with its own days, which are left out if they are all of `days`."""
    return name if [*own_days] == [*days] else f"{name} of {format_days(own_days)}"


def joined_names(names: Sequence[str], at_most: int) -> str:
    """The names as text: at most `at_most` of them, then how many more there are."""
    shown = ", ".join(names[:at_most])
    more = len(names) - at_most
    return f"{shown} and {more} more" if more > 0 else shown
