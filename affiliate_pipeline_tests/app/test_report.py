"""The command `report` writes a page with the current totals of a day and with the days that the totals lack."""

from datetime import date
from pathlib import Path

import pytest

from affiliate_pipeline.app.__main__ import app
from affiliate_pipeline.app.cli import CommandError
from affiliate_pipeline.domain.days import format_days
from affiliate_pipeline_tests.defs.direct_runs import land
from affiliate_pipeline_tests.defs.rebates import DAYS, KEY, SETTLED, YESTERDAY, at, rebate
from affiliate_pipeline_tests.defs.test_commission_assets import LBANK, add_up

COMPLETE = "nothing: every day has landed and is final"


def report(*arguments: str) -> None:
    app(["report", *arguments], standalone_mode=False)


def page(day: date) -> str:
    return Path("reports", f"{day}.html").read_text()


def section(page: str) -> str:
    """The section of the page about missing and unsettled days."""
    return page.split("<h2>Missing or not settled</h2>")[1].split("<h2>")[0]


def test_without_a_day_the_last_day_with_totals_is_reported(sandbox, capsys):
    sandbox.binance.set_rebates([rebate(at(YESTERDAY), 1, income="4.125")])
    land(KEY, [SETTLED])
    land(KEY, [YESTERDAY])
    assert add_up([SETTLED]).success and add_up([YESTERDAY]).success
    capsys.readouterr()

    report()

    (path,) = capsys.readouterr().out.splitlines()
    assert Path(path) == Path.cwd() / "reports" / f"{YESTERDAY}.html"
    assert ">4.125<" in Path(path).read_text()


def test_rows_that_landed_after_the_totals_are_reported(sandbox, capsys):
    land(KEY, [SETTLED])
    assert add_up([SETTLED]).success
    sandbox.binance.set_rebates([rebate(at(SETTLED), 1)])
    land(KEY, [SETTLED], allow_shrink=True)
    capsys.readouterr()

    report(f"{SETTLED}")

    assert f"{SETTLED}: some landed rows have not been added up yet." in capsys.readouterr().out
    assert f"{SETTLED}: some landed rows have not been added up yet" in page(SETTLED)
    assert COMPLETE not in page(SETTLED)


def test_the_page_lists_the_same_missing_days_without_credentials(both_exchanges, monkeypatch):
    monkeypatch.setenv("AFFILIATE_START_DATE", f"{SETTLED}")
    for name in ("BINANCE_CLIENT_API_KEY", "BINANCE_CLIENT_API_SECRET"):
        monkeypatch.delenv(name)
    land(KEY, [YESTERDAY])
    land(LBANK, DAYS)
    assert add_up(DAYS).success
    report(f"{YESTERDAY}")
    listed = section(page(YESTERDAY))
    assert f"{KEY}: {YESTERDAY} landed, may still change" in listed
    assert f"{KEY}: {format_days(DAYS[:-1])} not landed" in listed

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
    assert add_up([YESTERDAY]).success
    for account in ("PARTNER", "CLIENT"):
        for name in ("KEY", "SECRET"):
            monkeypatch.delenv(f"BINANCE_{account}_API_{name}")

    report(f"{DAYS[-2]}")

    for asset in (KEY, LBANK):
        assert f"{asset}: {DAYS[-2]} not landed" in page(DAYS[-2])
    assert COMPLETE not in page(DAYS[-2])


def test_the_page_states_that_every_day_has_landed(sandbox, query, monkeypatch):
    monkeypatch.setenv("AFFILIATE_START_DATE", f"{SETTLED}")
    for name in ("BINANCE_CLIENT_API_KEY", "BINANCE_CLIENT_API_SECRET"):
        monkeypatch.delenv(name)
    land(KEY, [SETTLED])
    assert add_up([SETTLED]).success

    report()

    assert COMPLETE in page(SETTLED)


@pytest.mark.parametrize("arguments", [(), ("2024-01-01",)])
def test_a_day_before_the_start_has_no_page(sandbox, monkeypatch, arguments):
    land(KEY, [SETTLED])
    assert add_up([SETTLED]).success
    monkeypatch.setenv("AFFILIATE_START_DATE", f"{YESTERDAY}")

    with pytest.raises(CommandError, match=f"is before the first day, {YESTERDAY}"):
        report(*arguments)


def test_there_is_no_page_without_totals_or_for_an_invalid_day(sandbox):
    with pytest.raises(CommandError, match="nothing has been added up yet"):
        report()
    with pytest.raises(CommandError, match="is not a day"):
        report("yesterday")
    assert not Path("reports").exists()


def test_a_day_that_has_not_ended_is_refused(sandbox):
    with pytest.raises(CommandError, match="2999-01-01 has not ended. The last day that can be reported is 2"):
        report("2999-01-01")
    assert not Path("reports").exists()
