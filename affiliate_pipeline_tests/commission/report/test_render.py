"""The report's pages: figures with every digit one tap away, views per account, links to existing pages only."""

import re
from base64 import b64decode
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from affiliate_pipeline.commission.customers import Customer
from affiliate_pipeline.commission.figures import Figures, masked
from affiliate_pipeline.commission.report import render
from affiliate_pipeline.commission.report.views import MAX_COINS
from affiliate_pipeline_tests.commission.hard_figures import DAY, DAYS, hard, line

HOSTILE = "<script>alert(1)</script>\"'|`[x](http://evil)"
MAX_BYTES = 1_500_000


class Elements(HTMLParser):
    """The text of every element of a page by class, and the names of its tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: list[tuple[str, str]] = []
        self.tags: set[str] = set()
        self._open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in ("meta", "input", "line", "rect", "circle", "path"):
            self._open.append(dict(attrs).get("class") or "")

    def handle_endtag(self, tag: str) -> None:
        if self._open:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((" ".join(self._open), data.strip()))

    def of(self, name: str) -> list[str]:
        """The texts in elements of this class."""
        return [text for classes, text in self.texts if name in classes.split()]

    def sentence(self, name: str) -> str:
        """The texts in elements of this class as one."""
        return " ".join(self.of(name))


def one(**changes) -> Figures:
    """The figures of one account of one exchange."""
    return replace(hard([""], ["binance"]), **changes)


def test_the_first_screen_has_the_total_the_change_and_what_is_missing():
    shown = Elements(render.html(one()))

    assert shown.of("total")[:2] == ["791.12", "791.12345678 USDT"]
    assert shown.sentence("change") == "−14.7 % against the mean of 6 complete days of the 7 before"
    assert shown.of("spans")[::3] == ["7 days", "30 days"]
    assert shown.of("lacks")[0] == "May still change: binance rebate."
    assert shown.sentence("completeness").startswith(
        "2 days missing: 2026-11-03, 27 (fetchable until 2026-12-03 23:59 UTC"
    )


def test_every_digit_of_an_amount_is_in_the_page_and_six_of_them_are_shown():
    shown = Elements(render.html(one()))

    for exact, short in (
        ("0.024691357802469134 BTC", "0.0246914"),
        ("2469135780246913578024691357802469135.780 PEPE", "2.46914×10³⁶"),
        ("0.000000000000000002 1000SATSLONGCOINNAMEWITHOUTAMARKET", "2×10⁻¹⁸"),
        ("-51.0 TRY", "−51"),
    ):
        assert exact in shown.of("exact") and short in shown.of("amount")


def test_coins_of_several_accounts_are_added_exactly():
    amounts = {"": "100000000000000000000000000000", "acme": "0.000000000000000001"}
    lines = [line("binance", account, "BTC", "rebate", amount) for account, amount in amounts.items()]

    shown = Elements(render.html(one(sums=lines, totals=lines)))

    assert "100000000000000000000000000000.000000000000000001 BTC" in shown.of("exact")


def test_a_coin_without_a_value_is_named_and_a_stated_value_is_marked():
    shown = Elements(render.html(one()))

    assert "Without a value in USDT, so not in the total: 1000SATSLONGCOINNAMEWITHOUTAMARKET." in shown.of("lacks")
    assert "29 Nov, of which stated by the exchange" in [text for _, text in shown.texts]


def test_a_page_of_several_accounts_has_a_view_of_each_exchange_and_account():
    names = Elements(render.html(hard(["", "acme"]))).of("pill")

    assert names == ["all", "binance", "binance default", "binance acme", "lbank", "lbank default", "lbank acme"]
    assert Elements(render.html(hard([""]))).of("pill") == ["all", "binance", "lbank"]
    assert Elements(render.html(one())).of("pill") == []


def test_a_view_has_the_figures_of_its_account_only():
    page = render.html(hard(["", "acme"]))
    # The views are numbered from 0: this is that of binance acme.
    (view,) = re.findall(r'<div class="view view3".*?(?=<div class="view|</main>)', page, re.DOTALL)
    shown = Elements(view)

    assert shown.of("total")[:2] == ["791.12", "791.12345678 USDT"]
    assert "lbank" not in view and "binance rebate" in shown.of("name")


def test_the_lists_are_limited_and_the_rest_is_one_command_away():
    lines = [line("binance", "", f"C{number}", "rebate", "1") for number in range(MAX_COINS + 7)]

    page = render.html(one(sums=lines, totals=lines))

    assert "And 7 more: <code>affiliate-pipeline export affiliate.daily_commission 2026-10-31...2026-11-29<" in page


def test_the_top_customers_are_masked_and_at_most_twenty():
    shown = Elements(render.html(one()))

    assert shown.of("customer")[:3] == ["cu***12", "binance", "1,204.12"]
    assert "1204.12345678 USDT" in shown.of("exact")
    assert "customer12" not in render.html(hard()) and "long_name_of" not in render.html(hard())
    many = [Customer("binance", "", f"customer{number:02}", 1, Decimal(100 - number)) for number in range(30)]
    assert len(Elements(render.html(one(customers=many))).of("customer")) == 3 * 20


def test_only_pages_that_exist_are_linked():
    links = re.findall(r'<a [^>]*href="([^"]+)"', render.html(one(), {"2026-11-28", "index", "2026-11"}))

    assert links == ["2026-11-28.html", "2026-11.html", "index.html", "2026-11-28.html"]
    assert "<a " not in render.html(one())


def test_text_from_an_exchange_is_escaped():
    lines = [line(HOSTILE, HOSTILE, HOSTILE, HOSTILE, "1")]
    hostile = one(
        sums=lines, totals=lines, by_day=[replace(each, exchange=HOSTILE, account=HOSTILE) for each in one().by_day]
    )
    hostile = replace(
        hostile,
        incomplete=[replace(each, exchange=HOSTILE) for each in hostile.incomplete],
        customers=[Customer(HOSTILE, HOSTILE, HOSTILE, 1, Decimal(1))],
    )

    for shown in (render.html, render.month_html, render.index_html, render.svg, render.markdown):
        assert "<script" not in shown(hostile)
    assert "](http" not in render.markdown(hostile)
    assert "script" not in Elements(render.html(hostile)).tags
    ElementTree.fromstring(render.svg(hostile))


@pytest.mark.parametrize("page", [render.html, render.month_html, render.index_html])
def test_a_page_loads_nothing_and_runs_no_script(page):
    shown = page(hard())

    assert not re.search(r"\b(src|@import)\s*[=(]|url\((?!#)|<script|href=\"(?![\w-]+\.html)", shown)
    assert "default-src 'none'" in shown and "prefers-color-scheme:dark" in shown and "width=device-width" in shown


def test_sandbox_data_is_labelled():
    for shown in (render.html, render.month_html, render.index_html, render.markdown):
        assert "Sandbox data. Not real earnings." in shown(one())
        assert "Sandbox data" not in shown(one(is_sandbox=False))


def test_the_largest_page_is_below_one_and_a_half_megabytes():
    coins = [f"COIN{number:03}" for number in range(400)]
    accounts = [f"account_with_a_long_alias_{number}" for number in range(5)]
    lines = [
        line(exchange, account, coin, kind, f"{10**21 + number}.123456789012345678")
        for exchange, kinds in (
            ("binance", ["rebate", "kickback"]),
            ("lbank", ["commission spot", "commission futures"]),
        )
        for account in accounts
        for kind in kinds
        for number, coin in enumerate(coins)
    ]
    largest = replace(hard(accounts), sums=lines, totals=lines)

    for page in (render.html, render.month_html):
        assert len(page(largest, {f"{day}" for day in DAYS}).encode()) < MAX_BYTES


def test_the_list_of_all_days_has_months_with_totals_and_what_is_missing():
    shown = Elements(render.index_html(one(), {"2026-11", f"{DAY}"}))

    assert [text for text in shown.of("month") if text.endswith("2026")] == ["November 2026", "October 2026"]
    assert shown.of("state") == ["3 days of 29 not final", "1 day, all final"]
    assert "23,551.59 USDT" in shown.of("month") and "700.12 USDT" in shown.of("month")
    assert "not landed: binance rebate (no longer fetchable)" in shown.of("day")
    assert shown.of("total")[0] == "791.12"


def test_the_list_of_all_days_starts_with_the_newest_day_that_is_final_or_has_earnings():
    earned = [each for each in one().by_day if each.day < DAY]

    for incomplete, total in (([], "0.00"), (one(by_day=earned).incomplete, "700.12")):
        figures = one(by_day=earned, incomplete=incomplete)
        assert Elements(render.index_html(figures)).of("total")[0] == total


def test_a_month_has_its_total_and_its_days():
    november = one().within(DAYS[1:])
    pages = {"2026-10", "2026-11", "2026-12", "index"}
    for first in (DAYS[1], DAYS[5]):
        links = re.findall(r'<a href="([^"]+)"', render.month_html(one().within([first, DAY]), pages))
        assert links == ["2026-10.html", "2026-12.html", "index.html"]
    october = render.month_html(one().within(DAYS[:1]), pages)
    assert re.findall(r'<a href="([^"]+)"', october) == ["2026-11.html", "index.html"]
    shown = Elements(render.month_html(replace(november, totals=one().totals), {"2026-10", "index"}))

    assert shown.of("total")[:2] == ["23,551.59", "23551.58641950 USDT"]
    assert len([text for text in shown.of("day") if text.endswith(" Nov")]) == 29
    assert shown.of("change") == [] and "2 days missing: 2026-11-03, 27" in shown.sentence("completeness")


def test_the_markdown_has_the_first_screen_and_a_chart():
    shown = render.markdown(hard([""]))

    assert shown.startswith("### 2026-11-29: 1,595.25 USDT\n")
    assert "| **USDT**  | **11,209.48** | **48,841.42** |" in shown
    assert "| BTC | 0.049382715604938268 |" in shown
    (image,) = re.findall(r"base64,([\w+/=]+)\)", shown)
    assert ElementTree.fromstring(b64decode(image)).tag.endswith("svg")


def test_an_empty_day_has_a_page():
    empty = replace(one(), sums=[], totals=[], customers=[], by_day=[], incomplete=[], unpriced=[])
    shown = Elements(render.html(empty))

    assert shown.of("total")[0] == "0.00" and "Nothing was earned." in shown.of("line")
    assert shown.sentence("completeness") == "All 30 days have landed and will not change."
    assert "0.00 USDT" in render.markdown(empty) and render.svg(empty) and render.index_html(empty)


def test_the_overview_is_written_with_the_months_and_links_them(tmp_path):
    day = render.write(one(), tmp_path, also_written=[DAY - timedelta(days=1)])
    index = render.write_overview(one(), [one().within(DAYS[:1]), one().within(DAYS[1:])], tmp_path)

    months = {"2026-10.html", "2026-11.html"}
    assert {path.name for path in tmp_path.glob("*.html")} == {"2026-11-29.html", *months, "index.html"}
    assert 'href="2026-11.html"' in (tmp_path / "2026-10.html").read_text()
    assert 'href="2026-11-28.html"' in day.read_text() and 'href="index.html"' in day.read_text()
    assert 'href="2026-11-29.html"' in index.read_text() and 'href="2026-11.html"' in index.read_text()


def test_a_customer_is_masked():
    shown = [masked(each) for each in ("abc", "abcdefgh", "someone.private@example.com", "q7*****@qq.com")]
    assert shown == ["ab***", "ab***gh", "so***@example.com", "q7***@qq.com"]


def test_amounts_beyond_the_range_of_floats_are_shown():
    large = [replace(each, usdt=Decimal(f"1{'0' * 400}.5")) for each in one().by_day]

    shown = Elements(render.html(one(by_day=large)))

    assert shown.of("total")[:2] == ["1×10⁴⁰⁰", f"1{'0' * 400}.5 USDT"]
