"""Rate limits and stores, which all processes share through the database."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import date, datetime
from typing import Any, Self, TypeVar

import psycopg

from affiliate_pipeline.exchanges.identity import HasLanded, nothing_landed
from affiliate_pipeline.http.client import Limit, Unlimited
from affiliate_pipeline.http.errors import Banned
from affiliate_pipeline.postgres.rate_limiter import MAX_WAIT_S, RateLimiter
from affiliate_pipeline.postgres.table_store import TableStore

# A slot of a large budget permits several requests, so that not every request needs the database.
MAX_SLOTS = 300

# By day, the instant at which an asset's rows last landed or were confirmed; for rejected rows, that of their request.
# Days without any of these are missing.
LandedOrRejectedAt = Callable[[psycopg.Connection[Any], str, Sequence[date]], Mapping[date, datetime]]


def _nothing_landed_or_rejected(
    _connection: psycopg.Connection[Any], _asset: str, _days: Sequence[date]
) -> Mapping[date, datetime]:
    return {}


_Store = TypeVar("_Store", bound=TableStore)


class SharedState:
    """Opens connections when they are needed and closes them at the end of the `with` block.

    Without a URL there is no rate limit and no store: for the few requests that only test an account. A rate
    limit's pause longer than `max_wait_s` raises `Banned`. `landed_or_rejected_at` and `has_landed` are functions of
    the package `landing`, passed in because this package cannot import it.
    """

    def __init__(
        self,
        url: str | None = None,
        landed_or_rejected_at: LandedOrRejectedAt = _nothing_landed_or_rejected,
        has_landed: HasLanded = nothing_landed,
        max_wait_s: float = MAX_WAIT_S,
    ) -> None:
        self._url = url
        self.landed_or_rejected_at = landed_or_rejected_at
        self.has_landed = has_landed
        self._max_wait_s = max_wait_s
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def limit(self, scope: str, per_window: int, window_s: float) -> Limit:
        """The rate limit of the scope, shared by all processes: `per_window` requests per `window_s`."""
        if self._url is None:
            return Unlimited()
        requests_per_slot = max(1, per_window // MAX_SLOTS)
        slots = max(1, per_window // requests_per_slot)
        limiter = RateLimiter(
            self._url, scope, slots, window_s, requests_per_slot, max_wait_s=self._max_wait_s, too_long=Banned
        )
        return self._stack.enter_context(limiter)

    def open(self, store: Callable[..., _Store], *args: object) -> _Store:
        """A store made with the database's URL and these arguments."""
        if self._url is None:
            raise ValueError("a store requires the URL of a database")
        return self._stack.enter_context(store(self._url, *args))
