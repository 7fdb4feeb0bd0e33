"""The stacked bars of a chart of daily totals by exchange: geometry only.

Heights are rounded. Texts have exact sums, rounded for display by `usdt`.
"""

from collections.abc import Mapping, Sequence
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
    """The columns of consecutive days on one scale; `series` are the names of the exchanges, lowest bars first."""

    columns: Sequence[Column]
    series: Sequence[str]
    highest: str
    zero_y: float
    bar_width: float
    height: int = PLOT_PX + MARKS_PX

    @property
    def has_open(self) -> bool:
        """Whether a day is marked as not complete."""
        return any(each.is_open for each in self.columns)


def stacked(figures: Figures, series: Sequence[str]) -> Chart:
    """The chart of the figures' days. `series` fixes each exchange's colour, also in a chart of one exchange."""
    amounts: dict[date, dict[str, Decimal]] = {day: {} for day in figures.days}
    for each in figures.by_day:
        of_day = amounts.setdefault(each.day, {})
        of_day[each.exchange] = exact_sum([of_day.get(each.exchange, Decimal(0)), each.usdt])
    top = max(exact_sum(each for each in parts.values() if each > 0) for parts in amounts.values())
    bottom = min(exact_sum(each for each in parts.values() if each < 0) for parts in amounts.values())

    def pixels(amount: Decimal) -> float:
        # Convert the ratio, not the amounts: an amount may be too large for a float.
        return PLOT_PX * float(abs(amount) / (top - bottom)) if top != bottom else 0.0

    zero_y = round(pixels(top), 1) if top != bottom else float(PLOT_PX)
    step, lacking = 100 / len(figures.days), lacking_days(figures)
    columns: list[Column] = []
    for number, day in enumerate(figures.days):
        bars: list[Bar] = []
        above = below = zero_y
        for index, exchange in enumerate(series):
            if amount := amounts[day].get(exchange):
                height = max(MIN_BAR_PX, round(pixels(amount), 1))
                above, below = (above - height, below) if amount > 0 else (above, below + height)
                bars.append(Bar(index % STYLES, round(above if amount > 0 else below - height, 1), height))
        x = (number + (1 - FILLED) / 2) * step
        columns.append(
            Column(day, _title(day, amounts[day]), round(x, 3), round((number + 0.5) * step, 3), bars, day in lacking)
        )
    totals = [exact_sum(parts.values()) for parts in amounts.values()]
    return Chart(columns, series, usdt(max(totals)), zero_y, round(step * FILLED, 3))


def _title(day: date, parts: Mapping[str, Decimal]) -> str:
    """A day's total and its parts, shown on hover."""
    of = ", ".join(f"{name} {usdt(amount)}" for name, amount in parts.items())
    return f"{day:%a} {day}: {usdt(exact_sum(parts.values()))} USDT{f' ({of})' if len(parts) > 1 else ''}"
