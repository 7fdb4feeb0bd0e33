"""A sandbox whose clock the tests set, and clients with their own signing code. Contains no tests."""

import hashlib
import hmac
import http.client
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from affiliate_pipeline.sandbox import Account, Sandbox

REBATES = "/sapi/v1/apiReferral/rebate/recentRecord"
NOON_MS = 1_748_952_000_000  # 2025-06-03 12:00 UTC


class Clock:
    ms = NOON_MS

    def __call__(self) -> int:
        return self.ms


@dataclass(frozen=True)
class Response:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def refusal(self) -> tuple[int, int]:
        """The HTTP status and the error code of Binance's refusal."""
        return self.status, self.json["code"]

    @property
    def data(self) -> Any:
        """The data of LBank's response, which must be a success."""
        assert (self.status, self.json["result"], self.json["error_code"]) == (200, "true", 0), self.body
        return self.json["data"]

    @property
    def error_code(self) -> int:
        """The error code of LBank's refusal."""
        assert (self.status, self.json["result"], "data" in self.json) == (200, "false", False), self.body
        return self.json["error_code"]


class Connection:
    """One persistent connection. `sign` signs a payload, by default with `secret`."""

    def __init__(self, sandbox: Sandbox, clock: Clock, secret: str) -> None:
        self.clock = clock
        self.secret = secret
        self.sign: Callable[[bytes], str] = self.hmac_sha256
        self.connection = http.client.HTTPConnection("127.0.0.1", sandbox.port, timeout=60)

    def hmac_sha256(self, payload: bytes) -> str:
        return hmac.new(self.secret.encode(), payload, hashlib.sha256).hexdigest()

    def send(self, method: str, target: str, headers: Mapping[str, str], body: str | None = None) -> Response:
        self.connection.request(method, target, body=body, headers=dict(headers))
        response = self.connection.getresponse()
        return Response(response.status, response.headers, response.read())


class Caller(Connection):
    """A client of Binance, by default with the partner's account; `key` is sent in the header."""

    def __init__(self, sandbox: Sandbox, clock: Clock) -> None:
        super().__init__(sandbox, clock, sandbox.binance.partner_secret)
        self.key: str | None = sandbox.binance.partner_key

    def raw(self, target: str, *, method: str = "GET", body: str | None = None) -> Response:
        return self.send(method, target, {} if self.key is None else {"X-MBX-APIKEY": self.key}, body)

    def signed(self, query: str, path: str = REBATES, method: str = "GET", *, in_body: bool = False) -> Response:
        """The response to this query with its signature appended."""
        query += f"&signature={quote(self.sign(query.encode()), safe='')}"
        return self.raw(path, method=method, body=query) if in_body else self.raw(f"{path}?{query}", method=method)

    def call(self, path: str, method: str = "GET", *, in_body: bool = False, **params: Any) -> Response:
        """The response to these parameters, without those that are None."""
        params = {"timestamp": self.clock.ms} | params
        query = "&".join(f"{k}={quote(str(v), safe='')}" for k, v in params.items() if v is not None)
        return self.signed(query, path, method, in_body=in_body)

    def rebates(self, **params: Any) -> Response:
        """The response to a request for rebates, by default those of the last hour."""
        hour: dict[str, Any] = {"startTime": self.clock.ms - 3_600_000, "endTime": self.clock.ms, "limit": 500}
        return self.call(REBATES, **hour | params)


def public_pem(private_key: RSAPrivateKey | Ed25519PrivateKey) -> str:
    return private_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sandbox(clock: Clock) -> Iterator[Sandbox]:
    with Sandbox(accounts=["acme"], now=clock, rows_per_day=300) as sandbox:
        yield sandbox


@pytest.fixture
def connect(clock: Clock) -> Callable[[Sandbox], AbstractContextManager[Caller]]:
    """Opens further callers, each with its own connection."""

    @contextmanager
    def connected(sandbox: Sandbox) -> Iterator[Caller]:
        caller = Caller(sandbox, clock)
        with closing(caller.connection):
            yield caller

    return connected


@pytest.fixture
def caller(sandbox: Sandbox, connect: Callable[[Sandbox], AbstractContextManager[Caller]]) -> Iterator[Caller]:
    with connect(sandbox) as caller:
        yield caller


@pytest.fixture
def acme(sandbox: Sandbox) -> Account:
    """The sandbox's second account. At LBank, it has the same rate limit as the default account."""
    account = sandbox.accounts["acme"]
    account.lbank.rate_limit = sandbox.lbank.rate_limit
    return account


@pytest.fixture
def call_as(caller: Caller) -> Callable[..., Response]:
    """Calls Binance with the key of an account's role."""

    def call(account: Account, role: str, path: str, method: str = "GET", **params: Any) -> Response:
        binance = account.binance
        caller.key = {"partner": binance.partner_key, "client": binance.client_key}[role]
        caller.secret = binance.keys[caller.key]
        return caller.call(path, method, **params)

    return call
