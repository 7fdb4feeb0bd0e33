"""Rebates that the sandbox sends byte for byte. No test may live here."""

import re
from dataclasses import replace
from datetime import date

import pytest

from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline_tests.defs.rebates import DAY_MS, at

PATH = "/sapi/v1/apiReferral/rebate/recentRecord"
# The instant of a row, as number or text.
_INSTANT = re.compile(rb'("(?:time|distributeTime)":\s*"?)(\d{13})')
_TIME = re.compile(rb'"time":\s*"?(\d{13})')
ROW = (
    b'{"customerId":"c","email":"a***@x","income":"0.3","asset":"BTC","symbol":"BTCUSDT","time":1795737600003,'
    b'"orderId":3,"tradeId":3%s}'
)


def with_fields(more: bytes) -> bytes:
    """A row with these members after its own."""
    return ROW % (b"," + more if more else b"")


def rows_of(body: bytes) -> list[bytes]:
    """The rows of a case, one a line."""
    return [line.strip().lstrip(b"[").rstrip(b",]") for line in body.splitlines() if line.strip()]


def moved(row: bytes, day: date) -> bytes:
    """The row with its instants at the same time of the day."""
    return _INSTANT.sub(lambda found: found[1] + b"%d" % (at(day, "00:00:00.000") + int(found[2]) % DAY_MS), row)


def send(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, rows: list[bytes]) -> None:
    """From now on the exchange has these rows, and sends those of the window requested. The parts of its responses are
    joined without being read."""
    answer = sandbox.binance.respond

    def as_sent(call):
        given = answer(call)
        if call.path != PATH or given.code is not None:
            return given
        first, last = int(call.params["startTime"]), int(call.params["endTime"])
        times = [int(found[1]) if (found := _TIME.search(row)) else first for row in rows]
        inside = [row for row, time in zip(rows, times, strict=True) if first <= time <= last]
        return replace(given, body=b"[" + b",".join(inside) + b"]")

    monkeypatch.setattr(sandbox.binance, "respond", as_sent)
