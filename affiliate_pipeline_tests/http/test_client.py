"""How requests are sent again, slowed down and given up, over real HTTP: from the sandbox, which verifies every
signature, or from a server on loopback that says whatever a test wants."""

import gzip
import hashlib
import hmac
import logging
import socket
import struct
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import partial
from urllib.parse import parse_qs

import httpx
import msgspec
import pytest

from affiliate_pipeline.exchanges.binance import responses
from affiliate_pipeline.exchanges.binance.signing import BinanceAuth
from affiliate_pipeline.http import client as client_module
from affiliate_pipeline.http import retry
from affiliate_pipeline.http.client import Client, Clock, Unlimited
from affiliate_pipeline.http.errors import (
    AccessRefused,
    Banned,
    ClockOff,
    Fatal,
    OutcomeUnknown,
    RateLimited,
    Refused,
    Transient,
    Unreachable,
)
from affiliate_pipeline.landing.store import Store
from affiliate_pipeline.postgres.rate_limiter import RateLimiter
from affiliate_pipeline.sandbox import Sandbox

KEY, SECRET, EMAIL = "the-api-key-of-the-test", "the-secret-of-the-test", "jane.doe@example.com"
PATH = "/sapi/v1/x"
REBATES = "/sapi/v1/apiReferral/rebate/recentRecord"
GZIP = "Content-Encoding: gzip"


def http(status: int, body: bytes = b"[]", *headers: str, length: int | None = None) -> bytes:
    """An answer as bytes; `length` is what it says of its length if that is not true."""
    lines = [f"HTTP/1.1 {status} X", *headers, f"Content-Length: {len(body) if length is None else length}"]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body


GOOD = http(200, b"[1]")
ERROR_500 = http(500, b'{"code":-1001,"msg":"Internal error."}')
TOO_MANY = b'{"code":-1003,"msg":"Too much request weight used."}'
CLOCK_OFF = http(400, b'{"code":-1021,"msg":"Timestamp for this request is outside of the recvWindow."}')


def clock_off(server_ms: int) -> ClockOff:
    error = ClockOff("the clock is off")
    error.server_ms = server_ms
    return error


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@dataclass
class Wire:
    """A server that answers each request with the next of `answers`, and ever after with `default`.

    An answer is the bytes to send, or is called with the connection, which is then closed.
    """

    answers: deque = field(default_factory=deque)
    default: bytes | Callable[[socket.socket], None] = GOOD
    heads: list[str] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def queries(self) -> list[dict[str, str]]:
        """The parameters of each request."""
        texts = (head.split(" ")[1].partition("?")[2] for head in self.heads)
        return [{name: value for name, (value,) in parse_qs(text).items()} for text in texts]

    def answer(self, connection: socket.socket) -> None:
        with connection:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                piece = connection.recv(65536)
                if not piece:
                    return
                head += piece
            self.heads.append(head.decode())
            answer = self.answers.popleft() if self.answers else self.default
            if isinstance(answer, bytes):
                connection.sendall(answer)
            else:
                answer(connection)


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        wire.port = listening.getsockname()[1]

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=wire.answer, args=(connection,), daemon=True).start()

        thread = threading.Thread(target=serve)
        thread.start()
        yield wire
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


READ = partial(responses.read, key_name="BINANCE_PARTNER_API_KEY", secret_name="BINANCE_PARTNER_API_SECRET")


@contextmanager
def connected(url: str, *, limit=None, clock=None, key=KEY, secret=SECRET, read=READ, **more):
    """A client that signs and reads as for Binance; closed at the end."""
    clock = clock or Clock()
    more.setdefault("server_time", (responses.SERVER_TIME_PATH, responses.server_time_ms))
    with Client(url, BinanceAuth(key, secret, clock.now_ms), clock, limit or Unlimited(), read=read, **more) as client:
        yield client


def get(client: Client, path: str = PATH, **params: object) -> object:
    return client.get(path, params, msgspec.json.decode)


class Recording:
    """A limit that holds nobody up and remembers what it was told."""

    def __init__(self) -> None:
        self.held = self.most_held = 0
        self.pauses: list[float] = []

    @contextmanager
    def slot(self) -> Iterator[None]:
        self.held += 1
        self.most_held = max(self.held, self.most_held)
        try:
            yield
        finally:
            self.held -= 1

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)


