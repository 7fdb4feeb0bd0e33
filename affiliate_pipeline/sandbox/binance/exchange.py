"""Binance in the sandbox: Link with one partner and one of its clients, and public market data.

An endpoint is one entry of `_signed_endpoints` (of `_public_endpoints` if it takes no API key) and one method that
returns the body.
"""

from collections.abc import Callable, Iterable, Mapping, Set
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
LINK = "/sapi/v1/apiReferral"
WINDOW = frozenset({"startTime", "endTime", "limit"})
TIME = "/api/v3/time"
ACCOUNT = "/api/v3/account"
ACCOUNT_WEIGHT = 20
API_WEIGHT_HEADER = "X-MBX-USED-WEIGHT-1M"
WEIGHT_HEADER = "X-SAPI-USED-IP-WEIGHT-1M"
DEFAULT_UIDS = {"partner": 39472261, "client": 354937868}

# The kind of Binance account that a key belongs to. A client is a trader whom the partner has referred, so the two are
# different Binance accounts, each with a uid of its own.
Role = Literal["partner", "client"]


_Body = Callable[[BinanceParameters], bytes]


@dataclass(frozen=True)
class _Public:
    body: _Body
    parameters: Set[str]
    weight: int


@dataclass(frozen=True)
class _Endpoint:
    body: _Body
    parameters: Set[str]


