"""`plan` knows every asset: what fetching it costs, or that it sends no requests."""

import pytest

from affiliate_pipeline.app.__main__ import app
from affiliate_pipeline.app.cli import CommandError
from affiliate_pipeline.commission.customers import CUSTOMERS
from affiliate_pipeline.commission.rollup import COMMISSION, REPORT
from affiliate_pipeline.exchanges.registry import DEFAULT
from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline_tests.defs.direct_runs import land
from affiliate_pipeline_tests.defs.rebates import SETTLED

TRADES = "lbank/trade_user"


@pytest.fixture
def plan(capsys):
    """Runs `plan` and returns its output."""

    def run(*arguments: str) -> str:
        app(["plan", *arguments], standalone_mode=False)
        return capsys.readouterr().out.strip()

    return run


def test_a_computed_asset_costs_no_requests(plan):
    for asset in (COMMISSION, CUSTOMERS, REPORT):
        for days in ([], [f"{SETTLED}"]):
            assert plan(asset, *days) == f"{asset}: no requests, since it is computed from days that have landed"


def test_the_plan_of_the_roster_depends_on_the_known_users_and_is_made_without_requests(
    both_exchanges, verified_keys, monkeypatch, plan, query
):
    assert plan("lbank/roster") == "lbank/roster: at least 1 request"
    assert both_exchanges.requests == []
    assert land(TRADES, [SETTLED]).success
    query(
        "insert into lbank.roster (open_id, first_seen, last_seen, source) select 'U' || n, now(), now(), source "
        "from generate_series(1, 1000 - (select count(*) from lbank.roster)) n, (select source from lbank.roster limit 1) r"
    )
    sent = len(both_exchanges.requests)
    monkeypatch.setenv("AFFILIATE_RATE_SCALE", "1")
    assert plan("lbank/roster") == "lbank/roster: at least 10 requests, at least 10 s at the permitted rate"
    assert len(both_exchanges.requests) == sent


def test_every_endpoint_that_needs_no_agent_code_has_a_plan(both_exchanges, plan):
    for endpoint in DEFAULT.endpoints:
        if not endpoint.requires:
            assert plan(endpoint.key, f"{SETTLED}").startswith(f"{endpoint.key} {SETTLED}: ")


def test_a_missing_or_needless_range_is_reported(both_exchanges: Sandbox, plan):
    with pytest.raises(CommandError, match=f"no days of {TRADES} were given. Add a day"):
        plan(TRADES)
    with pytest.raises(CommandError, match="lbank/roster is not divided into days. Leave the days out"):
        plan("lbank/roster", f"{SETTLED}")
    with pytest.raises(CommandError, match="there is no asset lbank/nothing. There are .*affiliate/daily_report"):
        plan("lbank/nothing", f"{SETTLED}")
    assert both_exchanges.requests == []
