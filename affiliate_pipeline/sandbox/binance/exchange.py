"""Binance Link in the sandbox: its signing, error codes, weight limit and endpoints. No socket may live here.

An endpoint is one entry of `_endpoints` and one method that returns the body.
"""

import json
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from functools import lru_cache
from typing import Any

from affiliate_pipeline.sandbox.binance.customers import EMAIL, Customers
from affiliate_pipeline.sandbox.binance.kickbacks import FILES, RECENT_MS, Kickbacks
from affiliate_pipeline.sandbox.binance.rebates import (
    DAY_MS,
    EMPTY_DAY,
    Day,
    day_of,
    generated_day,
    given_days,
    start_of,
)
from affiliate_pipeline.sandbox.exchange import NOT_FOUND, Answer, Call
from affiliate_pipeline.sandbox.faults import Faults
from affiliate_pipeline.sandbox.rows import decode, encode
from affiliate_pipeline.sandbox.signatures import verifier

DAYS_CACHED = 40
MAX_SPAN_MS = 7 * DAY_MS
# The client is one trader of many.
REBATES_PER_KICKBACK = 5
DEFAULT_KICKBACKS, MOST_KICKBACKS = 500, 1000
MAX_AHEAD_MS = 1000
DEFAULT_RECV_WINDOW_MS = 5000
MAX_RECV_WINDOW_MS = 60_000
BAN_MS = 120_000
WEIGHT_WINDOW_MS = 60_000

# RFC 3986: unreserved characters, and %XX in upper case. The real server rebuilds the text it verifies (since
# 2026-01-15), so that anything encoded another way has a wrong signature.
_CHARACTER = r"(?:[A-Za-z0-9\-._~]|%[0-9A-F]{2})"
CANONICAL = re.compile(rf"(?:{_CHARACTER}+={_CHARACTER}*(?:&{_CHARACTER}+={_CHARACTER}*)*)?")
INTEGER = re.compile(r"[0-9]{1,20}")

MESSAGES = {
    -1000: "An unknown error occurred while processing the request.",
    -1001: "Internal error; unable to process your request. Please try again.",
    -1003: "Too much request weight used; please wait.",
    -1021: "Timestamp for this request is outside of the recvWindow.",
    -1022: "Signature for this request is not valid.",
    -1100: "Illegal characters found in parameter '{name}'; legal range is '^[0-9]{{1,20}}$'.",
    -1101: "Too many parameters, or duplicate values for a parameter detected.",
    -1102: "Mandatory parameter '{name}' was not sent, was empty/null, or malformed.",
    -1105: "Parameter '{name}' was empty.",
    -1127: "More than 7 days between startTime and endTime.",
    -1128: "Combination of optional parameters invalid.",
    -1130: "Data sent for parameter '{name}' is not valid.",
    -1131: "recvWindow must be less than 60000",
    -2015: "Invalid API-key, IP, or permissions for action.",
}
CODES = {418: -1003, 429: -1003, 500: -1001}


