"""Fault injection between an exchange and its caller. The exchanges' own rules are in their folders.

A fault is injected after the exchange has processed the call, so after a 5xx or a reset the caller cannot know whether
the call took effect. Refusals are sent unchanged, so that no fault hides a mistake of the caller.
"""

import random
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import date
from typing import Any

from affiliate_pipeline.sandbox.exchange import Call, Exchange, Response
from affiliate_pipeline.sandbox.rows import decode, encode

KINDS = ("http_500", "http_502", "reset", "truncated", "html", "rate_limited", "slow")
BAD_GATEWAY = b"<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"
FIREWALL_PAGE = b"<!DOCTYPE html><html><body><p>Your request has been blocked.</p></body></html>"


class Faults:
    """The faults to apply; every attribute may be changed while the sandbox runs.

    `path`: `next_responses`, failing days and the random mix apply only to calls whose path contains it.
    `next_responses`: canned responses (status, headers, body), one per call.
    `transform_row`: given each row of a response as a dict, returns the row to send.
    `pending`: what the next requests for the URL of a kickback export return instead, one each:
    `error` (a refusal), `message` (the file is still being collected), `previous` (the URL of the previous file),
    `empty` or `null`.
    `expired_urls`: how many of the next file URLs are expired when they are returned.
    `clock_offset_ms`: how far the exchange's clock is ahead of the sandbox's.
    `retry_after_s`: the Retry-After of rate_limited. `slow_s`: the delay of slow.
    """

    path: str
    next_responses: deque[tuple[int, Mapping[str, str], bytes]]
    transform_row: Callable[[dict[str, Any]], dict[str, Any]] | None
    pending: deque[str]
    expired_urls: int
    clock_offset_ms: int
    retry_after_s: int
    slow_s: float

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        """Remove all faults and restore the initial settings."""
        with self._lock:
            self.path = ""
            self.next_responses = deque()
            self.transform_row = None
            self.pending = deque()
            self.expired_urls = 0
            self.clock_offset_ms = 0
            self.retry_after_s = 1
            self.slow_s = 1.0
            self._days: dict[date, tuple[int, int | None]] = {}
            self._rates: dict[str, float] = {}
            self._random = random.Random(0)

    def transformed(self, rows: list[bytes]) -> list[bytes]:
        """The rows as `transform_row` alters them."""
        if transform := self.transform_row:
            return [encode(transform(decode(row))) for row in rows]
        return rows

    def fail_day(self, day: date, *, status: int = 500, code: int | None = None) -> None:
        """Respond with this error to each call that covers the day (in the exchange's zone).

        LBank sends its code, by default 10000, with status 200.
        """
        with self._lock:
            self._days = {**self._days, day: (status, code)}

    def mix(self, *, seed: int = 0, **rates: float) -> None:
        """Inject faults at random, each of KINDS at its rate; replaces the previous mix."""
        if unknown := rates.keys() - set(KINDS):
            raise ValueError(f"no such faults: {sorted(unknown)}; there are {', '.join(KINDS)}")
        if sum(rates.values()) > 1:
            raise ValueError(f"the rates add up to {sum(rates.values())}, more than 1")
        with self._lock:
            self._rates = dict(rates)
            self._random = random.Random(seed)

    def inject(self, response: Response, call: Call, exchange: Exchange) -> Response:  # noqa: PLR0911 - one per fault
        """The response to send: `response`, perhaps marked with a fault, or a fault instead; refusals are unchanged."""
        if response.status != 200 or response.code is not None or self.path not in call.path:
            return response
        if failure := self._day_failure(call, exchange):
            return failure
        with self._lock:
            if self.next_responses:
                status, headers, body = self.next_responses.popleft()
                return Response(status, body, headers=headers, fault="next_responses")
            kind = self._draw_kind()

        match kind:
            case "http_500":
                return replace(exchange.refusal(500), fault=kind)
            case "http_502":
                return Response(502, BAD_GATEWAY, "text/html", fault=kind)
            case "html":
                return Response(200, FIREWALL_PAGE, "text/html", fault=kind)
            case "rate_limited":
                return replace(exchange.refusal(429, retry_after_s=self.retry_after_s), fault=kind)
            case "slow":
                return replace(response, fault=kind, delay_s=self.slow_s)
            case _:  # None, or what the server applies when it sends: "reset", "truncated"
                return replace(response, fault=kind)

    def _day_failure(self, call: Call, exchange: Exchange) -> Response | None:
        """The refusal if the call covers a failing day, otherwise None."""
        covered_days = exchange.days(call) if self._days else None
        if covered_days is None:
            return None
        first, last = covered_days
        for day, (status, code) in self._days.items():
            if first <= day <= last:
                return replace(exchange.refusal(status, code), fault="fail_day")
        return None

    def _draw_kind(self) -> str | None:
        """The kind of fault to inject into one response; None for no fault."""
        point = self._random.random()
        for kind, rate in self._rates.items():
            if point < rate:
                return kind
            point -= rate
        return None
