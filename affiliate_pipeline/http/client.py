"""Requests to an exchange: limited, signed for each attempt, repeated as `retry` decides, each with a time limit."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Protocol, Self, TypeVar

import httpx

from affiliate_pipeline.domain.redaction import redact
from affiliate_pipeline.http import retry
from affiliate_pipeline.http.bodies import as_utf8, possible_rows, repaired, unreadable_rows
from affiliate_pipeline.http.encoding import encode
from affiliate_pipeline.http.error_body import quote
from affiliate_pipeline.http.errors import (
    Banned,
    ClockOff,
    ExchangeError,
    Fatal,
    OutcomeUnknown,
    RateLimited,
    Transient,
    Unanswered,
    Unconnected,
    Unreachable,
)
from affiliate_pipeline.http.network import DIRECT, Network, client, host_of

MAX_PAUSE_S = 300
# Twice the longest known ban; a longer time in a response is not credible.
MAX_BAN_S = 7 * 86_400
DEFAULT_PAUSE_S = 10
TIMEOUT = httpx.Timeout(20, connect=10)
# Shorter than postgres.rate_limiter.HOLD_S: a slot is not given to another request while its own is under way.
RESPONSE_LIMIT_S = 45
MAX_CLOCK_CORRECTIONS = 2
CLOCKS_AGREE_MS = 1000
log = logging.getLogger(__name__)

T = TypeVar("T")


class Limit(Protocol):
    """A rate limit shared by all requests with the same key: in production `postgres.rate_limiter`."""

    def slot(self) -> AbstractContextManager[None]:
        """Wait until a request may be sent; held until its response is complete."""
        ...

    def pause(self, seconds: float) -> None:
        """Let no request with the same key be sent for so long."""
        ...


class Unlimited:
    """No limit: for the few requests that only test an account."""

    def slot(self) -> AbstractContextManager[None]:
        return nullcontext()

    def pause(self, seconds: float) -> None:
        pass


class Clock:
    """This machine's clock, corrected to the exchange's. Safe to share between threads."""

    def __init__(self, local_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000):
        self._local_ms = local_ms
        self.offset_ms = 0

    def now_ms(self) -> int:
        return self._local_ms() + self.offset_ms

    def set(self, server_ms: int) -> None:
        self.offset_ms = server_ms - self._local_ms()

    def correct(self, rejected: ClockOff, query: Callable[[], int | None]) -> bool:
        """Adopt the exchange's clock (ms); return False if the clocks agree already.

        It is taken from the rejection or from `query`, where the exchange has such a request. If the clocks agree,
        another request would be rejected again.
        """
        if self.offset_ms != rejected.signed_offset_ms:
            return True  # corrected since, because of another request
        try:
            server_ms = query() if rejected.server_ms is None else rejected.server_ms
        except ExchangeError as error:
            log.warning("the exchange's clock could not be read: %s", redact(error))
            return True
        if server_ms is not None:
            self.set(server_ms)
        # Not compared with the current offset: another request may be correcting it at the same time.
        if rejected.server_ms is not None and abs(self.offset_ms - rejected.signed_offset_ms) < CLOCKS_AGREE_MS:
            return False
        log.warning("the exchange's clock differs by %d ms; corrected", self.offset_ms)
        return True


@dataclass(frozen=True)
class Response:
    """A complete response."""

    status_code: int
    headers: Mapping[str, str]
    content: bytes
    # The body as received, if `content` is a decoded or repaired copy.
    received: bytes | None = None

    @property
    def retry_after_s(self) -> float | None:
        """How long the server allows no request, by `Retry-After` in seconds or as a date."""
        value = self.headers.get("Retry-After", "")
        try:
            return max(0.0, float(value))
        except ValueError:
            until_s = _date_s(value)
            return until_s - self.sent_s if until_s and until_s > self.sent_s else None

    @property
    def sent_s(self) -> float:
        """When it was sent, by the server's clock if it has a `Date`."""
        return _date_s(self.headers.get("Date", "")) or time.time()


def _date_s(text: str) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp()
    except ValueError:
        return None


