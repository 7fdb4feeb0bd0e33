"""Errors quote the exchange's code and message whatever their status and shape, and add no advice that contradicts them."""

import gzip
import json
from collections.abc import Callable
from functools import partial

import pytest

from affiliate_pipeline.exchanges.binance import responses as binance
from affiliate_pipeline.exchanges.binance.signing import BinanceAuth
from affiliate_pipeline.exchanges.lbank import responses as lbank
from affiliate_pipeline.exchanges.lbank.signing import LBankAuth
from affiliate_pipeline.http.client import Client, Clock, Unlimited
from affiliate_pipeline.http.errors import (
    AccessRefused,
    Banned,
    ExchangeError,
    Fatal,
    OutcomeUnknown,
    RateLimited,
    Refused,
    Transient,
)
from affiliate_pipeline_tests.scripted_server import http

KEY = "BINANCE_PARTNER_API_KEY"
LOCATION = (
    "Service unavailable from a restricted location according to 'b. Eligibility' in https://www.binance.com/terms."
)
CLOUDFLARE = (
    "<!DOCTYPE html><html><head><title>Attention Required! | Cloudflare</title><style>p {}</style></head><body>"
)
CLOUDFLARE += "<h1>Sorry, you have been blocked</h1><script>var a=1</script><p>Ray&nbsp;ID: 8d1f</p></body></html>"
MAINTENANCE = "<html><title>系统维护</title><body>系统维护中,请稍后再试</body></html>"
LOCATION_NOT_SERVED = "The exchange does not serve the location"
FIREWALL = "usually comes from a firewall or maintenance"
CAUSES_OF_CODE_2015 = ("is wrong", "IP address is not on the key's list", "lacks the permission")


@pytest.fixture(params=["binance", "lbank"])
def exchange(request) -> str:
    return request.param


@pytest.fixture
def error_of(server) -> Callable[..., ExchangeError]:
    """Sends a request that gets this response from the exchange, and returns the error that it raises."""

    def run(exchange: str, status: int, body: str | bytes, method: str = "get", **headers: str) -> ExchangeError:
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        server.default = http(status, body if isinstance(body, bytes) else body.encode(), *lines)
        clock = Clock()
        if exchange == "binance":
            auth = BinanceAuth("key", "secret", clock.now_ms)
            read = partial(binance.read, key_name=KEY, secret_name="BINANCE_PARTNER_API_SECRET")
        else:
            auth, read = LBankAuth("key", "secret", "HmacSHA256", clock.now_ms), lbank.read
        with Client(server.url, auth, clock, Unlimited(), read) as client, pytest.raises(ExchangeError) as raised:
            getattr(client, method)("/x", {}, rows_of, retries=False)
        assert "\n" not in str(raised.value) and len(str(raised.value)) < 700
        return raised.value

    return run


def rows_of(body: bytes) -> list:
    rows = json.loads(body)
    if not isinstance(rows, list):
        raise ValueError("not a list of rows")
    return rows


