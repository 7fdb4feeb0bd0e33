"""LBank's affiliate API in the sandbox: its envelope, rate limit and endpoints.

An endpoint is one entry of `_endpoints` and one method that returns rows or a row. Where the behaviour of the real API
is unknown, the sandbox usually rejects the call. The status of a refusal is always 200.
"""

import json
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date

from affiliate_pipeline.sandbox.exchange import NOT_FOUND, Call, Response, credential, suffixed
from affiliate_pipeline.sandbox.faults import Faults
from affiliate_pipeline.sandbox.lbank.content import SCOPES, TRADE_TYPES, Content, Rows
from affiliate_pipeline.sandbox.lbank.days import day_of
from affiliate_pipeline.sandbox.lbank.money import MONEY
from affiliate_pipeline.sandbox.lbank.parameters import CODES, MESSAGES, LBankParameters
from affiliate_pipeline.sandbox.lbank.signing import api_key_of, verified
from affiliate_pipeline.sandbox.lbank.trades import SYMBOLS
from affiliate_pipeline.sandbox.lbank.users import User
from affiliate_pipeline.sandbox.parameters import Refused
from affiliate_pipeline.sandbox.rows import array
from affiliate_pipeline.sandbox.sliding_window import SlidingWindow

PREFIX = "/affiliate-api/v2/"
RATE_LIMIT = (5, 10_000)


@dataclass(frozen=True)
class _Endpoint:
    data: Callable[[LBankParameters], Rows | bytes]
    required: frozenset[str]
    optional: frozenset[str] = frozenset()


