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
    """A total in USDT, of which exchanges state a part; `unvalued` coins have records without any value."""

    usdt: Decimal
    stated_usdt: Decimal
    unvalued: Sequence[str]
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
        # If `days` is a week, the mean times 7 is the total of the 7 days before, so "the mean of" is omitted.
        compared_with = f"{'' if len(self.days) > 1 else 'the mean of '}the {WEEK_DAYS} days"
        if self.compared_days < WEEK_DAYS:
            times = f"{len(self.days)} times " if len(self.days) > 1 else ""
            compared_with = f"{times}the mean of {count_of(self.compared_days, 'complete day')} of the {WEEK_DAYS}"
        return f"{change_text(self.total.usdt, self.usual)} against {compared_with} before"


def headline(figures: Figures, days: int = 1) -> Headline:
    """The headline of the last `days` days of the figures, or of all if the figures have fewer days."""
    span = figures.days[-days:]
    before = days_from(span[0] - WEEK_DAYS * DAY, span[0] - DAY)
    lacking = lacking_days(figures)
    complete = [day for day in before if day in figures.days and day not in lacking]
    usual = total_of(figures.by_day, complete).usdt * len(span) / len(complete) if complete else None
    by_exchange = {
        exchange: total_of([each for each in figures.by_day if each.exchange == exchange], span)
        for exchange in sorted({each.exchange for each in figures.by_day})
    }
    return Headline(
        span,
        total_of(figures.by_day, span),
        bool(lacking & {*span}),
        usual,
        len(complete),
        by_exchange,
        total_of(figures.by_day, figures.days[-WEEK_DAYS:]),
        total_of(figures.by_day, figures.days[-MONTH_DAYS:]),
        lacks(figures, span),
        completeness(figures),
    )


def total_of(by_day: Iterable[DayTotal], days: Iterable[date]) -> Total:
    """The total of these days."""
    among = {*days}
    lines = [each for each in by_day if each.day in among]
    return Total(
        exact_sum(each.usdt for each in lines),
        exact_sum(each.stated_usdt for each in lines),
        sorted({coin for each in lines for coin in each.unvalued}),
        sum(each.count for each in lines),
    )


def lacking_days(figures: Figures) -> set[date]:
    """The days of which something has not landed, has not been added up or lacks market prices."""
    return {day for each in figures.incomplete for day in each.missing} | {*figures.stale, *figures.unpriced}


def lacks(figures: Figures, days: Sequence[date]) -> list[str]:
    """What of these days has not landed, may still change, is not added up or lacks prices: at most one line each."""
    missing = {each.title: _among(each.missing, days) for each in figures.incomplete}
    unsettled = {each.title: _among(each.unsettled, days) for each in figures.incomplete}
    lines: list[str] = []
    if names := _names(missing, days):
        until = fetchable_until(figures.incomplete, sorted({day for each in missing.values() for day in each}), figures)
        lines.append(f"not landed: {names}{until}")
    if names := _names(unsettled, days):
        lines.append(f"may still change: {names}")
    if stale := _among(figures.stale, days):
        lines.append(f"not added up yet: {_with_days('some landed rows', stale, days)}")
    if unpriced := _among(figures.unpriced, days):
        lines.append(f"not landed: {_with_days('market prices', unpriced, days)}, so values may be missing")
    return lines


def gaps(figures: Figures) -> list[str]:
    """One line per gap: missing or unsettled days of a kind of earnings, days not added up, days without prices."""
    lines: list[str] = []
    for each in figures.incomplete:
        if each.missing:
            until = fetchable_until([each], each.missing, figures)
            lines.append(f"{each.title}: {format_days(each.missing)} not landed{until}")
        if each.unsettled:
            lines.append(f"{each.title}: {format_days(each.unsettled)} landed, may still change")
    if figures.stale:
        lines.append(f"{format_days(figures.stale)}: some landed rows or prices have not been added up yet")
    if figures.unpriced:
        lines.append(
            f"market prices: {format_days(figures.unpriced)} not landed, so some values in USDT may be missing"
        )
    return lines


def completeness(figures: Figures) -> str:
    """One line on whether all days of the figures have landed and are final."""
    missing = sorted({day for each in figures.incomplete for day in each.missing})
    unsettled = sorted({day for each in figures.incomplete for day in each.unsettled})
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
    whole = "The day has" if len(figures.days) == 1 else f"All {len(figures.days)} days have"
    return ". ".join(parts) or f"{whole} landed and will not change"


