"""Retries, rate limits, clock correction and redaction of the client, over real HTTP.

The server is either the sandbox, which verifies every signature, or one that sends whatever a test needs.
"""

import gzip
import hashlib
import hmac
import logging
import socket
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from email.utils import formatdate
from functools import partial
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import pytest

from affiliate_pipeline.exchanges.binance import responses
from affiliate_pipeline.exchanges.binance.signing import BinanceAuth
from affiliate_pipeline.http import client as client_module
from affiliate_pipeline.http import retry
from affiliate_pipeline.http.client import Client, Clock, Limit, Response, Unlimited
from affiliate_pipeline.http.errors import (
    AccessRefused,
    Banned,
    Fatal,
    OutcomeUnknown,
    Refused,
    TimestampRejected,
    Transient,
    Unreachable,
)
from affiliate_pipeline.landing.store import Store
from affiliate_pipeline.postgres.rate_limiter import RateLimiter
from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline_tests.scripted_server import ScriptedServer, http, reset

KEY, SECRET, EMAIL = "the-api-key-of-the-test", "the-secret-of-the-test", "jane.doe@example.com"
PATH = "/sapi/v1/x"
REBATES = "/sapi/v1/apiReferral/rebate/recentRecord"
GZIP = "Content-Encoding: gzip"

GOOD = http(200, b"[1]")
ERROR_500 = http(500, b'{"code":-1001,"msg":"Internal error."}')
WEB_PAGE = http(200, b"<html>")
TOO_MANY = b'{"code":-1003,"msg":"Too much request weight used."}'
RATE_LIMITED = http(429, TOO_MANY, "Retry-After: 0")
CLOCK_OFF = http(400, b'{"code":-1021,"msg":"Timestamp for this request is outside of the recvWindow."}')

READ = partial(responses.read, key_name="BINANCE_PARTNER_API_KEY", secret_name="BINANCE_PARTNER_API_SECRET")


@contextmanager
def connected(
    url: str,
    *,
    limit: Limit | None = None,
    clock: Clock | None = None,
    key: str = KEY,
    secret: str = SECRET,
    read: Callable[[Response], bytes] = READ,
    **options: Any,
) -> Generator[Client]:
    """A client that signs and reads as for Binance; closed at the end."""
    clock = clock or Clock()
    options.setdefault("server_time", (responses.SERVER_TIME_PATH, responses.server_time_ms))
    auth = BinanceAuth(key, secret, clock.now_ms)
    with Client(url, auth, clock, limit or Unlimited(), read=read, **options) as client:
        yield client


def get(client: Client, path: str = PATH, **params: object) -> object:
    return client.get(path, params, msgspec.json.decode)


def post(client: Client, **params: object) -> object:
    return client.post(PATH, params, msgspec.json.decode)


def assert_is_signed(request: str) -> None:
    signed, _, signature = request.split(" ")[1].partition("?")[2].rpartition("&signature=")
    assert signature == hmac.new(SECRET.encode(), signed.encode(), hashlib.sha256).hexdigest()


class RecordingLimit:
    """A limit without waiting that records its use; `on_slot` is called for each slot with the slot's number."""

    def __init__(self, on_slot: Callable[[int], object] = lambda number: None) -> None:
        self.taken = self.in_use = self.max_in_use = 0
        self.pauses: list[float] = []
        self._on_slot = on_slot

    @contextmanager
    def slot(self) -> Iterator[None]:
        self.taken += 1
        self.in_use += 1
        self.max_in_use = max(self.in_use, self.max_in_use)
        self._on_slot(self.taken)
        try:
            yield
        finally:
            self.in_use -= 1

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)


def test_each_attempt_has_a_new_signature(server):
    server.responses.extend([ERROR_500, ERROR_500])
    ticks = iter(range(1_748_952_000_000, 1_748_952_000_100))
    with connected(server.url, clock=Clock(lambda: next(ticks))) as client:
        assert get(client, symbol="a+b ü") == [1]
    assert len({query["timestamp"] for query in server.queries}) == 3
    assert len({query["signature"] for query in server.queries}) == 3
    for request in server.requests:
        assert_is_signed(request)


