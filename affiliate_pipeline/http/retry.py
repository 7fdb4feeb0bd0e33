"""Whether a failed request is sent again: a decision from values, and the count of missing responses that it depends on."""

import random
import threading
import time
from dataclasses import dataclass

from affiliate_pipeline.http.errors import RateLimited, Transient, Unanswered

MAX_ATTEMPTS = 10
MAX_WAIT_S = 4.0
SILENCE_LIMIT_S = 90
# With fewer, a single failure long after another one would count as silence in between.
MIN_UNANSWERED = 3


@dataclass(frozen=True)
class Retry:
    after_s: float


@dataclass(frozen=True)
class GiveUp:
    """`is_unreachable`: no request of the session gets a response, so others need not be tried either."""

    is_unreachable: bool = False


def decide(
    error: Transient, failures: int, unanswered: int = 0, silent_s: float = 0.0, max_attempts: int = MAX_ATTEMPTS
) -> Retry | GiveUp:
    """What follows a failed request.

    `failures`: how often it has failed by now. When `unanswered` requests of its session in a row have had no
    response for `silent_s`, it is retried for `SILENCE_LIMIT_S`, however often.
    """
    if isinstance(error, Unanswered) and unanswered >= failures:
        if unanswered >= MIN_UNANSWERED and silent_s >= SILENCE_LIMIT_S:
            return GiveUp(is_unreachable=True)
    elif failures >= max_attempts:
        return GiveUp()
    # The limiter holds the exchange's pause for all processes: nothing is left to wait for here.
    if isinstance(error, RateLimited) or error.retry_after_s is not None:
        return Retry(0.0)
    return Retry(min(0.1 * 2 ** min(failures - 1, 6) + random.uniform(0, 0.5), MAX_WAIT_S))


class CircuitBreaker:
    """Counts the requests of a session that get no response. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._unanswered = 0
        self._since = time.monotonic()

    def responded(self) -> None:
        with self._lock:
            self._unanswered, self._since = 0, time.monotonic()

    def failed(self, sent_at: float) -> None:
        """Record that the request sent at `sent_at` (monotonic, s) got no response.

        Time before that, such as waiting for the rate limit, is no silence.
        """
        with self._lock:
            if not self._unanswered:
                self._since = max(self._since, sent_at)
            self._unanswered += 1

    def decide(self, error: Transient, failures: int) -> Retry | GiveUp:
        """What follows the failure of one of the session's requests, as in `decide`."""
        with self._lock:
            unanswered, silent_s = self._unanswered, time.monotonic() - self._since
        return decide(error, failures, unanswered, silent_s)
