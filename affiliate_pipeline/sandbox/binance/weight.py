"""Binance's limit of the weight that an IP address may use, and its ban of callers that ignore it."""

import math
import threading
from collections.abc import Callable

from affiliate_pipeline.sandbox.days import MINUTE_MS
from affiliate_pipeline.sandbox.parameters import Refused
from affiliate_pipeline.sandbox.sliding_window import SlidingWindow

BAN_MS = 120_000


class WeightLimit:
    """The weight used by all accounts of the sandbox, whose callers have one IP address.

    `refusals_before_ban`: how many calls in a row over the limit are refused before the next one causes a ban.
    """

    def __init__(self, *, now: Callable[[], int], rate_scale: float) -> None:
        self.limit = 12_000
        self.window_ms = round(MINUTE_MS / rate_scale)
        self.refusals_before_ban = 20
        self._now = now
        self._lock = threading.Lock()
        self._used = SlidingWindow()
        self._refused_in_a_row = 0
        self._banned_until = 0

    def use(self, weight: int) -> int:
        """Count the call; return the weight used in the window that ends now, or refuse."""
        now = self._now()
        with self._lock:
            if now < self._banned_until:
                raise _too_many(418, self._banned_until - now)

            if self._used.count(now, self.window_ms) + weight <= self.limit:
                self._used.add(now, weight)
                self._refused_in_a_row = 0
                return len(self._used.times)

            self._refused_in_a_row += 1
            if self._refused_in_a_row > self.refusals_before_ban:
                self._refused_in_a_row = 0
                self._banned_until = now + BAN_MS
                raise _too_many(418, BAN_MS)
            free_at = self._used.times[0] + self.window_ms if self._used.times else now
            raise _too_many(429, free_at - now)


def _too_many(status: int, retry_after_ms: int) -> Refused:
    return Refused(-1003, status=status, retry_after_s=max(1, math.ceil(retry_after_ms / 1000)))
