"""The report's pages in a browser without a network: phone to desktop, light and dark, pointer and keyboard."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from affiliate_pipeline.commission.figures import Figures
from affiliate_pipeline.commission.report import render
from affiliate_pipeline_tests.commission.hard_figures import DAY, DAYS, hard
from affiliate_pipeline_tests.e2e.test_browser import CHROMIUM, FLAGS, TIMEOUT_MS

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed (Debian: apt-get install chromium)"),
]
# Width and height: the smallest phone in use, a common one, a tablet and a laptop.
SIZES = [(320, 568), (390, 844), (768, 1024), (1440, 900)]
SCHEMES = ["light", "dark"]

OVERFLOWS = """() => {
  const width = document.documentElement.clientWidth, found = []
  if (document.documentElement.scrollWidth > width) found.push(`the page is ${document.documentElement.scrollWidth} wide`)
  for (const element of document.querySelectorAll('body *')) {
    if (!element.checkVisibility() || element.closest('svg')) continue
    const box = element.getBoundingClientRect()
    if (box.right > width + 0.5 || box.left < -0.5) found.push(`${element.className}: ${element.textContent.trim().slice(0, 60)}`)
    if (element.scrollWidth > element.clientWidth + 1 && getComputedStyle(element).display !== 'inline')
      found.push(`clipped: ${element.className}: ${element.textContent.trim().slice(0, 60)}`)
  }
  return found
}"""
WRAPPED_NUMBERS = r"""() => {
  const found = []
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  while (texts.nextNode()) {
    const node = texts.currentNode, element = node.parentElement
    if (!element.checkVisibility() || element.closest('svg, .exact')) continue
    for (const number of node.data.matchAll(/[−+±]?\d[\d,.]*(×10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)?( %)?/g)) {
      const range = document.createRange()
      range.setStart(node, number.index)
      range.setEnd(node, number.index + number[0].length)
      if (new Set([...range.getClientRects()].map(box => Math.round(box.top))).size > 1) found.push(number[0])
    }
  }
  return found
}"""
CONTROLS = """() => [...document.querySelectorAll('a[href], summary, input')]
  .filter(each => each.checkVisibility() && (each.type !== 'radio' || each.checked)).length"""
FOCUSED = """() => {
  const each = document.activeElement
  if (each === document.body) return null
  each.dataset.number ??= String(document.querySelectorAll('[data-number]').length)
  const outlined = each.closest('.pill') ?? each
  return [each.dataset.number, getComputedStyle(outlined).outlineStyle]
}"""

Show = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def show(browser, tmp_path) -> Iterator[Show]:
    """Opens a page offline; at the end, it must have requested nothing and logged nothing."""
    context = browser.new_context(offline=True)
    requested: list[str] = []
    opened: list[str] = []
    problems: list[str] = []
    context.on("request", lambda request: requested.append(request.url))
    context.on("console", lambda message: problems.append(message.text))
    context.set_default_timeout(TIMEOUT_MS)

    def open_page(html: str, size: tuple[int, int] = SIZES[0], scheme: str = "light") -> Any:
        path = Path(tmp_path, f"{len(opened)}.html")
        path.write_text(html)
        page = context.new_page()
        page.set_viewport_size({"width": size[0], "height": size[1]})
        page.emulate_media(color_scheme=scheme)
        page.goto(path.as_uri())
        opened.append(path.as_uri())
        return page

    yield open_page
    context.close()
    assert requested == opened and problems == []


def of_one_account() -> Figures:
    return hard(accounts=[""], exchanges=["binance"])


PAGES = {
    "hard to show": lambda: render.html(hard(), {*map(str, DAYS), "index", "2026-11"}),
    "one account": lambda: render.html(of_one_account()),
    "month": lambda: render.month_html(hard(), {*map(str, DAYS), "index"}),
    "index": lambda: render.index_html(hard(), {f"{DAYS[0]}", f"{DAY}", "2026-11"}),
}


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_first_screen_has_the_total_its_change_the_chart_and_what_is_missing(show, size):
    for figures in (hard(), of_one_account(), replace(hard(["", "acme"]), is_sandbox=False)):
        page = show(render.html(figures, {*map(str, DAYS), "index", "2026-11"}), size)
        for part in (".total", ".change", ".spans", ".chart", ".completeness"):
            box = page.locator(f".view0 {part}").bounding_box()
            assert box["y"] >= 0 and box["y"] + box["height"] <= size[1], part


OPEN_ALL = "open => document.querySelectorAll('details').forEach(each => each.open = open)"


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", PAGES)
def test_nothing_overflows_and_no_number_wraps(show, name, size):
    page = show(PAGES[name](), size)
    for opened in (False, True):
        page.evaluate(OPEN_ALL, opened)
        assert page.evaluate(OVERFLOWS) == []
        assert page.evaluate(WRAPPED_NUMBERS) == []


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_no_violation_of_wcag_aa(show, name, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = show(PAGES[name](), SIZES[1], scheme)
    page.evaluate(OPEN_ALL, True)

    found = axe.run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21aa", "wcag22aa", "best-practice"]}).response

    assert [(each["id"], each["nodes"][0]["html"]) for each in found["violations"]] == []
    assert "color-contrast" in {each["id"] for each in found["passes"]}
    assert page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") == (scheme == "dark")


@pytest.mark.parametrize("name", PAGES)
def test_every_control_is_reached_by_keyboard_and_shows_its_focus(show, name):
    page = show(PAGES[name](), SIZES[1])
    if name == "hard to show":
        page.get_by_text("Accounts").press("Enter")
    expected = page.evaluate(CONTROLS)
    reached: dict[str, str] = {}
    for _ in range(expected + 2):  # After the last one, the focus leaves the page and enters it again.
        page.keyboard.press("Tab")
        if focused := page.evaluate(FOCUSED):
            number, outline = focused
            reached[number] = outline
    assert len(reached) == expected > 3
    assert {*reached.values()} == {"solid"}


def test_enter_opens_the_exact_amount_which_can_be_copied(show):
    page = show(PAGES["one account"](), SIZES[0])
    coin = page.locator("details.row").filter(has_text="PEPE")
    exact = coin.get_by_text("2469135780246913578024691357802469135.780 PEPE").first
    assert not exact.is_visible() and "2.46914×10³⁶" in coin.inner_text()

    coin.locator("summary").press("Enter")

    assert exact.is_visible()
    exact.click()
    assert page.evaluate("getSelection().toString().trim()") == "2469135780246913578024691357802469135.780 PEPE"
    assert coin.locator(".amount span").get_attribute("title") == "2469135780246913578024691357802469135.780 PEPE"


def test_the_filter_shows_one_account(show):
    page = show(PAGES["hard to show"](), SIZES[0])
    assert page.locator(".view:visible").count() == 1
    page.get_by_text("Accounts").click()

    page.get_by_role("radio", name="lbank acme").check()

    shown = page.locator(".view:visible")
    assert shown.count() == 1 and shown.locator(".name").get_by_text("binance").count() == 0
    assert shown.locator(".lacks").get_by_text("Not landed: lbank acme commission").count() == 1
    page.keyboard.press("ArrowUp")
    assert page.locator(".view:visible").get_by_text("lbank acme commission").count() == 0
    assert page.locator(".view:visible").count() == 1


def test_the_bars_of_two_exchanges_differ_in_more_than_colour(show):
    page = show(render.html(hard([""])), SIZES[1])
    fills = page.evaluate("['.s0', '.s1'].map(each => getComputedStyle(document.querySelector(`.chart ${each}`)).fill)")
    assert fills[0].startswith("rgb") and "url(" in fills[1]


def test_the_printed_page_has_no_controls_and_fits(show):
    page = show(PAGES["hard to show"](), (720, 1000), "dark")
    page.emulate_media(media="print", color_scheme="light")
    assert not page.locator("nav").is_visible() and not page.locator(".filter").is_visible()
    assert page.evaluate(OVERFLOWS) == []
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