SHAPES = {
    "code and msg": {"code": -1121, "msg": "Invalid symbol."},
    "text": {"code": "-1121", "msg": "Invalid symbol."},
    "message": {"errorCode": -1121, "message": "Invalid symbol."},
    "error_msg": {"error_code": "-1121", "error_msg": "Invalid symbol."},
    "nested": {"error": {"code": -1121, "message": "Invalid symbol."}},
    "errors": {"errors": [{"code": -1121, "detail": "Invalid symbol."}]},
    "msg is an object": {"code": -1121, "msg": {"en": 1, "message": "Invalid symbol."}},
    "msg is JSON": {"code": -1121, "msg": '{"message":"Invalid symbol."}'},
    "success": {"success": False, "code": "-1121", "message": None, "messageDetail": "Invalid symbol."},
    "detail": {"code": -1121, "detail": [{"loc": ["a"], "msg": "Invalid symbol."}]},
    "in a JSON string": '{"code":-1121,"msg":"Invalid symbol."}',
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_code_and_message_are_found_in_every_shape(error_of, exchange, shape):
    error = error_of(exchange, 404, json.dumps(shape))
    assert type(error) is Refused and "HTTP 404" in str(error)
    assert "code -1121: Invalid symbol" in str(error)


# Without the last shape: with HTTP 200, a JSON string is data.
@pytest.mark.parametrize("shape", list(SHAPES.values())[:-1], ids=list(SHAPES)[:-1])
def test_an_error_body_with_http_200_is_an_error(error_of, shape):
    assert "-1121: Invalid symbol" in str(error_of("binance", 200, json.dumps(shape)))


@pytest.mark.parametrize(
    ("body", "quote"),
    [
        ('{"code":100001003,"message":"verification failed","data":null}', "code 100001003: verification failed"),
        ('{"success":false}', '{"success":false}'),
        ('{"error":"invalid_client","error_description":"no such client"}', "invalid_client; no such client"),
        ('{"code":"ILLEGAL","msg":"no"}', "ILLEGAL; no"),
        ('{"code":-4046,"msg":null}', "code -4046: no message"),
        ('{"code":-4046}', "code -4046: no message"),
        ('{"code":-4046,"msg":5}', "code -4046: 5"),
        ('["not", "good"]', "not; good"),
        ('"not good"', "not good"),
        ("not good", "not good"),
        ("", "without an explanation"),
        (gzip.compress(b'{"code":-4046,"msg":"zipped"}', mtime=0), "code -4046: zipped"),
        ('{"code":-4046,"msg":"参数错误"}'.encode("gbk"), "code -4046: 参数错误"),
        ("\ufeff".encode("utf-16-le") + '{"code":-4046,"msg":"ü"}'.encode("utf-16-le"), "code -4046: ü"),
        (b'{"code":-4046,"msg":"caf\xe9 closed"}', "code -4046: café closed"),
        (b"\x1f\x8bnonsense", "compressed data that cannot be read"),
        ('{"a":' * 5000 + "1" + "}" * 5000, '{"a":{"a"'),
    ],
)
def test_any_body_of_a_failed_request_is_quoted(error_of, body, quote):
    error = error_of("binance", 400, body)
    assert type(error) is Refused and quote in str(error)


def test_a_quote_has_no_secret_no_query_no_email_and_no_control_character(error_of, exchange):
    key = "vmPUZE6mv9SD5VNHk4HlWFsOr6aKE2zvsw0MuIgwCIPy6utIco14y7Ju91duEh8A"
    message = (
        f"\x1b[31mno\r\n\u202e key {key} of jane.doe@example.com at https://a.example/p?signature=abc&x=1 " + "x " * 500
    )
    text = str(error_of(exchange, 400, json.dumps({"code": -1, "message": message})))
    for secret in (key, "jane.doe", "abc", "x=1", "\x1b", "\u202e"):
        assert secret not in text
    assert "https://a.example/p?***" in text and text.endswith("…")


@pytest.mark.parametrize(
    ("status", "phrase"),
    [
        (401, "Unauthorized"),
        (404, "Not Found"),
        (405, "Method Not Allowed"),
        (406, "Not Acceptable"),
        (411, "Length Required"),
        (413, "Request Entity Too Large"),
        (414, "Request-URI Too Long"),
        (415, "Unsupported Media Type"),
        (422, "Unprocessable Entity"),
    ],
)
@pytest.mark.parametrize("body", ["", '{"code":%d,"msg":"no reason"}'])
def test_a_status_is_explained(error_of, exchange, status, phrase, body):
    text = str(error_of(exchange, status, body.replace("%d", str(status))))
    assert f"HTTP {status} ({phrase})" in text and "Usually" in text
    assert "no reason" in text or not body


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("https://login.corp.example/sso?token=a-secret", "login.corp.example/sso"),
        ("/cn/login?x=1", "the same host, /cn"),
    ],
)
def test_a_redirect_is_reported_with_its_target(error_of, exchange, status, location, target):
    error = error_of(exchange, status, "<html>Moved</html>", Location=location)
    assert type(error) is Refused and f"HTTP {status}" in str(error) and f"a redirect to {target}" in str(error)
    assert f"{exchange.upper()}_BASE_URL" in str(error) and "a-secret" not in str(error)


@pytest.mark.parametrize(
    ("status", "body"), [(451, ""), (451, CLOUDFLARE), (403, '{"msg":"%s"}'), (200, '{"msg":"%s"}')]
)
def test_a_location_that_is_not_served_is_not_reported_as_a_wrong_key(error_of, exchange, status, body):
    error = error_of(exchange, status, body.replace("%s", LOCATION))
    assert type(error) is Fatal and LOCATION_NOT_SERVED in str(error)
    assert "API_KEY" not in str(error) and ("b. Eligibility" in str(error) or "%s" not in body)


