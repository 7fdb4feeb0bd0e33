"""Several accounts at the sandbox's Binance: the data and uid of each key, and the shared weight limit."""

import base64

from cryptography.hazmat.primitives.asymmetric import ed25519

from affiliate_pipeline.sandbox.days import DAY_MS
from affiliate_pipeline_tests.sandbox.conftest import REBATES, public_pem

CUSTOMERS = "/sapi/v1/apiReferral/customization"
NEW_USER = "/sapi/v1/apiReferral/ifNewUser"
KICKBACKS, EXPORT = (f"/sapi/v1/apiReferral/kickback/{name}" for name in ("recentRecord", "historicalRecord"))
ACCOUNT = "/api/v3/account"


def test_each_key_returns_the_records_and_customers_of_its_account(sandbox, acme, call_as, clock):
    window = {"startTime": clock.ms - DAY_MS, "endTime": clock.ms, "limit": 500}
    # Kickbacks have no id: their whole rows are compared.
    for role, path, params, id_field in (
        ("partner", REBATES, window, "orderId"),
        ("partner", CUSTOMERS, {}, "email"),
        ("client", KICKBACKS, window, None),
    ):
        default, further = (
            {
                str(row.values()) if id_field is None else row[id_field]
                for row in call_as(account, role, path, **params).json
            }
            for account in (sandbox.accounts[""], acme)
        )
        assert default and further and not default & further, path


def test_an_assignment_changes_only_its_account(sandbox, acme, call_as):
    assigned = {"customerId": "new1", "email": "new@example.com"}
    assert call_as(acme, "partner", CUSTOMERS, "POST", **assigned).json == assigned
    assert call_as(acme, "partner", CUSTOMERS, customerId="new1").json == [assigned]
    assert call_as(sandbox.accounts[""], "partner", CUSTOMERS, customerId="new1").json == []


def test_each_account_has_its_own_export(sandbox, acme, call_as, caller, clock):
    window = {"startTime": clock.ms - 2 * DAY_MS, "endTime": clock.ms - DAY_MS}
    files = []
    for account in (sandbox.accounts[""], acme):
        assert call_as(account, "client", EXPORT).refusal == (400, -1130)
        call_as(account, "client", EXPORT, "POST", **window)
        files.append(call_as(account, "client", EXPORT).json)
    contents = [caller.send("GET", url.removeprefix(sandbox.url), {}) for url in files]
    assert [content.status for content in contents] == [200, 200]
    assert len({content.body for content in contents}) == 2
    assert [request.account for request in sandbox.requests[-2:]] == ["", "acme"]


def test_partner_and_client_of_each_account_have_a_uid(sandbox, acme, call_as):
    uids = [
        call_as(account, role, ACCOUNT, omitZeroBalances="true").json["uid"]
        for account in (sandbox.accounts[""], acme)
        for role in ("partner", "client")
    ]
    assert uids == [*sandbox.binance.uids.values(), *acme.binance.uids.values()] and len(set(uids)) == 4
    referral = call_as(acme, "client", NEW_USER, apiAgentCode=acme.binance.api_agent_code).json
    assert (referral["rebateWorking"], referral["referrerId"]) == (True, acme.binance.uids["partner"])


def test_a_rotated_key_has_the_uid_of_its_account(acme, caller):
    private_key = ed25519.Ed25519PrivateKey.generate()
    acme.binance.add_key("rotated", public_pem(private_key), "client")
    caller.key, caller.sign = "rotated", lambda payload: base64.b64encode(private_key.sign(payload)).decode()
    assert caller.call(ACCOUNT).json["uid"] == acme.binance.uids["client"]


def test_the_account_endpoint_is_refused_without_signature_or_permission(acme, call_as, caller, clock):
    assert call_as(acme, "client", ACCOUNT, limit=1).refusal == (400, -1101)
    assert caller.raw(f"{ACCOUNT}?timestamp={clock.ms}").refusal == (400, -1102)
    # Of these two endpoints, only the account's requires the permission to read.
    acme.binance.keys_without_uid_permission.add(acme.binance.client_key)
    assert call_as(acme, "client", ACCOUNT).refusal == (401, -2015)
    assert call_as(acme, "client", KICKBACKS).status == 200


def test_the_weight_of_all_accounts_is_limited_together(sandbox, acme, call_as):
    sandbox.binance.weight.limit = 22
    first = sandbox.accounts[""]
    assert call_as(first, "client", KICKBACKS).headers["X-SAPI-USED-IP-WEIGHT-1M"] == "1"
    assert call_as(acme, "partner", ACCOUNT).headers["X-MBX-USED-WEIGHT-1M"] == "21"
    assert call_as(acme, "partner", ACCOUNT).refusal == (429, -1003)
    assert call_as(acme, "client", KICKBACKS).headers["X-SAPI-USED-IP-WEIGHT-1M"] == "22"
    assert call_as(first, "client", KICKBACKS).refusal == (429, -1003)
