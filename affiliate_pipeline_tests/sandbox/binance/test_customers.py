"""The customer ids and referral endpoints of the sandbox's Binance."""

import json
from collections import Counter

import pytest

NEW_USER, CUSTOMIZATION, USER = (
    f"/sapi/v1/apiReferral/{name}" for name in ("ifNewUser", "customization", "userCustomization")
)
TAKEN_ID, OWNER = "hsp3wi", "xq.000@yahoo.co.jp"


@pytest.fixture
def call(sandbox, caller):
    """Calls an endpoint with the key of the role that it requires: partner or client."""

    def run(method, path, **params):
        caller.key = sandbox.binance.partner_key if path == CUSTOMIZATION else sandbox.binance.client_key
        caller.secret = sandbox.binance.keys[caller.key]
        return caller.call(path, method, **params)

    return run


def test_all_customers_are_listed_and_one_is_found_by_id_or_email(sandbox, call):
    listed = call("GET", CUSTOMIZATION).json
    assert Counter(map(json.dumps, listed)) == Counter(
        json.dumps({"customerId": each, "email": email}) for each, email in sandbox.binance.customers.by_id.items()
    )
    one = [{"customerId": TAKEN_ID, "email": OWNER}]
    assert call("GET", CUSTOMIZATION, customerId=TAKEN_ID).json == call("GET", CUSTOMIZATION, email=OWNER).json == one
    assert call("GET", CUSTOMIZATION, email="unknown@example.com").json == []
    assert call("GET", CUSTOMIZATION, customerId=TAKEN_ID, email=OWNER).refusal == (400, -1128)


@pytest.mark.parametrize("in_body", [False, True])
def test_a_new_id_replaces_the_previous_id_of_an_email(sandbox, call, in_body):
    row = {"customerId": "a+b", "email": OWNER}
    assert call("POST", CUSTOMIZATION, in_body=in_body, **row).json == row
    assert call("GET", CUSTOMIZATION, email=OWNER).json == [row]
    assert call("GET", CUSTOMIZATION, customerId=TAKEN_ID).json == []


def test_an_id_of_another_email_is_refused(sandbox, call):
    assert call("POST", CUSTOMIZATION, customerId=TAKEN_ID, email="other@example.com").refusal == (400, -1130)
    assert sandbox.binance.customers.by_id[TAKEN_ID] == OWNER
    assert call("POST", CUSTOMIZATION, customerId=TAKEN_ID, email=OWNER).status == 200


@pytest.mark.parametrize(
    ("params", "code"),
    [({"customerId": "x"}, -1102), ({"email": OWNER}, -1102), ({"customerId": "x", "email": "no email"}, -1130)],
)
def test_an_assignment_requires_an_id_and_a_valid_email(call, params, code):
    assert call("POST", CUSTOMIZATION, **params).refusal == (400, code)


def test_the_client_has_one_id_under_its_agent(sandbox, call):
    agent = {"apiAgentCode": sandbox.binance.api_agent_code}
    assert call("GET", USER, **agent).json == {"customerId": ""}
    assert call("POST", USER, customerId="mine", **agent).json == {"customerId": "mine"}
    assert call("GET", USER, **agent).json == {"customerId": "mine"}
    assert call("POST", USER, customerId=TAKEN_ID, **agent).refusal == (400, -1130)
    assert call("GET", USER).refusal == (400, -1102)
    assert call("GET", USER, apiAgentCode="OTHER").refusal == (400, -1130)


def test_only_the_agents_own_code_has_a_working_rebate(sandbox, call):
    assert call("GET", NEW_USER).refusal == (400, -1102)
    code = sandbox.binance.api_agent_code
    row = {"apiAgentCode": code, "rebateWorking": True, "ifNewUser": True, "referrerId": 39472261}
    assert call("GET", NEW_USER, apiAgentCode=code).json == row
    assert call("GET", NEW_USER, apiAgentCode="OTHER").json == row | {"apiAgentCode": "OTHER", "rebateWorking": False}


def test_a_failing_post_has_no_effect_but_a_fault_only_replaces_the_response(sandbox, call):
    sandbox.binance.posts_to_fail = 1
    assert call("POST", CUSTOMIZATION, customerId="new1", email="new@example.com").refusal == (500, -1001)
    assert "new1" not in sandbox.binance.customers.by_id
    sandbox.faults.mix(http_500=1)
    assert call("POST", CUSTOMIZATION, customerId="new1", email="new@example.com").refusal == (500, -1001)
    assert sandbox.binance.customers.by_id["new1"] == "new@example.com"
