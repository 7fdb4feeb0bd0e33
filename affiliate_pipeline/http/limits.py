"""What the client needs of a rate limit. The one that holds over all processes is `postgres.rate_limiter`."""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Limit(Protocol):
    """A rate limit shared by all requests with the same key."""

    def slot(self) -> AbstractContextManager[None]:
        """Waits until a request may be sent; held until its response is complete."""
        ...

    def pause(self, seconds: float) -> None:
        """No request with the same key is sent for so long."""
        ...


class Unlimited:
    """No limit: for unsigned requests and for a REPL."""

    def slot(self) -> AbstractContextManager[None]:
        return nullcontext()

    def pause(self, seconds: float) -> None:
        pass
