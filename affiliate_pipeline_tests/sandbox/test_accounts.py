"""Several accounts in one sandbox: their variables, and what they do not share."""

import re

import pytest

from affiliate_pipeline.app.__main__ import app
from affiliate_pipeline.app.cli import CommandError
from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline_tests.sandbox.conftest import REBATES
from affiliate_pipeline_tests.sandbox.lbank.lbank_requests import YESTERDAY

WEEK_MS = 7 * 86_400_000


def test_the_variables_of_further_accounts_have_their_alias_as_suffix(sandbox, acme):
    shared = {"BINANCE_BASE_URL", "LBANK_BASE_URL"}
    default = {name for name in sandbox.variables if "__" not in name} - shared
    assert sandbox.variables.keys() == shared | default | {f"{name}__ACME" for name in default}
    assert acme.binance.variables(sandbox.url)["BINANCE_PARTNER_API_KEY__ACME"] == acme.binance.partner_key
    assert len({sandbox.variables[name] for name in sandbox.variables.keys() - shared}) == 2 * len(default)
    assert sandbox.secrets == {value for name, value in sandbox.variables.items() if re.search("_(KEY|SECRET)", name)}


@pytest.mark.parametrize("alias", ["", "Acme", "a__b", "1a", "a-b", "a" * 32])
def test_a_malformed_alias_is_refused(alias):
    with pytest.raises(ValueError):
        Sandbox(accounts=[alias])
    with pytest.raises(CommandError, match=f"{alias} is not an alias"):
        app(["sandbox", "--account", alias], standalone_mode=False)


def test_a_fault_affects_only_its_account(sandbox, acme, call_as, clock):
    acme.faults.fail_day(YESTERDAY)
    window = {"startTime": clock.ms - WEEK_MS, "endTime": clock.ms, "limit": 1}
    assert call_as(acme, "partner", REBATES, **window).status == 500
    assert call_as(sandbox.accounts[""], "partner", REBATES, **window).status == 200
    assert [request.account for request in sandbox.requests] == ["acme", ""]


def test_the_data_of_an_account_depends_only_on_its_alias(acme, clock):
    other = Sandbox(accounts=["first", "acme"], now=clock, rows_per_day=300).accounts["acme"]
    assert other.lbank.users == acme.lbank.users and other.lbank.trades(YESTERDAY) == acme.lbank.trades(YESTERDAY)
    assert other.binance.rebates(YESTERDAY) == acme.binance.rebates(YESTERDAY)
