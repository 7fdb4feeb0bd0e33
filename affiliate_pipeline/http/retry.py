"""The retry policy for failed requests, and the circuit breaker that it depends on."""

import random
import threading
import time
from dataclasses import dataclass

from affiliate_pipeline.http.errors import NoResponse, RateLimited, Transient

MAX_ATTEMPTS = 10
MAX_WAIT_S = 4.0
SILENCE_LIMIT_S = 90
# With fewer, an idle time between two failures would count as silence.
MIN_UNANSWERED = 3


@dataclass(frozen=True)
class Retry:
    """Send the request again after `after_s` seconds."""

    after_s: float


@dataclass(frozen=True)
class GiveUp:
    """No further attempt; `is_unreachable`: no request of the session gets a response."""

    is_unreachable: bool = False


def retry_or_give_up(
    error: Transient, failures: int, unanswered: int = 0, silent_s: float = 0.0, max_attempts: int = MAX_ATTEMPTS
) -> Retry | GiveUp:
    """Whether to retry a request that has failed `failures` times.

    The session's last `unanswered` requests, sent over `silent_s` seconds, got no response. If they include all
    failures of this request, it is retried until `silent_s` reaches `SILENCE_LIMIT_S`, regardless of `max_attempts`.
    """
    is_silence = isinstance(error, NoResponse) and unanswered >= failures
    if is_silence and unanswered >= MIN_UNANSWERED and silent_s >= SILENCE_LIMIT_S:
        return GiveUp(is_unreachable=True)
    if not is_silence and failures >= max_attempts:
        return GiveUp()

    # The rate limiter enforces the exchange's pause in all processes: do not wait here as well.
    if isinstance(error, RateLimited) or error.retry_after_s is not None:
        return Retry(0.0)
    backoff_s = 0.1 * 2 ** min(failures - 1, 6)
    jitter_s = random.uniform(0, 0.5)
    return Retry(min(backoff_s + jitter_s, MAX_WAIT_S))


class CircuitBreaker:
    """Counts the requests of a session that get no response. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._unanswered = 0
        self._since = time.monotonic()

    def responded(self) -> None:
        """Record a response, which ends a silence."""
        with self._lock:
            self._unanswered = 0
            self._since = time.monotonic()

    def failed(self, sent_at: float) -> None:
        """Record that the request sent at `sent_at` (monotonic, s) got no response.

        Time before that, such as waiting for the rate limit, does not count as silence.
        """
        with self._lock:
            if not self._unanswered:
                self._since = max(self._since, sent_at)
            self._unanswered += 1

    def retry_or_give_up(self, error: Transient, failures: int) -> Retry | GiveUp:
        """Whether to retry, by the failures of the request and the silence of the session."""
        with self._lock:
            unanswered = self._unanswered
            silent_s = time.monotonic() - self._since
        return retry_or_give_up(error, failures, unanswered, silent_s)
