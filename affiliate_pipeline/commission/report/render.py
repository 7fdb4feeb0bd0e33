"""Rendering of a day's report: an HTML page, and Markdown with SVG charts for Dagster."""

import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from decimal import MAX_PREC, Context, Decimal
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from affiliate_pipeline.commission.figures import Figures, masked
from affiliate_pipeline.domain.days import format_days
from affiliate_pipeline.domain.files import replacing
from affiliate_pipeline.domain.wording import count_of

MAX_COINS = 6
PLOT_PX, HEAD_PX, FOOT_PX, EDGE_PX, GAP_PX = 56, 34, 18, 8, 2
# Ten pixels for each of 30 days; fewer days have wider bars.
BARS_PX = 300
WIDTH_PX, HEIGHT_PX = BARS_PX + 2 * EDGE_PX, HEAD_PX + PLOT_PX + FOOT_PX
# For exact sums of any length.
EXACT = Context(prec=MAX_PREC)
FOLDER = FileSystemLoader(Path(__file__).parent)
TEMPLATES = Environment(loader=FOLDER, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


@dataclass(frozen=True)
class Bar:
    """One day's amount, with every digit as text; position and height in pixels."""

    day: date
    amount: str
    style: str
    x: int
    y: int
    height: int


@dataclass(frozen=True)
class Panel:
    """The chart of one coin of one account, on its own scale: coins cannot be added up."""

    payer: str
    coin: str
    highest: str
    zero_y: int
    bars: Sequence[Bar]


def write(figures: Figures, folder: Path) -> Path:
    """Write the day's page into the folder, atomically."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{figures.day}.html"
    with replacing(path) as file:
        file.write(html(figures).encode())
    return path


def html(figures: Figures) -> str:
    """A self-contained HTML page: responsive, light and dark, and without network requests."""
    return _render("page.html.j2", figures)


def markdown(figures: Figures) -> str:
    """The charts, the day's earnings, top earners, and what is missing."""
    return _render("summary.md.j2", figures, image=b64encode(svg(figures).encode()).decode())


def svg(figures: Figures) -> str:
    """All charts as one image, two per row; without titles, which would enlarge the event log."""
    return _render("charts.svg.j2", figures)


def panels(figures: Figures) -> list[Panel]:
    """The charts of the `MAX_COINS` coins of the greatest value, for each account."""
    coins: dict[str, dict[str, None]] = {}
    for total in figures.totals:
        coins.setdefault(total.payer, {})[total.coin] = None
    return [_panel(figures, payer, coin) for payer, each in coins.items() for coin in [*each][:MAX_COINS]]


def _panel(figures: Figures, payer: str, coin: str) -> Panel:
    amounts: dict[date, Decimal] = {}
    for each in figures.sums:
        if (each.payer, each.coin) == (payer, coin):
            amounts[each.day] = EXACT.add(amounts.get(each.day, Decimal(0)), Decimal(each.amount))
    highest, lowest = max([*amounts.values(), Decimal(0)]), min([*amounts.values(), Decimal(0)])

    def pixels(amount: Decimal) -> int:
        # Convert the ratio, not the amounts: an amount may be too large for a float.
        return round(PLOT_PX * float(abs(amount) / (highest - lowest))) if highest != lowest else 0

    zero_y, step = HEAD_PX + pixels(highest), BARS_PX // len(figures.days)
    bars: list[Bar] = []
    for number, day in enumerate(figures.days):
        if (amount := amounts.get(day)) is not None:
            height = max(1, pixels(amount))
            style, y = ("bar", zero_y - height) if amount >= 0 else ("minus", zero_y)
            bars.append(Bar(day, f"{amount:f}", style, EDGE_PX + number * step, y, height))
    return Panel(payer, coin, f"{highest:f}", zero_y, bars)


def gaps(figures: Figures) -> list[str]:
    """One line per gap in the figures, or a single line if there is none."""
    lines: list[str] = []
    for each in figures.incomplete:
        if each.missing:
            lines.append(f"{each.name}: {format_days(each.missing)} not landed")
        if each.unsettled:
            lines.append(f"{each.name}: {format_days(each.unsettled)} landed, may still change")
    if figures.stale:
        lines.append(f"{format_days(figures.stale)}: some landed rows have not been added up yet")
    return lines or ["nothing: every day has landed and is final"]


def _cell(text: str) -> str:
    """The text with Markdown's special characters escaped."""
    return re.sub(r"([\\`*_{}\[\]()#+!|~$-])", r"\\\1", " ".join(text.split()))


def _render(template: str, figures: Figures, **more: str) -> str:
    found = panels(figures)
    return TEMPLATES.get_template(template).render(
        figures=figures,
        panels=found,
        coins_without_chart=len({(total.payer, total.coin) for total in figures.totals}) - len(found),
        gaps=gaps(figures),
        width=WIDTH_PX,
        height=HEIGHT_PX,
        edge=EDGE_PX,
        bar_width=BARS_PX // len(figures.days) - GAP_PX,
        cell=_cell,
        count_of=count_of,
        masked=masked,
        **more,
    )
