"""Requests to an exchange: rate-limited, signed for each attempt, retried, and timed out."""

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
from affiliate_pipeline.domain.wording import duration
from affiliate_pipeline.http import retry
from affiliate_pipeline.http.bodies import as_utf8, possible_rows, repaired, unreadable_rows
from affiliate_pipeline.http.encoding import encode
from affiliate_pipeline.http.error_body import quote
from affiliate_pipeline.http.errors import (
    Banned,
    ConnectionFailed,
    ExchangeError,
    Fatal,
    NoResponse,
    OutcomeUnknown,
    RateLimited,
    TimestampRejected,
    Transient,
    Unreachable,
)
from affiliate_pipeline.http.network import DIRECT, Network, client, host_of

MAX_PAUSE_S = 300
# About twice the longest known ban (three days): a longer time in a response is not credible.
MAX_BAN_S = 7 * 86_400
DEFAULT_PAUSE_S = 10
TIMEOUT = httpx.Timeout(20, connect=10)
# Shorter than postgres.rate_limiter.SLOT_LEASE_S, so that a slot lease does not end while its request is under way.
RESPONSE_LIMIT_S = 45
MAX_CLOCK_CORRECTIONS = 2
CLOCK_TOLERANCE_MS = 1000
log = logging.getLogger(__name__)

T = TypeVar("T")


class Limit(Protocol):
    """A rate limit shared by all requests of a scope: in production `postgres.rate_limiter`."""

    def slot(self) -> AbstractContextManager[None]:
        """Wait until a request may be sent; the slot is in use until the `with` block ends."""
        ...

    def pause(self, seconds: float) -> None:
        """Stop all requests of the scope for that long."""
        ...


class Unlimited:
    """No limit: for the few requests that only test an account."""

    def slot(self) -> AbstractContextManager[None]:
        """Permit the request at once."""
        return nullcontext()

    def pause(self, seconds: float) -> None:
        """Ignore the pause: no further request follows."""


class Clock:
    """This machine's clock, corrected to the exchange's. Safe to share between threads."""

    def __init__(self, local_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000):
        self._local_ms = local_ms
        self.offset_ms = 0

    def now_ms(self) -> int:
        """The exchange's time in Unix milliseconds, as far as it is known."""
        return self._local_ms() + self.offset_ms

    def set(self, server_ms: int) -> None:
        """Adopt the exchange's time (Unix ms), which was read just now."""
        self.offset_ms = server_ms - self._local_ms()

    def correct(self, rejected: TimestampRejected, query: Callable[[], int | None]) -> bool:
        """Adopt the exchange's clock, if it can be read; return False if a retry would certainly be rejected again.

        The exchange's time is in the rejection or comes from `query` (ms; None if the exchange has no such request). A
        retry is useless only if the time in the rejection shows that the clocks agree.
        """
        if self.offset_ms != rejected.offset_when_signed_ms:
            return True  # corrected since, because of another request

        try:
            server_ms = query() if rejected.server_ms is None else rejected.server_ms
        except ExchangeError as error:
            log.warning("the exchange's clock could not be read: %s", redact(error))
            return True
        if server_ms is None:
            return True
        self.set(server_ms)

        # Compare with the offset that the request was signed with, not with the one that `set` has just replaced:
        # since the check above, another thread may have changed the latter.
        if rejected.server_ms is not None and abs(self.offset_ms - rejected.offset_when_signed_ms) < CLOCK_TOLERANCE_MS:
            return False
        log.warning("the exchange's clock differs by %d ms; corrected", self.offset_ms)
        return True


@dataclass(frozen=True)
class Response:
    """A complete response, whatever its status."""

    status_code: int
    headers: Mapping[str, str]
    content: bytes
    # The body as received, if `content` is a decoded or repaired copy.
    received: bytes | None = None

    @property
    def retry_after_s(self) -> float | None:
        """The pause (s) that `Retry-After` requests, as a number or by a date; None if it requests none."""
        value = self.headers.get("Retry-After", "")
        try:
            return max(0.0, float(value))
        except ValueError:
            until_s = _date_s(value)
        if not until_s:
            return None
        pause_s = until_s - self.sent_s
        return pause_s if pause_s > 0 else None

    @property
    def sent_s(self) -> float:
        """When the response was sent (Unix s), by the server's clock if it has a `Date`; otherwise the current time."""
        return _date_s(self.headers.get("Date", "")) or time.time()


def _date_s(text: str) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp()
    except ValueError:
        return None