def test_each_attempt_is_signed_anew(wire):
    wire.answers.extend([ERROR_500, ERROR_500])
    ticks = iter(range(1_748_952_000_000, 1_748_952_000_100))
    with connected(wire.url, clock=Clock(lambda: next(ticks))) as client:
        assert get(client, symbol="a+b ü") == [1]
    assert len({query["timestamp"] for query in wire.queries}) == 3
    assert len({query["signature"] for query in wire.queries}) == 3
    for head, query in zip(wire.heads, wire.queries, strict=True):
        signed, _, _ = head.split(" ")[1].partition("?")[2].rpartition("&signature=")
        assert query["signature"] == hmac.new(SECRET.encode(), signed.encode(), hashlib.sha256).hexdigest()


SPOILED = {
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
    "closed without a word": b"",
    "reset": reset,
    "429": http(429, TOO_MANY, "Retry-After: 0"),
    "a transient code": http(400, b'{"code":-1008,"msg":"Server is currently overloaded"}'),
}


@pytest.mark.parametrize("spoiled", SPOILED.values(), ids=SPOILED.keys())
def test_a_spoiled_answer_is_asked_for_again(wire, spoiled):
    wire.answers.extend([spoiled, spoiled])
    with connected(wire.url) as client:
        assert get(client) == [1]
        assert len(wire.heads) == client.requests_sent == 3


def test_nine_failures_are_lived_through_and_more_are_not(wire):
    wire.answers.extend([ERROR_500] * 9)
    with connected(wire.url) as client:
        assert get(client) == [1]
        wire.default = ERROR_500
        with pytest.raises(Transient, match="500") as raised:
            get(client)
    assert not isinstance(raised.value, Fatal)
    assert 10 <= len(wire.heads) - 10 <= 20


def test_a_failure_among_others_of_another_kind_counts_the_same(wire):
    wire.answers.extend([ERROR_500, reset, http(200, b"<html>")] * 3)
    with connected(wire.url) as client:
        assert get(client) == [1]


def test_a_refusal_is_final(wire):
    wire.default = http(400, b'{"code":-1127,"msg":"More than 7 days between startTime and endTime."}')
    with connected(wire.url) as client, pytest.raises(Refused, match="-1127: More than 7 days"):
        get(client)
    assert len(wire.heads) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(wire, status):
    wire.default = http(status, b"", f"Location: {wire.url}/elsewhere")
    with connected(wire.url) as client, pytest.raises(Refused, match=f"{status}"):
        get(client)
    assert len(wire.heads) == 1


@pytest.mark.parametrize(
    ("wrong", "code"), [({"key": "nobody's-key"}, "-2015"), ({"secret": "not-its-secret"}, "-1022")]
)
def test_wrong_credentials_are_refused_at_the_first_answer(wrong, code):
    with Sandbox() as sandbox:
        credentials = {"key": sandbox.binance.partner_key, "secret": sandbox.binance.partner_secret} | wrong
        with connected(sandbox.url, **credentials) as client, pytest.raises(AccessRefused, match=code) as raised:
            get(client, REBATES, startTime=0, endTime=1, limit=1)
        assert len(sandbox.requests) == 1
    assert "API key" in str(raised.value)


@pytest.mark.parametrize("offset_ms", [90_000, -90_000])
def test_a_clock_that_is_off_is_corrected_once_for_all_further_requests(offset_ms):
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


def test_requests_refused_together_for_the_clock_are_all_asked_again(wire):
    clock, in_flight = Clock(lambda: 1_000_000), threading.Barrier(4, timeout=5)

    def all_at_once(connection: socket.socket) -> None:
        in_flight.wait()
        connection.sendall(CLOCK_OFF)

    def read(reply):
        if reply.status_code == 400:
            raise clock_off(1_090_000)
        return reply.content

    wire.answers.extend([all_at_once] * 4)
    with (
        connected(wire.url, clock=clock, read=read, server_time=None) as client,
        ThreadPoolExecutor(4) as pool,
    ):
        assert [asked.result() for asked in [pool.submit(get, client) for _ in range(4)]] == [[1]] * 4
    assert len(wire.heads) == 8


def test_a_clock_that_cannot_be_corrected_ends_the_range(wire):
    wire.default = CLOCK_OFF
    with connected(wire.url) as client, pytest.raises(Fatal, match="clock by NTP") as raised:
        get(client)
    assert not isinstance(raised.value, ClockOff)
    assert len(wire.heads) <= 6


def test_an_exchange_that_names_its_clock_is_believed(wire):
    clock = Clock(lambda: 1_000_000)

    def read(reply):
        if reply.status_code == 400:
            raise clock_off(1_090_000)
        return reply.content

    wire.answers.append(CLOCK_OFF)
    with connected(wire.url, clock=clock, read=read, server_time=None) as client:
        assert get(client) == [1]
        assert [query["timestamp"] for query in wire.queries] == ["1000000", "1090000"]
        wire.default = CLOCK_OFF
        with pytest.raises(Fatal, match="clock is off"):
            get(client)
    assert len(wire.heads) == 3  # the clocks agree already: asking again would be refused again