# Failures after which a POST may have taken effect.
FAILURES = {
    "500": ERROR_500,
    "502 with a page": http(502, b"<html><h1>502 Bad Gateway</h1></html>", "Content-Type: text/html"),
    "503 without a body": http(503, b""),
    "firewall 403": http(403, b"<html>blocked</html>"),
    "200 with a page": http(200, b"\n <!DOCTYPE html><html>blocked</html>"),
    "200 without a body": http(200, b""),
    "200 with half a JSON": http(200, b'[{"a":'),
    "truncated": http(200, b"[1", length=100),
    "not gzip": http(200, b"[1]", GZIP),
    "truncated gzip": http(200, gzip.compress(b"[" + b"1," * 1000 + b"1]")[:-12], GZIP),
    "bad chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n[1]\r\n",
    "not HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "closed without a response": b"",
    "reset": reset,
    "a transient code": http(400, b'{"code":-1008,"msg":"Server is currently overloaded"}'),
}


@pytest.mark.parametrize("failure", [*FAILURES.values(), RATE_LIMITED], ids=[*FAILURES, "429"])
def test_a_get_is_retried_after_a_transient_failure(server, failure):
    server.responses.extend([failure, failure])
    with connected(server.url) as client:
        assert get(client) == [1]
        assert len(server.requests) == client.requests_sent == 3


@pytest.mark.parametrize(
    ("failures", "message"),
    [([ERROR_500], "500"), ([RATE_LIMITED], "429, code -1003"), ([ERROR_500, reset, WEB_PAGE], "500")],
    ids=["server errors", "rate limits", "several kinds"],
)
def test_nine_failures_are_retried_and_the_tenth_is_raised(server, failures, message):
    server.responses.extend((failures * 9)[:9])
    with connected(server.url) as client:
        assert get(client) == [1]
        server.responses.extend((failures * 10)[:10])
        with pytest.raises(Transient, match=message):
            get(client)
    assert len(server.requests) == 10 + 10


@pytest.mark.parametrize("send", [get, post])
def test_a_rejection_by_the_exchange_is_not_retried(server, send):
    server.default = http(400, b'{"code":-1127,"msg":"More than 7 days between startTime and endTime."}')
    with connected(server.url) as client, pytest.raises(Refused, match="-1127: More than 7 days"):
        send(client)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(server, status):
    server.default = http(status, b"", f"Location: {server.url}/elsewhere")
    with connected(server.url) as client, pytest.raises(Refused, match=f"{status}"):
        get(client)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("wrong", "code"), [({"key": "an-unknown-key"}, "-2015"), ({"secret": "not-its-secret"}, "-1022")]
)
def test_wrong_credentials_fail_at_the_first_response(wrong, code):
    with Sandbox() as sandbox:
        credentials = {"key": sandbox.binance.partner_key, "secret": sandbox.binance.partner_secret} | wrong
        with connected(sandbox.url, **credentials) as client, pytest.raises(AccessRefused, match=code) as raised:
            get(client, REBATES, startTime=0, endTime=1, limit=1)
        assert len(sandbox.requests) == 1
    assert "API key" in str(raised.value)


@pytest.mark.parametrize("offset_ms", [90_000, -90_000])
def test_a_wrong_clock_is_corrected_once_for_all_further_requests(offset_ms):
    with Sandbox() as sandbox:
        sandbox.faults.clock_offset_ms = offset_ms
        clock = Clock()
        with connected(
            sandbox.url, clock=clock, key=sandbox.binance.partner_key, secret=sandbox.binance.partner_secret
        ) as client:
            for _ in range(3):
                now_ms = time.time_ns() // 1_000_000
                get(client, REBATES, startTime=now_ms - 1000, endTime=now_ms, limit=1)
        assert [(request.path, request.code) for request in sandbox.requests] == [
            (REBATES, -1021), ("/api/v3/time", None), (REBATES, None), (REBATES, None), (REBATES, None),
        ]  # fmt: skip
        assert sandbox.requests[1].params == {}
    assert clock.offset_ms == pytest.approx(offset_ms, abs=2000)


def read_with_server_time(response: Response) -> bytes:
    """The body; a 400 is a rejected timestamp that states the exchange's time."""
    if response.status_code == 400:
        error = TimestampRejected("the clock is off")
        error.server_ms = 1_090_000
        raise error
    return response.content


