"""The stacked bars of a chart of daily totals by exchange: geometry only.

Heights are rounded. Texts have exact sums, rounded for display by `usdt`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal

from affiliate_pipeline.commission.amounts import exact_sum, usdt
from affiliate_pipeline.commission.figures import Figures
from affiliate_pipeline.commission.headline import lacking_days

# The marks of incomplete days are below the bars.
PLOT_PX, MARKS_PX = 84, 12
MIN_BAR_PX = 1.0
# The part of a day's width that its bar fills.
FILLED = 0.78
STYLES = 4


@dataclass(frozen=True)
class Bar:
    """One exchange's part of a day: top and height in pixels. `series` numbers its colour and pattern."""

    series: int
    y: float
    height: float


@dataclass(frozen=True)
class Column:
    """A day's bars; `x` and `middle` in percent of the width. The day is open if it is not complete."""

    day: date
    title: str
    x: float
    middle: float
    bars: Sequence[Bar]
    is_open: bool


@dataclass(frozen=True)
class Chart:
    """The columns of consecutive days on one scale.

    `series` are the names of the exchanges, in the order in which their bars are stacked from zero.
    """

    columns: Sequence[Column]
    series: Sequence[str]
    highest: str
    zero_y: float
    bar_width: float
    height: int = PLOT_PX + MARKS_PX

    @property
    def has_open(self) -> bool:
        """Whether a day is marked as not complete."""
        return any(column.is_open for column in self.columns)


def stacked(figures: Figures, series: Sequence[str]) -> Chart:
    """The chart of the figures' days. `series` fixes each exchange's colour, also in a chart of one exchange."""
    amounts = _amounts(figures)
    # The largest sum of a day's positive amounts, and of its negative ones: they are stacked separately.
    top = max(exact_sum(amount for amount in parts.values() if amount > 0) for parts in amounts.values())
    bottom = min(exact_sum(amount for amount in parts.values() if amount < 0) for parts in amounts.values())

    def pixels(amount: Decimal) -> float:
        # Convert the ratio, not the amounts: an amount may be too large for a float.
        return PLOT_PX * float(abs(amount) / (top - bottom)) if top != bottom else 0.0

    zero_y = round(pixels(top), 1) if top != bottom else float(PLOT_PX)
    step = 100 / len(figures.days)
    lacking = lacking_days(figures)
    columns: list[Column] = []
    for number, day in enumerate(figures.days):
        parts = amounts[day]
        x = (number + (1 - FILLED) / 2) * step
        middle = (number + 0.5) * step
        bars = _bars(parts, series, zero_y, pixels)
        columns.append(Column(day, _title(day, parts), round(x, 3), round(middle, 3), bars, is_open=day in lacking))

    highest = max(exact_sum(parts.values()) for parts in amounts.values())
    return Chart(columns, series, usdt(highest), zero_y, bar_width=round(step * FILLED, 3))


def _amounts(figures: Figures) -> dict[date, dict[str, Decimal]]:
    """Each day's sums by exchange."""
    amounts: dict[date, dict[str, Decimal]] = {day: {} for day in figures.days}
    for total in figures.by_day:
        parts = amounts.setdefault(total.day, {})
        parts[total.exchange] = exact_sum([parts.get(total.exchange, Decimal(0)), total.usdt])
    return amounts


def _bars(
    parts: Mapping[str, Decimal], series: Sequence[str], zero_y: float, pixels: Callable[[Decimal], float]
) -> list[Bar]:
    """A day's bars: positive amounts are stacked upwards from zero, negative ones downwards."""
    bars: list[Bar] = []
    top_y = bottom_y = zero_y
    for index, exchange in enumerate(series):
        amount = parts.get(exchange)
        if not amount:
            continue
        height = max(MIN_BAR_PX, round(pixels(amount), 1))
        if amount > 0:
            top_y -= height
            y = top_y
        else:
            y = bottom_y
            bottom_y += height
        bars.append(Bar(index % STYLES, round(y, 1), height))
    return bars


def _title(day: date, parts: Mapping[str, Decimal]) -> str:
    """A day's total and, if there are several, its parts, shown on hover."""
    total = f"{day:%a} {day}: {usdt(exact_sum(parts.values()))} USDT"
    if len(parts) < 2:
        return total
    by_exchange = ", ".join(f"{name} {usdt(amount)}" for name, amount in parts.items())
    return f"{total} ({by_exchange})"