def test_a_location_that_is_not_served_is_recognized_despite_a_code(error_of):
    error = error_of("binance", 451, json.dumps({"code": 0, "msg": LOCATION}))
    assert type(error) is Fatal and LOCATION_NOT_SERVED in str(error) and "HTTP 451" in str(error)


@pytest.mark.parametrize(
    ("code", "message", "added", "not_added"),
    [
        (-2014, "API-key format invalid.", [KEY, "the whole API key"], ["IP address"]),
        (-2015, "Invalid API-key, IP, or permissions for action.", CAUSES_OF_CODE_2015, []),
        (-2015, "", CAUSES_OF_CODE_2015, []),
        (-2015, "Timestamp expired", [], [*CAUSES_OF_CODE_2015, KEY]),
        (-1022, "Signature for this request is not valid.", ["does not belong to the API key"], ["IP address"]),
        (-1022, "Your IP is not on the list", [], ["does not belong"]),
        (-2008, "Invalid Api-Key ID.", [KEY], ["IP address"]),
        (-1002, "You are not authorized to execute this request.", [KEY], ["IP address"]),
    ],
)
@pytest.mark.parametrize("status", [200, 401, 403])
def test_advice_does_not_contradict_binances_message(error_of, status, code, message, added, not_added):
    error = error_of("binance", status, json.dumps({"code": code, "msg": message}))
    assert type(error) is AccessRefused
    assert f"code {code}: {message.rstrip('.') or 'no message'}" in str(error)
    assert all(text in str(error) for text in added) and not any(text in str(error) for text in not_added)


@pytest.mark.parametrize("code", [-1100, -1102, -1121, -1130, -4001])
def test_an_unknown_code_is_quoted_without_advice(error_of, code):
    error = error_of("binance", 400, json.dumps({"code": code, "msg": "Some reason."}))
    assert type(error) is Refused and str(error) == f"Binance returned HTTP 400, code {code}: Some reason"


@pytest.mark.parametrize(
    ("code", "message", "added", "not_added"),
    [
        (10022, "Invalid authorization", ["LBANK_OPEN_ID", "Usually"], []),
        (10022, "ip not allowed", ["Usually"], []),
        (10022, "timestamp expired", [], ["LBANK", "permission"]),
        (10007, "Invalid signature", ["LBANK_SIGNATURE_METHOD"], []),
        (10007, "timestamp expired", [], ["signature is wrong", "LBANK"]),
        (10007, "签名错误", ["LBANK_SIGNATURE_METHOD"], []),
        (10005, "Secret key does not exist", ["LBANK_API_KEY"], []),
        (10005, "ip not in whitelist", [], ["LBANK"]),
    ],
)
@pytest.mark.parametrize("status", [200, 400])
def test_advice_does_not_contradict_lbanks_message(error_of, status, code, message, added, not_added):
    body = {"result": "false", "error_code": code, "msg": message}
    error = error_of("lbank", status, json.dumps(body))
    assert type(error) is AccessRefused and error.code == code and f"error_code {code}: {message}" in str(error)
    assert all(text in str(error) for text in added) and not any(text in str(error) for text in not_added)


@pytest.mark.parametrize("status", [200, 202, 403, 404, 503])
@pytest.mark.parametrize(
    ("body", "quote", "encoding"),
    [(CLOUDFLARE, "Sorry, you have been blocked Ray ID: 8d1f", "utf-8"), (MAINTENANCE, "系统维护", "gbk")],
)
def test_a_web_page_of_a_firewall_is_transient(error_of, exchange, status, body, quote, encoding):
    error = error_of(exchange, status, body.encode(encoding))
    assert type(error) is Transient and "web page" in str(error) and quote in str(error) and "var a" not in str(error)
    assert status >= 500 or FIREWALL in str(error)


