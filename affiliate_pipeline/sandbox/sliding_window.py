"""The number of requests, or their weight, in a sliding window, for rate limits."""

from collections import deque


class SlidingWindow:
    """The times (ms) of the requests counted in the window that ends now, once per unit of their weight."""

    def __init__(self) -> None:
        self.times: deque[int] = deque()

    def count(self, now: int, window_ms: int) -> int:
        """How many were added within the window; older ones are dropped."""
        while self.times and self.times[0] <= now - window_ms:
            self.times.popleft()
        return len(self.times)

    def add(self, now: int, weight: int = 1) -> None:
        """Add a request at this time (ms)."""
        self.times.extend([now] * weight)
