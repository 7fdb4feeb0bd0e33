"""Bars of exact amounts: whole pixels, true to scale, with every digit in their titles."""

import re
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from xml.etree import ElementTree

from affiliate_pipeline.commission.figures import Figures, Incomplete, masked
from affiliate_pipeline.commission.report import chart, render, text
from affiliate_pipeline.commission.rollup import Earner, Sum

DAYS = [date(2026, 10, 30) + timedelta(days=number) for number in range(5)]
HOSTILE = "<script>alert(1)</script>\"'|`[x](http://evil)"


def figures(amounts: dict[date, str], coin: str = "BTC", earner: str = "somebody12") -> Figures:
    sums = [Sum(day, "binance", coin, "rebate", 1, amount, None, 1) for day, amount in amounts.items()]
    return Figures(
        day=DAYS[-1],
        days=DAYS,
        made_at=datetime(2026, 11, 4, tzinfo=UTC),
        sums=sums,
        totals=sums[:1],
        earners=[Earner("binance", coin, earner, "1", 1)],
        incomplete=[Incomplete("binance/rebate_recent_record", DAYS[:2], DAYS[3:4])],
    )


def bars(drawn: str) -> list[tuple[str, int, int]]:
    """Kind, top and height of each bar."""
    root = ElementTree.fromstring(f'<svg xmlns="http://www.w3.org/2000/svg">{drawn}</svg>')
    return [
        (each.get("class"), int(each.get("y")), int(each.get("height")))
        for each in root.iter("{http://www.w3.org/2000/svg}rect")
    ]


def test_a_bar_is_as_high_as_its_amount_of_the_greatest():
    (panel,) = chart.panels(figures({DAYS[0]: "1000000000000000000000.5", DAYS[1]: "500000000000000000000.25"}))

    assert [height for _, _, height in bars(chart.drawing(panel, DAYS))] == [chart.PLOT_PX, chart.PLOT_PX // 2]


def test_what_was_taken_back_hangs_below_the_line():
    (panel,) = chart.panels(figures({DAYS[0]: "3", DAYS[1]: "-1"}))

    (_, top, height), (kind, below, depth) = bars(chart.drawing(panel, DAYS))
    assert (kind, below) == ("minus", top + height)
    assert height + depth <= chart.PLOT_PX and height == 3 * depth


def test_a_day_of_nothing_but_zeros_can_be_drawn():
    (panel,) = chart.panels(figures({DAYS[0]: "0"}))

    assert len(bars(chart.drawing(panel, DAYS))) == 1


def test_kinds_of_one_coin_are_added_exactly():
    found = figures({})
    found = Figures(
        **{
            **vars(found),
            "totals": [Sum(DAYS[0], "lbank", "btc", "commission spot", 1, "1", None, 1)],
            "sums": [
                Sum(DAYS[0], "lbank", "btc", kind, 1, amount, None, 1)
                for kind, amount in (("spot", "100000000000000000000000000000"), ("futures", "0.000000000000000001"))
            ],
        }
    )

    (panel,) = chart.panels(found)

    assert panel.amounts == {DAYS[0]: Decimal("100000000000000000000000000000.000000000000000001")}
    assert "100000000000000000000000000000.000000000000000001 btc" in chart.drawing(panel, DAYS)


def test_no_text_of_an_exchange_becomes_markup():
    hostile = figures({DAYS[-1]: "1"}, coin=HOSTILE, earner=HOSTILE)

    for shown in (render.html(hostile), chart.picture(hostile), text.markdown(hostile)):
        assert "<script" not in shown
    assert "](http" not in text.markdown(hostile)
    ElementTree.fromstring(chart.picture(hostile))


def test_a_page_asks_nothing_of_the_network():
    shown = render.html(figures({DAYS[-1]: "1.5"}))

    assert not re.search(r"(src|href|url|@import)\s*[=(]", shown)
    assert "default-src 'none'" in shown and "prefers-color-scheme:dark" in shown and "width=device-width" in shown


def test_what_the_sandbox_made_up_is_called_so():
    real = figures({DAYS[-1]: "1.5"})
    for shown in (render.html, text.markdown):
        assert "Made-up data" in shown(replace(real, made_up=True))
        assert "Made-up" not in shown(real)


def test_what_is_missing_is_said():
    assert text.incomplete(figures({})) == [
        "binance/rebate_recent_record: 2026-10-30, 31 not landed",
        "binance/rebate_recent_record: 2026-11-02 landed, may still change",
    ]


def test_a_customer_is_masked():
    shown = [masked(each) for each in ("", "abc", "abcdefgh", "someone.private@example.com", "q7*****@qq.com")]
    assert shown == ["without a name", "ab***", "ab***gh", "so***@example.com", "q7***@qq.com"]
