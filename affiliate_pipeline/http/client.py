"""The only place where HTTP requests are sent: signed anew for each attempt, limited, retried, timed out.

Knows no exchange and no day: how to sign, how to read an answer and which limit applies come from outside.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Self, TypeVar

import httpx
import stamina

from affiliate_pipeline.domain.redaction import redact
from affiliate_pipeline.http.bodies import as_utf8, may_hold_rows, repaired, unreadable_rows
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
from affiliate_pipeline.http.limits import Limit
from affiliate_pipeline.http.network import DIRECT, Network, client

ATTEMPTS = 10
SILENCE_LIMIT_S = 90
LONGEST_PAUSE_S = 300
# Twice the longest known ban; a longer time in a response is not credible.
LONGEST_BAN_S = 7 * 86_400
DEFAULT_PAUSE_S = 10
TIMEOUT = httpx.Timeout(20, connect=10)
# Shorter than postgres.lease.HOLD_S, so that a slot is never given to somebody else while its request is under way.
ANSWER_LIMIT_S = 45
CLOCK_CORRECTIONS = 2
CLOCKS_AGREE_MS = 1000

Answer = TypeVar("Answer")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reply:
    """A whole answer."""

    status_code: int
    headers: Mapping[str, str]
    content: bytes
    # The body as received, if `content` is a decoded or repaired copy.
    received: bytes | None = None

    @property
    def retry_after_s(self) -> float | None:
        """How long the server wants silence, by `Retry-After` in seconds or as a date."""
        said = self.headers.get("Retry-After", "")
        try:
            return max(0.0, float(said))
        except ValueError:
            until_s = _date_s(said)
            return until_s - self.sent_s if until_s and until_s > self.sent_s else None

    @property
    def sent_s(self) -> float:
        """When it was sent, by the server's clock if it tells."""
        return _date_s(self.headers.get("Date", "")) or time.time()


def _date_s(text: str) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp()
    except ValueError:
        return None


class Clock:
    """Our clock, corrected to the exchange's."""

    def __init__(self, local_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000):
        self._local_ms = local_ms
        self.offset_ms = 0

    def now_ms(self) -> int:
        return self._local_ms() + self.offset_ms

    def set(self, server_ms: int) -> None:
        self.offset_ms = server_ms - self._local_ms()