def test_concurrent_requests_with_a_rejected_timestamp_are_all_retried(server):
    clock, in_flight = Clock(lambda: 1_000_000), threading.Barrier(4, timeout=60)

    def reject_together(connection: socket.socket, request: str) -> None:
        in_flight.wait()
        connection.sendall(CLOCK_OFF)

    server.responses.extend([reject_together] * 4)
    with (
        connected(server.url, clock=clock, read=read_with_server_time, server_time=None) as client,
        ThreadPoolExecutor(4) as pool,
    ):
        requests = [pool.submit(get, client) for _ in range(4)]
        assert [request.result() for request in requests] == [[1]] * 4
    assert len(server.requests) == 8


def test_a_clock_that_cannot_be_corrected_is_fatal(server):
    server.default = CLOCK_OFF
    with connected(server.url) as client, pytest.raises(Fatal, match="clock by NTP"):
        get(client)
    assert len(server.requests) <= 6


def test_the_clock_is_corrected_by_the_time_in_the_rejection(server):
    clock = Clock(lambda: 1_000_000)
    server.responses.append(CLOCK_OFF)
    with connected(server.url, clock=clock, read=read_with_server_time, server_time=None) as client:
        assert get(client) == [1]
        assert [query["timestamp"] for query in server.queries] == ["1000000", "1090000"]
        server.default = CLOCK_OFF
        with pytest.raises(Fatal, match="clock is off"):
            get(client)
    assert len(server.requests) == 3  # The clocks already agree: a retry would be rejected again.


def test_retry_after_pauses_the_limit(server):
    limit = RecordingLimit()
    server.responses.extend([http(429, TOO_MANY, "Retry-After: 7"), http(418, TOO_MANY, "Retry-After: 120")])
    with connected(server.url, limit=limit) as client:
        assert get(client) == [1]
    assert limit.pauses == [7, 120]


AT_SEVEN = "Date: Wed, 21 Oct 2026 07:00:00 GMT"
SEVEN_MS = 1_792_566_000_000


@pytest.mark.parametrize(
    ("until", "headers"),
    [
        ("", ["Retry-After: 7200"]),
        ("", ["Retry-After: Wed, 21 Oct 2026 09:00:00 GMT", AT_SEVEN]),
        ("", ["Retry-After: {in_two_hours}"]),
        (f" IP banned until {SEVEN_MS + 7_200_000}.", [AT_SEVEN]),
        (f" IP banned until {SEVEN_MS + 7_200_000}.", [AT_SEVEN, "Retry-After: 60"]),
    ],
    ids=["seconds", "a date by the server's clock", "a date", "the message", "the message, later than Retry-After"],
)
@pytest.mark.parametrize("status", [200, 418, 429])
def test_a_long_pause_is_a_ban_wherever_its_end_is_stated(server, until, headers, status):
    limit = RecordingLimit()
    body = b'{"code":-1003,"msg":"Way too much request weight used;%s"}' % until.encode()
    in_two_hours = formatdate(time.time() + 7_200, usegmt=True)
    server.default = http(status, body, *(header.format(in_two_hours=in_two_hours) for header in headers))
    with connected(server.url, limit=limit) as client, pytest.raises(Banned, match=r"no request for (11\d min|2 h)"):
        get(client)
    assert len(server.requests) == 1 and limit.pauses == [pytest.approx(7_200, abs=600)]


@pytest.mark.parametrize("status", [200, 400, 401])
@pytest.mark.parametrize("code", [b"-2015", b'"-2015"'])
def test_an_error_code_is_recognized_with_any_status_and_as_number_or_text(server, status, code):
    server.default = http(status, b'{"code":%s,"msg":"Invalid API-key, IP, or permissions for action."}' % code)
    with connected(server.url) as client, pytest.raises(AccessRefused, match="code -2015.*BINANCE_PARTNER_API_KEY"):
        get(client)
    assert len(server.requests) == 1


@pytest.mark.parametrize("headers", [(), ("Retry-After: Wed, 21 Oct 2020 07:28:00 GMT",), ("Retry-After: soon",)])
def test_a_pause_of_unknown_length_is_ten_seconds(server, headers):
    limit = RecordingLimit()
    server.responses.append(http(429, TOO_MANY, *headers))
    with connected(server.url, limit=limit) as client:
        assert get(client) == [1]
    assert limit.pauses == [10]


