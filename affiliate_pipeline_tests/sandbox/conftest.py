"""A sandbox with a clock that is set by hand, and a caller that signs on its own. No test may live here."""

import hashlib
import hmac
import http.client
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pytest

from affiliate_pipeline.sandbox import Sandbox

REBATES = "/sapi/v1/apiReferral/rebate/recentRecord"
NOON_MS = 1_748_952_000_000  # 2025-06-03 12:00 UTC


class Clock:
    ms = NOON_MS

    def __call__(self) -> int:
        return self.ms


@dataclass(frozen=True)
class Reply:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def refusal(self) -> tuple[int, int]:
        return self.status, self.json["code"]


class Caller:
    """Calls over one kept-alive connection; `sign` makes the signature, `key` goes into the header."""

    def __init__(self, sandbox: Sandbox, clock: Clock) -> None:
        self.clock = clock
        self.key: str | None = sandbox.binance.partner_key
        self.secret = sandbox.binance.partner_secret
        self.sign: Callable[[bytes], str] = self.hmac_sha256
        self.connection = http.client.HTTPConnection("127.0.0.1", sandbox.port, timeout=5)

    def hmac_sha256(self, payload: bytes) -> str:
        return hmac.new(self.secret.encode(), payload, hashlib.sha256).hexdigest()

    def raw(self, target: str, *, method: str = "GET", body: str | None = None) -> Reply:
        headers = {} if self.key is None else {"X-MBX-APIKEY": self.key}
        self.connection.request(method, target, body=body, headers=headers)
        response = self.connection.getresponse()
        return Reply(response.status, response.headers, response.read())

    def signed(self, query: str) -> Reply:
        """The answer to this query of the rebates, the signature put at its end."""
        return self.raw(f"{REBATES}?{query}&signature={quote(self.sign(query.encode()), safe='')}")

    def rebates(self, **params: Any) -> Reply:
        """The answer to these parameters, by default for an hour; one that is None is left out."""
        params = {
            "startTime": self.clock.ms - 3_600_000,
            "endTime": self.clock.ms,
            "limit": 500,
            "timestamp": self.clock.ms,
        } | params
        return self.signed("&".join(f"{k}={quote(str(v), safe='')}" for k, v in params.items() if v is not None))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sandbox(clock: Clock) -> Iterator[Sandbox]:
    with Sandbox(now=clock) as sandbox:
        yield sandbox


@pytest.fixture
def caller_of(clock: Clock) -> Callable[[Sandbox], AbstractContextManager[Caller]]:
    """Makes further callers, each with a connection of its own."""

    @contextmanager
    def make(sandbox: Sandbox) -> Iterator[Caller]:
        caller = Caller(sandbox, clock)
        with closing(caller.connection):
            yield caller

    return make


@pytest.fixture
def caller(sandbox: Sandbox, caller_of: Callable[[Sandbox], AbstractContextManager[Caller]]) -> Iterator[Caller]:
    with caller_of(sandbox) as caller:
        yield caller
