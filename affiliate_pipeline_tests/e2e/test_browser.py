"""Dagster's UI, the page of the command `report`, and a backfill launched by clicking, all in a browser.

The tests also save the README's pictures, in the folder that the variable PICTURES names.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline_tests.e2e.project import KEY, UI, Project, command_of, free_port, last_days

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed (Debian: apt-get install chromium)"),
]
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
TIMEOUT_MS = 120_000
VIEWPORT = {"width": 1440, "height": 900}
ON_REQUEST = {endpoint.key for endpoint in ENDPOINTS if endpoint.lands_at is None}


@pytest.fixture
def page() -> Iterator:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        page = browser.new_page(viewport=VIEWPORT)
        page.set_default_timeout(TIMEOUT_MS)
        yield page
        browser.close()


@pytest.fixture
def picture(page, tmp_path):
    folder = Path(os.environ.get("PICTURES") or tmp_path)
    return lambda name: page.screenshot(path=folder / f"{name}.png")


@pytest.mark.timeout(900)
def test_the_ui_shows_the_graph_the_days_and_the_chart_and_a_click_launches_a_backfill(landed: Project, page, picture):
    day = last_days()[-1]
    with landed.up(port := free_port()):
        url = UI(port).url

        page.goto(f"{url}/asset-groups", wait_until="domcontentloaded")
        # How many assets are materialized, then how many are missing: only those of Binance that land on request.
        for group in (r"^affiliate\s*4$", r"^binance\s*5\s*4$", r"^lbank\s*9$"):
            page.locator("[class*=CollapsedGroupNode]").filter(has_text=re.compile(group)).first.wait_for()
        picture("lineage")
        check_catalog(page, url)
        check_schedules(page, url)
        check_roster(page, url)
        check_events(page, url)

        page.goto(f"{url}/assets/{KEY}?view=partitions&partition={day}", wait_until="domcontentloaded")
        page.get_by_text(f"Materialized ({len(last_days())})").wait_for()
        page.get_by_text('"income by asset"').wait_for()
        picture("asset")

        page.goto(f"{url}/assets/affiliate/daily_report?view=partitions&partition={day}", wait_until="domcontentloaded")
        page.get_by_text("[Show Markdown]").click()
        chart = page.locator("img[src^='data:image/svg+xml']")
        chart.wait_for()
        assert chart.evaluate("image => image.decode().then(() => image.naturalWidth)") > 100
        picture("report-in-dagster")

        checked = landed.run("check", "--port", str(port))
        assert checked.returncode == 0, checked.stdout + checked.stderr
        [daemon] = [each for each in landed.processes() if "dagster._daemon" in command_of(each)]
        daemon.suspend()
        checked = landed.run("check", "--port", str(port), COLUMNS="200")
        daemon.resume()
        assert checked.returncode == 1 and "daemon is not running" in checked.stdout

        check_failed_days(page, UI(port))

        (before,) = landed.query("select max(checked_at) from affiliate.landing where asset = %s", KEY)
        page.goto(f"{url}/assets/{KEY}?view=partitions", wait_until="domcontentloaded")
        page.get_by_role("button", name="Materialize").first.click()
        page.get_by_placeholder("No matching partitions").fill(f"[{last_days()[-2]}...{day}]")
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        page.get_by_role("button", name="Launch backfill").click()
        page.get_by_text("Created backfill").wait_for()
        page.goto(f"{url}/runs?view=backfills", wait_until="domcontentloaded")
        page.get_by_text(re.compile("^(Success|Failure)$")).wait_for()
        assert page.get_by_text("Success", exact=True).count() == 1
        picture("backfill")
        (after,) = landed.query("select max(checked_at) from affiliate.landing where asset = %s", KEY)
        assert after > before
        assert UI(port).days() == {"MATERIALIZED": last_days()}


def check_catalog(page, url: str) -> None:
    """No name of an asset is truncated, and all partitions have landed, except those of assets that land on request."""
    page.set_viewport_size({"width": 1440, "height": 1600})  # tall enough for all rows: only visible ones are rendered
    page.goto(f"{url}/assets", wait_until="domcontentloaded")
    rows = page.locator("[class*=VirtualizedAssetRow_rowGrid]")
    derived = ("affiliate/daily_commission", "affiliate/daily_customer_commission", "affiliate/daily_report")
    for key in (*(endpoint.key for endpoint in ENDPOINTS), *derived):
        # The name as displayed comes first; the hidden copy of it after that is always complete.
        name = key.replace("/", " / ")
        row = rows.filter(has_text=re.compile(f"^{name}{name}"))
        # Materialized, missing, failed and in progress.
        counts = r"0\s*All\s*0\s*0" if key in ON_REQUEST else r"All\s*0\s*0\s*0"
        row.filter(has_text=re.compile(rf"{key.split('/')[0]}\s*{counts}\s*\d+ partition")).wait_for()
    rows.filter(has_text="lbank / roster").filter(has_text="Materialized").wait_for()
    page.set_viewport_size(VIEWPORT)


def check_schedules(page, url: str) -> None:
    """The names of schedules contain the time zone."""
    page.goto(f"{url}/automation", wait_until="domcontentloaded")
    for name in ("binance_snapshots_0015_utc", "lbank_records_1035_asia_shanghai"):
        page.get_by_text(name, exact=True).wait_for()


def check_roster(page, url: str) -> None:
    """The roster's pages show its columns, and the row count of a materialization by a run of another asset."""
    page.goto(f"{url}/assets/lbank/roster", wait_until="domcontentloaded")
    page.get_by_text("direct_invitation", exact=True).wait_for()
    page.goto(f"{url}/assets/lbank/roster?view=events", wait_until="domcontentloaded")
    page.get_by_text("dagster/row_count").wait_for()


