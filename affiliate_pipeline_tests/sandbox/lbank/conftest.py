"""Fixtures for the sandbox's LBank, and a client with its own signing code. Contains no tests."""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from typing import Any
from urllib.parse import urlencode

import pytest

from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline.sandbox.lbank.exchange import LBank
from affiliate_pipeline_tests.sandbox.conftest import Clock, Connection, Response
from affiliate_pipeline_tests.sandbox.lbank.lbank_requests import INFO


class LBankCaller(Connection):
    """A client of LBank, which signs the upper-case MD5 of the parameters."""

    def __init__(self, sandbox: Sandbox, clock: Clock) -> None:
        super().__init__(sandbox, clock, sandbox.lbank.api_secret)
        self.stamp = {
            "api_key": sandbox.lbank.api_key,
            "signature_method": "HmacSHA256",
            "echostr": "A1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q7r",
        }

    def raw(self, path: str, query: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> Response:
        return self.send(method, f"/affiliate-api/v2/{path}?{query}", headers or {})

    def stamped(self, params: Mapping[str, Any]) -> dict[str, str]:
        """The parameters to sign: the stamp and these, without those that are None."""
        given = {**self.stamp, "timestamp": self.clock.ms, **params}
        return {name: str(value) for name, value in given.items() if value is not None}

    def signed(self, params: Mapping[str, Any]) -> dict[str, str]:
        """The parameters to send: those of `stamped`, and the signature as `sign`."""
        stamped = self.stamped(params)
        text = "&".join(f"{name}={stamped[name]}" for name in sorted(stamped))
        return stamped | {"sign": self.sign(hashlib.md5(text.encode()).hexdigest().upper().encode())}

    def get(self, path: str, **params: Any) -> Response:
        """The response to these parameters, sent in the query together with the stamp."""
        return self.raw(path, urlencode(self.signed(params)))

    def pages(self, path: str, size: int = 100, **params: Any) -> Iterator[list[Any]]:
        """The pages of an endpoint that is paged by offset."""
        for start in itertools.count(0, size):
            page = self.get(path, start=start, pageSize=size, **params).data
            yield page
            if len(page) < size:
                return


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


@pytest.fixture
def large_lbank(clock: Clock) -> LBank:
    """LBank with 500 users, without a server."""
    return Sandbox(now=clock, users=500).lbank


@pytest.fixture
def info(lbank: LBank, lbank_caller: LBankCaller) -> Callable[..., Response]:
    """Requests the affiliate's own user info."""

    def get_info(**params: Any) -> Response:
        return lbank_caller.get(INFO, **{"openId": lbank.own_open_id} | params)

    return get_info
