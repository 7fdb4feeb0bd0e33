"""The command `report` writes pages with the current totals of days and with what the totals lack."""

import re
from datetime import date
from pathlib import Path

import pytest

from affiliate_pipeline.app.__main__ import app
from affiliate_pipeline.app.cli import CommandError
from affiliate_pipeline.domain.days import format_days
from affiliate_pipeline_tests.app.totals import add_up
from affiliate_pipeline_tests.defs.direct_runs import land
from affiliate_pipeline_tests.defs.rebates import DAYS, KEY, SETTLED, YESTERDAY, at, rebate
from affiliate_pipeline_tests.defs.test_commission_assets import LBANK

COMPLETE = "landed and will not change."


def report(*arguments: str) -> None:
    app(["report", *arguments], standalone_mode=False)


def page(day: date) -> str:
    """The page without the elements around its numbers."""
    return re.sub("</?span[^>]*>", "", Path("reports", f"{day}.html").read_text())


def section(page: str) -> list[str]:
    """The lines about missing and unsettled days."""
    return re.findall("<li>(.*?)</li>", page.split("<h2>Missing or not settled</h2>")[1].split("</ul>")[0])


def test_without_a_day_the_last_day_with_totals_is_reported(sandbox, capsys):
    sandbox.binance.set_rebates([rebate(at(YESTERDAY), 1, income="4.125")])
    land(KEY, [SETTLED])
    land(KEY, [YESTERDAY])
    add_up([SETTLED, YESTERDAY])
    capsys.readouterr()

    report()

    folder = Path.cwd() / "reports"
    assert capsys.readouterr().out.splitlines() == [f"{folder / f'{YESTERDAY}.html'}", f"{folder / 'index.html'}"]
    assert ">4.125 USDT<" in page(YESTERDAY) and "4.12</summary>" in page(YESTERDAY)


def test_a_range_is_reported_day_by_day_and_the_overview_links_to_every_page(sandbox, capsys):
    sandbox.binance.set_rebates([rebate(at(day), number, income="2.5") for number, day in enumerate(DAYS)])
    land(KEY, DAYS)
    add_up(DAYS)
    capsys.readouterr()

    report(f"{DAYS[-3]}...{DAYS[-1]}")

    folder, months = Path.cwd() / "reports", {f"{day:%Y-%m}" for day in DAYS[-3:]}
    written = [*(f"{day}" for day in DAYS[-3:]), "index"]
    assert capsys.readouterr().out.splitlines() == [f"{folder / name}.html" for name in written]
    assert {path.stem for path in folder.iterdir()} == {*written, *months}
    index = (folder / "index.html").read_text()
    assert set(re.findall(r'href="(.+?)\.html"', index)) == {*written, *months} - {"index"}
    linked = {target for path in folder.iterdir() for target in re.findall(r'href="(.+?)"', path.read_text())}
    assert linked and all((folder / target).exists() for target in linked)
    for name in months:
        total = f"{2.5 * sum(f'{day:%Y-%m}' == name for day in DAYS)} USDT"
        assert f">{total}<" in (folder / f"{name}.html").read_text()


def test_rows_that_landed_after_the_totals_are_reported(sandbox, capsys):
    land(KEY, [SETTLED])
    add_up([SETTLED])
    sandbox.binance.set_rebates([rebate(at(SETTLED), 1)])
    land(KEY, [SETTLED], allow_shrink=True)
    capsys.readouterr()

    report(f"{SETTLED}")

    assert f"{SETTLED}: some landed rows or prices have not been added up yet." in capsys.readouterr().out
    assert f"{SETTLED}: some landed rows or prices have not been added up yet" in page(SETTLED)
    assert COMPLETE not in page(SETTLED)


def test_the_page_lists_the_same_missing_days_without_credentials(both_exchanges, monkeypatch):
    monkeypatch.setenv("AFFILIATE_START_DATE", f"{SETTLED}")
    for name in ("BINANCE_CLIENT_API_KEY", "BINANCE_CLIENT_API_SECRET"):
        monkeypatch.delenv(name)
    land(KEY, [YESTERDAY])
    land(LBANK, DAYS)
    add_up(DAYS)
    report(f"{YESTERDAY}")
    listed = section(page(YESTERDAY))
    assert f"binance rebate: {YESTERDAY} landed, may still change" in listed
    assert any(line.startswith(f"binance rebate: {format_days(DAYS[:-1])} not landed (") for line in listed)

    for names in (
        ("BINANCE_PARTNER_API_KEY", "BINANCE_PARTNER_API_SECRET"),
        ("LBANK_API_KEY", "LBANK_API_SECRET", "LBANK_OPEN_ID"),
    ):
        for name in names:
            monkeypatch.delenv(name)
        report(f"{YESTERDAY}")
        assert section(page(YESTERDAY)) == listed


def test_without_credentials_a_page_before_the_first_landed_day_lists_every_asset_as_missing(sandbox, monkeypatch):
    monkeypatch.setenv("AFFILIATE_START_DATE", f"{DAYS[-2]}")
    land(KEY, [YESTERDAY])
    add_up([YESTERDAY])
    for account in ("PARTNER", "CLIENT"):
        for name in ("KEY", "SECRET"):
            monkeypatch.delenv(f"BINANCE_{account}_API_{name}")

    report(f"{DAYS[-2]}")

    for kind in ("binance rebate", "binance kickback", "lbank commission"):
        assert any(line.startswith(f"{kind}: {DAYS[-2]} not landed") for line in section(page(DAYS[-2])))
    assert COMPLETE not in page(DAYS[-2])


def test_the_page_states_that_every_day_has_landed(sandbox, query, monkeypatch):
    monkeypatch.setenv("AFFILIATE_PRICES", "off")
    monkeypatch.setenv("AFFILIATE_START_DATE", f"{SETTLED}")
    for name in ("BINANCE_CLIENT_API_KEY", "BINANCE_CLIENT_API_SECRET"):
        monkeypatch.delenv(name)
    land(KEY, [SETTLED])
    add_up([SETTLED])

    report()

    assert COMPLETE in page(SETTLED)


def test_a_day_before_the_start_has_no_page(sandbox, monkeypatch):
    land(KEY, [SETTLED])
    add_up([SETTLED])
    monkeypatch.setenv("AFFILIATE_START_DATE", f"{YESTERDAY}")

    for arguments in ((), ("2024-01-01",)):
        with pytest.raises(CommandError, match=f"is before the first day, {YESTERDAY}"):
            report(*arguments)


def test_there_is_no_page_without_totals_or_for_an_invalid_day(sandbox):
    with pytest.raises(CommandError, match="nothing has been added up yet"):
        report()
    with pytest.raises(CommandError, match="is neither a day"):
        report("yesterday")
    assert not Path("reports").exists()


def test_a_day_that_has_not_ended_is_refused(sandbox):
    with pytest.raises(CommandError, match="2999-01-01 has not ended. The last day that can be reported is 2"):
        report("2999-01-01")
    assert not Path("reports").exists()