def test_retry_after_pauses_the_limit(wire):
    limit = Recording()
    wire.answers.extend([http(429, TOO_MANY, "Retry-After: 7"), http(418, TOO_MANY, "Retry-After: 120")])
    with connected(wire.url, limit=limit) as client:
        assert get(client) == [1]
    assert limit.pauses == [7, 120]


AT_SEVEN = "Date: Wed, 21 Oct 2026 07:00:00 GMT"
SEVEN_MS = 1_792_566_000_000


@pytest.mark.parametrize(
    ("until", "headers"),
    [
        ("", ["Retry-After: Wed, 21 Oct 2026 09:00:00 GMT", AT_SEVEN]),
        ("", ["Retry-After: {in_two_hours}"]),
        (f" IP banned until {SEVEN_MS + 7_200_000}.", [AT_SEVEN]),
        (f" IP banned until {SEVEN_MS + 7_200_000}.", [AT_SEVEN, "Retry-After: 60"]),
    ],
)
@pytest.mark.parametrize("status", [200, 418, 429])
def test_a_ban_is_respected_however_its_end_is_told(wire, until, headers, status):
    limit = Recording()
    body = b'{"code":-1003,"msg":"Way too much request weight used;%s"}' % until.encode()
    in_two_hours = formatdate(time.time() + 7_200, usegmt=True)
    wire.default = http(status, body, *(header.format(in_two_hours=in_two_hours) for header in headers))
    with connected(wire.url, limit=limit) as client, pytest.raises(Banned, match="no request for 7"):
        get(client)
    assert len(wire.heads) == 1 and limit.pauses == [pytest.approx(7_200, abs=120)]


@pytest.mark.parametrize("status", [200, 400, 401])
@pytest.mark.parametrize("code", [b"-2015", b'"-2015"'])
def test_an_error_is_one_whatever_its_status_and_the_type_of_its_code(wire, status, code):
    wire.default = http(status, b'{"code":%s,"msg":"Invalid API-key, IP, or permissions for action."}' % code)
    with connected(wire.url) as client, pytest.raises(AccessRefused, match="code -2015.*BINANCE_PARTNER_API_KEY"):
        get(client)
    assert len(wire.heads) == 1


@pytest.mark.parametrize("headers", [(), ("Retry-After: Wed, 21 Oct 2020 07:28:00 GMT",), ("Retry-After: soon",)])
def test_a_pause_of_unknown_length_is_ten_seconds(wire, headers):
    limit = Recording()
    wire.answers.append(http(429, TOO_MANY, *headers))
    with connected(wire.url, limit=limit) as client:
        assert get(client) == [1]
    assert limit.pauses == [10]


def test_an_endless_429_ends_after_ten_attempts(wire):
    wire.default = http(429, TOO_MANY, "Retry-After: 0")
    with connected(wire.url) as client, pytest.raises(RateLimited, match="429, code -1003"):
        get(client)
    assert 10 <= len(wire.heads) <= 20


def test_a_long_retry_after_ends_as_a_ban_at_once_and_for_all(wire):
    limit = Recording()
    wire.default = http(418, TOO_MANY, "Retry-After: 7200")
    with connected(wire.url, limit=limit) as client, pytest.raises(Banned, match="no request for 7200 s"):
        get(client)
    assert len(wire.heads) == 1 and limit.pauses == [7200]


def test_retry_after_holds_up_everybody_who_shares_the_limit(wire, database_url, query):
    with Store(database_url):
        pass
    wire.answers.append(http(429, TOO_MANY, "Retry-After: 0.4"))
    with (
        closing(RateLimiter(database_url, "shared", 50, 0.01)) as limit,
        closing(RateLimiter(database_url, "shared", 50, 0.01)) as same_limit,
        connected(wire.url, limit=limit) as one,
        connected(wire.url, limit=same_limit) as other,
    ):
        asking = threading.Thread(target=get, args=(one,))
        asking.start()
        while asking.is_alive() and not query("select 1 from affiliate.lease where slot = -1 and returns_at > now()"):
            pass
        began = time.monotonic()
        assert get(other) == [1]
        assert time.monotonic() - began > 0.2
        asking.join()


def test_a_slot_is_held_until_the_whole_answer_is_there(wire):
    limit, seen = Recording(), []

    def in_two_pieces(connection: socket.socket) -> None:
        connection.sendall(http(200, b"[", length=3))
        seen.append(limit.held)
        connection.sendall(b"1]")

    wire.answers.extend([in_two_pieces, reset])
    with connected(wire.url, limit=limit) as client:
        assert get(client) == get(client) == [1]
    assert seen == [1]
    assert (limit.held, limit.most_held) == (0, 1)