class Binance:
    """Binance Link with the data of one partner and one of its clients.

    `partner_key`, `partner_secret`, `client_key`, `client_secret`, `api_agent_code`: the credentials of both.
    `keys`: the HMAC secret or public key by API key. `uids`: the account's uid by role.
    `keys_without_uid_permission`: the API keys without the permission to read the account's uid.
    `retention_ms`: the retention of rebates; None retains them forever.
    `exclusive_end`: a row at endTime is not returned.
    `newest_first`: rows are ordered from the newest to the oldest.
    `max_limit`: the largest `limit` of a call for rebates.
    `posts_to_fail`: how many of the next POSTs fail without effect. `Faults` are injected after the effect.
    `weight`: the limit that all accounts share. `market_data`: what is public; calls without a key get the default
    account's.
    """

    prefixes = ("/api/", "/sapi/", FILES)

    def __init__(
        self, alias: str, *, now: Callable[[], int], faults: Faults, weight: WeightLimit, rows_per_day: int
    ) -> None:
        self.partner_key = credential(alias, "partner-key")
        self.partner_secret = credential(alias, "partner-secret")
        self.client_key = credential(alias, "client-key")
        self.client_secret = credential(alias, "client-secret")
        self.api_agent_code = f"{alias.upper() or 'SANDBOX'}1"
        self.keys: dict[str, str] = {}
        self._roles: dict[str, Role] = {}
        self.add_key(self.partner_key, self.partner_secret, "partner")
        self.add_key(self.client_key, self.client_secret, "client")
        self.uids: dict[str, int] = {"partner": _uid(alias, "partner"), "client": _uid(alias, "client")}
        self.keys_without_uid_permission: set[str] = set()

        self.posts_to_fail = 0
        self.newest_first = False
        self.exclusive_end = False
        self.max_limit = 500
        self.retention_ms: int | None = 7 * DAY_MS
        self.weight = weight
        self._alias = alias
        self._now = now
        self._faults = faults

        client_rows_per_day = max(1, rows_per_day // REBATES_PER_KICKBACK)
        self.customers = Customers(alias)
        self.kickbacks = Kickbacks(now=now, faults=faults, rows_per_day=client_rows_per_day, alias=alias)
        self.market_data = MarketData(now=now)
        self._rebates = Records(partial(generated_day, rows_per_day=rows_per_day, alias=alias))
        self._public = self._public_endpoints()
        self._endpoints = self._signed_endpoints()

    def _public_endpoints(self) -> dict[str, _Public]:
        """By path, the endpoints that take no API key."""
        return {
            KLINES: _Public(self.market_data.klines, WINDOW | {"symbol", "interval"}, weight=2),
            EXCHANGE_INFO: _Public(self.market_data.exchange_info, {"symbol", "symbols"}, weight=20),
        }

    def _signed_endpoints(self) -> dict[tuple[str, str], dict[Role, _Endpoint]]:
        """By method and path, the endpoints for each role that may call them."""

        def partner(body: _Body, parameters: Set[str]) -> dict[Role, _Endpoint]:
            return {"partner": _Endpoint(body, parameters)}

        def client(body: _Body, parameters: Set[str]) -> dict[Role, _Endpoint]:
            return {"client": _Endpoint(body, parameters)}

        return {
            ("GET", f"{LINK}/rebate/recentRecord"): partner(self._rebate_recent_record, WINDOW | {"customerId"}),
            ("GET", f"{LINK}/ifNewUser"): client(self._if_new_user, {"apiAgentCode"}),
            ("GET", f"{LINK}/customization"): partner(self._customization, {"customerId", "email"}),
            ("POST", f"{LINK}/customization"): partner(self._customize, {"customerId", "email"}),
            ("GET", f"{LINK}/userCustomization"): client(self._user_customization, {"apiAgentCode"}),
            ("POST", f"{LINK}/userCustomization"): client(self._customize_user, {"apiAgentCode", "customerId"}),
            ("GET", f"{LINK}/kickback/recentRecord"): client(self._kickback_recent_record, WINDOW),
            ("POST", f"{LINK}/kickback/historicalRecord"): client(self._request_export, WINDOW),
            ("GET", f"{LINK}/kickback/historicalRecord"): client(self._export_url, set()),
            ("GET", ACCOUNT): {
                "partner": _Endpoint(partial(self._account, "partner"), {"omitZeroBalances"}),
                "client": _Endpoint(partial(self._account, "client"), {"omitZeroBalances"}),
            },
        }

    def variables(self, url: str) -> dict[str, str]:
        """The environment variables of a program that calls this URL, with the keys of both roles."""
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
        """Serve only these rebates, each exactly as given, with all its fields even before its payout.

        `Number` and `Decimal` are sent unquoted.
        """
        self._rebates.set(rows)

    def rebates(self, day: date) -> list[dict[str, Any]]:
        """The rebates of the UTC day as of now, in the order of responses, not altered by `Faults.transform_row`."""
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
            body = self._body(call, headers)
        except Refused as refused:
            response = self.refusal(refused.status, refused.code, refused.retry_after_s, refused.name)
            return replace(response, headers={**headers, **response.headers})
        return NOT_FOUND if body is None else Response(200, body, headers=headers)

    def _body(self, call: Call, headers: dict[str, str]) -> bytes | None:
        """The response's body, None for an unknown endpoint; the header with the used weight is added to `headers`."""
        if (call.method, call.path) == ("GET", TIME):
            return b'{"serverTime":%d}' % self._clock()
        public = self._public.get(call.path) if call.method == "GET" else None
        if public is not None:
            headers[API_WEIGHT_HEADER] = str(self.weight.use(public.weight))
            _check_parameters(call, public.parameters)
            return public.body(BinanceParameters(call.params))
        endpoint_by_role = self._endpoints.get((call.method, call.path))
        if endpoint_by_role is None:
            return None

        if call.path == ACCOUNT:
            headers[API_WEIGHT_HEADER] = str(self.weight.use(ACCOUNT_WEIGHT))
        else:
            headers[WEIGHT_HEADER] = str(self.weight.use(1))
        endpoint = self._verified(call, endpoint_by_role)
        if call.method == "POST" and self.posts_to_fail:
            self.posts_to_fail -= 1
            raise Refused(-1001, status=500)
        params = BinanceParameters(call.params)
        params.host = call.headers.get("Host", "")
        return endpoint.body(params)

    def refusal(
        self, status: int, code: int | None = None, retry_after_s: int | None = None, name: str = ""
    ) -> Response:
        """A refusal in Binance's format; `name` is the parameter at fault."""
        headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
        return refusal(status, code, name, headers)

    def days(self, call: Call) -> tuple[date, date] | None:
        """The first and last UTC day of a call with startTime."""
        if "startTime" not in call.params:
            return None
        # Of the calls with startTime, only those for klines may lack endTime.
        params = BinanceParameters({"endTime": f"{self._now()}"} | call.params)
        start, stop = self._window(params, max_span_ms=None)
        # With `exclusive_end`, the window may be empty.
        last_ms = max(start, stop - 1)
        return day_of(start), day_of(last_ms)

    def _account(self, role: Role, _params: BinanceParameters) -> bytes:
        rates = dict.fromkeys(("maker", "taker", "buyer", "seller"), "0.00000000")
        row = {"makerCommission": 0, "takerCommission": 0, "buyerCommission": 0, "sellerCommission": 0}
        row |= {"commissionRates": rates, "canTrade": False, "canWithdraw": False, "canDeposit": False}
        row |= {"brokered": False, "requireSelfTradePrevention": False, "preventSor": False}
        row |= {"updateTime": 0, "accountType": "SPOT", "balances": [], "permissions": [], "uid": self.uids[role]}
        return encode(row)

    def _rebate_recent_record(self, params: BinanceParameters) -> bytes:
        start, stop = self._window(params)
        limit = params.integer("limit")
        if not 1 <= limit <= self.max_limit:
            raise Refused(-1130, "limit")
        rows = self._rebates_between(start, stop, customer=params.get("customerId"), limit=limit)
        return array(self._faults.transformed(rows))

    def _if_new_user(self, params: BinanceParameters) -> bytes:
        code = params.text("apiAgentCode")
        return encode(
            {
                "apiAgentCode": code,
                "rebateWorking": code == self.api_agent_code,
                "ifNewUser": True,
                "referrerId": self.uids["partner"],
            }
        )

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
        limit = params.integer("limit") if "limit" in params else None
        return self.kickbacks.collect(start, end + 1, limit)

    def _export_url(self, params: BinanceParameters) -> bytes:
        body = self.kickbacks.offer(params.host)
        if body is None:
            # No export was requested, or `Faults.pending` has an error. The endpoint has no parameter `history`: the
            # text only fills the place of a name in the message.
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
        stop = end if self.exclusive_end else end + 1
        return start, stop

    def _clock(self) -> int:
        return self._now() + self._faults.clock_offset_ms

    def _verified(self, call: Call, endpoint_by_role: Mapping[Role, _Endpoint]) -> _Endpoint:
        """Verify the call and its parameters, or refuse; return the endpoint for the role of its key."""
        api_key = _api_key_of(call)
        if api_key not in self.keys:
            raise Refused(-2015, status=401)
        # A key that was added to `keys` without `add_key` is the partner's.
        role = self._roles.get(api_key, "partner")
        endpoint = endpoint_by_role.get(role)
        if endpoint is None or (call.path == ACCOUNT and api_key in self.keys_without_uid_permission):
            raise Refused(-2015, status=401)
        verify(call, self.keys[api_key], self._clock())
        _check_parameters(call, endpoint.parameters | SIGNING_PARAMETERS)
        return endpoint


def _check_parameters(call: Call, known: Set[str]) -> None:
    """Refuse the call if it has an unknown or an empty parameter."""
    if call.params.keys() - known:
        raise Refused(-1101)
    for name, value in call.pairs:
        if not value:
            raise Refused(-1105, name)


def _api_key_of(call: Call) -> str:
    return call.headers.get("X-MBX-APIKEY", "")


def _uid(alias: str, role: Role) -> int:
    """The role's uid in this account: fixed for the default account, otherwise 9 digits that depend on the alias."""
    if not alias:
        return DEFAULT_UIDS[role]
    return int(10**8 + Random(f"{alias} {role} uid").random() * 9 * 10**8)