def check_events(page, url: str) -> None:
    """Each materialization of a run over several days is listed, and shows its own day."""
    page.goto(f"{url}/assets/{KEY}?view=events", wait_until="domcontentloaded")
    for day in last_days():
        page.locator("[data-index]").filter(has_text=f"{day}").first.click()
        page.get_by_text(f"Partition {day} materialized").wait_for()


def check_failed_days(page, ui: UI) -> None:
    """The page of a failed day shows the reason, and the pages of the asset's checks show their descriptions."""
    day, reason = last_days()[-1], "affiliate.rejected_row has no rows of it."
    for key, landed_before in ((KEY, True), ("binance/kickback_historical_record", False)):
        assert ui.run_end(ui.launch_range([key], [day], from_rejected=True)) == "FAILURE"
        page.goto(f"{ui.url}/assets/{key}?view=partitions&partition={day}", wait_until="domcontentloaded")
        if not landed_before:
            page.get_by_role("button", name="View all historical events (1)").click()
            page.get_by_text("Observation", exact=True).click()
        page.get_by_text(reason, exact=True).wait_for()
    page.goto(f"{ui.url}/assets/{KEY}?view=checks&checkDetail=day_is_sound", wait_until="domcontentloaded")
    page.get_by_text("The last run landed no day that could be checked.").wait_for()
    page.goto(f"{ui.url}/assets/{KEY}?view=checks&checkDetail=no_day_missing", wait_until="domcontentloaded")
    page.get_by_text(re.compile(f"{day}: the last run failed|{day}: it has not landed")).first.wait_for()
    assert ui.days()["FAILED"] == [day]


def test_the_report_is_a_page_that_sends_no_requests(landed: Project, page, picture):
    day = last_days()[-1]
    path = Path(landed.run("report").stdout.splitlines()[0])
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)

    page.goto(path.as_uri())

    page.get_by_role("heading", name=f"{day:%a} {day.day} {day:%b %Y}").wait_for()
    assert page.get_by_text("Sandbox data. Not real earnings.").count() == 1
    (total,) = landed.query("select sum(total_usdt)::text from affiliate.v_daily where day = %s", day)
    assert page.locator(".view0 .total .exact").text_content() == f"{total[0]} USDT"
    assert requested == [path.as_uri()] and problems == []
    picture("report")

    page.get_by_role("link", name="All days").click()
    page.get_by_role("link", name=f"{day:%a} {day.day} {day:%b}").wait_for()
    page.go_back()
    page.set_viewport_size({"width": 390, "height": 844})
    page.emulate_media(color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(15, 21, 27)"
    picture("report-on-a-phone")
