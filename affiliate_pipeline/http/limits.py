"""What the client needs of a rate limit. The one that holds over all processes is `postgres/lease.py`."""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Limit(Protocol):
    """A rate limit shared by everybody who uses the same key."""

    def slot(self) -> AbstractContextManager[None]:
        """Waits until a request may be sent; held until its answer has arrived."""

    def pause(self, seconds: float) -> None:
        """Nobody sends for so long."""


class Unlimited:
    """No limit: for unsigned requests and for a REPL."""

    def slot(self) -> AbstractContextManager[None]:
        return nullcontext()

    def pause(self, seconds: float) -> None:
        pass