class _Refused(Exception):
    def __init__(self, status: int, code: int, name: str = "", *, retry_after_ms: int | None = None) -> None:
        self.status, self.code, self.name = status, code, name
        self.retry_after_s = None if retry_after_ms is None else max(1, -(-retry_after_ms // 1000))


@dataclass(frozen=True)
class _Endpoint:
    body: Callable[[Mapping[str, str]], bytes]
    parameters: frozenset[str]
    key: str


class Binance:
    """Binance Link with its data.

    `remembers_ms`: older rows are forgotten; None keeps them for ever.
    `exclusive_end`: a row at endTime does not come.
    `customers`: who has which customerId.
    `undone_posts`: so many POSTs to come fail without having been done; faults spoil answers of what was done.
    `patience`: so many calls in a row while told to wait are only refused; one more is a ban.
    """

    prefixes = ("/api/", "/sapi/", FILES)
    partner_key, partner_secret = "sandbox-partner-key", "sandbox-partner-secret"
    client_key, client_secret = "sandbox-client-key", "sandbox-client-secret"
    api_agent_code = "SANDBOX1"

    def __init__(self, *, now: Callable[[], int], faults: Faults, rows_per_day: int, rate_scale: float) -> None:
        self.accounts = {self.partner_key: self.partner_secret, self.client_key: self.client_secret}
        self.customers = Customers()
        self.undone_posts = 0
        self.newest_first = False
        self.exclusive_end = False
        self.limit_per_answer = 500
        self.remembers_ms: int | None = 7 * DAY_MS
        self.weight_limit = 12_000
        self.weight_window_ms = round(WEIGHT_WINDOW_MS / rate_scale)
        self.patience = 20
        self.kickbacks = Kickbacks(now=now, faults=faults, rows_per_day=max(1, rows_per_day // REBATES_PER_KICKBACK))
        self._now = now
        self._faults = faults
        self._lock = threading.Lock()
        self._spent: deque[int] = deque()
        self._refused_in_a_row = 0
        self._banned_until = 0
        self._given: dict[date, Day] | None = None
        self._generated = lru_cache(DAYS_CACHED)(lambda day: generated_day(day, rows_per_day))
        self._endpoints = {
            ("GET", "/sapi/v1/apiReferral/rebate/recentRecord"): _Endpoint(
                self._rebate_recent_record,
                frozenset({"customerId", "startTime", "endTime", "limit"}),
                self.partner_key,
            ),
            ("GET", "/sapi/v1/apiReferral/ifNewUser"): _Endpoint(
                self._if_new_user, frozenset({"apiAgentCode"}), self.client_key
            ),
            ("GET", "/sapi/v1/apiReferral/customization"): _Endpoint(
                self._customization, frozenset({"customerId", "email"}), self.partner_key
            ),
            ("POST", "/sapi/v1/apiReferral/customization"): _Endpoint(
                self._customize, frozenset({"customerId", "email"}), self.partner_key
            ),
            ("GET", "/sapi/v1/apiReferral/userCustomization"): _Endpoint(
                self._user_customization, frozenset({"apiAgentCode"}), self.client_key
            ),
            ("POST", "/sapi/v1/apiReferral/userCustomization"): _Endpoint(
                self._customize_user, frozenset({"customerId", "apiAgentCode"}), self.client_key
            ),
            ("GET", "/sapi/v1/apiReferral/kickback/recentRecord"): _Endpoint(
                self._kickback_recent_record, frozenset({"startTime", "endTime", "limit"}), self.client_key
            ),
            ("POST", "/sapi/v1/apiReferral/kickback/historicalRecord"): _Endpoint(
                self._collect_history, frozenset({"startTime", "endTime", "limit"}), self.client_key
            ),
            ("GET", "/sapi/v1/apiReferral/kickback/historicalRecord"): _Endpoint(
                self._offer_history, frozenset(), self.client_key
            ),
        }

    def add_account(self, api_key: str, secret_or_public_pem: str) -> None:
        """From now on this key may call every endpoint, with an HMAC secret or the public key of a pair."""
        self.accounts[api_key] = secret_or_public_pem

    def set_rebates(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """From now on these are all the rebates, each sent as given, `Number` and `Decimal` unquoted."""
        self._given = given_days(rows)

    def rebates(self, day: date) -> list[dict[str, Any]]:
        """What there is for the UTC day as of now, in the order of answers, without `transform_row`."""
        start = start_of(day)
        return [decode(row) for row in self._rebates(start, start + DAY_MS)]

    def answer(self, call: Call) -> Answer:
        if call.path.startswith(FILES):
            return self.kickbacks.file(call)
        headers: dict[str, str] = {}
        try:
            if (call.method, call.path) == ("GET", "/api/v3/time"):
                return Answer(200, b'{"serverTime":%d}' % self._clock())
            endpoint = self._endpoints.get((call.method, call.path))
            if endpoint is None:
                return NOT_FOUND
            headers["X-SAPI-USED-IP-WEIGHT-1M"] = str(self._weigh())
            self._verify(call, endpoint)
            if call.method == "POST" and self.undone_posts:
                self.undone_posts -= 1
                raise _Refused(500, -1001)
            return Answer(200, endpoint.body(call.params), headers=headers)
        except _Refused as refused:
            refusal = self.refusal(refused.status, refused.code, refused.retry_after_s, refused.name)
            return replace(refusal, headers={**headers, **refusal.headers})

    def refusal(self, status: int, code: int | None = None, retry_after_s: int | None = None, name: str = "") -> Answer:
        code = CODES.get(status, -1000) if code is None else code
        message = MESSAGES.get(code, MESSAGES[-1000]).format(name=name)
        body = json.dumps({"code": code, "msg": message}, separators=(",", ":"))
        headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
        return Answer(status, body.encode(), headers=headers, code=code)

    def days(self, call: Call) -> tuple[date, date] | None:
        if "startTime" not in call.params:
            return None
        start, stop = self._window(call.params, longest_ms=None)
        return day_of(start), day_of(max(start, stop - 1))

    def _rebate_recent_record(self, params: Mapping[str, str]) -> bytes:
        start, stop = self._window(params)
        limit = _integer(params, "limit")
        if not 1 <= limit <= self.limit_per_answer:
            raise _Refused(400, -1130, "limit")
        rows = self._rebates(start, stop, customer=params.get("customerId"), most=limit)
        return self._list(rows)

    def _list(self, rows: Iterable[bytes]) -> bytes:
        if transform := self._faults.transform_row:
            rows = [encode(transform(decode(row))) for row in rows]
        return b"[" + b",".join(rows) + b"]"

    def _if_new_user(self, params: Mapping[str, str]) -> bytes:
        code = _given(params, "apiAgentCode")
        row = {"apiAgentCode": code, "rebateWorking": code == self.api_agent_code, "ifNewUser": True}
        return encode({**row, "referrerId": 39472261})

    def _customization(self, params: Mapping[str, str]) -> bytes:
        if {"customerId", "email"} <= params.keys():
            raise _Refused(400, -1128)
        return self._list(map(encode, self.customers.rows(params.get("customerId"), params.get("email"))))

    def _customize(self, params: Mapping[str, str]) -> bytes:
        customer_id, email = _given(params, "customerId"), _given(params, "email")
        if not EMAIL.fullmatch(email):
            raise _Refused(400, -1130, "email")
        if not self.customers.assign(customer_id, email):
            raise _Refused(400, -1130, "customerId")
        return encode({"customerId": customer_id, "email": email})

    def _user_customization(self, params: Mapping[str, str]) -> bytes:
        self._check_agent(params)
        return encode({"customerId": self.customers.own_id})

    def _customize_user(self, params: Mapping[str, str]) -> bytes:
        self._check_agent(params)
        customer_id = _given(params, "customerId")
        if not self.customers.assign_own(customer_id):
            raise _Refused(400, -1130, "customerId")
        return encode({"customerId": customer_id})

    def _check_agent(self, params: Mapping[str, str]) -> None:
        if _given(params, "apiAgentCode") != self.api_agent_code:
            raise _Refused(400, -1130, "apiAgentCode")

    def _kickback_recent_record(self, params: Mapping[str, str]) -> bytes:
        start, stop = self._window(params)
        limit = _integer(params, "limit") if "limit" in params else DEFAULT_KICKBACKS
        if not 1 <= limit <= MOST_KICKBACKS:
            raise _Refused(400, -1130, "limit")
        rows = self.kickbacks.between(start, stop, RECENT_MS, newest_first=self.newest_first, most=limit)
        return b"[" + b",".join(rows) + b"]"

    def _collect_history(self, params: Mapping[str, str]) -> bytes:
        start, stop = _integer(params, "startTime"), _integer(params, "endTime") + 1
        if stop <= start:
            raise _Refused(400, -1128)
        return self.kickbacks.collect(start, stop, _integer(params, "limit") if "limit" in params else None)

    def _offer_history(self, params: Mapping[str, str]) -> bytes:
        answer = self.kickbacks.offer()
        if answer is None:
            raise _Refused(400, -1130, "history")
        return answer

    def _rebates(self, start: int, stop: int, *, customer: str | None = None, most: int | None = None) -> list[bytes]:
        """The remembered rows with start <= time < stop that exist by now, in the order of answers."""
        now = self._now()
        stop = min(stop, now + 1)
        if self.remembers_ms is not None:
            start = max(start, now - self.remembers_ms)
        days = [day_of(ms) for ms in range(start // DAY_MS * DAY_MS, stop, DAY_MS)]
        rows: list[bytes] = []
        for day in reversed(days) if self.newest_first else days:
            left = None if most is None else most - len(rows)
            if left == 0:
                break
            rows += self._day(day).between(
                start, stop, now, customer=customer, newest_first=self.newest_first, most=left
            )
        return rows

    def _day(self, day: date) -> Day:
        if (given := self._given) is not None:
            return given.get(day, EMPTY_DAY)
        with self._lock:  # several callers of a new day would each make it up
            return self._generated(day)

    def _window(self, params: Mapping[str, str], longest_ms: int | None = MAX_SPAN_MS) -> tuple[int, int]:
        """The instants [start, stop) that a call asks for; without any, those of the last 7 days."""
        if "startTime" not in params and "endTime" not in params:
            return self._now() - MAX_SPAN_MS, self._now() + 1
        start, end = _integer(params, "startTime"), _integer(params, "endTime")
        if end < start:
            raise _Refused(400, -1128)
        if longest_ms is not None and end - start > longest_ms:
            raise _Refused(400, -1127)
        return start, end if self.exclusive_end else end + 1

    def _clock(self) -> int:
        return self._now() + self._faults.clock_offset_ms

    def _weigh(self) -> int:
        """The weight used in the window that ends now, this call included."""
        now = self._now()
        with self._lock:
            if now < self._banned_until:
                raise _Refused(418, -1003, retry_after_ms=self._banned_until - now)
            while self._spent and self._spent[0] <= now - self.weight_window_ms:
                self._spent.popleft()
            if len(self._spent) < self.weight_limit:
                self._spent.append(now)
                self._refused_in_a_row = 0
                return len(self._spent)
            self._refused_in_a_row += 1
            if self._refused_in_a_row > self.patience:
                self._refused_in_a_row = 0
                self._banned_until = now + BAN_MS
                raise _Refused(418, -1003, retry_after_ms=BAN_MS)
            free_at = self._spent[0] + self.weight_window_ms if self._spent else now
            raise _Refused(429, -1003, retry_after_ms=free_at - now)

    def _verify(self, call: Call, endpoint: _Endpoint) -> None:
        api_key = call.headers.get("X-MBX-APIKEY", "")
        wrong_role = api_key in {self.partner_key, self.client_key} - {endpoint.key}
        if api_key not in self.accounts or wrong_role:
            raise _Refused(401, -2015)
        if not (CANONICAL.fullmatch(call.query) and CANONICAL.fullmatch(call.body)):
            raise _Refused(400, -1022)
        if len(call.params) < len(call.pairs):
            raise _Refused(400, -1101)
        if not call.params.get("signature"):
            raise _Refused(400, -1102, "signature")
        # Signed is the query followed directly by the body; the signature is the very last parameter.
        before, last = (call.query, call.body) if call.body else ("", call.query)
        head, found, _ = f"&{last}".rpartition("&signature=")
        signature = call.params["signature"]
        if not found or call.pairs[-1][0] != "signature":
            raise _Refused(400, -1022)
        if not verifier(self.accounts[api_key])((before + head[1:]).encode(), signature):
            raise _Refused(400, -1022)
        sent_at = _integer(call.params, "timestamp")
        recv_window = DEFAULT_RECV_WINDOW_MS
        if "recvWindow" in call.params:
            recv_window = _integer(call.params, "recvWindow")
        if recv_window > MAX_RECV_WINDOW_MS:
            raise _Refused(400, -1131)
        if not -recv_window <= sent_at - self._clock() <= MAX_AHEAD_MS:
            raise _Refused(400, -1021)
        if call.params.keys() - endpoint.parameters - {"timestamp", "recvWindow", "signature"}:
            raise _Refused(400, -1101)
        if empty := next((name for name, value in call.pairs if not value), None):
            raise _Refused(400, -1105, empty)


def _given(params: Mapping[str, str], name: str) -> str:
    text = params.get(name)
    if not text:
        raise _Refused(400, -1102, name)
    return text


def _integer(params: Mapping[str, str], name: str) -> int:
    text = _given(params, name)
    if not INTEGER.fullmatch(text):
        raise _Refused(400, -1100, name)
    return int(text)