class Client:
    """Requests with one key to one exchange, signed by `auth`, if any. Safe to share between threads.

    `read` returns the payload of a successful response or raises an `ExchangeError`. `server_time` is the path of the
    exchange's clock and a function that reads the time (ms) from the response's body or raises ValueError, used if
    a timestamp was rejected without the time.
    """

    def __init__(
        self,
        base_url: str,
        auth: httpx.Auth | None,
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
        self._auth = auth
        self._clock = clock
        self._limit = limit
        self._read = read
        self._server_time = server_time
        self._default_pause_s = default_pause_s
        self._circuit = retry.CircuitBreaker()
        self._lock = threading.Lock()
        self._http = client(network, TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections: a later request fails and is not retried."""
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

        def attempt() -> T:
            try:
                return self._once("POST", path, params, decode)
            except (RateLimited, TimestampRejected, ConnectionFailed):
                raise
            except Transient as error:
                raise OutcomeUnknown(f"it is not known whether the POST took effect: {error}") from None

        return self._repeat(attempt, retries)

    def probe(self, path: str, params: Mapping[str, object]) -> bytes:
        """The payload of one GET, of which any failure is raised: no retry, and no correction of the clock."""
        return self._once("GET", path, params, bytes)

    @property
    def clock_ahead_ms(self) -> int:
        """How far the exchange's clock is ahead of this machine's (ms); 0 until it is known."""
        return self._clock.offset_ms

    def adopt_clock(self) -> int | None:
        """Request and adopt the exchange's time; return how far its clock is ahead (ms).

        None: the exchange has no request for its clock. Raises `Transient` if the request fails.
        """
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
            raise NoResponse(redact(f"{type(error).__name__}: {error}")) from None
        except ValueError as error:
            raise Transient(f"the clock of {self.host} could not be read: {redact(error)}") from None

    def _repeat(self, attempt: Callable[[], T], retries: bool) -> T:
        """The result of the first attempt that succeeds, after correcting the clock or waiting between attempts."""
        failures = corrections = 0
        while True:
            try:
                return attempt()
            except TimestampRejected as error:
                corrections += 1
                if corrections > MAX_CLOCK_CORRECTIONS or not self._clock.correct(error, self._server_ms):
                    raise Fatal(f"{error}") from None
            except Transient as error:
                if not retries:
                    raise
                failures += 1
                match self._circuit.retry_or_give_up(error, failures):
                    case retry.Retry(after_s):
                        time.sleep(after_s)
                    case retry.GiveUp(is_unreachable=True):
                        raise self._unreachable(error) from None
                    case retry.GiveUp():
                        raise

    def _unreachable(self, error: Transient) -> Unreachable:
        what = f"{self.host} did not respond for {retry.SILENCE_LIMIT_S} s ({error.problem.what})"
        action = error.problem.action or "Check the network and the exchange's status page"
        return Unreachable(what, f"{action}, then materialize the failed days again")

    def _once(self, method: str, path: str, params: Mapping[str, object], decode: Callable[[bytes], T]) -> T:
        """The decoded payload of one attempt; a failure pauses the scope if the exchange requests a pause."""
        url = f"{self._base_url}{path}"
        if query := encode(params):
            url += f"?{query}"

        with self._limit.slot():
            with self._lock:
                self.requests_sent += 1
            offset_when_signed_ms = self._clock.offset_ms
            sent_at = time.monotonic()
            try:
                response = self._send(method, url)
            except NoResponse:
                self._circuit.failed(sent_at)
                raise
        self._circuit.responded()

        try:
            return self._decoded(response, decode)
        except TimestampRejected as error:
            error.offset_when_signed_ms = offset_when_signed_ms
            raise
        except Transient as error:
            self._pause(error, method)
            raise
        except (ValueError, RecursionError) as error:
            what = f"{self.host} sent a body that cannot be read: {redact(error)}. It was: {quote(response.content)}"
            raise Transient(what).about(unreadable_rows(response.content)) from None

    def _send(self, method: str, url: str) -> Response:
        # httpx's timeouts apply to each read: a trickling body could take forever.
        deadline = time.monotonic() + RESPONSE_LIMIT_S
        body: list[bytes] = []
        try:
            with self._http.stream(method, url, auth=self._auth) as response:
                for piece in response.iter_bytes():
                    body.append(piece)
                    if time.monotonic() > deadline:
                        raise NoResponse(f"the response did not end within {RESPONSE_LIMIT_S} s")
                return Response(response.status_code, response.headers, b"".join(body))
        except httpx.DecodingError:
            raise Transient(f"{self.host} sent a body that cannot be decompressed") from None
        except httpx.TransportError as error:
            is_unconnected = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
            kind = ConnectionFailed if is_unconnected else NoResponse
            raise kind(redact(f"{type(error).__name__}: {error}")) from None

    def _decoded(self, response: Response, decode: Callable[[bytes], T]) -> T:
        """The decoded payload; if the body cannot be decoded but may contain rows, that of the repaired body.

        Raises ValueError or RecursionError if the body cannot be read, or what `read` raises.
        """
        body = as_utf8(response.content)
        response_in_utf8 = replace(response, content=body, received=response.content)
        try:
            return decode(self._read(response_in_utf8))
        # Transient too: `read` may take a damaged body with rows for an error.
        except (ValueError, RecursionError, Transient):
            if not possible_rows(body):
                raise

        repaired_response = replace(response_in_utf8, content=repaired(body))
        try:
            return decode(self._read(repaired_response))
        except Transient as error:
            raise error.about(unreadable_rows(response.content)) from None

    def _pause(self, error: Transient, method: str) -> None:
        """Start the pause that the exchange demands, if any, for the whole scope; do not wait here.

        Raises `Banned` if a run cannot wait that long.
        """
        is_rate_limited = isinstance(error, RateLimited)
        # A POST may have taken effect, unless it was rate-limited: start no pause, so that the caller can check
        # without delay whether it did.
        if method == "POST" and not is_rate_limited:
            return
        pause_s = error.retry_after_s
        if pause_s is None and is_rate_limited:
            pause_s = self._default_pause_s
        if pause_s is None:
            return

        pause_s = min(pause_s, MAX_BAN_S)
        self._limit.pause(pause_s)
        if pause_s > MAX_PAUSE_S:
            others = ", and check what else uses this IP address" if is_rate_limited else ""
            raise Banned(
                f"{self.host} allows no request for {duration(pause_s)} ({error})",
                f"Wait for that long before materializing the failed days again{others}",
            ) from None
