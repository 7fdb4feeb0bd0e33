"""The signature, stamp and clock checks of the sandbox's LBank."""

import base64
import time
from contextlib import closing

import ccxt
import pytest
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from affiliate_pipeline.sandbox.days import DAY_MS
from affiliate_pipeline_tests.sandbox.conftest import public_pem
from affiliate_pipeline_tests.sandbox.lbank.lbank_requests import INFO

RSA_KEY = rsa.generate_private_key(65537, 2048)
SIGNING_PARAMETERS = ("api_key", "timestamp", "signature_method", "echostr")


def unencoded(params):
    """The parameters as a query without percent-encoding."""
    return "&".join(f"{name}={value}" for name, value in params.items())


@pytest.fixture
def with_rsa(sandbox, lbank_caller):
    sandbox.lbank.add_key("pair", public_pem(RSA_KEY))
    lbank_caller.stamp |= {"api_key": "pair", "signature_method": "RSA"}
    lbank_caller.sign = lambda payload: base64.b64encode(RSA_KEY.sign(payload, padding.PKCS1v15(), SHA256())).decode()
    return lbank_caller


def test_an_hmac_signature_is_accepted(info, lbank):
    assert info().data["openId"] == lbank.own_open_id


def test_an_rsa_signature_is_accepted(with_rsa, info):
    assert info().data["inviteResult"] is True


def test_the_signature_of_ccxt_is_accepted(lbank, lbank_caller):
    client = ccxt.lbank({"apiKey": lbank.api_key, "secret": lbank.api_secret})
    client.milliseconds = lambda: lbank_caller.clock.ms
    signed = client.sign("invite/user/info", ["spot", "private"], "GET", {"openId": lbank.own_open_id})
    headers = {name: signed["headers"][name] for name in SIGNING_PARAMETERS[1:]}
    assert lbank_caller.raw(INFO, signed["body"], headers).data["inviteResult"] is True


@pytest.mark.parametrize("method", ["HmacSHA256", "RSA"])
def test_lbanks_official_connector_is_accepted(sandbox, lbank, clock, method):
    connector = pytest.importorskip("lbank.old_api", reason="make test installs it, without its pinned dependencies")
    clock.ms = round(time.time() * 1000)
    lbank.add_key("pair", public_pem(RSA_KEY))
    private = RSA_KEY.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    key, secret = {
        "HmacSHA256": (lbank.api_key, lbank.api_secret),
        "RSA": ("pair", base64.b64encode(private).decode()),
    }[method]
    day = {"startTime": clock.ms - DAY_MS, "endTime": clock.ms, "start": 0, "pageSize": 100}

    with closing(connector.BlockHttpClient(method, key, secret, f"{sandbox.url}/affiliate-api/v2/")) as client:
        info = client.http_request("GET", INFO, {"openId": lbank.own_open_id})
        # The signature covers an empty parameter too.
        params = {"openId": lbank.own_open_id, "tradeType": 10, "coin": ""} | day
        commissions = client.http_request("GET", "commission/stats/symbol/list", params)

    assert info["data"]["openId"] == lbank.own_open_id
    assert (commissions["result"], commissions["error_code"]) == ("true", 0)


@pytest.mark.parametrize("in_headers", [SIGNING_PARAMETERS[1:], SIGNING_PARAMETERS, ()])
def test_the_stamp_is_accepted_in_the_headers_in_the_query_or_in_both(lbank, lbank_caller, in_headers):
    signed = lbank_caller.signed({"openId": lbank.own_open_id})
    headers = {name: signed[name] for name in in_headers}
    in_query = {name: value for name, value in signed.items() if name not in in_headers}
    for sent in (in_query, signed):
        assert lbank_caller.raw(INFO, unencoded(sent), headers).data["inviteResult"] is True