class Client:
    """Signed requests with one key to one exchange. Safe to share between threads.

    `read` gives the payload of a good answer or raises an `ExchangeError`; `server_time` gives the exchange's clock (ms)
    from an unsigned client and is asked when a timestamp was refused without naming the exchange's own.
    """

    def __init__(
        self,
        base_url: str,
        auth: httpx.Auth,
        clock: Clock,
        limit: Limit,
        read: Callable[[Reply], bytes],
        server_time: Callable[[httpx.Client], int] | None = None,
        default_pause_s: float = DEFAULT_PAUSE_S,
        network: Network = DIRECT,
    ):
        self.host = httpx.URL(base_url).host
        self.requests_sent = 0
        self._clock, self._limit, self._read, self._server_time = clock, limit, read, server_time
        self._auth, self._default_pause_s = auth, default_pause_s
        self._base_url = base_url.rstrip("/")
        self._answered_at = float("-inf")
        self._lock = threading.Lock()
        self.network = network
        self._http = client(network, TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(
        self, path: str, params: Mapping[str, object], decode: Callable[[bytes], Answer], *, patient: bool = True
    ) -> Answer:
        """The decoded body of the answer; a body that `decode` refuses with ValueError counts as no good answer.

        Not patient: `Transient` is raised at the first failure instead of after the last attempt.
        """
        return self._patiently(lambda: self._once("GET", path, params, decode), patient)

    def post(
        self, path: str, params: Mapping[str, object], decode: Callable[[bytes], Answer], *, patient: bool = True
    ) -> Answer:
        """The same of a POST, its parameters in the query. It is sent again only where it surely had no effect: too many
        requests, a timestamp refused, no connection. Any other trouble raises `OutcomeUnknown` at once."""

        def once() -> Answer:
            try:
                return self._once("POST", path, params, decode)
            except (RateLimited, ClockOff, Unconnected):
                raise
            except Transient as error:
                raise OutcomeUnknown(f"whether it was done is not known: {error}") from None

        return self._patiently(once, patient)

    def attempt(self, path: str, params: Mapping[str, object]) -> None:
        """Asks once and tells what is wrong by raising it; nothing is tried again."""
        self._once("GET", path, params, bytes)

    @property
    def clock_ahead_ms(self) -> int:
        """How far the exchange's clock was found to be ahead of ours; 0 as long as it has refused no timestamp."""
        return self._clock.offset_ms

    def clock_offset_ms(self) -> int | None:
        """How far the exchange's clock, which is taken over, is ahead of ours; None if it tells its clock only where it
        refuses a timestamp."""
        if self._server_time is None:
            return None
        try:
            self._clock.set(self._server_time(self._http))
        except httpx.TransportError as error:
            raise Unanswered(redact(f"{type(error).__name__}: {error}")) from None
        except ValueError as error:
            raise Transient(f"the clock of {self.host} could not be read: {redact(error)}") from None
        return self._clock.offset_ms

    def _patiently(self, once: Callable[[], Answer], patient: bool) -> Answer:
        """What `once` gives, called again as long as its errors are worth it; if not patient, only with the clock set."""
        started = time.monotonic()
        failures = corrections = 0

        def again(error: Exception) -> bool | float:
            nonlocal failures, corrections
            if not isinstance(error, Transient):
                return False
            if isinstance(error, ClockOff):
                corrections += 1
                return 0.0 if corrections <= CLOCK_CORRECTIONS and self._correct_clock(error) else False
            if not patient:
                return False
            failures += 1
            early = time.monotonic() - started < SILENCE_LIMIT_S
            if isinstance(error, Unanswered):
                return not self._is_silent_since(started) and (early or failures < ATTEMPTS)
            if failures >= ATTEMPTS:
                return False
            # The limit, which everybody asks, holds the pause; nothing is left to wait for here.
            return True if error.retry_after_s is None and not isinstance(error, RateLimited) else 0.0

        try:
            for attempt in stamina.retry_context(again, attempts=None, timeout=None, wait_max=4.0, wait_jitter=0.5):
                with attempt:
                    return once()
        except ClockOff as error:
            raise Fatal(str(error)) from None
        except Unanswered as error:
            if not patient or not self._is_silent_since(started):
                raise
            if proxy := self.network.proxy_for(httpx.URL(self._base_url)):
                raise Unreachable(
                    f"{self.host} could not be reached through {proxy} for {SILENCE_LIMIT_S} s ({error}). "
                    "Check the proxy and its variable, then materialize the failed days again."
                ) from None
            raise Unreachable(
                f"{self.host} gave no answer for {SILENCE_LIMIT_S} s ({error}). "
                "Check the network and the exchange's status page, then materialize the failed days again."
            ) from None
        raise AssertionError("retry_context neither returned nor raised")

    def _is_silent_since(self, started: float) -> bool:
        return time.monotonic() - max(started, self._answered_at) >= SILENCE_LIMIT_S

    def _once(self, method: str, path: str, params: Mapping[str, object], decode: Callable[[bytes], Answer]) -> Answer:
        query = encode(params)
        asked_at = time.monotonic()
        with self._limit.slot():
            sent_at = time.monotonic()
            if sent_at - asked_at > SILENCE_LIMIT_S / 3:
                # So long nobody was asked: the exchange wanted a pause, or the budget was spent.
                self._answered_at = sent_at
            with self._lock:
                self.requests_sent += 1
            signed_offset_ms = self._clock.offset_ms
            try:
                reply = self._send(method, f"{self._base_url}{path}" + (f"?{query}" if query else ""))
            except httpx.DecodingError:
                raise Transient(f"{self.host} sent a body that cannot be decompressed") from None
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
                raise Unconnected(redact(f"{type(error).__name__}: {error}")) from None
            except httpx.TransportError as error:
                raise Unanswered(redact(f"{type(error).__name__}: {error}")) from None
        self._answered_at = time.monotonic()
        try:
            return self._decoded(reply, decode)
        except ClockOff as error:
            error.signed_offset_ms = signed_offset_ms
            raise
        except Transient as error:
            self._pause(error, method)
            raise
        except ValueError as error:
            raise Transient(
                f"{self.host} sent a body that cannot be read: {redact(error)}. It was: {quote(reply.content)}"
            ).about(unreadable_rows(reply.content)) from None

    def _decoded(self, reply: Reply, decode: Callable[[bytes], Answer]) -> Answer:
        """What `decode` makes of the payload; of a body that cannot be read, of the body repaired. Raises ValueError."""
        body = as_utf8(reply.content)
        try:
            return decode(self._read(replace(reply, content=body, received=reply.content)))
        except (ValueError, RecursionError, Transient):
            if not may_hold_rows(body):
                raise
        try:
            return decode(self._read(replace(reply, content=repaired(body), received=reply.content)))
        except Transient as error:
            raise error.about(unreadable_rows(reply.content)) from None

    def _pause(self, error: Transient, method: str) -> None:
        """Pauses the limit for as long as the exchange requests; raises `Banned` if no run can wait so long."""
        pause_s = error.retry_after_s
        if isinstance(error, RateLimited):
            pause_s = self._default_pause_s if pause_s is None else pause_s
        elif method != "GET":
            return  # the request may have taken effect: find that out before pausing
        if pause_s is None:
            return
        pause_s = min(pause_s, LONGEST_BAN_S)
        self._limit.pause(pause_s)
        if pause_s > LONGEST_PAUSE_S:
            others = ", and see what else uses this IP" if isinstance(error, RateLimited) else ""
            raise Banned(
                f"{self.host} allows no request for {pause_s:.0f} s ({error}). "
                f"Wait for that long before materializing the failed days again{others}."
            ) from None

    def _send(self, method: str, url: str) -> Reply:
        # httpx's timeouts are for each read: a body that trickles would never end.
        deadline = time.monotonic() + ANSWER_LIMIT_S
        body = []
        with self._http.stream(method, url, auth=self._auth) as response:
            for piece in response.iter_bytes():
                body.append(piece)
                if time.monotonic() > deadline:
                    raise Unanswered(f"the answer did not end within {ANSWER_LIMIT_S} s")
            return Reply(response.status_code, response.headers, b"".join(body))

    def _correct_clock(self, error: ClockOff) -> bool:
        """False if the clocks agree already, so that asking again would be refused again."""
        if self._clock.offset_ms != error.signed_offset_ms:
            return True  # corrected since, because of another request
        try:
            if error.server_ms is not None:
                self._clock.set(error.server_ms)
            elif self._server_time is not None:
                self._clock.set(self._server_time(self._http))
        except (httpx.HTTPError, ExchangeError, ValueError) as trouble:
            log.warning("the clock of %s could not be read: %s", self.host, redact(trouble))
            return True
        # Not with the offset of now: another request may be correcting it as well.
        if error.server_ms is not None and abs(self._clock.offset_ms - error.signed_offset_ms) < CLOCKS_AGREE_MS:
            return False
        log.warning("the clock of %s differs by %d ms; corrected", self.host, self._clock.offset_ms)
        return True