def test_a_dead_server_ends_the_range_after_the_longest_silence(monkeypatch):
    monkeypatch.setattr(retry, "SILENCE_LIMIT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as gone:
        url = f"http://127.0.0.1:{gone.getsockname()[1]}"
    began = time.monotonic()
    with connected(url) as client, pytest.raises(Unreachable, match="gave no answer for 0.3 s .*ConnectError"):
        get(client)
    assert 0.3 <= time.monotonic() - began < 3
    assert client.requests_sent > 1


def test_the_silence_is_counted_from_the_last_answer(wire, monkeypatch):
    monkeypatch.setattr(retry, "SILENCE_LIMIT_S", 0.3)

    def late(connection: socket.socket) -> None:
        time.sleep(0.2)
        connection.sendall(ERROR_500)

    wire.answers.extend([late, reset, late, reset])
    with connected(wire.url) as client:
        assert get(client) == [1]


def test_a_pause_that_was_asked_for_is_no_silence(wire, monkeypatch):
    monkeypatch.setattr(retry, "SILENCE_LIMIT_S", 0.3)

    class Pausing(Recording):
        """Whoever asks for the second slot waits for longer than the longest silence."""

        @contextmanager
        def slot(self) -> Iterator[None]:
            self.most_held += 1
            if self.most_held == 2:
                time.sleep(0.4)
            yield

    wire.answers.extend([http(418, TOO_MANY, "Retry-After: 0.4"), reset])
    with connected(wire.url, limit=Pausing()) as client:
        assert get(client) == [1]
    assert len(wire.heads) == 3


def test_a_request_without_an_answer_ends_while_others_are_answered(wire, monkeypatch):
    monkeypatch.setattr(retry, "SILENCE_LIMIT_S", 0.1)
    wire.default = lambda connection: reset(connection) if "/bad" in wire.heads[-1] else connection.sendall(GOOD)
    ended = threading.Event()

    def ask(client: Client) -> None:
        try:
            get(client, "/bad")
        except (Transient, Unreachable):
            ended.set()

    with connected(wire.url) as client:
        asking = threading.Thread(target=ask, args=(client,))
        asking.start()
        deadline = time.monotonic() + 0.6
        while time.monotonic() < deadline and not ended.is_set():
            get(client)
        ended_among_others = ended.is_set()
        asking.join()
    assert ended_among_others


def test_every_wait_for_the_network_is_bounded():
    assert all(seconds and seconds <= 30 for seconds in client_module.TIMEOUT.as_dict().values())


def test_an_answer_that_does_not_come_is_asked_for_again(wire, monkeypatch):
    monkeypatch.setattr(client_module, "TIMEOUT", httpx.Timeout(1))
    released = threading.Event()
    wire.answers.append(lambda connection: released.wait(30))
    with connected(wire.url) as client:
        assert get(client) == [1]
    released.set()
    assert len(wire.heads) == 2


def test_an_answer_that_trickles_is_given_up(wire, monkeypatch):
    monkeypatch.setattr(client_module, "RESPONSE_LIMIT_S", 0.15)
    sent = []

    def trickle(connection: socket.socket) -> None:
        connection.sendall(http(200, b"[", length=1000))
        try:
            while len(sent) < 100:
                time.sleep(0.02)
                connection.sendall(b" ")
                sent.append(1)
        except OSError:
            pass

    wire.answers.append(trickle)
    with connected(wire.url) as client:
        assert get(client) == [1]
    assert len(sent) < 50


def post(client: Client, **params: object) -> object:
    return client.post(PATH, params, msgspec.json.decode)


def test_a_post_is_signed_and_sent_once(wire):
    with connected(wire.url) as client:
        assert post(client, email=EMAIL) == [1]
    (head,), (query,) = wire.heads, wire.queries
    method, target, _ = head.split(" ", 2)
    signed, _, _ = target.partition("?")[2].rpartition("&signature=")
    assert (method, query["email"]) == ("POST", EMAIL)
    assert query["signature"] == hmac.new(SECRET.encode(), signed.encode(), hashlib.sha256).hexdigest()


@pytest.mark.parametrize(
    "spoiled",
    [each for name, each in SPOILED.items() if name != "429"],
    ids=[name for name in SPOILED if name != "429"],
)
def test_a_post_that_may_have_been_done_is_not_sent_again(wire, spoiled):
    wire.default = spoiled
    with connected(wire.url) as client, pytest.raises(OutcomeUnknown, match="is not known"):
        post(client)
    assert len(wire.heads) == 1


def test_a_post_that_gets_no_answer_is_not_sent_again(wire, monkeypatch):
    monkeypatch.setattr(client_module, "TIMEOUT", httpx.Timeout(0.1))
    released = threading.Event()
    wire.default = lambda connection: released.wait(5)
    with connected(wire.url) as client, pytest.raises(OutcomeUnknown, match="ReadTimeout"):
        post(client)
    released.set()
    assert len(wire.heads) == 1


def test_a_post_that_was_surely_not_done_is_sent_again(wire):
    wire.answers.extend([http(429, TOO_MANY, "Retry-After: 0"), http(418, TOO_MANY, "Retry-After: 1"), CLOCK_OFF])
    wire.answers.append(http(200, b'{"serverTime":1748952000000}'))
    with connected(wire.url, limit=Recording()) as client:
        assert post(client) == [1]
    assert [head.split(" ")[0] for head in wire.heads] == ["POST", "POST", "POST", "GET", "POST"]


def test_a_post_waits_for_a_server_that_does_not_listen_yet():
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    listening: list[socket.socket] = []

    class Starting(Recording):
        """At the third attempt somebody listens."""

        @contextmanager
        def slot(self) -> Iterator[None]:
            self.most_held += 1
            if self.most_held == 3:
                listening.append(socket.create_server(("127.0.0.1", port)))
                threading.Thread(target=serve_one, args=(listening[0],), daemon=True).start()
            yield

    def serve_one(server: socket.socket) -> None:
        connection, _ = server.accept()
        Wire().answer(connection)

    limit = Starting()
    with connected(f"http://127.0.0.1:{port}", limit=limit) as client:
        assert post(client) == [1]
    listening[0].close()
    assert limit.most_held == 3


def test_a_refused_post_is_final(wire):
    wire.default = http(400, b'{"code":-1130,"msg":"Data sent for parameter email is not valid."}')
    with connected(wire.url) as client, pytest.raises(Refused, match="-1130"):
        post(client)
    assert len(wire.heads) == 1


def test_many_threads_share_one_client(wire):
    wire.answers.extend([ERROR_500, reset] * 5)
    answers = []
    with connected(wire.url) as client:
        threads = [threading.Thread(target=lambda: answers.append(get(client))) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [[1]] * 12
        assert client.requests_sent == len(wire.heads) == 22


FAILING = SPOILED | {
    "418": http(418, TOO_MANY, "Retry-After: 7200"),
    "-1021": CLOCK_OFF,
    "-2015": http(401, b'{"code":-2015,"msg":"Invalid API-key, IP, or permissions for action."}'),
    "302": http(302, b"", "Location: http://127.0.0.1:1/x?signature=abcdef"),
    "an echo": lambda connection: None,
}


@pytest.mark.parametrize("answer", FAILING.values(), ids=FAILING.keys())
def test_no_error_and_no_log_shows_a_signature_or_a_key(wire, monkeypatch, caplog, answer):
    monkeypatch.setattr(retry, "SILENCE_LIMIT_S", 0.05)
    caplog.set_level(logging.DEBUG)
    if FAILING["an echo"] is answer:

        def answer(connection: socket.socket) -> None:
            url = wire.heads[-1].split(" ")[1]
            connection.sendall(http(400, msgspec.json.encode({"code": -1100, "msg": f"bad: {url} for a.name@b.cd"})))

    wire.default = answer
    with connected(wire.url) as client, pytest.raises(Exception) as raised:  # noqa: B017 (whatever it is)
        get(client, email=EMAIL)
    told = "".join(traceback.format_exception(raised.value)) + repr(raised.value) + caplog.text
    signatures = [query["signature"] for query in wire.queries if "signature" in query]
    assert signatures and not [signature for signature in signatures if signature in told]
    assert KEY not in told and SECRET not in told
    assert EMAIL not in told and "a.name@" not in told


def test_the_http_libraries_say_nothing_even_at_debug(wire, caplog):
    caplog.set_level(logging.DEBUG)
    with connected(wire.url) as client:
        names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] in ("httpx", "httpcore")]
        assert {"httpx", "httpcore.http11", "httpcore.connection"} <= {*names}
        for name in names:
            caplog.set_level(logging.DEBUG, logger=name)
        wire.answers.extend([ERROR_500, reset, http(200, b"[1", length=9)])
        get(client)
    assert [record.name for record in caplog.records if record.name.split(".")[0] in ("httpx", "httpcore")] == []
    assert "signature" not in caplog.text