def fetchable_until(incomplete: Sequence[Incomplete], days: Sequence[date], figures: Figures) -> str:
    """How long these missing days can be fetched: the first deadline, and the days that have expired.

    A text in parentheses to append, or empty if no deadline is known. Of a day that several kinds of earnings lack, a
    part may be fetchable for longer than the rest.
    """
    now_ms = int(figures.as_of.timestamp() * 1000)
    deadlines = [(day, each.deadlines_ms[day]) for each in incomplete for day in days if day in each.deadlines_ms]
    retained = {day for day, ms in deadlines if ms is None or ms >= now_ms}
    pending_ms = sorted({ms for _, ms in deadlines if ms is not None and ms >= now_ms})
    expired = sorted({day for day, ms in deadlines if ms is not None and ms < now_ms})
    parts: list[str] = []
    if pending_ms:
        first = "the first " if len(pending_ms) > 1 else ""
        parts.append(f"{first}fetchable until {last_minute_before(pending_ms[0])}")
    if entirely := [day for day in expired if day not in retained]:
        parts.append(f"{'' if entirely == [*days] else f'{format_days(entirely)} '}no longer fetchable")
    if partly := [day for day in expired if day in retained]:
        parts.append(f"a part of {format_days(partly)} no longer fetchable")
    return f" ({'; '.join(parts)})" if parts else ""


def valuation(found: Headline) -> list[str]:
    """The part that exchanges state, coins without a value, and further such coins of earlier days; one line each."""
    total = found.total
    lines: list[str] = []
    if total.stated_usdt:
        lines.append(f"{usdt(total.stated_usdt)} USDT of the total as stated by exchanges: no market price")
    if total.unvalued:
        lines.append(f"Without a value in USDT, so not in the total: {joined_names(total.unvalued, MAX_NAMES)}")
    if earlier := sorted({*found.week.unvalued, *found.month.unvalued} - {*total.unvalued}):
        names = joined_names(earlier, MAX_NAMES)
        lines.append(f"Without a value in USDT on earlier days, so not in the longer totals: {names}")
    return lines


def title(figures: Figures, days: int = 1) -> str:
    """The total as the title of a message."""
    found = headline(figures, days)
    earned = f"{usdt(found.total.usdt)} USDT earned on {format_days(found.days)}"
    return f"{'Sandbox data: ' if figures.is_sandbox else ''}{earned}{', incomplete' if found.is_partial else ''}"


def text(figures: Figures, days: int = 1) -> str:
    """The headline as a few lines of plain text, for a message."""
    found = headline(figures, days)
    lines = [
        f"{format_days(found.days)}: {usdt(found.total.usdt)} USDT{' so far' if found.is_partial else ''}, {found.change}."
    ]
    if len(found.by_exchange) > 1:
        lines.append(", ".join(f"{name} {usdt(each.usdt)}" for name, each in found.by_exchange.items()) + " USDT.")
    longer = [(n, total) for n, total in ((WEEK_DAYS, found.week), (MONTH_DAYS, found.month)) if n > days]
    totals = [f"{count_of(len(figures.days[-n:]), 'day')} {usdt(total.usdt)}" for n, total in longer]
    # With figures of few days, both totals are of the same days: shown once.
    lines.append(f"{', '.join(dict.fromkeys(totals))} USDT.")
    more = *found.lacks, *valuation(found), found.completeness
    lines += [f"{line[:1].upper()}{line[1:]}." for line in more]
    return "\n".join([*(["Sandbox data. Not real earnings."] if figures.is_sandbox else []), *lines])


def _among(found: Iterable[date], days: Sequence[date]) -> list[date]:
    found_days = {*found}
    return [day for day in days if day in found_days]


def _names(found: Mapping[str, Sequence[date]], days: Sequence[date]) -> str:
    """The names that have any days, as text, each with these unless they are all of `days`; at most `MAX_NAMES`."""
    names = [_with_days(name, each, days) for name, each in found.items() if each]
    return joined_names(names, MAX_NAMES)


def _with_days(name: str, found: Sequence[date], days: Sequence[date]) -> str:
    """The name with its days, which are left out if they are all of `days`."""
    return name if [*found] == [*days] else f"{name} of {format_days(found)}"


def joined_names(names: Sequence[str], at_most: int) -> str:
    """The names as text: at most `at_most` of them, then how many more there are."""
    more = len(names) - at_most
    return ", ".join(names[:at_most]) + (f" and {more} more" if more > 0 else "")
