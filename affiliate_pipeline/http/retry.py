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
    """`is_unreachable`: no request of the session gets a response, so that others need not be tried either."""

    is_unreachable: bool = False


@dataclass(frozen=True)
class Silence:
    """How many requests of a session in a row have got no response by now, and since when."""

    requests: int = 0
    seconds: float = 0.0


def decide(error: Transient, failures: int, silence: Silence, max_attempts: int = MAX_ATTEMPTS) -> Retry | GiveUp:
    """What follows the failure of one request, its `failures`-th.

    An exchange that responds to nothing is retried until the circuit opens, however often that is.
    """
    if isinstance(error, Unanswered) and silence.requests >= failures:
        if silence.requests >= MIN_UNANSWERED and silence.seconds >= SILENCE_LIMIT_S:
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
        """Record that the request sent at `sent_at` (monotonic, s) got no response. Time before that, such as waiting for
        the rate limit, is no silence."""
        with self._lock:
            if not self._unanswered:
                self._since = max(self._since, sent_at)
            self._unanswered += 1

    @property
    def silence(self) -> Silence:
        with self._lock:
            return Silence(self._unanswered, time.monotonic() - self._since if self._unanswered else 0.0)
