"""Binance Link in the sandbox: its accounts, weight limit and endpoints.

An endpoint is one entry of `_endpoints` and one method that returns the body.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from typing import Any

from affiliate_pipeline.sandbox.binance.customers import EMAIL, Customers
from affiliate_pipeline.sandbox.binance.kickbacks import FILES, RECENT_MS, Kickbacks
from affiliate_pipeline.sandbox.binance.parameters import BinanceParameters, refusal
from affiliate_pipeline.sandbox.binance.rebates import generated_day
from affiliate_pipeline.sandbox.binance.records import Records
from affiliate_pipeline.sandbox.binance.signing import SIGNING_PARAMETERS, verify
from affiliate_pipeline.sandbox.days import DAY_MS, MINUTE_MS, day_of, start_of
from affiliate_pipeline.sandbox.exchange import NOT_FOUND, Call, Response
from affiliate_pipeline.sandbox.faults import Faults
from affiliate_pipeline.sandbox.parameters import Refused
from affiliate_pipeline.sandbox.rows import array, decode, encode
from affiliate_pipeline.sandbox.sliding_window import SlidingWindow

MAX_SPAN_MS = 7 * DAY_MS
# The client is one trader of many, so it has fewer rows than the partner.
REBATES_PER_KICKBACK = 5
DEFAULT_KICKBACKS, MAX_KICKBACKS = 500, 1000
BAN_MS = 120_000


@dataclass(frozen=True)
class _Endpoint:
    body: Callable[[BinanceParameters], bytes]
    key: str
    parameters: frozenset[str]


class Binance:
    """Binance Link with its data.

    `retention_ms`: the retention of rebates; None retains them forever.
    `exclusive_end`: a row at endTime is not returned.
    `newest_first`: rows are ordered from the newest to the oldest.
    `max_limit`: the largest `limit` of a call for rebates.
    `posts_to_fail`: how many of the next POSTs fail without effect. `Faults` are injected after the effect.
    `refusals_before_ban`: how many calls in a row over the weight limit are refused before the next one causes a ban.
    """

    prefixes = ("/api/", "/sapi/", FILES)
    partner_key, partner_secret = "sandbox-partner-key", "sandbox-partner-secret"
    client_key, client_secret = "sandbox-client-key", "sandbox-client-secret"
    api_agent_code = "SANDBOX1"

    def __init__(self, *, now: Callable[[], int], faults: Faults, rows_per_day: int, rate_scale: float) -> None:
        self.accounts = {self.partner_key: self.partner_secret, self.client_key: self.client_secret}
        self.customers = Customers()
        self.posts_to_fail = 0
        self.newest_first = False
        self.exclusive_end = False
        self.max_limit = 500
        self.retention_ms: int | None = 7 * DAY_MS
        self.weight_limit = 12_000
        self.weight_window_ms = round(MINUTE_MS / rate_scale)
        self.refusals_before_ban = 20
        self.kickbacks = Kickbacks(now=now, faults=faults, rows_per_day=max(1, rows_per_day // REBATES_PER_KICKBACK))
        self._now = now
        self._faults = faults
        self._lock = threading.Lock()
        self._spent = SlidingWindow()
        self._refused_in_a_row = 0
        self._banned_until = 0
        self._rebates = Records(partial(generated_day, rows_per_day=rows_per_day))
        partner, client = self.partner_key, self.client_key
        customer, agent = {"customerId", "email"}, {"apiAgentCode"}
        window = {"startTime", "endTime", "limit"}
        self._endpoints = {
            (method, f"/sapi/v1/apiReferral/{path}"): _Endpoint(body, key, frozenset(parameters))
            for method, path, body, key, parameters in (
                ("GET", "rebate/recentRecord", self._rebate_recent_record, partner, window | {"customerId"}),
                ("GET", "ifNewUser", self._if_new_user, client, agent),
                ("GET", "customization", self._customization, partner, customer),
                ("POST", "customization", self._customize, partner, customer),
                ("GET", "userCustomization", self._user_customization, client, agent),
                ("POST", "userCustomization", self._customize_user, client, agent | {"customerId"}),
                ("GET", "kickback/recentRecord", self._kickback_recent_record, client, window),
                ("POST", "kickback/historicalRecord", self._request_export, client, window),
                ("GET", "kickback/historicalRecord", self._export_url, client, set[str]()),
            )
        }

    def variables(self, url: str) -> dict[str, str]:
        """The environment variables of a client at this URL, for both roles."""
        return {
            "BINANCE_BASE_URL": url,
            "BINANCE_PARTNER_API_KEY": self.partner_key,
            "BINANCE_PARTNER_API_SECRET": self.partner_secret,
            "BINANCE_CLIENT_API_KEY": self.client_key,
            "BINANCE_CLIENT_API_SECRET": self.client_secret,
            "BINANCE_API_AGENT_CODE": self.api_agent_code,
        }

    def add_account(self, api_key: str, secret_or_public_pem: str) -> None:
        """Let this key call every endpoint, with an HMAC secret or the public key of a pair."""
        self.accounts[api_key] = secret_or_public_pem

    def set_rebates(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace all rebates by these, each sent as given, `Number` and `Decimal` unquoted."""
        self._rebates.set(rows)

    def rebates(self, day: date) -> list[dict[str, Any]]:
        """The rebates of the UTC day as of now, in the order of responses, without `transform_row`."""
        start = start_of(day)
        return [decode(row) for row in self._rebates_between(start, start + DAY_MS)]

    def respond(self, call: Call) -> Response:
        """The response to the call, before faults; a refusal is a response too."""
        if call.path.startswith(FILES):
            return self.kickbacks.file(call)
        headers: dict[str, str] = {}
        try:
            if (call.method, call.path) == ("GET", "/api/v3/time"):
                return Response(200, b'{"serverTime":%d}' % self._clock())
            endpoint = self._endpoints.get((call.method, call.path))
            if endpoint is None:
                return NOT_FOUND
            headers["X-SAPI-USED-IP-WEIGHT-1M"] = str(self._weigh())
            self._verify(call, endpoint)
            if call.method == "POST" and self.posts_to_fail:
                self.posts_to_fail -= 1
                raise Refused(-1001, status=500)
            return Response(200, endpoint.body(BinanceParameters(call.params)), headers=headers)
        except Refused as refused:
            response = self.refusal(refused.status, refused.code, refused.retry_after_s, refused.name)
            return replace(response, headers={**headers, **response.headers})

    def refusal(
        self, status: int, code: int | None = None, retry_after_s: int | None = None, name: str = ""
    ) -> Response:
        """A refusal in Binance's format; `name` is the parameter at fault."""
        return refusal(status, code, name, {} if retry_after_s is None else {"Retry-After": str(retry_after_s)})

    def days(self, call: Call) -> tuple[date, date] | None:
        """The first and last UTC day of a call with startTime."""
        if "startTime" not in call.params:
            return None
        start, stop = self._window(BinanceParameters(call.params), max_span_ms=None)
        return day_of(start), day_of(max(start, stop - 1))

    def _rebate_recent_record(self, params: BinanceParameters) -> bytes:
        start, stop = self._window(params)
        limit = params.integer("limit")
        if not 1 <= limit <= self.max_limit:
            raise Refused(-1130, "limit")
        rows = self._rebates_between(start, stop, customer=params.get("customerId"), limit=limit)
        return array(self._faults.transformed(rows))

    def _if_new_user(self, params: BinanceParameters) -> bytes:
        code = params.text("apiAgentCode")
        row = {"apiAgentCode": code, "rebateWorking": code == self.api_agent_code, "ifNewUser": True}
        return encode({**row, "referrerId": 39472261})

    def _customization(self, params: BinanceParameters) -> bytes:
        if {"customerId", "email"} <= params.keys():
            raise Refused(-1128)
        rows = self.customers.rows(params.get("customerId"), params.get("email"))
        return array(self._faults.transformed([encode(row) for row in rows]))

    def _customize(self, params: BinanceParameters) -> bytes:
        customer_id, email = params.text("customerId"), params.text("email")
        if not EMAIL.fullmatch(email):
            raise Refused(-1130, "email")
        if not self.customers.assign(customer_id, email):
            raise Refused(-1130, "customerId")
        return encode({"customerId": customer_id, "email": email})

    def _user_customization(self, params: BinanceParameters) -> bytes:
        self._check_agent(params)
        return encode({"customerId": self.customers.own_id})

    def _customize_user(self, params: BinanceParameters) -> bytes:
        self._check_agent(params)
        customer_id = params.text("customerId")
        if not self.customers.assign_own(customer_id):
            raise Refused(-1130, "customerId")
        return encode({"customerId": customer_id})

    def _check_agent(self, params: BinanceParameters) -> None:
        if params.text("apiAgentCode") != self.api_agent_code:
            raise Refused(-1130, "apiAgentCode")

    def _kickback_recent_record(self, params: BinanceParameters) -> bytes:
        start, stop = self._window(params)
        limit = params.integer("limit") if "limit" in params else DEFAULT_KICKBACKS
        if not 1 <= limit <= MAX_KICKBACKS:
            raise Refused(-1130, "limit")
        rows = self.kickbacks.between(start, stop, RECENT_MS, newest_first=self.newest_first, limit=limit)
        return array(rows)

    def _request_export(self, params: BinanceParameters) -> bytes:
        start, end = params.window()
        return self.kickbacks.collect(start, end + 1, params.integer("limit") if "limit" in params else None)

    def _export_url(self, params: BinanceParameters) -> bytes:
        response = self.kickbacks.offer()
        if response is None:
            raise Refused(-1130, "history")
        return response

    def _rebates_between(
        self, start: int, stop: int, *, customer: str | None = None, limit: int | None = None
    ) -> list[bytes]:
        """The first `limit` retained rows with start <= time < stop that exist by now, in order."""
        return self._rebates.between(
            start,
            stop,
            now=self._now(),
            retained_ms=self.retention_ms,
            customer=customer,
            newest_first=self.newest_first,
            limit=limit,
        )

    def _window(self, params: BinanceParameters, max_span_ms: int | None = MAX_SPAN_MS) -> tuple[int, int]:
        """The instants [start, stop) that are requested; by default those of the last 7 days."""
        if "startTime" not in params and "endTime" not in params:
            return self._now() - MAX_SPAN_MS, self._now() + 1
        start, end = params.window()
        if max_span_ms is not None and end - start > max_span_ms:
            raise Refused(-1127)
        return start, end if self.exclusive_end else end + 1

    def _clock(self) -> int:
        return self._now() + self._faults.clock_offset_ms

    def _weigh(self) -> int:
        """Count the call; return the weight used in the window that ends now, or refuse."""
        now = self._now()
        with self._lock:
            if now < self._banned_until:
                raise _too_many(418, self._banned_until - now)
            if self._spent.count(now, self.weight_window_ms) < self.weight_limit:
                self._spent.add(now)
                self._refused_in_a_row = 0
                return len(self._spent.times)
            self._refused_in_a_row += 1
            if self._refused_in_a_row > self.refusals_before_ban:
                self._refused_in_a_row = 0
                self._banned_until = now + BAN_MS
                raise _too_many(418, BAN_MS)
            free_at = self._spent.times[0] + self.weight_window_ms if self._spent.times else now
            raise _too_many(429, free_at - now)

    def _verify(self, call: Call, endpoint: _Endpoint) -> None:
        api_key = call.headers.get("X-MBX-APIKEY", "")
        wrong_role = api_key in {self.partner_key, self.client_key} - {endpoint.key}
        if api_key not in self.accounts or wrong_role:
            raise Refused(-2015, status=401)
        verify(call, self.accounts[api_key], self._clock())
        if call.params.keys() - endpoint.parameters - SIGNING_PARAMETERS:
            raise Refused(-1101)
        if empty := next((name for name, value in call.pairs if not value), None):
            raise Refused(-1105, empty)


def _too_many(status: int, retry_after_ms: int) -> Refused:
    return Refused(-1003, status=status, retry_after_s=max(1, -(-retry_after_ms // 1000)))
