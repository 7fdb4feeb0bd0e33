"""Who is called what in the sandbox, as strictly as the exchange has it."""

import json
from collections import Counter

import pytest

NEW_USER, CUSTOMIZATION, USER = (
    f"/sapi/v1/apiReferral/{name}" for name in ("ifNewUser", "customization", "userCustomization")
)
HELD, HOLDER = "hsp3wi", "xq.000@yahoo.co.jp"


@pytest.fixture
def call(sandbox, caller):
    """Calls an endpoint with its account."""

    def run(method, path, **params):
        caller.key = sandbox.binance.partner_key if path == CUSTOMIZATION else sandbox.binance.client_key
        caller.secret = sandbox.binance.accounts[caller.key]
        return caller.call(path, method, **params)

    return run


def test_everybody_is_listed_or_one_by_id_or_email(sandbox, call):
    everybody = call("GET", CUSTOMIZATION).json
    assert Counter(map(json.dumps, everybody)) == Counter(
        json.dumps({"customerId": each, "email": email}) for each, email in sandbox.binance.customers.by_id.items()
    )
    one = [{"customerId": HELD, "email": HOLDER}]
    assert call("GET", CUSTOMIZATION, customerId=HELD).json == call("GET", CUSTOMIZATION, email=HOLDER).json == one
    assert call("GET", CUSTOMIZATION, email="nobody@example.com").json == []
    assert call("GET", CUSTOMIZATION, customerId=HELD, email=HOLDER).refusal == (400, -1128)


@pytest.mark.parametrize("in_body", [False, True])
def test_an_email_has_one_id_at_a_time(sandbox, call, in_body):
    assert call("POST", CUSTOMIZATION, in_body=in_body, customerId="a+b", email=HOLDER).json == {
        "customerId": "a+b",
        "email": HOLDER,
    }
    assert call("GET", CUSTOMIZATION, email=HOLDER).json == [{"customerId": "a+b", "email": HOLDER}]
    assert call("GET", CUSTOMIZATION, customerId=HELD).json == []


def test_an_id_is_one_persons(sandbox, call):
    assert call("POST", CUSTOMIZATION, customerId=HELD, email="other@example.com").refusal == (400, -1130)
    assert sandbox.binance.customers.by_id[HELD] == HOLDER
    assert call("POST", CUSTOMIZATION, customerId=HELD, email=HOLDER).status == 200


@pytest.mark.parametrize(
    ("params", "code"),
    [({"customerId": "x"}, -1102), ({"email": HOLDER}, -1102), ({"customerId": "x", "email": "nobody"}, -1130)],
)
def test_both_are_needed_and_the_email_is_one(call, params, code):
    assert call("POST", CUSTOMIZATION, **params).refusal == (400, code)


def test_the_client_has_one_id_with_its_agent(sandbox, call):
    agent = {"apiAgentCode": sandbox.binance.api_agent_code}
    assert call("GET", USER, **agent).json == {"customerId": ""}
    assert call("POST", USER, customerId="mine", **agent).json == {"customerId": "mine"}
    assert call("GET", USER, **agent).json == {"customerId": "mine"}
    assert call("POST", USER, customerId=HELD, **agent).refusal == (400, -1130)
    assert call("GET", USER).refusal == (400, -1102)
    assert call("GET", USER, apiAgentCode="OTHER").refusal == (400, -1130)


def test_the_agents_code_works_or_not(sandbox, call):
    assert call("GET", NEW_USER).refusal == (400, -1102)
    code = sandbox.binance.api_agent_code
    row = {"apiAgentCode": code, "rebateWorking": True, "ifNewUser": True, "referrerId": 39472261}
    assert call("GET", NEW_USER, apiAgentCode=code).json == row
    assert call("GET", NEW_USER, apiAgentCode="OTHER").json == row | {"apiAgentCode": "OTHER", "rebateWorking": False}


def test_a_post_may_fail_done_or_not_done(sandbox, call):
    sandbox.binance.failing_posts = 1
    assert call("POST", CUSTOMIZATION, customerId="new1", email="new@example.com").refusal == (500, -1001)
    assert "new1" not in sandbox.binance.customers.by_id
    sandbox.faults.mix(http_500=1)
    assert call("POST", CUSTOMIZATION, customerId="new1", email="new@example.com").refusal == (500, -1001)
    assert sandbox.binance.customers.by_id["new1"] == "new@example.com"
