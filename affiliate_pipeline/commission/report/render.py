"""Rendering of the report: HTML pages of a day, a month and all days, and Markdown for Dagster."""

import re
from base64 import b64encode
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from affiliate_pipeline.commission.amounts import exact, short, usdt
from affiliate_pipeline.commission.figures import MAX_CUSTOMERS, Figures, masked
from affiliate_pipeline.commission.headline import (
    MONTH_DAYS,
    WEEK_DAYS,
    Headline,
    Total,
    gaps,
    joined_names,
    lacks,
    total_of,
    valuation,
)
from affiliate_pipeline.commission.report.chart import stacked
from affiliate_pipeline.commission.report.views import View, views
from affiliate_pipeline.commission.rollup import TABLE
from affiliate_pipeline.domain.days import DAY
from affiliate_pipeline.domain.files import replacing
from affiliate_pipeline.domain.wording import PROGRAM, count_of

INDEX = "index"
MAX_SUMMARY_COINS = 15
FOLDER = FileSystemLoader(Path(__file__).parent)
TEMPLATES = Environment(loader=FOLDER, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _unbroken_numbers(text: str) -> Markup:
    """The text with its numbers and dates as elements that do not wrap."""
    parts = re.split(r"(?<![^\s(])([−+]?\d[\d.,:…-]*)(?![^\s)])", text)
    number = Markup('<span class="number">{}</span>')
    # Parts with odd indices are numbers or dates.
    return Markup("").join(number.format(part) if index % 2 else part for index, part in enumerate(parts))


# What the templates call.
FUNCTIONS: Mapping[str, object] = {
    "count_of": count_of,
    "exact": exact,
    "gaps": gaps,
    "joined_names": joined_names,
    "masked": masked,
    "short": short,
    "unbroken_numbers": _unbroken_numbers,
    "usdt": usdt,
    "valuation": valuation,
    "zero": Decimal(0),
}


@dataclass(frozen=True)
class Labels:
    """What a page calls its day, if it has a single one, and its days."""

    day: str
    span: str


@dataclass(frozen=True)
class DayLine:
    """A day in a list: its total, what it lacks, and the file of its page, if there is one."""

    day: date
    total: Total
    state: str
    href: str


@dataclass(frozen=True)
class Month:
    """A month in the list of all days, the newest day first."""

    name: str
    total: Total
    state: str
    href: str
    days: Sequence[DayLine]


def write(figures: Figures, folder: Path, also_written: Iterable[date] = ()) -> Path:
    """Write the day's page into the folder, atomically.

    It links only to pages in the folder and to those that the caller writes too: the pages of the days `also_written`,
    the page of the day's month, and the list of all days.
    """
    pages = {INDEX, _month_page(figures.day), *map(str, also_written), *pages_in(folder)}
    return _write(folder, f"{figures.day}", html(figures, pages))


def write_overview(figures: Figures, months: Sequence[Figures], folder: Path) -> Path:
    """Write the pages of these months, and the list of all of the figures' days, which links to every page."""
    pages = {INDEX, *(_month_page(month.day) for month in months), *pages_in(folder)}
    for month in months:
        _write(folder, _month_page(month.day), month_html(month, pages))
    return _write(folder, INDEX, index_html(figures, pages_in(folder)))


def pages_in(folder: Path) -> set[str]:
    """The names of the pages in the folder: days, months and `index`."""
    return {path.stem for path in folder.glob("*.html")}


def html(figures: Figures, pages: Collection[str] = ()) -> str:
    """A day's page: self-contained, responsive, light and dark. It links to `pages` only."""
    day = figures.day
    before, after = day - DAY, day + DAY
    links = [
        (f"{before}", f"‹ {_short_name(before)}"),
        (f"{after}", f"{_short_name(after)} ›"),
        (_month_page(day), f"{day:%B}"),
        (INDEX, "All days"),
    ]
    labels = Labels(_short_name(day), count_of(len(figures.days), "day"))
    return _page(figures, f"{day:%a} {_short_name(day)} {day:%Y}", labels, links, pages)


def month_html(figures: Figures, pages: Collection[str] = ()) -> str:
    """The page of a month. `figures` covers those days of the month that the list of all days has."""
    first = figures.day.replace(day=1)
    # Days of the month before and of the month after.
    before, after = first - DAY, first + 31 * DAY
    links = [
        (_month_page(before), f"‹ {before:%B}"),
        (_month_page(after), f"{after:%B} ›"),
        (INDEX, "All days"),
    ]
    name = f"{figures.day:%B %Y}"
    return _page(figures, name, Labels("", name), links, pages)


def index_html(figures: Figures, pages: Collection[str] = ()) -> str:
    """The list of all days by month."""
    lines = _day_lines(figures, pages)
    lines_by_month = groupby(lines, key=lambda line: f"{line.day:%B %Y}")
    months = [_month(name, [*month_lines], figures, pages) for name, month_lines in lines_by_month]
    # The newest day that has records or is final: perhaps no rows of the last days have landed yet.
    newest = next((line for line in lines if line.total.count or not line.state), lines[0])
    return _render(
        "index.html.j2",
        figures=figures,
        name="",
        months=months,
        newest=newest,
        command=f"{PROGRAM} report {figures.day}",
    )


def _month(name: str, days: Sequence[DayLine], figures: Figures, pages: Collection[str]) -> Month:
    """The month of these consecutive days, the newest first."""
    not_final = len([line for line in days if line.state])
    # The state has the number of listed days, because the list may lack days of the month, such as future ones.
    if not_final:
        state = f"{count_of(not_final, 'day')} of {len(days)} not final"
    else:
        state = f"{count_of(len(days), 'day')}, all final"
    total = total_of(figures.by_day, [line.day for line in days])
    return Month(name, total, state, _href(_month_page(days[0].day), pages), days)


def markdown(figures: Figures) -> str:
    """The first screen of the day's page, its coins, and what is missing."""
    page_views = views(figures)
    everything = page_views[0]
    coins = everything.coins[:MAX_SUMMARY_COINS]
    return _render(
        "summary.md.j2",
        figures=figures,
        view=everything,
        # With a single account, this table would repeat the headline.
        accounts=everything.accounts if len(page_views) > 1 else [],
        spans=_spans(figures, everything.headline),
        coins=coins,
        more_coins=everything.more_coins + len(everything.coins) - len(coins),
        image=b64encode(svg(figures).encode()).decode(),
        cell=_cell,
    )


def svg(figures: Figures) -> str:
    """The chart as an image, without the hover texts of its days.

    Dagster's event log stores the image, and the hover texts would enlarge it.
    """
    chart = stacked(figures, sorted({each.exchange for each in figures.by_day}))
    return _render("figure.svg.j2", chart=chart)


def _page(figures: Figures, name: str, labels: Labels, links: Sequence[tuple[str, str]], pages: Collection[str]) -> str:
    """The page of a day or, without a label of a single day, of a month."""
    is_of_day = bool(labels.day)
    page_views: list[tuple[View, list[tuple[str, Total]], list[DayLine]]] = []
    for view in views(figures, days=1 if is_of_day else len(figures.days)):
        spans = _spans(view.figures, view.headline) if is_of_day else []
        page_views.append((view, spans, _day_lines(view.figures, pages)))

    return _render(
        "page.html.j2",
        figures=figures,
        name=name,
        labels=labels,
        links=[(f"{page}.html", text) for page, text in links if page in pages],
        views=page_views,
        max_customers=MAX_CUSTOMERS,
        export=f"{PROGRAM} export {TABLE} {figures.days[0]}...{figures.day}",
    )


def _spans(figures: Figures, summary: Headline) -> list[tuple[str, Total]]:
    """The labelled totals of the last 7 and 30 days, or of all days if there are fewer; equal ones once."""
    totals: dict[str, Total] = {}
    for length, total in ((WEEK_DAYS, summary.week), (MONTH_DAYS, summary.month)):
        label = count_of(len(figures.days[-length:]), "day")
        totals[label] = total
    return [*totals.items()]


def _day_lines(figures: Figures, pages: Collection[str]) -> list[DayLine]:
    """The days, the newest first."""
    by_day = {day: [*totals] for day, totals in groupby(figures.by_day, key=lambda total: total.day)}
    lines: list[DayLine] = []
    for day in reversed(figures.days):
        total = total_of(by_day.get(day, []), [day])
        state = "; ".join(lacks(figures, [day]))
        lines.append(DayLine(day, total, state, _href(f"{day}", pages)))
    return lines


def _href(page: str, pages: Collection[str]) -> str:
    """The file of the page; empty if there is none."""
    return f"{page}.html" if page in pages else ""


def _month_page(day: date) -> str:
    """The name of the page of the day's month."""
    return f"{day:%Y-%m}"


def _short_name(day: date) -> str:
    return f"{day.day} {day:%b}"


def _cell(text: str) -> str:
    """The text on one line, with Markdown's special characters escaped."""
    return re.sub(r"([\\`*_{}\[\]()#+!|~$-])", r"\\\1", " ".join(text.split()))


def _write(folder: Path, name: str, page: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.html"
    with replacing(path) as file:
        file.write(page.encode())
    return path


def _render(template: str, **context: object) -> str:
    return TEMPLATES.get_template(template).render(FUNCTIONS, **context)