class Client:
    """Signed requests with one key to one exchange. Safe to share between threads.

    `read` returns the payload of a successful response or raises an `ExchangeError`. `server_time` is the path of the
    exchange's clock and what reads it (ms, ValueError), used when a timestamp was rejected without the exchange's own.
    """

    def __init__(
        self,
        base_url: str,
        auth: httpx.Auth,
        clock: Clock,
        limit: Limit,
        read: Callable[[Response], bytes],
        server_time: tuple[str, Callable[[bytes], int]] | None = None,
        default_pause_s: float = DEFAULT_PAUSE_S,
        network: Network = DIRECT,
    ):
        self.host = host_of(base_url)
        self.network = network
        self.requests_sent = 0
        self._base_url = base_url.rstrip("/")
        self._auth, self._clock, self._limit, self._read, self._server_time = auth, clock, limit, read, server_time
        self._default_pause_s = default_pause_s
        self._circuit = retry.CircuitBreaker()
        self._lock = threading.Lock()
        self._http = client(network, TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connections: a request sent afterwards fails and is not repeated."""
        self._http.close()

    def get(self, path: str, params: Mapping[str, object], decode: Callable[[bytes], T], *, retries: bool = True) -> T:
        """The decoded payload of a GET.

        A payload that `decode` rejects with ValueError counts as a failed attempt. Without `retries`, the first
        failure is raised, unless correcting the clock can fix it.
        """
        return self._repeat(lambda: self._once("GET", path, params, decode), retries)

    def post(self, path: str, params: Mapping[str, object], decode: Callable[[bytes], T], *, retries: bool = True) -> T:
        """The decoded payload of a POST with its parameters in the query.

        It is sent again only if it certainly had no effect (too many requests, a rejected timestamp, no connection);
        any other transient failure raises `OutcomeUnknown` at once.
        """

        def once() -> T:
            try:
                return self._once("POST", path, params, decode)
            except (RateLimited, ClockOff, Unconnected):
                raise
            except Transient as error:
                raise OutcomeUnknown(f"whether it was done is not known: {error}") from None

        return self._repeat(once, retries)

    def attempt(self, path: str, params: Mapping[str, object]) -> None:
        """One GET whose failure is raised as it is; not even the clock is corrected."""
        self._once("GET", path, params, bytes)

    @property
    def clock_ahead_ms(self) -> int:
        """How far the exchange's clock was found to be ahead of ours; 0 as long as it has rejected no timestamp."""
        return self._clock.offset_ms

    def clock_offset_ms(self) -> int | None:
        """How far the exchange's clock, which is adopted, is ahead of ours; None if only a rejection shows its clock."""
        server_ms = self._server_ms()
        if server_ms is None:
            return None
        self._clock.set(server_ms)
        return self._clock.offset_ms

    def _server_ms(self) -> int | None:
        if self._server_time is None:
            return None
        path, read = self._server_time
        try:
            return read(self._http.get(f"{self._base_url}{path}").content)
        except httpx.RequestError as error:
            raise Unanswered(redact(f"{type(error).__name__}: {error}")) from None
        except ValueError as error:
            raise Transient(f"the clock of {self.host} could not be read: {redact(error)}") from None

    def _repeat(self, once: Callable[[], T], retries: bool) -> T:
        failures = corrections = 0
        while True:
            try:
                return once()
            except ClockOff as error:
                corrections += 1
                if corrections > MAX_CLOCK_CORRECTIONS or not self._clock.correct(error, self._server_ms):
                    raise Fatal(f"{error}") from None
            except Transient as error:
                if not retries:
                    raise
                failures += 1
                match self._circuit.decide(error, failures):
                    case retry.GiveUp(is_unreachable=True):
                        what = f"{self.host} gave no answer for {retry.SILENCE_LIMIT_S} s ({error.problem.what})"
                        check = error.problem.action or "Check the network and the exchange's status page"
                        raise Unreachable(what, f"{check}, then materialize the failed days again") from None
                    case retry.GiveUp():
                        raise
                    case retry.Retry(after_s):
                        time.sleep(after_s)

    def _once(self, method: str, path: str, params: Mapping[str, object], decode: Callable[[bytes], T]) -> T:
        query = encode(params)
        with self._limit.slot():
            with self._lock:
                self.requests_sent += 1
            signed_offset_ms, sent_at = self._clock.offset_ms, time.monotonic()
            try:
                response = self._send(method, f"{self._base_url}{path}" + (f"?{query}" if query else ""))
            except Unanswered:
                self._circuit.failed(sent_at)
                raise
        self._circuit.responded()
        try:
            return self._decoded(response, decode)
        except ClockOff as error:
            error.signed_offset_ms = signed_offset_ms
            raise
        except Transient as error:
            self._pause(error, method)
            raise
        except (ValueError, RecursionError) as error:
            what = f"{self.host} sent a body that cannot be read: {redact(error)}. It was: {quote(response.content)}"
            raise Transient(what).about(unreadable_rows(response.content)) from None

    def _send(self, method: str, url: str) -> Response:
        # httpx's timeouts apply to each read: a body that trickles would never end.
        deadline = time.monotonic() + RESPONSE_LIMIT_S
        body: list[bytes] = []
        try:
            with self._http.stream(method, url, auth=self._auth) as response:
                for piece in response.iter_bytes():
                    body.append(piece)
                    if time.monotonic() > deadline:
                        raise Unanswered(f"the response did not end within {RESPONSE_LIMIT_S} s")
                return Response(response.status_code, response.headers, b"".join(body))
        except httpx.DecodingError:
            raise Transient(f"{self.host} sent a body that cannot be decompressed") from None
        except httpx.TransportError as error:
            is_unconnected = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
            kind = Unconnected if is_unconnected else Unanswered
            raise kind(redact(f"{type(error).__name__}: {error}")) from None

    def _decoded(self, response: Response, decode: Callable[[bytes], T]) -> T:
        """The decoded payload; if the body cannot be read, of the repaired body. Raises ValueError."""
        body = as_utf8(response.content)
        try:
            return decode(self._read(replace(response, content=body, received=response.content)))
        except (ValueError, RecursionError, Transient):
            if not possible_rows(body):
                raise
        try:
            return decode(self._read(replace(response, content=repaired(body), received=response.content)))
        except Transient as error:
            raise error.about(unreadable_rows(response.content)) from None

    def _pause(self, error: Transient, method: str) -> None:
        """Pause the limit for as long as the exchange requests; raises `Banned` if that is longer than a run can wait."""
        is_limit, pause_s = isinstance(error, RateLimited), error.retry_after_s
        if is_limit and pause_s is None:
            pause_s = self._default_pause_s
        # A POST may have taken effect: that has to be found out before any pause.
        if pause_s is None or not (is_limit or method == "GET"):
            return
        pause_s = min(pause_s, MAX_BAN_S)
        self._limit.pause(pause_s)
        if pause_s > MAX_PAUSE_S:
            others = ", and see what else uses this IP" if is_limit else ""
            raise Banned(
                f"{self.host} allows no request for {pause_s:.0f} s ({error})",
                f"Wait for that long before materializing the failed days again{others}",
            ) from None
