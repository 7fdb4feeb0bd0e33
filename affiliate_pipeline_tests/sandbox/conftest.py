"""A sandbox with a clock that is set by hand, and callers that sign on their own. No test may live here."""

import hashlib
import hmac
import http.client
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline.sandbox.lbank.exchange import LBank

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

    @property
    def data(self) -> Any:
        """What LBank answers, which has to be good."""
        assert (self.status, self.json["result"], self.json["error_code"]) == (200, "true", 0), self.body
        return self.json["data"]

    @property
    def error_code(self) -> int:
        """What LBank refuses with."""
        assert (self.status, self.json["result"], "data" in self.json) == (200, "false", False), self.body
        return self.json["error_code"]


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


class LBankCaller:
    """Calls LBank over one kept-alive connection; `sign` makes the signature of an upper-case MD5."""

    def __init__(self, sandbox: Sandbox, clock: Clock) -> None:
        self.clock = clock
        self.stamp = {
            "api_key": sandbox.lbank.api_key,
            "signature_method": "HmacSHA256",
            "echostr": "A1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q7r",
        }
        self.secret = sandbox.lbank.api_secret
        self.sign: Callable[[bytes], str] = self.hmac_sha256
        self.connection = http.client.HTTPConnection("127.0.0.1", sandbox.port, timeout=5)

    def hmac_sha256(self, payload: bytes) -> str:
        return hmac.new(self.secret.encode(), payload, hashlib.sha256).hexdigest()

    def raw(self, path: str, query: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> Reply:
        self.connection.request(method, f"/affiliate-api/v2/{path}?{query}", headers=dict(headers or {}))
        response = self.connection.getresponse()
        return Reply(response.status, response.headers, response.read())

    def stamped(self, params: Mapping[str, Any]) -> dict[str, str]:
        """All that is signed; one that is None is left out."""
        params = {**self.stamp, "timestamp": self.clock.ms} | params
        return {name: str(value) for name, value in params.items() if value is not None}

    def signature(self, params: Mapping[str, str]) -> str:
        text = "&".join(f"{name}={params[name]}" for name in sorted(params))
        return self.sign(hashlib.md5(text.encode()).hexdigest().upper().encode())

    def get(self, path: str, **params: Any) -> Reply:
        """The answer to these parameters, everything sent in the query."""
        signed = self.stamped(params)
        return self.raw(path, urlencode(signed | {"sign": self.signature(signed)}))

    def pages(self, path: str, size: int = 100, **params: Any) -> Iterator[list[Any]]:
        """The pages of an endpoint that is paged by offset."""
        for start in itertools.count(0, size):
            page = self.get(path, start=start, pageSize=size, **params).data
            yield page
            if len(page) < size:
                return


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


@pytest.fixture
def lbank(sandbox: Sandbox) -> LBank:
    """LBank without its rate limit."""
    sandbox.lbank.rate_limit = (1_000_000, 1)
    return sandbox.lbank


@pytest.fixture
def lbank_caller(sandbox: Sandbox, clock: Clock) -> Iterator[LBankCaller]:
    caller = LBankCaller(sandbox, clock)
    with closing(caller.connection):
        yield caller
