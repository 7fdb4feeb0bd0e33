"""The key, signature, clock and weight checks of the sandbox's Binance."""

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256

from affiliate_pipeline.sandbox.signatures import verifier
from affiliate_pipeline_tests.sandbox.conftest import REBATES, public_pem

RSA_KEY = rsa.generate_private_key(65537, 2048)
ED25519_KEY = ed25519.Ed25519PrivateKey.generate()


def in_base64(sign):
    return lambda payload: base64.b64encode(sign(payload)).decode()


SIGNERS = {
    "rsa": (RSA_KEY, in_base64(lambda payload: RSA_KEY.sign(payload, padding.PKCS1v15(), SHA256()))),
    "ed25519": (ED25519_KEY, in_base64(ED25519_KEY.sign)),
}


def test_an_hmac_signature_is_accepted(caller):
    assert caller.rebates().status == 200


def test_an_hmac_signature_in_upper_case_is_accepted(caller):
    caller.sign = lambda payload: caller.hmac_sha256(payload).upper()
    assert caller.rebates().status == 200


def test_binances_published_signatures_are_verified():
    verify = verifier("NhqPtmdSJYdKjVHjA7PZj4Mge3R5YNiP1e3UZjInClVN65XAbvqqM6A7H5fATj0j")
    rest = "&side=BUY&type=LIMIT&timeInForce=GTC&quantity=1&price=0.1&recvWindow=5000&timestamp=1499827319559"
    plain, wide = b"symbol=LTCBTC", b"symbol=%EF%BC%91%EF%BC%92%EF%BC%93%EF%BC%94%EF%BC%95%EF%BC%96"
    assert verify(plain + rest.encode(), "c8db56825ae71d6d79447849e617115f4a920fa2acdcab2b053c4b2838bd6b71")
    assert verify(wide + rest.encode(), "e1353ec6b14d888f1164ae9af8228a3dbd508bc82eb867db8ab6046442f33ef3")
    assert not verify(wide + rest.encode(), "c8db56825ae71d6d79447849e617115f4a920fa2acdcab2b053c4b2838bd6b71")


@pytest.mark.parametrize("kind", SIGNERS)
def test_a_key_pair_signature_is_accepted(sandbox, caller, kind):
    private_key, caller.sign = SIGNERS[kind]
    sandbox.binance.add_key("pair", public_pem(private_key))
    caller.key = "pair"
    assert caller.rebates().status == 200


@pytest.mark.parametrize("kind", SIGNERS)
@pytest.mark.parametrize("damage", [lambda text: text[:-8] + "AAAAAAA=", lambda text: "no base64", str.lower])
def test_a_wrong_key_pair_signature_is_refused(sandbox, caller, kind, damage):
    private_key, sign = SIGNERS[kind]
    sandbox.binance.add_key("pair", public_pem(private_key))
    caller.key, caller.sign = "pair", lambda payload: damage(sign(payload))
    assert caller.rebates().refusal == (400, -1022)


def test_the_signature_of_another_secret_is_refused(caller):
    caller.secret = "another"
    assert caller.rebates().refusal == (400, -1022)


@pytest.mark.parametrize("key", [None, "", "unknown"])
def test_a_missing_or_unknown_key_is_refused(caller, key):
    caller.key = key
    assert caller.rebates().refusal == (401, -2015)


@pytest.mark.parametrize(
    ("key", "paths"),
    [
        ("client_key", {"rebate/recentRecord": "GET", "customization": "GET POST"}),
        ("partner_key", {"ifNewUser": "GET", "userCustomization": "GET POST", "kickback/recentRecord": "GET"}),
        ("partner_key", {"kickback/historicalRecord": "GET POST"}),
    ],
)
def test_an_endpoint_of_the_other_role_is_refused(sandbox, caller, key, paths):
    caller.key = getattr(sandbox.binance, key)
    caller.secret = sandbox.binance.keys[caller.key]
    for path, methods in paths.items():
        for method in methods.split():
            assert caller.call(f"/sapi/v1/apiReferral/{path}", method).refusal == (401, -2015)


def test_the_refusal_of_an_unsigned_request_names_the_signature(caller, clock):
    response = caller.raw(f"{REBATES}?limit=1&timestamp={clock.ms}")
    assert response.refusal == (400, -1102) and "'signature'" in response.json["msg"]


def test_a_signature_that_is_not_last_is_refused(caller, clock):
    query = f"limit=1&timestamp={clock.ms}"
    signature = caller.sign(query.encode())
    for target in (f"limit=1&signature={signature}&timestamp={clock.ms}", f"signature={signature}&{query}"):
        assert caller.raw(f"{REBATES}?{target}").refusal == (400, -1022)


def test_parameters_may_have_any_order_but_must_be_signed_in_the_order_sent(caller, clock):
    assert caller.signed(f"timestamp={clock.ms}&limit=1").status == 200
    signature = caller.sign(f"limit=1&timestamp={clock.ms}".encode())
    swapped = f"timestamp={clock.ms}&limit=1&signature={signature}"
    assert caller.raw(f"{REBATES}?{swapped}").refusal == (400, -1022)


