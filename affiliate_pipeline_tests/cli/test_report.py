"""The command `report`: the page as the figures are now, and what they do not hold yet."""

from pathlib import Path

import pytest

from affiliate_pipeline.cli.app import Stop, app
from affiliate_pipeline_tests.conftest import materialize
from affiliate_pipeline_tests.defs.rebates import KEY, SETTLED, YESTERDAY, at, rebate
from affiliate_pipeline_tests.defs.test_earnings import add_up


def report(*arguments: str) -> None:
    app(["report", *arguments], standalone_mode=False)


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

    assert f"has not been added up yet: {SETTLED}" in capsys.readouterr().out


def test_before_anything_was_added_up_there_is_no_page(sandbox):
    with pytest.raises(Stop, match="nothing has been added up yet"):
        report()
    with pytest.raises(Stop, match="is not a day"):
        report("yesterday")
    assert not Path("reports").exists()
