"""What sessions share with all other processes through the database (`exchanges.spec.Shared`)."""

from contextlib import ExitStack
from typing import Self

from affiliate_pipeline.exchanges.binance.customer_ids.pending_actions import AttemptStore
from affiliate_pipeline.exchanges.binance.kickback_export.store import Collections
from affiliate_pipeline.exchanges.lbank.response_cache import AnswerStore
from affiliate_pipeline.exchanges.lbank.roster.store import Rosters
from affiliate_pipeline.postgres.rate_limiter import LONGEST_WAIT_S, Lease

# A slot of a large budget is good for several requests, so that the database is not asked before each one.
MOST_SLOTS = 300


class Shared:
    """Opens what is asked for and closes it at its own end. `longest_wait_s`: a pause of a rate limit that is longer ends
    the run instead of being waited for."""

    def __init__(self, url: str, longest_wait_s: float = LONGEST_WAIT_S):
        self._url, self._longest_wait_s = url, longest_wait_s
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

    def attempts(self, asset: str, source: str) -> AttemptStore:
        attempts = AttemptStore(self._url, asset, source)
        self._stack.callback(attempts.close)
        return attempts

    def roster(self, source: str) -> Rosters:
        rosters = Rosters(self._url, source)
        self._stack.callback(rosters.close)
        return rosters

    def collections(self, source: str) -> Collections:
        collections = Collections(self._url, source)
        self._stack.callback(collections.close)
        return collections
