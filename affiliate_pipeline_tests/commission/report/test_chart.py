"""The chart of daily totals: stacked bars proportional to the amounts, and sums as text, rounded only for display."""

from dataclasses import replace
from decimal import Decimal

from affiliate_pipeline.commission.figures import Figures
from affiliate_pipeline.commission.report.chart import MIN_BAR_PX, PLOT_PX, Bar, Chart, stacked
from affiliate_pipeline.commission.rollup import DayTotal
from affiliate_pipeline_tests.commission.hard_figures import DAYS, hard

SERIES = ("binance", "lbank")


def chart(*amounts: tuple[int, str, str], **changes) -> Chart:
    """The chart of these amounts: each is the index of its day, its exchange and the amount."""
    by_day = [DayTotal(DAYS[day], exchange, "", 1, Decimal(amount), Decimal(0)) for day, exchange, amount in amounts]
    empty: Figures = replace(hard(), sums=[], totals=[], incomplete=[], unpriced=[], by_day=by_day)
    return stacked(replace(empty, **changes), SERIES)


def bars(found: Chart, day: int) -> list[Bar]:
    return [*found.columns[day].bars]


def test_heights_are_proportional_also_beyond_the_range_of_floats():
    for digits in ("", "0" * 400):
        found = chart((0, "binance", f"10{digits}"), (1, "binance", f"5{digits}"))
        assert [bars(found, day)[0].height for day in (0, 1)] == [PLOT_PX, PLOT_PX / 2]


def test_the_bars_of_a_day_are_stacked():
    found = chart((0, "binance", "3"), (0, "lbank", "1"))

    lower, upper = bars(found, 0)
    assert (lower.series, upper.series) == (0, 1)
    assert lower.y + lower.height == found.zero_y == PLOT_PX and upper.y + upper.height == lower.y == PLOT_PX / 4


def test_an_exchange_has_the_same_colour_in_a_chart_without_the_others():
    assert bars(chart((0, "lbank", "1")), 0)[0].series == 1


def test_a_negative_amount_is_below_the_line():
    found = chart((0, "binance", "3"), (1, "binance", "-1"))

    assert bars(found, 1)[0].y == found.zero_y == PLOT_PX * 3 / 4
    assert bars(found, 1)[0].height == PLOT_PX / 4


def test_a_small_amount_is_visible_and_a_day_without_one_has_no_bar():
    found = chart((0, "binance", "1000000"), (1, "binance", "0.01"), (2, "binance", "0"))

    assert bars(found, 1)[0].height == MIN_BAR_PX and bars(found, 2) == bars(found, 3) == []


def test_incomplete_days_are_marked():
    found = chart((0, "binance", "1"), unpriced=[DAYS[2]], stale=[DAYS[3]])

    assert [column.day for column in found.columns if column.is_open] == [DAYS[2], DAYS[3]] and found.has_open
    assert not chart((0, "binance", "1")).has_open


def test_a_day_is_described_by_its_total_and_its_parts():
    found = chart((0, "binance", "3000.125"), (0, "lbank", "1"), (1, "lbank", "2"))

    assert found.columns[0].title == "Sat 2026-10-31: 3,001.12 USDT (binance 3,000.12, lbank 1.00)"
    assert found.columns[1].title == "Sun 2026-11-01: 2.00 USDT" and found.highest == "3,001.12"


def test_the_columns_fill_the_width():
    for days in (DAYS, DAYS[:2]):
        found = chart(days=days)
        last = found.columns[-1]
        assert round(last.x + found.bar_width + found.columns[0].x) == 100