class LBank(Content):
    """LBank with the data of one account; its days are those of UTC+8.

    `api_key`, `api_secret`, `own_open_id`: the credentials of the affiliate.
    `keys`: the HMAC secret or public key by API key.
    `rate_limit`: how many requests per key and endpoint in how many ms, refused ones included.
    `result_as_boolean`: the envelope's `result` is true or false instead of "true" or "false".
    `refused_paths`, `refused_open_ids`: the error code by refused path or openId, for example 10601, 10022 or 10006.
    `after_page`: called with path and parameters after a page has been read, before it is sent.
    """

    prefixes = ("/affiliate-api/",)

    def __init__(self, alias: str, *, now: Callable[[], int], faults: Faults, users: int, rate_scale: float) -> None:
        super().__init__(alias, now=now, users=users)
        self.api_key, self.api_secret = credential(alias, "lbank-key"), credential(alias, "lbank-secret")
        self.keys = {self.api_key: self.api_secret}
        self._alias = alias
        self.rate_limit: tuple[int, int] = (RATE_LIMIT[0], round(RATE_LIMIT[1] / rate_scale))
        self.result_as_boolean = False
        self.refused_paths: dict[str, int] = {}
        self.refused_open_ids: dict[str, int] = {}
        self.after_page: Callable[[str, LBankParameters], None] | None = None
        self._faults = faults
        self._lock = threading.Lock()
        self._arrivals: defaultdict[tuple[str, str], SlidingWindow] = defaultdict(SlidingWindow)
        window, pages = frozenset({"startTime", "endTime"}), frozenset({"pageSize"})
        user, start = frozenset({"openId"}), frozenset({"start"})
        self._endpoints = {
            PREFIX + path: endpoint
            for path, endpoint in {
                "invite/user/list": _Endpoint(self._user_list, window | pages, start),
                "invite/user/team/list": _Endpoint(self._user_team_list, window | pages, start),
                "invite/user/info": _Endpoint(self._user_info, user),
                "commission/stats/symbol/list": _Endpoint(
                    self._commission_list, window | pages | user | {"tradeType", "coin"}, start
                ),
                "trade/user": _Endpoint(self._trade_user, window | user | {"tradeType"}),
                "trade/user/team": _Endpoint(self._trade_user_team, window | user | {"tradeType"}),
                "trade/future": _Endpoint(self._trade_future, window | user | {"userType"}, frozenset({"symbol"})),
                "money/detail/list": _Endpoint(
                    self._money_list,
                    window | pages | user | {"userType", "subInOutType"},
                    start | {"assetCode", "updateStartTime", "updateEndTime"},
                ),
            }.items()
        }

    def variables(self, url: str) -> dict[str, str]:
        """The environment variables of a client at this URL."""
        variables = {
            "LBANK_API_KEY": self.api_key,
            "LBANK_API_SECRET": self.api_secret,
            "LBANK_OPEN_ID": self.own_open_id,
        }
        return {"LBANK_BASE_URL": url, **suffixed(variables, self._alias)}

    def add_key(self, api_key: str, secret_or_public_pem: str) -> None:
        """Accept a further key of the account, with an HMAC secret or the public key of an RSA pair."""
        self.keys[api_key] = secret_or_public_pem

    def serves(self, call: Call) -> bool:
        """Whether the call has a key of this account."""
        return api_key_of(call) in self.keys

    def respond(self, call: Call) -> Response:
        """The response to the call, before faults; a refusal is a response too."""
        endpoint = self._endpoints.get(call.path) if call.method == "GET" else None
        if endpoint is None:
            return NOT_FOUND
        try:
            params = self._verified(call)
            params.check_names(endpoint.required, endpoint.optional)
            data = endpoint.data(params)
        except Refused as refused:
            return self._refusal(refused.code, refused.name)
        if self.after_page and "pageSize" in params:
            self.after_page(call.path, params)
        rows = self._faults.transformed([data] if isinstance(data, bytes) else data)
        body = rows[0] if isinstance(data, bytes) else array(rows)
        return Response(200, self._envelope(True, 0, "Success", b',"data":' + body))

    def refusal(self, status: int, code: int | None = None, retry_after_s: int | None = None) -> Response:
        """A refusal in LBank's envelope; `retry_after_s` is ignored, since LBank sends no such header."""
        return self._refusal(CODES.get(status, 10000) if code is None else code)

    def days(self, call: Call) -> tuple[date, date] | None:
        """The first and last UTC+8 day of a call with startTime."""
        if "startTime" not in call.params:
            return None
        return day_of(int(call.params["startTime"])), day_of(int(call.params["endTime"]))

    def _refusal(self, code: int, name: str = "") -> Response:
        message = MESSAGES.get(code, MESSAGES[10000]) + (f": {name}" if name else "")
        return Response(200, self._envelope(False, code, message), code=code)

    def _envelope(self, good: bool, code: int, message: str, data: bytes = b"") -> bytes:
        result = json.dumps(good if self.result_as_boolean else str(good).lower())
        head = f'{{"result":{result},"error_code":{code},"msg":{json.dumps(message)}'
        return head.encode() + data + b',"ts":%d}' % self._clock()

    def _clock(self) -> int:
        return self._now() + self._faults.clock_offset_ms

    def _verified(self, call: Call) -> LBankParameters:
        """Count and verify the call; return its parameters, or refuse."""
        api_key = api_key_of(call)
        if api_key in self.keys:
            self._limit_rate(api_key, call.path)
        params = verified(call, self.keys, self._clock())
        if code := self.refused_paths.get(call.path):
            raise Refused(code)
        return params

    def _limit_rate(self, api_key: str, path: str) -> None:
        limit, window_ms = self.rate_limit
        with self._lock:
            now, arrivals = self._now(), self._arrivals[api_key, path]
            arrivals.add(now)
            if arrivals.count(now, window_ms) > limit:
                raise Refused(10004)

    # The endpoints

    def _user_list(self, params: LBankParameters) -> Rows:
        size, after = params.page()
        users = sorted(self._listed(*params.window()), key=lambda user: user.id)
        return [self._row(user, with_id=True) for user in users if user.id > after][:size]

    def _user_team_list(self, params: LBankParameters) -> Rows:
        size, start = params.page()
        users = self._listed(*params.window())[start : start + size]
        return [self._row(user, with_id=False) for user in users]

    def _user_info(self, params: LBankParameters) -> bytes:
        self._check_open_id(params)
        return self._info_row(params["openId"])

    def _commission_list(self, params: LBankParameters) -> Rows:
        size, start = params.page()
        user = self._user(params)
        types = params.choice("tradeType", TRADE_TYPES)
        if params["coin"] == "null":  # an empty text requests all coins, "null" does not
            raise Refused(10003, "coin")
        return self._commission_rows(user, *params.window(), types, params["coin"])[start : start + size]

    def _trade_user(self, params: LBankParameters) -> Rows:
        user, types = self._user(params), params.choice("tradeType", TRADE_TYPES)
        return self._trade_rows(user, *params.window(), types, team=False)

    def _trade_user_team(self, params: LBankParameters) -> Rows:
        user, types = self._user(params), params.choice("tradeType", TRADE_TYPES)
        return self._trade_rows(user, *params.window(), types, team=True)

    def _trade_future(self, params: LBankParameters) -> bytes:
        user, scope = self._user(params), params.choice("userType", SCOPES)
        symbol = params.get("symbol")
        if symbol is not None and symbol not in SYMBOLS:
            raise Refused(10003, "symbol")
        return self._futures_row(user, *params.window(), scope, symbol)

    def _money_list(self, params: LBankParameters) -> Rows:
        size, start = params.page()
        user, scope, kind = self._user(params), params.choice("userType", SCOPES), params["subInOutType"]
        params.choice("subInOutType", MONEY)  # refuses an unknown kind
        asset = params.get("assetCode")
        since = params.integer("updateStartTime") if "updateStartTime" in params else None
        until = params.integer("updateEndTime") if "updateEndTime" in params else None
        now = self._now()
        found = [
            money
            for money in self._money_between(user, *params.window(), scope, kind)
            if asset in (None, "", money.asset)
            and (since is None or money.updated_at(now) >= since)
            and (until is None or money.updated_at(now) <= until)
        ]
        return [money.row(now) for money in found[start : start + size]]

    def _check_open_id(self, params: LBankParameters) -> None:
        if code := self.refused_open_ids.get(params["openId"]):
            raise Refused(code)

    def _user(self, params: LBankParameters) -> User:
        self._check_open_id(params)
        user = self._users.find(params["openId"], self._now())
        if user is None:
            raise Refused(10022)
        return user
