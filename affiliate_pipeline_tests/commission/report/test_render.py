"""Charts of exact amounts: bars in whole pixels, proportional to the amounts, with every digit in their titles."""

import re
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from xml.etree import ElementTree

from affiliate_pipeline.commission.figures import Figures, Incomplete, masked
from affiliate_pipeline.commission.report import render
from affiliate_pipeline.commission.rollup import Earner, Sum

DAYS = [date(2026, 10, 30) + timedelta(days=number) for number in range(5)]
HOSTILE = "<script>alert(1)</script>\"'|`[x](http://evil)"


def figures(amounts: dict[date, str], coin: str = "BTC", earner: str = "customer12") -> Figures:
    sums = [Sum(day, "binance", "", coin, "rebate", 1, amount, None, 1) for day, amount in amounts.items()]
    return Figures(
        day=DAYS[-1],
        days=DAYS,
        as_of=datetime(2026, 11, 4, tzinfo=UTC),
        sums=sums,
        totals=sums[:1],
        earners=[Earner("binance", "", coin, earner, "1", 1)],
        incomplete=[Incomplete("binance/rebate_recent_record", DAYS[:2], DAYS[3:4])],
    )


def bars(figures: Figures) -> list[tuple[str, int, int]]:
    """Style, top and height of each bar of the only panel."""
    (panel,) = render.panels(figures)
    return [(each.style, each.y, each.height) for each in panel.bars]


def test_the_height_of_a_bar_is_proportional_to_its_amount():
    drawn = bars(figures({DAYS[0]: "1000000000000000000000.5", DAYS[1]: "500000000000000000000.25"}))

    assert [height for _, _, height in drawn] == [render.PLOT_PX, render.PLOT_PX // 2]


def test_an_amount_beyond_the_range_of_a_float_is_drawn_and_labelled_with_every_digit():
    largest = f"1{'0' * 400}.5"

    shown = render.html(figures({DAYS[0]: largest, DAYS[1]: f"5{'0' * 399}"}))

    assert f"highest day: {largest}<" in shown and f"{DAYS[0]}: {largest} BTC<" in shown
    assert re.findall('class="bar".* height="([0-9]+)"', shown) == [f"{render.PLOT_PX}", f"{render.PLOT_PX // 2}"]


def test_a_negative_amount_is_drawn_below_the_line():
    (_, top, height), (style, below, depth) = bars(figures({DAYS[0]: "3", DAYS[1]: "-1"}))

    assert (style, below) == ("minus", top + height)
    assert height + depth <= render.PLOT_PX and height == 3 * depth


def test_the_bars_of_few_days_fill_the_chart():
    few = figures({DAYS[0]: "1", DAYS[-1]: "1"})
    for days in ([DAYS[0], DAYS[-1]], [DAYS[0] - timedelta(days=number) for number in range(29, 0, -1)] + [DAYS[-1]]):
        shown = render.html(replace(few, days=days))
        (width,) = {int(each) for each in re.findall('viewBox="0 0 ([0-9]+) ', shown)}
        *_, (x, bar) = re.findall('class="bar" x="([0-9]+)" .* width="([0-9]+)"', shown)
        assert width == render.WIDTH_PX
        assert int(x) + int(bar) + render.GAP_PX == width - render.EDGE_PX


def test_a_day_with_an_amount_of_zero_is_drawn():
    assert len(bars(figures({DAYS[0]: "0"}))) == 1


def test_the_kinds_of_one_coin_are_added_exactly():
    amounts = {"spot": "100000000000000000000000000000", "futures": "0.000000000000000001"}
    sums = [Sum(DAYS[0], "binance", "", "BTC", kind, 1, amount, None, 1) for kind, amount in amounts.items()]

    shown = render.html(replace(figures({}), sums=sums, totals=sums[:1]))

    assert f"<title>{DAYS[0]}: 100000000000000000000000000000.000000000000000001 BTC</title>" in shown


def test_text_from_an_exchange_is_escaped():
    hostile = figures({DAYS[-1]: "1"}, coin=HOSTILE, earner=HOSTILE)

    for shown in (render.html(hostile), render.svg(hostile), render.markdown(hostile)):
        assert "<script" not in shown
    assert "](http" not in render.markdown(hostile)
    ElementTree.fromstring(render.svg(hostile))


def test_a_page_loads_nothing_from_the_network():
    shown = render.html(figures({DAYS[-1]: "1.5"}))

    assert not re.search(r"(src|href|url|@import)\s*[=(]", shown)
    assert "default-src 'none'" in shown and "prefers-color-scheme:dark" in shown and "width=device-width" in shown


def test_one_day_is_singular():
    one = replace(figures({DAYS[-1]: "1"}), days=DAYS[-1:])
    assert f"<h2>1 day, {DAYS[-1]} to" in render.html(one) and "1 day by exchange and coin" in render.markdown(one)


def test_sandbox_data_is_labelled():
    real = figures({DAYS[-1]: "1.5"})
    for shown in (render.html, render.markdown):
        assert "Sandbox data" in shown(replace(real, is_sandbox=True))
        assert "Sandbox data" not in shown(real)


def test_missing_and_unsettled_days_are_listed():
    assert render.gaps(figures({})) == [
        "binance/rebate_recent_record: 2026-10-30, 31 not landed",
        "binance/rebate_recent_record: 2026-11-02 landed, may still change",
    ]


def test_a_customer_is_masked():
    shown = [masked(each) for each in ("", "abc", "abcdefgh", "someone.private@example.com", "q7*****@qq.com")]
    assert shown == ["without a name", "ab***", "ab***gh", "so***@example.com", "q7***@qq.com"]


def test_each_account_has_its_own_charts_and_tables():
    default = figures({DAYS[-1]: "1"})
    acme = [replace(each, account="acme", amount="2") for each in default.sums]
    both = replace(default, sums=[*default.sums, *acme], totals=[*default.totals, *acme])

    assert [(panel.payer, panel.highest) for panel in render.panels(both)] == [("binance", "1"), ("binance acme", "2")]
    assert "<h3>binance</h3>" in render.html(both) and "<h3>binance acme</h3>" in render.html(both)
    assert "| binance acme | rebate | BTC | 2 |" in render.markdown(both)
