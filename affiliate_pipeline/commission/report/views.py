"""What a page shows of all earnings, of one exchange or of one account: the views among which its filter chooses."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from affiliate_pipeline.commission.amounts import exact_sum
from affiliate_pipeline.commission.figures import Figures
from affiliate_pipeline.commission.headline import Headline, Total, headline
from affiliate_pipeline.commission.prices import USDT
from affiliate_pipeline.commission.report.chart import Chart, stacked
from affiliate_pipeline.commission.rollup import Sum

MAX_COINS = 30


@dataclass(frozen=True)
class Part:
    """The lines of a coin, a kind or an account: their value, and their amount if they are in one coin."""

    name: str
    total: Total
    amount: Decimal


@dataclass(frozen=True)
class Row:
    """A part, summed over the page's days and over its day; `details` are the kinds that it consists of."""

    name: str
    of_span: Part
    of_day: Part | None
    details: Sequence[tuple[Part, Part | None]] = ()


@dataclass(frozen=True)
class View:
    """The figures that one choice of the filter shows."""

    name: str
    headline: Headline
    figures: Figures
    chart: Chart
    accounts: Sequence[Row]
    kinds: Sequence[Row]
    coins: Sequence[Row]
    more_coins: int
    # The name of each exchange and account.
    names: Mapping[tuple[str, str], str]


def views(figures: Figures, days: int = 1) -> list[View]:
    """The view of all earnings and, if there are several accounts, of each exchange and each of its accounts.

    The only account of an exchange has no view of its own. The headlines are of the last `days` days.
    """
    series = sorted({each.exchange for each in figures.by_day})
    names = _account_names(figures)
    found = [_view("all", figures, series, names, days)]
    if len(names) == 1:
        return found
    for exchange in series:
        found.append(_view(exchange, figures.of(exchange), series, names, days))
        own = {key: name for key, name in names.items() if key[0] == exchange}
        for key, name in own.items() if len(own) > 1 else ():
            found.append(_view(name, figures.of(*key), series, names, days))
    return found


def _account_names(figures: Figures) -> dict[tuple[str, str], str]:
    """The displayed names: exchange and alias; `default` for the default account if the exchange has several."""
    # Of all these figures, since a day may have been added up between two of their queries.
    earned = (*figures.by_day, *figures.totals, *figures.sums, *figures.customers)
    found = sorted({(each.exchange, each.account) for each in earned})
    account_counts = Counter(exchange for exchange, _ in found)
    return {
        (exchange, account): f"{exchange} {account or ('default' if account_counts[exchange] > 1 else '')}".strip()
        for exchange, account in found
    }


def _view(name: str, figures: Figures, series: Sequence[str], names: Mapping[tuple[str, str], str], days: int) -> View:
    coins = _rows(figures, lambda each: each.coin.upper(), MAX_COINS)
    return View(
        name,
        headline(figures, days),
        figures,
        stacked(figures, series),
        _rows(figures, lambda each: names[each.exchange, each.account]),
        _rows(figures, _kind),
        coins[:MAX_COINS],
        max(0, len(coins) - MAX_COINS),
        names,
    )


def _rows(figures: Figures, name_of: Callable[[Sum], str], detailed: int = 0) -> list[Row]:
    """One row per name, the greatest value first; the first `detailed` rows have details."""
    of_span, of_day = _by_name(figures.totals, name_of), _by_name(figures.sums, name_of)
    rows = [Row(name, _part(name, lines), _part_if_any(name, of_day)) for name, lines in of_span.items()]
    rows.sort(key=lambda row: (-row.of_span.total.usdt, row.name))
    for index, row in enumerate(rows[:detailed]):
        kinds, kinds_of_day = _by_name(of_span[row.name], _kind), _by_name(of_day.get(row.name, []), _kind)
        details = [(_part(kind, lines), _part_if_any(kind, kinds_of_day)) for kind, lines in kinds.items()]
        rows[index] = replace(row, details=details)
    return rows


def _kind(line: Sum) -> str:
    return f"{line.exchange} {line.kind}"


def _by_name(lines: Iterable[Sum], name_of: Callable[[Sum], str]) -> dict[str, list[Sum]]:
    found: dict[str, list[Sum]] = {}
    for each in lines:
        found.setdefault(name_of(each), []).append(each)
    return found


def _part_if_any(name: str, lines: Mapping[str, Sequence[Sum]]) -> Part | None:
    return _part(name, lines[name]) if name in lines else None


def _part(name: str, lines: Sequence[Sum]) -> Part:
    stated = [(each.coin.upper(), Decimal(each.stated_value_usdt)) for each in lines if each.stated_value_usdt]
    market = [Decimal(each.market_value_usdt) for each in lines if each.market_value_usdt]
    total = Total(
        exact_sum([*market, *(value for _, value in stated)]),
        exact_sum(value for coin, value in stated if coin != USDT),  # USDT needs no market price
        sorted({each.coin for each in lines if each.without_value}),
        sum(each.count for each in lines),
    )
    return Part(name, total, exact_sum(Decimal(each.amount) for each in lines))
