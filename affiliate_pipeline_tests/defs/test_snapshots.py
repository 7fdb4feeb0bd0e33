"""Binance's endpoints that return only the current state."""

import json
from collections import Counter
from datetime import UTC, date, datetime, timedelta

import pytest

from affiliate_pipeline.domain.problem import SettingsError
from affiliate_pipeline_tests.defs.direct_runs import land
from affiliate_pipeline_tests.defs.events import description_of

pytestmark = pytest.mark.usefixtures("verified_keys")

NEW_USER, CUSTOMIZATION, USER = "binance/if_new_user", "binance/customization", "binance/user_customization"
SNAPSHOTS = (NEW_USER, CUSTOMIZATION, USER)
CLIENT = ("BINANCE_CLIENT_API_KEY", "BINANCE_CLIENT_API_SECRET")
PARTNER = ("BINANCE_PARTNER_API_KEY", "BINANCE_PARTNER_API_SECRET")


def today() -> date:
    return datetime.now(UTC).date()


def customers(query) -> Counter:
    return Counter(query("select customer_id, email from binance.customization where partition_date = %s", today()))


def test_the_clients_present_state_lands(sandbox, query):
    run = land(NEW_USER, [today()])

    assert run.success, run.message
    assert query("select api_agent_code, rebate_working, if_new_user, referrer_id from binance.if_new_user") == [
        (sandbox.binance.api_agent_code, True, True, "39472261")
    ]
    [request] = sandbox.requests
    assert request.params["apiAgentCode"] == sandbox.binance.api_agent_code


def test_one_request_without_a_filter_lands_all_customers(sandbox, query):
    run = land(CUSTOMIZATION, [today()])

    assert run.success, run.message
    assert customers(query) == Counter(sandbox.binance.customers.by_id.items())
    assert len(customers(query)) > 200
    [request] = sandbox.requests
    assert not {"customerId", "email"} & request.params.keys()


def test_a_later_snapshot_of_the_day_replaces_the_earlier_one_even_if_it_is_smaller(sandbox, query):
    land(CUSTOMIZATION, [today()])
    del sandbox.binance.customers.by_id["hsp3wi"]
    sandbox.binance.customers.assign("abc123", "test12345@126.com")

    run = land(CUSTOMIZATION, [today()])

    assert run.success, run.message
    assert customers(query) == Counter(sandbox.binance.customers.by_id.items())

    sandbox.binance.customers.by_id.clear()
    assert land(CUSTOMIZATION, [today()]).success
    assert customers(query) == Counter()


def test_the_clients_own_id_lands_with_the_requested_agent_code(sandbox, query):
    for own_id in ("", "abc123"):
        sandbox.binance.customers.own_id = own_id

        run = land(USER, [today()])

        assert run.success, run.message
        assert query("select api_agent_code, customer_id from binance.user_customization") == [
            (sandbox.binance.api_agent_code, own_id)
        ]


def test_a_response_may_be_a_list_a_row_or_empty(sandbox, query):
    # Each response replaces the rows of the one before. null comes first, since it is refused once rows have landed.
    for body, landed in (
        ("null", []),
        ('[{"customerId":"a"},{"customerId":"b","apiAgentCode":"OTHER"}]', [("OTHER", "b"), ("SANDBOX1", "a")]),
        ("[]", []),
        ("{}", [("SANDBOX1", None)]),
    ):
        sandbox.faults.next_responses.append((200, {}, body.encode()))

        run = land(USER, [today()])

        assert run.success, run.message
        assert query("select api_agent_code, customer_id from binance.user_customization order by 1") == landed, body


def test_a_response_that_is_not_a_row_fails_the_day(sandbox):
    sandbox.faults.next_responses.append((200, {}, b'"abc123"'))

    run = land(USER, [today()])

    assert "neither a row nor a list of rows" in run.failed[today()]


@pytest.mark.parametrize("trust_old", [False, True])
def test_yesterday_is_refused_with_the_reason_and_without_a_request(sandbox, trust_old):
    yesterday = today() - timedelta(days=1)

    reasons = {key: land(key, [yesterday], trust_old=trust_old).failed[yesterday] for key in SNAPSHOTS}

    assert [key for key, reason in reasons.items() if "only today can be materialized" not in reason] == []
    assert sandbox.requests == []


def test_a_list_with_the_length_of_a_full_page_is_reported_as_possibly_truncated(sandbox, caplog):
    rows = [{"customerId": f"c{number}", "email": f"c{number}@example.com"} for number in range(500)]
    sandbox.faults.next_responses.append((200, {}, json.dumps(rows).encode()))

    run = land(CUSTOMIZATION, [today()])

    assert run.success, run.message
    [check] = run.checks
    assert not check.passed and "exactly 500 rows" in description_of(check)
    assert "exactly 500 rows" in caplog.text


ASSETS = {
    "binance/if_new_user": CLIENT,
    "binance/user_customization": CLIENT,
    "binance/user_customization_assignment": CLIENT,
    "binance/customization": PARTNER,
    "binance/customization_assignment": PARTNER,
}


@pytest.mark.parametrize(("own", "other"), [(CLIENT, PARTNER), (PARTNER, CLIENT)], ids=["client", "partner"])
def test_without_its_own_key_an_asset_fails_alone_and_names_the_variables(sandbox, monkeypatch, own, other):
    for variable in own:
        monkeypatch.delenv(variable)

    for key in assets_of(own):
        problem = problem_of(key)
        assert all(f"{variable} is not set" in problem for variable in own), key
    assert sandbox.requests == []
    assert land(assets_of(other)[0], [today()]).success


def test_without_the_agent_code_the_clients_assets_fail_and_name_the_variable(sandbox, monkeypatch):
    monkeypatch.delenv("BINANCE_API_AGENT_CODE")

    for key in assets_of(CLIENT):
        assert "BINANCE_API_AGENT_CODE is not set" in problem_of(key), key
    assert sandbox.requests == []


def assets_of(names: tuple[str, str]) -> list[str]:
    """The assets that need the key of these variables."""
    return [key for key, own in ASSETS.items() if own == names]


def problem_of(key: str) -> str:
    """The text of the `SettingsError` with which a run of the asset fails."""
    with pytest.raises(SettingsError) as raised:
        land(key, [today()])
    return f"{raised.value}"


@pytest.mark.parametrize("key", [NEW_USER, CUSTOMIZATION])
def test_a_key_of_the_other_account_is_refused_with_the_variables_name(sandbox, monkeypatch, key):
    own, other = (CLIENT, PARTNER) if key == NEW_USER else (PARTNER, CLIENT)
    others_key = sandbox.binance.partner_key if own == CLIENT else sandbox.binance.client_key
    monkeypatch.setenv(own[0], others_key)
    monkeypatch.setenv(own[1], sandbox.binance.keys[others_key])

    run = land(key, [today()])

    assert "-2015" in run.failed[today()] and own[0] in run.failed[today()] and other[0] not in run.failed[today()]