@pytest.mark.parametrize("status", [200, 403])
@pytest.mark.parametrize(
    "body",
    [
        "Service Unavailable",
        "System is under maintenance",
        '"System maintenance"',
        '{"msg":"System maintenance"}',
        '{"code":1,"msg":"系统繁忙"}',
        '{"code":-9000,"message":"System busy, try later"}',
        '{"result":"false","error_code":10022,"msg":"系统维护"}',
        '{"success":false,"message":"The service is temporarily unavailable"}',
        '{"code":503,"message":"no"}',
    ],
)
def test_maintenance_is_transient(error_of, exchange, status, body):
    error = error_of(exchange, status, body)
    assert type(error) is Transient
    assert "API_KEY" not in str(error)


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (202, "", {"x_amzn_waf_action": "challenge"}),
        (204, "", {}),
        (403, "", {}),
        (403, '{"message":"Forbidden"}', {}),
        (403, '{"status":403,"error":"Forbidden"}', {}),
        (408, "", {}),
        (502, "Bad Gateway", {}),
        (504, '{"code":-2015,"msg":"no"}', {}),
        (200, '{"code":500,"msg":"no"}', {}),
    ],
)
def test_failures_between_client_and_exchange_are_transient(error_of, exchange, status, body, headers):
    assert type(error_of(exchange, status, body, **headers)) is Transient


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (429, CLOUDFLARE),
        (418, ""),
        (429, '{"message":"Too Many Requests"}'),
        (403, "<html><title>Too many requests</title></html>"),
        (403, '{"error":{"code":"-1003","message":"IP banned until %d."}}'),
        (200, '{"msg":"IP banned until %d."}'),
        (400, "IP banned until %d"),
    ],
)
def test_a_rate_limit_is_recognized_in_every_shape(error_of, exchange, status, body):
    error = error_of(exchange, status, body.replace("%d", f"{Clock().now_ms() + 200_000}"))
    assert type(error) is RateLimited
    assert "%d" not in body or error.retry_after_s == pytest.approx(200, abs=100)


def test_a_rejected_timestamp_is_recognized_in_another_shape(error_of):
    error = error_of("binance", 200, '{"error":{"code":"-1021","message":"Timestamp"}}')
    assert type(error) is Fatal and "clock by NTP" in str(error)


def test_a_pause_during_maintenance_is_respected(error_of, exchange):
    assert error_of(exchange, 503, "busy", Retry_After="7").retry_after_s == 7
    long = error_of(exchange, 503, CLOUDFLARE, Retry_After="7200")
    assert type(long) is Banned and "for 2 h (" in str(long) and "you have been blocked" in str(long)


@pytest.mark.parametrize("endless", ["inf", "1e300", "999999999999"])
def test_an_endless_pause_is_limited_to_a_week(error_of, exchange, endless):
    error = error_of(exchange, 429, "", Retry_After=endless)
    assert type(error) is Banned and "for 7 days (" in str(error)


@pytest.mark.parametrize(
    "body", [b"<![if x]><p>no</p>", b"<!DOCTYPE [<!x", b"<meta charset=punycode>\xff", b"<" * 9999]
)
def test_a_malformed_web_page_is_transient(error_of, exchange, body):
    assert type(error_of(exchange, 403, body)) is Transient


def test_maintenance_leaves_the_outcome_of_a_post_unknown(error_of):
    for status, body in [(503, "busy"), (202, ""), (403, CLOUDFLARE), (200, '"System maintenance"')]:
        assert type(error_of("binance", status, body, "post", Retry_After="7200")) is OutcomeUnknown


@pytest.mark.parametrize("body", ['{"rows":[]}', '{"msg":"hello"}', "5", "not JSON", '"text"', "", "[1"])
def test_a_payload_that_is_no_list_is_quoted(error_of, body):
    error = error_of("binance", 200, body)
    assert type(error) is Transient and (body.strip('"') or "nothing") in str(error)


def test_a_body_that_is_nested_too_deeply_is_quoted(error_of, exchange):
    error = error_of(exchange, 200, "[" * 5000 + "]" * 5000)
    assert type(error) is Transient and "[[[" in str(error)


@pytest.mark.parametrize("body", ['{"rows":[]}', '{"msg":"hello"}', "5", "not JSON", '"text"', "[1"])
def test_a_body_without_lbanks_envelope_is_quoted(error_of, body):
    error = error_of("lbank", 200, body)
    assert type(error) is Transient and "not the envelope" in str(error)
    assert ("hello" if "hello" in body else body.strip('"')) in str(error)