def test_the_signature_covers_the_query_followed_by_the_body(caller, clock):
    query, body = f"limit=1&timestamp={clock.ms}", "customerId=a"
    signature = caller.sign((query + body).encode())
    assert caller.raw(f"{REBATES}?{query}", body=f"{body}&signature={signature}").status == 200
    assert caller.raw(f"{REBATES}?{query}", body=f"customerId=b&signature={signature}").refusal == (400, -1022)
    assert caller.raw(f"{REBATES}?{query}&signature={signature}", body=body).refusal == (400, -1022)


def test_percent_encoded_values_are_accepted(caller, clock):
    values = ["a%2Bb", "a%26b%3Dc", "50%25", "%E7%94%A8", "a%27b%22", "-._~", "%20"]
    statuses = {value: caller.signed(f"limit=1&customerId={value}&timestamp={clock.ms}").status for value in values}
    assert statuses == dict.fromkeys(values, 200)


def test_a_query_with_another_encoding_is_refused(caller, clock):
    values = ["a%2bb", "a+b", "a@b", "a:b", "50%", "%2", "a=b", "a'b", "a*b", "a,b", "a/b"]
    refusals = {value: caller.signed(f"limit=1&customerId={value}&timestamp={clock.ms}").refusal for value in values}
    assert refusals == dict.fromkeys(values, (400, -1022))


@pytest.mark.parametrize("query", ["limit=1&&timestamp={}", "&limit=1&timestamp={}", "limit&timestamp={}"])
def test_a_query_with_an_empty_pair_or_without_a_value_is_refused(caller, clock, query):
    assert caller.signed(query.format(clock.ms)).refusal == (400, -1022)


@pytest.mark.parametrize(
    ("offset_ms", "recv_window", "accepted"),
    [
        (1000, None, True),
        (1001, None, False),
        (-5000, None, True),
        (-5001, None, False),
        (-60_000, 60_000, True),
        (-60_001, 60_000, False),
        (-11, 10, False),
    ],
)
def test_a_timestamp_outside_the_recv_window_is_refused(caller, clock, offset_ms, recv_window, accepted):
    response = caller.rebates(timestamp=clock.ms + offset_ms, recvWindow=recv_window)
    assert response.status == 200 if accepted else response.refusal == (400, -1021)


def test_the_refusal_of_a_missing_timestamp_names_it(caller):
    response = caller.rebates(timestamp=None)
    assert response.refusal == (400, -1102) and "'timestamp'" in response.json["msg"]


def test_a_timestamp_that_is_not_a_number_is_refused(caller):
    assert caller.rebates(timestamp="now").refusal == (400, -1100)


def test_a_recv_window_above_60_s_is_refused(caller):
    assert caller.rebates(recvWindow=60_001).refusal == (400, -1131)


def test_duplicated_parameters_are_refused(caller, clock):
    assert caller.signed(f"limit=1&limit=1&timestamp={clock.ms}").refusal == (400, -1101)


def test_unknown_parameters_are_refused(caller):
    assert caller.rebates(page=1).refusal == (400, -1101)


def test_an_empty_parameter_is_refused(caller):
    assert caller.rebates(customerId="").refusal == (400, -1105)


def test_the_time_endpoint_needs_neither_key_nor_signature(sandbox, caller, clock):
    caller.key = None
    assert caller.raw("/api/v3/time").json == {"serverTime": clock.ms}
    sandbox.faults.clock_offset_ms = 90_000
    assert caller.raw("/api/v3/time").json == {"serverTime": clock.ms + 90_000}


def test_timestamps_are_checked_against_the_exchanges_clock(sandbox, caller, clock):
    sandbox.faults.clock_offset_ms = 90_000
    assert caller.rebates().refusal == (400, -1021)
    assert caller.rebates(timestamp=clock.ms + 90_000).status == 200


@pytest.mark.parametrize("target", ["/", "/sapi/v1/unknown", "/api/v3/unknown", "/elsewhere?a=b"])
def test_an_unknown_path_is_not_found(caller, target):
    assert caller.raw(target).status == 404


def test_a_post_to_an_endpoint_with_only_a_get_is_not_found(caller):
    assert caller.raw(REBATES, method="POST", body="limit=1").status == 404


def test_weight_is_counted_over_a_sliding_minute(sandbox, caller, clock):
    sandbox.binance.weight.limit = 3
    used = []
    for _ in range(3):
        used.append(caller.rebates().headers["X-SAPI-USED-IP-WEIGHT-1M"])
        clock.ms += 10_000
    assert used == ["1", "2", "3"]
    response = caller.rebates()
    assert response.refusal == (429, -1003) and response.headers["Retry-After"] == "30"
    clock.ms += 30_000
    assert caller.rebates().headers["X-SAPI-USED-IP-WEIGHT-1M"] == "3"


def test_a_caller_that_waits_for_retry_after_is_never_banned(sandbox, caller, clock):
    sandbox.binance.weight.limit, sandbox.binance.weight.refusals_before_ban = 1, 1
    for _ in range(3):
        assert [caller.rebates().status for _ in range(2)] == [200, 429]
        clock.ms += 60_000


def test_a_caller_that_ignores_retry_after_is_banned(sandbox, caller, clock):
    sandbox.binance.weight.limit, sandbox.binance.weight.refusals_before_ban = 1, 2
    statuses = [caller.rebates().status for _ in range(4)]
    assert statuses == [200, 429, 429, 418]
    clock.ms += 60_000
    banned = caller.rebates()
    assert banned.refusal == (418, -1003) and banned.headers["Retry-After"] == "60"
    clock.ms += 60_000
    assert caller.rebates().status == 200
