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
    """The sums of the lines of a coin, a kind or an account.

    `amount` has a meaning only if all lines are in one coin.
    """

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
    series = sorted({total.exchange for total in figures.by_day})
    names = _account_names(figures)
    page_views = [_view("all", figures, series, names, days)]
    if len(names) == 1:
        return page_views

    for exchange in series:
        page_views.append(_view(exchange, figures.of(exchange), series, names, days))
        accounts = [account for owner, account in names if owner == exchange]
        if len(accounts) == 1:
            continue
        for account in accounts:
            name = names[exchange, account]
            page_views.append(_view(name, figures.of(exchange, account), series, names, days))
    return page_views


def _account_names(figures: Figures) -> dict[tuple[str, str], str]:
    """The displayed names: exchange and alias; `default` for the default account if the exchange has several."""
    # From all four sequences: if a day was added up between their queries, one has accounts that another lacks.
    earned = (*figures.by_day, *figures.totals, *figures.sums, *figures.customers)
    accounts = sorted({(each.exchange, each.account) for each in earned})
    account_counts = Counter(exchange for exchange, _ in accounts)
    names: dict[tuple[str, str], str] = {}
    for exchange, account in accounts:
        if account:
            names[exchange, account] = f"{exchange} {account}"
        elif account_counts[exchange] > 1:
            names[exchange, account] = f"{exchange} default"
        else:
            names[exchange, account] = exchange
    return names


def _view(name: str, figures: Figures, series: Sequence[str], names: Mapping[tuple[str, str], str], days: int) -> View:
    coins = _rows(figures, lambda line: line.coin.upper(), detailed=MAX_COINS)
    return View(
        name=name,
        headline=headline(figures, days),
        figures=figures,
        chart=stacked(figures, series),
        accounts=_rows(figures, lambda line: names[line.exchange, line.account]),
        kinds=_rows(figures, _kind),
        coins=coins[:MAX_COINS],
        more_coins=max(0, len(coins) - MAX_COINS),
        names=names,
    )


def _rows(figures: Figures, name_of: Callable[[Sum], str], detailed: int = 0) -> list[Row]:
    """One row per name, the greatest value first; the first `detailed` rows have details."""
    lines_of_span = _by_name(figures.totals, name_of)
    lines_of_day = _by_name(figures.sums, name_of)
    rows = [Row(name, _part(name, lines), _part_if_any(name, lines_of_day)) for name, lines in lines_of_span.items()]
    rows.sort(key=lambda row: (-row.of_span.total.usdt, row.name))
    for index, row in enumerate(rows[:detailed]):
        details = _details(lines_of_span[row.name], lines_of_day.get(row.name, []))
        rows[index] = replace(row, details=details)
    return rows


def _details(lines_of_span: Sequence[Sum], lines_of_day: Sequence[Sum]) -> list[tuple[Part, Part | None]]:
    """A row's kinds, each summed over the page's days and over its day."""
    kinds = _by_name(lines_of_span, _kind)
    kinds_of_day = _by_name(lines_of_day, _kind)
    return [(_part(kind, lines), _part_if_any(kind, kinds_of_day)) for kind, lines in kinds.items()]


def _kind(line: Sum) -> str:
    return f"{line.exchange} {line.kind}"


def _by_name(lines: Iterable[Sum], name_of: Callable[[Sum], str]) -> dict[str, list[Sum]]:
    by_name: dict[str, list[Sum]] = {}
    for line in lines:
        by_name.setdefault(name_of(line), []).append(line)
    return by_name


def _part_if_any(name: str, lines_by_name: Mapping[str, Sequence[Sum]]) -> Part | None:
    return _part(name, lines_by_name[name]) if name in lines_by_name else None


def _part(name: str, lines: Sequence[Sum]) -> Part:
    market = [Decimal(line.market_value_usdt) for line in lines if line.market_value_usdt]
    stated = [(line.coin.upper(), Decimal(line.stated_value_usdt)) for line in lines if line.stated_value_usdt]
    all_values = [*market, *(value for _, value in stated)]
    stated_except_usdt = [value for coin, value in stated if coin != USDT]  # USDT needs no market price
    total = Total(
        usdt=exact_sum(all_values),
        stated_usdt=exact_sum(stated_except_usdt),
        coins_without_value=sorted({line.coin for line in lines if line.without_value}),
        count=sum(line.count for line in lines),
    )
    return Part(name, total, amount=exact_sum(Decimal(line.amount) for line in lines))
