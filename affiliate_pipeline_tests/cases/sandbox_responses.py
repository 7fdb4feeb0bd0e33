"""Makes the sandbox send given bodies, or rebates byte for byte. Contains no tests."""

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import date

import pytest

from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline.sandbox.exchange import Call, Exchange, Response
from affiliate_pipeline_tests.defs.rebates import DAY_MS, at

PATH = "/sapi/v1/apiReferral/rebate/recentRecord"
# A timestamp of a row, as a number or as text.
_TIMESTAMP = re.compile(rb'("(?:time|distributeTime)":\s*"?)(\d{13})')
_TIME = re.compile(rb'"time":\s*"?(\d{13})')
ROW = (
    b'{"customerId":"c","email":"a***@x","income":"0.3","asset":"BTC","symbol":"BTCUSDT","time":1795737600003,'
    b'"orderId":3,"tradeId":3%s}'
)


def with_fields(more: bytes) -> bytes:
    """A row with these additional fields."""
    return ROW % (b"," + more if more else b"")


def rows_of(body: bytes) -> list[bytes]:
    """The rows of a body that has one row per line."""
    return [line.strip().lstrip(b"[").rstrip(b",]") for line in body.splitlines() if line.strip()]


def moved(row: bytes, day: date) -> bytes:
    """The row with its timestamps moved to this day, at the same time of day."""
    return _TIMESTAMP.sub(lambda found: found[1] + b"%d" % (at(day, "00:00:00.000") + int(found[2]) % DAY_MS), row)


def replace_bodies(
    exchange: Exchange, monkeypatch: pytest.MonkeyPatch, body_of: Callable[[Call, bytes], bytes]
) -> None:
    """Make the exchange send `body_of(call, body)` instead of the body of each successful response."""
    respond = exchange.respond

    def respond_with_other_body(call: Call) -> Response:
        response = respond(call)
        return response if response.code is not None else replace(response, body=body_of(call, response.body))

    monkeypatch.setattr(exchange, "respond", respond_with_other_body)


def send(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, rows: list[bytes]) -> None:
    """Replace the exchange's rebates by these rows. Each response contains the rows of its window, byte for byte."""

    def body_of(call: Call, body: bytes) -> bytes:
        if call.path != PATH:
            return body
        first, last = int(call.params["startTime"]), int(call.params["endTime"])
        times = [int(found[1]) if (found := _TIME.search(row)) else first for row in rows]
        inside = [row for row, time in zip(rows, times, strict=True) if first <= time <= last]
        return b"[" + b",".join(inside) + b"]"

    replace_bodies(sandbox.binance, monkeypatch, body_of)
