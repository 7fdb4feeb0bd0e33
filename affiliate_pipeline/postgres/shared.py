"""What sessions share with all other processes through the database (`exchanges.spec.Shared`)."""

from contextlib import ExitStack
from typing import Self

from affiliate_pipeline.postgres.answers import AnswerStore
from affiliate_pipeline.postgres.attempts import AttemptStore
from affiliate_pipeline.postgres.lease import Lease
from affiliate_pipeline.postgres.roster import Rosters

# A slot of a large budget is good for several requests, so that the database is not asked before each one.
MOST_SLOTS = 300


class Shared:
    """Opens what is asked for and closes it at its own end."""

    def __init__(self, url: str):
        self._url = url
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def limit(self, scope: str, per_window: int, window_s: float) -> Lease:
        requests = max(1, per_window // MOST_SLOTS)
        lease = Lease(self._url, scope, max(1, per_window // requests), window_s, requests)
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
