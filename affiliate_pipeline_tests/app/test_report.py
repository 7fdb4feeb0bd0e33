"""The command `report`: the page as the figures are now, and what they do not hold yet."""

from datetime import date
from pathlib import Path

import pytest

from affiliate_pipeline.app.__main__ import app
from affiliate_pipeline.app.cli import Stop
from affiliate_pipeline.domain.days import format_days
from affiliate_pipeline_tests.conftest import materialize
from affiliate_pipeline_tests.defs.rebates import DAYS, KEY, SETTLED, YESTERDAY, at, rebate
from affiliate_pipeline_tests.defs.test_commission_assets import LBANK, add_up

FINE = "nothing: every day has landed and is final"


def report(*arguments: str) -> None:
    app(["report", *arguments], standalone_mode=False)


def page(day: date) -> str:
    return Path("reports", f"{day}.html").read_text()


def section(page: str) -> str:
    """What is missing or not settled."""
    return page.split("<h2>Missing or not settled</h2>")[1].split("<h2>")[0]


def test_the_page_is_that_of_the_last_day_added_up(sandbox, capsys):
    sandbox.binance.set_rebates([rebate(at(YESTERDAY), 1, income="4.125")])
    materialize(KEY, [SETTLED])
    materialize(KEY, [YESTERDAY])
    assert add_up([SETTLED]).success and add_up([YESTERDAY]).success
    capsys.readouterr()

    report()

    (path,) = capsys.readouterr().out.splitlines()
    assert Path(path) == Path.cwd() / "reports" / f"{YESTERDAY}.html"
    assert ">4.125<" in Path(path).read_text()


def test_what_has_landed_since_is_said(sandbox, capsys):
    materialize(KEY, [SETTLED])
    assert add_up([SETTLED]).success
    sandbox.binance.set_rebates([rebate(at(SETTLED), 1)])
    materialize(KEY, [SETTLED], allow_shrink=True)
    capsys.readouterr()

    report(f"{SETTLED}")

    assert f"{SETTLED}: some landed rows have not been added up yet." in capsys.readouterr().out
    assert f"{SETTLED}: some landed rows have not been added up yet" in page(SETTLED)
    assert FINE not in page(SETTLED)


def test_who_has_no_credentials_is_told_of_the_same_days_as_who_has(both, monkeypatch):
    monkeypatch.setenv("AFFILIATE_START_DATE", f"{SETTLED}")
    for name in ("BINANCE_CLIENT_API_KEY", "BINANCE_CLIENT_API_SECRET"):
        monkeypatch.delenv(name)
    materialize(KEY, [YESTERDAY])
    materialize(LBANK, DAYS)
    assert add_up(DAYS).success
    report(f"{YESTERDAY}")
    told = section(page(YESTERDAY))
    assert f"{KEY}: {YESTERDAY} landed, may still change" in told
    assert f"{KEY}: {format_days(DAYS[:-1])} not landed" in told

    for names in (("BINANCE_PARTNER_API_KEY", "BINANCE_PARTNER_API_SECRET"), ("LBANK_API_KEY", "LBANK_API_SECRET")):
        for name in (*names, *("LBANK_OPEN_ID",) * (names[0] == "LBANK_API_KEY")):
            monkeypatch.delenv(name)
        report(f"{YESTERDAY}")
        assert section(page(YESTERDAY)) == told


def test_where_nothing_is_configured_and_nothing_has_landed_every_day_is_missing(sandbox, monkeypatch):
    monkeypatch.setenv("AFFILIATE_START_DATE", f"{DAYS[-2]}")
    materialize(KEY, [YESTERDAY])
    assert add_up([YESTERDAY]).success
    for account in ("PARTNER", "CLIENT"):
        for name in ("KEY", "SECRET"):
            monkeypatch.delenv(f"BINANCE_{account}_API_{name}")

    report(f"{DAYS[-2]}")

    for asset in (KEY, LBANK):
        assert f"{asset}: {DAYS[-2]} not landed" in page(DAYS[-2])
    assert FINE not in page(DAYS[-2])


def test_of_days_that_are_all_there_the_page_says_so(sandbox, query, monkeypatch):
    monkeypatch.setenv("AFFILIATE_START_DATE", f"{SETTLED}")
    for name in ("BINANCE_CLIENT_API_KEY", "BINANCE_CLIENT_API_SECRET"):
        monkeypatch.delenv(name)
    materialize(KEY, [SETTLED])
    assert add_up([SETTLED]).success

    report()

    assert FINE in page(SETTLED)


@pytest.mark.parametrize("asked", [(), ("2024-01-01",)])
def test_a_day_before_the_start_has_no_page(sandbox, monkeypatch, asked):
    materialize(KEY, [SETTLED])
    assert add_up([SETTLED]).success
    monkeypatch.setenv("AFFILIATE_START_DATE", f"{YESTERDAY}")

    with pytest.raises(Stop, match=f"is before AFFILIATE_START_DATE, {YESTERDAY}"):
        report(*asked)


def test_before_anything_was_added_up_there_is_no_page(sandbox):
    with pytest.raises(Stop, match="nothing has been added up yet"):
        report()
    with pytest.raises(Stop, match="is not a day"):
        report("yesterday")
    assert not Path("reports").exists()
