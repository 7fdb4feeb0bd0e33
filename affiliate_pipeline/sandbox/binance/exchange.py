"""Binance in the sandbox: Link with one partner and one of its clients, and public market data.

An endpoint is one entry of `_endpoints` (of `_public` if it takes no API key) and one method that returns the body.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from random import Random
from typing import Any, Literal

from affiliate_pipeline.sandbox.binance.customers import EMAIL, Customers
from affiliate_pipeline.sandbox.binance.kickbacks import FILES, RECENT_MS, Kickbacks
from affiliate_pipeline.sandbox.binance.market_data import EXCHANGE_INFO, KLINES, MarketData
from affiliate_pipeline.sandbox.binance.parameters import BinanceParameters, refusal
from affiliate_pipeline.sandbox.binance.rebates import generated_day
from affiliate_pipeline.sandbox.binance.records import Records
from affiliate_pipeline.sandbox.binance.signing import SIGNING_PARAMETERS, verify
from affiliate_pipeline.sandbox.binance.weight import WeightLimit
from affiliate_pipeline.sandbox.days import DAY_MS, day_of, start_of
from affiliate_pipeline.sandbox.exchange import NOT_FOUND, Call, Response, credential, suffixed
from affiliate_pipeline.sandbox.faults import Faults
from affiliate_pipeline.sandbox.parameters import Refused
from affiliate_pipeline.sandbox.rows import array, decode, encode

MAX_SPAN_MS = 7 * DAY_MS
# The client is one trader of many, so it has fewer rows than the partner.
REBATES_PER_KICKBACK = 5
DEFAULT_KICKBACKS, MAX_KICKBACKS = 500, 1000
ACCOUNT = "/api/v3/account"
ACCOUNT_WEIGHT = 20
API_WEIGHT_HEADER = "X-MBX-USED-WEIGHT-1M"
WEIGHT_HEADER = "X-SAPI-USED-IP-WEIGHT-1M"
DEFAULT_UIDS = {"partner": 39472261, "client": 354937868}

# The kind of Binance account that a key belongs to. A client is a trader whom the partner has referred, so the two are
# different Binance accounts, each with a uid of its own.
Role = Literal["partner", "client"]


@dataclass(frozen=True)
class _Public:
    body: Callable[[BinanceParameters], bytes]
    parameters: frozenset[str]
    weight: int


@dataclass(frozen=True)
class _Endpoint:
    body: Callable[[BinanceParameters], bytes]
    parameters: frozenset[str]


class Binance:
    """Binance Link with the data of one partner and one of its clients.

    `partner_key`, `partner_secret`, `client_key`, `client_secret`, `api_agent_code`: the credentials of both.
    `keys`: the HMAC secret or public key by API key. `uids`: the account's uid by role.
    `keys_without_reading`: the API keys without the permission to read the account's uid.
    `retention_ms`: the retention of rebates; None retains them forever.
    `exclusive_end`: a row at endTime is not returned.
    `newest_first`: rows are ordered from the newest to the oldest.
    `max_limit`: the largest `limit` of a call for rebates.
    `posts_to_fail`: how many of the next POSTs fail without effect. `Faults` are injected after the effect.
    `weight`: the limit that all accounts share. `market_data`: what is public, the same for all accounts.
    """

    prefixes = ("/api/", "/sapi/", FILES)

    def __init__(
        self, alias: str, *, now: Callable[[], int], faults: Faults, weight: WeightLimit, rows_per_day: int
    ) -> None:
        self.partner_key, self.partner_secret = credential(alias, "partner-key"), credential(alias, "partner-secret")
        self.client_key, self.client_secret = credential(alias, "client-key"), credential(alias, "client-secret")
        self.api_agent_code = f"{alias.upper() or 'SANDBOX'}1"
        self.keys: dict[str, str] = {}
        self._roles: dict[str, Role] = {}
        self.add_key(self.partner_key, self.partner_secret, "partner")
        self.add_key(self.client_key, self.client_secret, "client")
        self.uids: dict[str, int] = {role: _uid(alias, role) for role in self._roles.values()}
        self.keys_without_reading: set[str] = set()
        self.customers = Customers(alias)
        self.posts_to_fail = 0
        self.newest_first = False
        self.exclusive_end = False
        self.max_limit = 500
        self.retention_ms: int | None = 7 * DAY_MS
        self.weight = weight
        client_rows = max(1, rows_per_day // REBATES_PER_KICKBACK)
        self.kickbacks = Kickbacks(now=now, faults=faults, rows_per_day=client_rows, alias=alias)
        window = {"startTime", "endTime", "limit"}
        self.market_data = MarketData(now=now)
        self._public = {
            KLINES: _Public(self.market_data.klines, frozenset({"symbol", "interval", *window}), 2),
            EXCHANGE_INFO: _Public(self.market_data.exchange_info, frozenset({"symbol", "symbols"}), 20),
        }
        self._alias = alias
        self._now = now
        self._faults = faults
        self._rebates = Records(partial(generated_day, rows_per_day=rows_per_day, alias=alias))
        partner, client = "partner", "client"
        customer, agent = {"customerId", "email"}, {"apiAgentCode"}
        self._endpoints = {
            (method, f"/sapi/v1/apiReferral/{path}"): {role: _Endpoint(body, frozenset(parameters))}
            for method, path, body, role, parameters in (
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
        self._endpoints["GET", ACCOUNT] = {
            role: _Endpoint(partial(self._account, role), frozenset({"omitZeroBalances"})) for role in self.uids
        }

    def variables(self, url: str) -> dict[str, str]:
        """The environment variables of a client at this URL, for both roles."""
        variables = {
            "BINANCE_PARTNER_API_KEY": self.partner_key,
            "BINANCE_PARTNER_API_SECRET": self.partner_secret,
            "BINANCE_CLIENT_API_KEY": self.client_key,
            "BINANCE_CLIENT_API_SECRET": self.client_secret,
            "BINANCE_API_AGENT_CODE": self.api_agent_code,
        }
        return {"BINANCE_BASE_URL": url, **suffixed(variables, self._alias)}

    def add_key(self, api_key: str, secret_or_public_pem: str, role: Role = "partner") -> None:
        """Accept a further key of the role, with an HMAC secret or the public key of a pair."""
        self.keys[api_key] = secret_or_public_pem
        self._roles[api_key] = role

    def set_rebates(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Serve only these rebates, each exactly as given (no field is withheld until its payout).

        `Number` and `Decimal` are sent unquoted.
        """
        self._rebates.set(rows)

    def rebates(self, day: date) -> list[dict[str, Any]]:
        """The rebates of the UTC day as of now, in the order of responses, without `transform_row`."""
        start = start_of(day)
        return [decode(row) for row in self._rebates_between(start, start + DAY_MS)]

    def serves(self, call: Call) -> bool:
        """Whether the call has a key of this account, or requests a file of its client."""
        return _api_key_of(call) in self.keys or self.kickbacks.has_file(call.path)

    def respond(self, call: Call) -> Response:
        """The response to the call, before faults; a refusal is a response too."""
        if call.path.startswith(FILES):
            return self.kickbacks.file(call)
        headers: dict[str, str] = {}
        try:
            if (call.method, call.path) == ("GET", "/api/v3/time"):
                return Response(200, b'{"serverTime":%d}' % self._clock())
            if call.method == "GET" and (public := self._public.get(call.path)):
                headers[API_WEIGHT_HEADER] = str(self.weight.use(public.weight))
                _check_parameters(call, public.parameters)
                return Response(200, public.body(BinanceParameters(call.params)), headers=headers)
            by_role = self._endpoints.get((call.method, call.path))
            if by_role is None:
                return NOT_FOUND
            if call.path == ACCOUNT:
                headers[API_WEIGHT_HEADER] = str(self.weight.use(ACCOUNT_WEIGHT))
            else:
                headers[WEIGHT_HEADER] = str(self.weight.use(1))
            endpoint = self._verified(call, by_role)
            if call.method == "POST" and self.posts_to_fail:
                self.posts_to_fail -= 1
                raise Refused(-1001, status=500)
            params = BinanceParameters(call.params)
            params.host = call.headers.get("Host", "")
            return Response(200, endpoint.body(params), headers=headers)
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
        # Only the klines may be requested without endTime.
        start, stop = self._window(BinanceParameters({"endTime": f"{self._now()}"} | call.params), max_span_ms=None)
        # With `exclusive_end`, the window may be empty.
        return day_of(start), day_of(max(start, stop - 1))

    def _account(self, role: str, _params: BinanceParameters) -> bytes:
        rates = dict.fromkeys(("maker", "taker", "buyer", "seller"), "0.00000000")
        row = {"makerCommission": 0, "takerCommission": 0, "buyerCommission": 0, "sellerCommission": 0}
        row |= {"commissionRates": rates, "canTrade": False, "canWithdraw": False, "canDeposit": False}
        row |= {"brokered": False, "requireSelfTradePrevention": False, "preventSor": False}
        return encode(
            {**row, "updateTime": 0, "accountType": "SPOT", "balances": [], "permissions": [], "uid": self.uids[role]}
        )

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
        return encode({**row, "referrerId": self.uids["partner"]})

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
        body = self.kickbacks.offer(params.host)
        if body is None:
            raise Refused(-1130, "history")
        return body

    def _rebates_between(
        self, start: int, stop: int, *, customer: str | None = None, limit: int | None = None
    ) -> list[bytes]:
        """The first `limit` retained rows with start <= time < stop that exist by now, ordered by `newest_first`."""
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

    def _verified(self, call: Call, by_role: Mapping[str, _Endpoint]) -> _Endpoint:
        """Verify the call and its parameters, or refuse; return the endpoint for the role of its key."""
        api_key = _api_key_of(call)
        endpoint = by_role.get(self._roles.get(api_key, "partner")) if api_key in self.keys else None
        if endpoint is None or (call.path == ACCOUNT and api_key in self.keys_without_reading):
            raise Refused(-2015, status=401)
        verify(call, self.keys[api_key], self._clock())
        _check_parameters(call, endpoint.parameters | SIGNING_PARAMETERS)
        return endpoint


def _check_parameters(call: Call, known: frozenset[str]) -> None:
    if call.params.keys() - known:
        raise Refused(-1101)
    if empty := next((name for name, value in call.pairs if not value), None):
        raise Refused(-1105, empty)


def _api_key_of(call: Call) -> str:
    return call.headers.get("X-MBX-APIKEY", "")


def _uid(alias: str, role: Role) -> int:
    return int(10**8 + Random(f"{alias} {role} uid").random() * 9 * 10**8) if alias else DEFAULT_UIDS[role]
