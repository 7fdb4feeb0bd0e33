"""The report as one HTML page that asks nothing of the network: for a phone as for a desk, by day and by night."""

import os
from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby
from pathlib import Path

from affiliate_pipeline.commission.figures import Figures, masked
from affiliate_pipeline.commission.report import chart
from affiliate_pipeline.commission.report.text import MADE_UP, incomplete
from affiliate_pipeline.commission.rollup import Sum

STYLE = """
:root{color-scheme:light dark;--ink:#1b2733;--soft:#5d6b7a;--line:#dde3e9;--ground:#f5f7f9;--card:#fff}
@media(prefers-color-scheme:dark){:root{--ink:#e8edf2;--soft:#9fb0c0;--line:#33404c;--ground:#12181e;--card:#1b242d}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:64rem;padding:1rem;background:var(--ground);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.5rem;margin:.5rem 0}h2{font-size:1.15rem;margin:2rem 0 .5rem}p{margin:.3rem 0}
.soft{color:var(--soft);font-size:.9rem}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,19rem),1fr));gap:.75rem}
.card{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:.75rem;overflow:hidden}
.card svg{width:100%;height:auto;display:block}
.wide{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:.6rem}
table{border-collapse:collapse;width:100%}
th,td{padding:.4rem .6rem;text-align:left;border-bottom:1px solid var(--line);white-space:nowrap}
tr:last-child td{border-bottom:0}
.number{text-align:right;font-variant-numeric:tabular-nums}
li{overflow-wrap:anywhere}
h3{font-size:1rem;margin:1rem 0 .3rem}
@media(max-width:40rem){
th,td{white-space:normal;padding:.35rem .4rem;font-size:.85rem}
.number{overflow-wrap:anywhere}
.less{display:none}
}
summary{cursor:pointer;padding:.4rem 0}
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def write(figures: Figures, folder: Path) -> Path:
    """Writes the day's page into the folder, wholly or not at all."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{figures.day}.html"
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_text(html(figures), encoding="utf-8")
    return unfinished.replace(path)


def html(figures: Figures) -> str:
    """The whole page."""
    panels = "".join(
        f'<div class="card"><svg viewBox="0 0 {chart.width_px(figures.days)} {chart.HEIGHT_PX}" role="img" '
        f'aria-label="{escape(panel.coin)} from {escape(panel.exchange)}, by day">{chart.drawing(panel, figures.days)}'
        "</svg></div>"
        for panel in chart.panels(figures)
    )
    shown = {(panel.exchange, panel.coin) for panel in chart.panels(figures)}
    hidden = {(total.exchange, total.coin) for total in figures.totals} - shown
    more = f'<p class="soft">{len(hidden)} more coins are in the table.</p>' if hidden else ""
    span = f"{figures.days[0]} to {figures.day}"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>Earnings of {figures.day}</title>
<style>{STYLE}{chart.STYLE}{chart.DARK}</style>
</head>
<body>
<h1>Earnings of {figures.day}</h1>
{f"<p><strong>{MADE_UP}</strong></p>" if figures.made_up else ""}
<p class="soft">As of {figures.made_at:%Y-%m-%d %H:%M} UTC. Days are those of each exchange. Amounts are exact; a value in
USDT stands only where the exchange gives one.{" Some days are missing or may still change: see below." * bool(figures.incomplete or figures.stale)}</p>
<h2>{len(figures.days)} days, {span}</h2>
<div class="cards">{panels}</div>{more}
<h2>Missing or not settled</h2>
<ul>{"".join(f"<li>{escape(line)}</li>" for line in incomplete(figures))}</ul>
<h2>This day</h2>
{_sums(figures.of_the_day)}
<h2>Top earners of the day</h2>
{_earners(figures)}
<h2>Totals, {span}</h2>
{_sums(figures.totals)}
<h2>Day by day</h2>
{_by_day(figures)}
</body>
</html>
"""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 2, needed: int = 4) -> str:
    """A table: the first columns are texts, the others numbers, and those not needed are left out on a phone."""

    def line(cell: str, row: Sequence[str]) -> str:
        kinds = [
            f"{'number' if at >= texts else ''} {'less' if at >= needed else ''}".strip() for at in range(len(row))
        ]
        return "".join(f'<{cell} class="{kind}">{escape(text)}</{cell}>' for kind, text in zip(kinds, row, strict=True))

    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{line("th", head)}</tr>{body}</table></div>'


SUMS = ("coin", "kind", "amount", "USDT value", "records", "without value")


def _sums(sums: Iterable[Sum]) -> str:
    """A table per exchange."""
    return (
        "".join(
            f"<h3>{escape(exchange)}</h3>"
            + _table(
                SUMS,
                [
                    (each.coin, each.kind, each.amount, each.usdt_value or "–", f"{each.count:,}", f"{each.unvalued:,}")
                    for each in lines
                ],
            )
            for exchange, lines in groupby(sums, key=lambda each: each.exchange)
        )
        or "<p>Nothing.</p>"
    )


def _earners(figures: Figures) -> str:
    return (
        "".join(
            f"<h3>{escape(exchange)}</h3>"
            + _table(("coin", "who", "amount"), [(each.coin, masked(each.earner), each.amount) for each in earners])
            for exchange, earners in groupby(figures.earners, key=lambda each: each.exchange)
        )
        or "<p>Nobody.</p>"
    )


def _by_day(figures: Figures) -> str:
    newest_first = sorted(figures.sums, key=lambda each: each.day, reverse=True)
    return "".join(
        f"<details><summary>{day}</summary>{_sums(sums)}</details>"
        for day, sums in groupby(newest_first, key=lambda each: each.day)
    )
