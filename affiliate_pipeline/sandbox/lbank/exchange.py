"""LBank's affiliate API in the sandbox: its envelope, rate limit and endpoints.

An endpoint is one entry of `_endpoints_by_path` and one method that returns rows or a row. Where the behaviour of the
real API is unknown, the sandbox usually rejects the call. The status of a refusal is always 200.
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

# Names of parameters.
WINDOW = frozenset({"startTime", "endTime"})
PAGE_SIZE = frozenset({"pageSize"})
START = frozenset({"start"})
OPEN_ID = frozenset({"openId"})


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
        self.api_key = credential(alias, "lbank-key")
        self.api_secret = credential(alias, "lbank-secret")
        self.keys = {self.api_key: self.api_secret}
        permitted, window_ms = RATE_LIMIT
        self.rate_limit: tuple[int, int] = (permitted, round(window_ms / rate_scale))
        self.result_as_boolean = False
        self.refused_paths: dict[str, int] = {}
        self.refused_open_ids: dict[str, int] = {}
        self.after_page: Callable[[str, LBankParameters], None] | None = None

        self._alias = alias
        self._faults = faults
        self._lock = threading.Lock()
        self._arrivals: defaultdict[tuple[str, str], SlidingWindow] = defaultdict(SlidingWindow)
        self._endpoints = self._endpoints_by_path()

    def _endpoints_by_path(self) -> dict[str, _Endpoint]:
        return {
            f"{PREFIX}invite/user/list": _Endpoint(self._user_list, WINDOW | PAGE_SIZE, optional=START),
            f"{PREFIX}invite/user/team/list": _Endpoint(self._user_team_list, WINDOW | PAGE_SIZE, optional=START),
            f"{PREFIX}invite/user/info": _Endpoint(self._user_info, OPEN_ID),
            f"{PREFIX}commission/stats/symbol/list": _Endpoint(
                self._commission_list, WINDOW | PAGE_SIZE | OPEN_ID | {"tradeType", "coin"}, optional=START
            ),
            f"{PREFIX}trade/user": _Endpoint(self._trade_user, WINDOW | OPEN_ID | {"tradeType"}),
            f"{PREFIX}trade/user/team": _Endpoint(self._trade_user_team, WINDOW | OPEN_ID | {"tradeType"}),
            f"{PREFIX}trade/future": _Endpoint(
                self._trade_future, WINDOW | OPEN_ID | {"userType"}, optional=frozenset({"symbol"})
            ),
            f"{PREFIX}money/detail/list": _Endpoint(
                self._money_list,
                WINDOW | PAGE_SIZE | OPEN_ID | {"userType", "subInOutType"},
                optional=START | {"assetCode", "updateStartTime", "updateEndTime"},
            ),
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
        if isinstance(data, bytes):
            [data_json] = self._faults.transformed([data])
        else:
            data_json = array(self._faults.transformed(data))
        return Response(200, self._envelope(good=True, code=0, message="Success", members=b',"data":' + data_json))

    def refusal(self, status: int, code: int | None = None, retry_after_s: int | None = None) -> Response:
        """A refusal in LBank's envelope; `retry_after_s` is ignored, since LBank sends no such header."""
        return self._refusal(CODES.get(status, 10000) if code is None else code)

    def days(self, call: Call) -> tuple[date, date] | None:
        """The first and last UTC+8 day of a call with startTime."""
        if "startTime" not in call.params:
            return None
        return day_of(int(call.params["startTime"])), day_of(int(call.params["endTime"]))

    def _refusal(self, code: int, name: str = "") -> Response:
        message = MESSAGES.get(code, MESSAGES[10000])
        if name:
            message += f": {name}"
        return Response(200, self._envelope(good=False, code=code, message=message), code=code)

    def _envelope(self, *, good: bool, code: int, message: str, members: bytes = b"") -> bytes:
        """The body of a response; `members` are further JSON members, with a comma before each."""
        result = "true" if good else "false"
        if not self.result_as_boolean:
            result = f'"{result}"'
        head = f'{{"result":{result},"error_code":{code},"msg":{json.dumps(message)}'
        return head.encode() + members + b',"ts":%d}' % self._clock()

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
        """Count the request; refuse it if it exceeds the rate limit."""
        limit, window_ms = self.rate_limit
        with self._lock:
            now = self._now()
            arrivals = self._arrivals[api_key, path]
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
        rows = self._commission_rows(user, *params.window(), types, params["coin"])
        return rows[start : start + size]

    def _trade_user(self, params: LBankParameters) -> Rows:
        user = self._user(params)
        types = params.choice("tradeType", TRADE_TYPES)
        return self._trade_rows(user, *params.window(), types, team=False)

    def _trade_user_team(self, params: LBankParameters) -> Rows:
        user = self._user(params)
        types = params.choice("tradeType", TRADE_TYPES)
        return self._trade_rows(user, *params.window(), types, team=True)

    def _trade_future(self, params: LBankParameters) -> bytes:
        user = self._user(params)
        scope = params.choice("userType", SCOPES)
        symbol = params.get("symbol")
        if symbol is not None and symbol not in SYMBOLS:
            raise Refused(10003, "symbol")
        return self._futures_row(user, *params.window(), scope, symbol)

    def _money_list(self, params: LBankParameters) -> Rows:
        size, start = params.page()
        user = self._user(params)
        scope = params.choice("userType", SCOPES)
        params.choice("subInOutType", MONEY)  # refuses an unknown kind
        asset = params.get("assetCode")
        since = params.integer("updateStartTime") if "updateStartTime" in params else None
        until = params.integer("updateEndTime") if "updateEndTime" in params else None

        now = self._now()
        money = self._money_between(user, *params.window(), scope, params["subInOutType"])
        if asset:
            money = [each for each in money if each.asset == asset]
        if since is not None:
            money = [each for each in money if each.updated_at(now) >= since]
        if until is not None:
            money = [each for each in money if each.updated_at(now) <= until]
        return [each.row(now) for each in money[start : start + size]]

    def _check_open_id(self, params: LBankParameters) -> None:
        if code := self.refused_open_ids.get(params["openId"]):
            raise Refused(code)

    def _user(self, params: LBankParameters) -> User:
        """The user of the parameter openId; refuses an unknown one."""
        self._check_open_id(params)
        user = self._users.find(params["openId"], self._now())
        if user is None:
            raise Refused(10022)
        return user
