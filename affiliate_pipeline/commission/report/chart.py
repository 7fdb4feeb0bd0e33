"""Bars by day as SVG, one small chart per exchange and coin, each with a scale of its own: coins cannot be added.

Drawn here and not by a library, since those draw floats: a bar's height is the amount as Decimal, scaled and cut to
whole pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Context, Decimal
from html import escape

from affiliate_pipeline.commission.figures import Figures

MOST_COINS = 6
BAR_PX, GAP_PX = 8, 2
PLOT_PX, HEAD_PX, FOOT_PX, EDGE_PX = 56, 34, 18, 8
# More digits than any sum has: nothing is rounded before the pixel.
EXACT = Context(prec=400)
STYLE = (
    ".head{font:600 13px system-ui,sans-serif;fill:#1b2733}.small{font:11px system-ui,sans-serif;fill:#5d6b7a}"
    ".bar{fill:#2f6fde}.minus{fill:#c8442f}.zero{stroke:#b9c2cc}"
)
# The picture stands in a page whose own colours may be the other ones.
GROUND, DARK_GROUND = ".ground{fill:#fff}", "@media(prefers-color-scheme:dark){.ground{fill:#1b242d}}"
DARK = (
    "@media(prefers-color-scheme:dark){.head{fill:#e8edf2}.small{fill:#9fb0c0}.bar{fill:#6ea1ff}.minus{fill:#ff8b76}"
    ".zero{stroke:#4a5763}}"
)


@dataclass(frozen=True)
class Panel:
    """One coin of one exchange: the days without an entry have not been added up or have nothing in this coin."""

    exchange: str
    coin: str
    amounts: Mapping[date, Decimal]


def panels(figures: Figures) -> list[Panel]:
    """The best coins of each exchange."""
    coins: dict[str, list[str]] = {}
    for total in figures.totals:
        shown = coins.setdefault(total.exchange, [])
        if total.coin not in shown and len(shown) < MOST_COINS:
            shown.append(total.coin)
    found = []
    for exchange, shown in coins.items():
        for coin in shown:
            amounts: dict[date, Decimal] = {}
            for each in figures.sums:
                if (each.exchange, each.coin) == (exchange, coin):
                    amounts[each.day] = EXACT.add(amounts.get(each.day, Decimal(0)), Decimal(each.amount))
            found.append(Panel(exchange, coin, amounts))
    return found


def width_px(days: Sequence[date]) -> int:
    return 2 * EDGE_PX + max(len(days), 12) * (BAR_PX + GAP_PX)


HEIGHT_PX = HEAD_PX + PLOT_PX + FOOT_PX


def drawing(panel: Panel, days: Sequence[date], titles: bool = True) -> str:
    """The panel as SVG elements, `width_px` by `HEIGHT_PX`; with titles, a bar says its amount when pointed at."""
    most = max([*panel.amounts.values(), Decimal(0)])
    least = min([*panel.amounts.values(), Decimal(0)])
    span = EXACT.subtract(most, least)

    def pixels(amount: Decimal) -> int:
        return int(EXACT.divide(EXACT.multiply(abs(amount), Decimal(PLOT_PX)), span)) if span else 0

    zero = HEAD_PX + pixels(most)
    parts = [
        f'<text class="head" x="{EDGE_PX}" y="14">{escape(panel.coin)} <tspan class="small">{escape(panel.exchange)}'
        f'</tspan></text><text class="small" x="{EDGE_PX}" y="28">most a day: {plain(most)}</text>'
    ]
    for number, day in enumerate(days):
        x = EDGE_PX + number * (BAR_PX + GAP_PX)
        amount = panel.amounts.get(day)
        if amount is None:
            continue
        height = max(1, pixels(amount))
        top, kind = (zero - height, "bar") if amount >= 0 else (zero, "minus")
        title = f"<title>{day}: {plain(amount)} {escape(panel.coin)}</title>" if titles else ""
        parts.append(f'<rect class="{kind}" x="{x}" y="{top}" width="{BAR_PX}" height="{height}">{title}</rect>')
    right, foot = width_px(days) - EDGE_PX, HEIGHT_PX - 4
    parts.append(
        f'<line class="zero" x1="{EDGE_PX}" y1="{zero}" x2="{right}" y2="{zero}"/>'
        f'<text class="small" x="{EDGE_PX}" y="{foot}">{days[0]}</text>'
        f'<text class="small" x="{right}" y="{foot}" text-anchor="end">{days[-1]}</text>'
    )
    return "".join(parts)


def plain(amount: Decimal) -> str:
    """All digits, none in scientific notation."""
    return f"{amount:f}"


def picture(figures: Figures) -> str:
    """All panels as one SVG of its own, two side by side; small, since each day's is kept in Dagster's event log."""
    found = panels(figures)
    width = width_px(figures.days)
    rows = -(-len(found) // 2)
    placed = "".join(
        f'<g transform="translate({number % 2 * width},{number // 2 * HEIGHT_PX})">{drawing(panel, figures.days, titles=False)}</g>'
        for number, panel in enumerate(found)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * width}" height="{max(1, rows) * HEIGHT_PX}">'
        f"<style>{STYLE}{DARK}{GROUND}{DARK_GROUND}</style>"
        f'<rect class="ground" width="100%" height="100%" rx="6"/>{placed}</svg>'
    )
