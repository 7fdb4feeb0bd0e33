"""What sessions share with all other processes through the database (`exchanges.fetching.Shared`)."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import date, datetime
from typing import Self

import psycopg

from affiliate_pipeline.exchanges.binance.customer_ids.pending_actions import PendingActions
from affiliate_pipeline.exchanges.binance.kickback_export.store import KickbackExports
from affiliate_pipeline.exchanges.lbank.response_cache import AnswerStore
from affiliate_pipeline.exchanges.lbank.roster.store import Rosters
from affiliate_pipeline.postgres.rate_limiter import LONGEST_WAIT_S, Lease

# A slot of a large budget is good for several requests, so that the database is not asked before each one.
MOST_SLOTS = 300
HandledAt = Callable[[psycopg.Connection, str, Sequence[date]], Mapping[date, datetime]]


class Shared:
    """Opens what is asked for and closes it at its own end. `longest_wait_s`: a pause of a rate limit that is longer ends
    the run instead of being waited for."""

    def __init__(self, url: str, handled_at: HandledAt, longest_wait_s: float = LONGEST_WAIT_S):
        self._url, self._handled_at, self._longest_wait_s = url, handled_at, longest_wait_s
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def limit(self, scope: str, per_window: int, window_s: float) -> Lease:
        requests = max(1, per_window // MOST_SLOTS)
        slots = max(1, per_window // requests)
        lease = Lease(self._url, scope, slots, window_s, requests, longest_wait_s=self._longest_wait_s)
        self._stack.callback(lease.close)
        return lease

    def answers(self, asset: str, source: str) -> AnswerStore:
        answers = AnswerStore(self._url, asset, source)
        self._stack.callback(answers.close)
        return answers

    def pending_actions(self, asset: str, source: str) -> PendingActions:
        actions = PendingActions(self._url, asset, source)
        self._stack.callback(actions.close)
        return actions

    def roster(self, source: str) -> Rosters:
        rosters = Rosters(self._url, source)
        self._stack.callback(rosters.close)
        return rosters

    def exports(self, source: str) -> KickbackExports:
        exports = KickbackExports(self._url, source, self._handled_at)
        self._stack.callback(exports.close)
        return exports