@pytest.mark.parametrize("name", SIGNING_PARAMETERS)
def test_a_header_that_differs_from_the_query_is_refused(lbank, lbank_caller, name):
    signed = lbank_caller.signed({"openId": lbank.own_open_id})
    response = lbank_caller.raw(INFO, unencoded(signed), {name: signed[name] + "0"})
    assert response.error_code == 10003 and name in response.json["msg"]


@pytest.mark.parametrize("name", SIGNING_PARAMETERS)
def test_the_refusal_of_an_incomplete_stamp_names_the_missing_parameter(info, name):
    response = info(**{name: None})
    assert response.error_code == 10001 and name in response.json["msg"]


def test_a_missing_signature_is_refused(lbank_caller):
    assert lbank_caller.raw(INFO, unencoded(lbank_caller.stamped({"openId": "x"}))).error_code == 10001


def test_an_unknown_key_is_refused(info):
    assert info(api_key="unknown").error_code == 10005


def test_the_signature_of_another_secret_is_refused(lbank_caller, info):
    lbank_caller.secret = "another"
    assert info().error_code == 10007


def test_an_hmac_signature_in_upper_case_is_refused(lbank_caller, info):
    lbank_caller.sign = lambda payload: lbank_caller.hmac_sha256(payload).upper()
    assert info().error_code == 10007


@pytest.mark.parametrize("damage", [lambda text: text[:-8] + "AAAAAAA=", lambda text: "no base64", str.lower])
def test_a_wrong_rsa_signature_is_refused(with_rsa, info, damage):
    sign = with_rsa.sign
    with_rsa.sign = lambda payload: damage(sign(payload))
    assert info().error_code == 10007


def test_a_signature_method_that_does_not_match_the_key_is_refused(with_rsa, info, lbank):
    with_rsa.stamp["signature_method"] = "HmacSHA256"
    assert info().error_code == 10007
    with_rsa.stamp |= {"api_key": lbank.api_key, "signature_method": "RSA"}
    assert info().error_code == 10007


def test_an_unknown_signature_method_is_refused(info):
    assert info(signature_method="HMACSHA256").error_code == 10003


@pytest.mark.parametrize(
    ("echostr", "accepted"),
    [("a" * 30, True), ("Z9" * 20, True), ("a" * 29, False), ("a" * 41, False), ("a" * 34 + "-", False)],
)
def test_an_echostr_must_have_30_to_40_letters_and_digits(info, echostr, accepted):
    response = info(echostr=echostr)
    assert response.data if accepted else response.error_code == 10031


@pytest.mark.parametrize(
    ("offset_ms", "accepted"), [(60_000, True), (60_001, False), (-60_000, True), (-60_001, False)]
)
def test_a_timestamp_more_than_60_s_off_is_refused(info, clock, offset_ms, accepted):
    response = info(timestamp=clock.ms + offset_ms)
    assert response.data if accepted else response.error_code == 10600


def test_timestamps_are_checked_against_the_exchanges_clock_which_responses_report(sandbox, info, clock):
    sandbox.faults.clock_offset_ms = 90_000
    response = info()
    assert (response.error_code, response.json["ts"]) == (10600, clock.ms + 90_000)
    assert info(timestamp=response.json["ts"]).data


@pytest.mark.parametrize("timestamp", ["now", "1748952000.0", "-1"])
def test_a_timestamp_that_is_not_a_natural_number_is_refused(info, timestamp):
    assert info(timestamp=timestamp).error_code == 10003


def test_the_signature_covers_decoded_values_and_a_plus_decodes_to_a_space(lbank_caller):
    assert lbank_caller.get(INFO, openId="a b&c=d+e 用户").data["inviteResult"] is False
    query = unencoded(lbank_caller.signed({"openId": "a+b"}))
    assert lbank_caller.raw(INFO, query).error_code == 10007
    assert lbank_caller.raw(INFO, query.replace("a+b", "a%2Bb")).data["inviteResult"] is False


def test_duplicated_parameters_are_refused(lbank_caller):
    query = unencoded(lbank_caller.signed({"openId": "x"}))
    assert lbank_caller.raw(INFO, query + "&openId=x").error_code == 10003