def test_retry_after_pauses_all_clients_of_the_scope(server, database_url, query):
    with Store(database_url):
        pass
    server.responses.append(http(429, TOO_MANY, "Retry-After: 0.4"))
    with (
        closing(RateLimiter(database_url, "shared", 50, 0.01)) as limit,
        closing(RateLimiter(database_url, "shared", 50, 0.01)) as same_limit,
        connected(server.url, limit=limit) as one,
        connected(server.url, limit=same_limit) as other,
        ThreadPoolExecutor(1) as pool,
    ):
        paused = pool.submit(get, one)
        # Slot -1 is the pause of the scope.
        while not paused.done() and not query("select 1 from affiliate.lease where slot = -1 and returns_at > now()"):
            pass
        began = time.monotonic()
        assert get(other) == [1]
        assert time.monotonic() - began > 0.2
        assert paused.result() == [1]


def test_a_slot_is_in_use_until_the_response_is_complete(server):
    limit = RecordingLimit()
    in_use: list[int] = []

    def in_two_pieces(connection: socket.socket, request: str) -> None:
        connection.sendall(http(200, b"[", length=3))
        in_use.append(limit.in_use)
        connection.sendall(b"1]")

    server.responses.extend([in_two_pieces, reset])
    with connected(server.url, limit=limit) as client:
        assert get(client) == get(client) == [1]
    assert in_use == [1]
    assert (limit.in_use, limit.max_in_use) == (0, 1)


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        return closed.getsockname()[1]


def test_a_dead_server_is_reported_as_unreachable_after_the_silence_limit(monkeypatch):
    monkeypatch.setattr(retry, "SILENCE_LIMIT_S", 0.3)
    began = time.monotonic()
    with (
        connected(f"http://127.0.0.1:{unused_port()}") as client,
        pytest.raises(Unreachable, match=r" for 0.3 s .*ConnectError"),
    ):
        get(client)
    assert 0.3 <= time.monotonic() - began < 30
    assert client.requests_sent > 1


def test_waiting_for_the_rate_limit_does_not_count_as_silence(server, monkeypatch):
    now_s = 0.0

    def wait(number: int) -> None:
        nonlocal now_s
        now_s += 2 * retry.SILENCE_LIMIT_S if number == 2 else 0

    for module in (client_module, retry):
        stopped = SimpleNamespace(monotonic=lambda: now_s, sleep=time.sleep, time=time.time, time_ns=time.time_ns)
        monkeypatch.setattr(module, "time", stopped)
    server.responses.extend([http(200, b"[1]"), *[reset] * retry.MIN_UNANSWERED])
    with connected(server.url, limit=RecordingLimit(wait)) as client:
        assert get(client) == get(client) == [1]


def test_a_request_without_response_fails_while_others_succeed(server, monkeypatch):
    monkeypatch.setattr(retry, "SILENCE_LIMIT_S", 0.1)

    def reset_bad_requests(connection: socket.socket, request: str) -> None:
        if "/bad" in request:
            reset(connection, request)
        else:
            connection.sendall(GOOD)

    server.default = reset_bad_requests
    with connected(server.url) as client, ThreadPoolExecutor(1) as pool:
        bad = pool.submit(get, client, "/bad")
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not bad.done():
            get(client)
        assert bad.done()
        assert isinstance(bad.exception(), Transient | Unreachable)


def test_all_network_timeouts_are_at_most_30_seconds():
    assert all(seconds and seconds <= 30 for seconds in client_module.TIMEOUT.as_dict().values())


def test_a_get_is_retried_after_a_timeout(server, monkeypatch):
    monkeypatch.setattr(client_module, "TIMEOUT", httpx.Timeout(1))
    released = threading.Event()
    server.responses.append(lambda connection, request: released.wait(30))
    with connected(server.url) as client:
        assert get(client) == [1]
    released.set()
    assert len(server.requests) == 2


def test_a_trickling_response_is_abandoned(server, monkeypatch):
    monkeypatch.setattr(client_module, "RESPONSE_LIMIT_S", 0.15)
    sent: list[bytes] = []

    def trickle(connection: socket.socket, request: str) -> None:
        connection.sendall(http(200, b"[", length=1000))
        while len(sent) < 100:
            time.sleep(0.02)
            connection.sendall(b" ")
            sent.append(b" ")

    server.responses.append(trickle)
    with connected(server.url) as client:
        assert get(client) == [1]
    assert len(sent) < 50


