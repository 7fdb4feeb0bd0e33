"""The number of requests, or their weight, in a sliding window, for rate limits."""

from collections import deque


class SlidingWindow:
    """The requests within a window that ends now: `times` has the time (ms) of each, once per unit of its weight."""

    def __init__(self) -> None:
        self.times: deque[int] = deque()

    def count(self, now: int, window_ms: int) -> int:
        """The total weight of the requests in the last `window_ms`; older requests are dropped."""
        while self.times and self.times[0] <= now - window_ms:
            self.times.popleft()
        return len(self.times)

    def add(self, now: int, weight: int = 1) -> None:
        """Add a request of this time (ms) and weight."""
        self.times.extend([now] * weight)
