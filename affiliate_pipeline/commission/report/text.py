"""The report as Markdown, for a day's metadata in Dagster's UI."""

import re
from base64 import b64encode
from html import escape

from affiliate_pipeline.commission.figures import Figures, masked
from affiliate_pipeline.commission.report import chart
from affiliate_pipeline.days import fold

MADE_UP = "Made-up data of the sandbox: nobody has earned this."


def markdown(figures: Figures) -> str:
    """The charts, what the day brought, who earned most, and what is missing."""
    lines = [f"### {figures.day}", ""]
    if figures.made_up:
        lines += [f"**{MADE_UP}**", ""]
    if figures.totals:
        image = b64encode(chart.picture(figures).encode()).decode()
        title = f"{len(figures.days)} days by exchange and coin"
        lines += [f"{title}:", "", f"![{title}](data:image/svg+xml;base64,{image})", ""]
    if figures.of_the_day:
        lines += ["| exchange | kind | coin | amount | USDT value | records |", "| --- | --- | --- | --: | --: | --: |"]
        for each in figures.of_the_day:
            value = each.usdt_value or "none given"
            if each.usdt_value and each.unvalued:
                value += f" ({each.unvalued} records without)"
            lines.append(
                f"| {_cell(each.exchange)} | {_cell(each.kind)} | {_cell(each.coin)} | {each.amount} | {value} "
                f"| {each.count:,} |"
            )
    else:
        lines.append("Nothing was earned.")
    best = [earner for earner in figures.earners if earner.rank == 1]
    if best:
        lines += ["", "**Top earners**", ""]
        lines += [
            f"- {_cell(each.exchange)}: {_cell(masked(each.earner))}, {each.amount} {_cell(each.coin)}" for each in best
        ]
    lines += ["", "**Missing or not settled**", "", *(f"- {line}" for line in incomplete(figures))]
    return "\n".join(lines)


def incomplete(figures: Figures) -> list[str]:
    """One line for each thing that the figures lack, or that there is none."""
    lines = []
    for each in figures.incomplete:
        if each.missing:
            lines.append(f"{each.name}: {fold(each.missing)} not landed")
        if each.unsettled:
            lines.append(f"{each.name}: {fold(each.unsettled)} landed, may still change")
    if figures.stale:
        lines.append(f"{fold(figures.stale)}: not all that has landed has been added up yet")
    return lines or ["nothing: every day has landed and is final"]


def _cell(text: str) -> str:
    """The text, of which nothing is taken for Markdown or HTML."""
    return escape(re.sub(r"([\\`*_{}\[\]()#+!|~$-])", r"\\\1", " ".join(text.split())), quote=False)