def test_a_post_is_signed_and_sent_once(server):
    with connected(server.url) as client:
        assert post(client, email=EMAIL) == [1]
    (request,), (query,) = server.requests, server.queries
    assert (request.partition(" ")[0], query["email"]) == ("POST", EMAIL)
    assert_is_signed(request)


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_a_post_that_may_have_taken_effect_is_not_retried(server, failure):
    server.default = failure
    with connected(server.url) as client, pytest.raises(OutcomeUnknown, match="is not known"):
        post(client)
    assert len(server.requests) == 1


def test_a_post_is_not_retried_after_a_timeout(server, monkeypatch):
    monkeypatch.setattr(client_module, "TIMEOUT", httpx.Timeout(0.1))
    released = threading.Event()
    server.default = lambda connection, request: released.wait(60)
    with connected(server.url) as client, pytest.raises(OutcomeUnknown, match="ReadTimeout"):
        post(client)
    released.set()
    assert len(server.requests) == 1


def test_a_post_that_had_no_effect_is_retried(server):
    server.responses.extend([RATE_LIMITED, http(418, TOO_MANY, "Retry-After: 1"), CLOCK_OFF])
    server.responses.append(http(200, b'{"serverTime":1748952000000}'))
    with connected(server.url, limit=RecordingLimit()) as client:
        assert post(client) == [1]
    assert [request.split(" ")[0] for request in server.requests] == ["POST", "POST", "POST", "GET", "POST"]


def test_a_post_is_retried_until_the_server_listens():
    server = ScriptedServer(port=unused_port())
    with ExitStack() as stack:
        limit = RecordingLimit(lambda number: stack.enter_context(server) if number == 3 else None)
        with connected(server.url, limit=limit) as client:
            assert post(client) == [1]
    assert limit.taken == 3 and len(server.requests) == 1


def test_many_threads_share_one_client(server):
    server.responses.extend([ERROR_500, reset] * 5)
    with connected(server.url) as client, ThreadPoolExecutor(12) as pool:
        assert list(pool.map(lambda _: get(client), range(12))) == [[1]] * 12
        assert client.requests_sent == len(server.requests) == 22


def echo(connection: socket.socket, request: str) -> None:
    """Reject the request with a message that quotes its URL."""
    message = f"bad: {request.split(' ')[1]} for a.name@b.cd"
    connection.sendall(http(400, msgspec.json.encode({"code": -1100, "msg": message})))


ERRORS = FAILURES | {
    "418": http(418, TOO_MANY, "Retry-After: 7200"),
    "429": RATE_LIMITED,
    "-1021": CLOCK_OFF,
    "-2015": http(401, b'{"code":-2015,"msg":"Invalid API-key, IP, or permissions for action."}'),
    "302": http(302, b"", "Location: http://127.0.0.1:1/x?signature=abcdef"),
    "echo": echo,
}


@pytest.mark.parametrize("response", ERRORS.values(), ids=ERRORS)
def test_no_error_and_no_log_contains_a_signature_a_key_or_an_email(server, monkeypatch, caplog, response):
    monkeypatch.setattr(retry, "SILENCE_LIMIT_S", 0.05)
    caplog.set_level(logging.DEBUG)
    server.default = response
    with connected(server.url) as client, pytest.raises(Exception) as raised:  # noqa: B017 (the type does not matter)
        get(client, email=EMAIL)
    output = "".join(traceback.format_exception(raised.value)) + repr(raised.value) + caplog.text
    signatures = [query["signature"] for query in server.queries if "signature" in query]
    assert signatures and not [signature for signature in signatures if signature in output]
    assert KEY not in output and SECRET not in output
    assert EMAIL not in output and "a.name@" not in output


def http_libraries(names: Sequence[str]) -> list[str]:
    return [name for name in names if name.split(".")[0] in ("httpx", "httpcore")]


def test_the_http_libraries_log_nothing_even_at_debug(server, caplog):
    caplog.set_level(logging.DEBUG)
    with connected(server.url) as client:
        names = http_libraries(list(logging.root.manager.loggerDict))
        assert {"httpx", "httpcore.http11", "httpcore.connection"} <= {*names}
        for name in names:
            caplog.set_level(logging.DEBUG, logger=name)
        server.responses.extend([ERROR_500, reset, http(200, b"[1", length=9)])
        get(client)
    assert http_libraries([record.name for record in caplog.records]) == []
    assert "signature" not in caplog.text
