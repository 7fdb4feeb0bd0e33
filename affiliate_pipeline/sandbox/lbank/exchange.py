"""LBank's affiliate API in the sandbox: its signing, error codes, rate limit and endpoints. No socket may live here.

An endpoint is one entry of `_endpoints` and one method that returns rows or a row. What nobody knows of the real one
is decided here, mostly the strict way; a refusal always comes with HTTP 200.
"""

import json
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from hashlib import md5
from typing import Any
from urllib.parse import parse_qsl

from affiliate_pipeline.sandbox.binance.rebates import DAY_MS
from affiliate_pipeline.sandbox.exchange import NOT_FOUND, Answer, Call
from affiliate_pipeline.sandbox.faults import Faults
from affiliate_pipeline.sandbox.lbank.users import (
    FOUNDED_MS,
    FUTURES,
    MONEY,
    NOTHING,
    OWN_OPEN_ID,
    PAID_AFTER_MS,
    SPOT,
    SYMBOLS,
    Affiliates,
    Money,
    User,
    balances,
    between,
    by_kind,
    day_of,
    profile,
    start_of,
)
from affiliate_pipeline.sandbox.rows import decode, encode
from affiliate_pipeline.sandbox.signatures import is_public_key, verifier

PREFIX = "/affiliate-api/v2/"
RATE_LIMIT = (5, 10_000)
MAX_CLOCK_DIFFERENCE_MS = 60_000
MAX_PAGE_SIZE = 100

INTEGER = re.compile(r"[0-9]{1,14}")
ECHOSTR = re.compile(r"[A-Za-z0-9]{30,40}")
STAMP = ("api_key", "timestamp", "signature_method", "echostr")
TRADE_TYPES = {"0": (SPOT,), "1": (FUTURES,), "10": (SPOT, FUTURES)}

# Scope -> whether a user is in it, seen from the one whose openId is asked for.
SCOPES: dict[str, Callable[[User, User], bool]] = {
    "SELF": lambda user, asked: user is asked,
    "SUB": lambda user, asked: user.parent is asked,
    "SELF_SUB": lambda user, asked: asked in (user, user.parent),
    "ALL": lambda user, asked: user is asked or asked in user.above(),
}

MESSAGES = {
    10000: "Internal error",
    10001: "Parameter can not be null",
    10003: "Invalid parameter",
    10004: "Request too frequent",
    10005: "Secret key does not exist",
    10006: "User does not exist",
    10007: "Invalid signature",
    10017: "Server exception",
    10022: "Invalid authorization",
    10031: "echostr length must be valid and length must be from 30 to 40",
    10600: "intercepted by replay attacks filter, check timestamp",
    10601: "Interface closed unavailable",
    20026: "Invalid parameter",
}
CODES = {418: 10004, 429: 10004}

Params = Mapping[str, str]
Rows = list[bytes]


class _Refused(Exception):
    def __init__(self, code: int, name: str = "") -> None:
        self.code, self.name = code, name


@dataclass(frozen=True)
class _Endpoint:
    data: Callable[[Params], Rows | bytes]
    required: frozenset[str]
    optional: frozenset[str] = frozenset()


class LBank:
    """LBank with its data; its days are those of UTC+8.

    `rate_limit`: so many requests of a key and endpoint in so many ms, refused ones included.
    `newest_first`: the order of users and of money, by the time in it.
    `result_as_boolean`: the envelope's `result` is true or false instead of "true" or "false".
    `refused_paths`, `refused_open_ids`: what is answered with an error code, 10601 or 10022 or 10006, as long as it is in.
    `after_page`: called with path and parameters once a page is made up and before it is sent.
    """

    prefixes = ("/affiliate-api/",)
    api_key, api_secret = "sandbox-lbank-key", "sandbox-lbank-secret"
    own_open_id = OWN_OPEN_ID

    def __init__(self, *, now: Callable[[], int], faults: Faults, users: int, rate_scale: float) -> None:
        self.accounts = {self.api_key: self.api_secret}
        self.rate_limit = (RATE_LIMIT[0], round(RATE_LIMIT[1] / rate_scale))
        self.newest_first = False
        self.result_as_boolean = False
        self.refused_paths: dict[str, int] = {}
        self.refused_open_ids: dict[str, int] = {}
        self.after_page: Callable[[str, Params], None] | None = None
        self._now = now
        self._faults = faults
        self._lock = threading.Lock()
        self._arrivals: dict[tuple[str, str], deque[int]] = {}
        self._affiliates = Affiliates(users)
        self._given_money: dict[str, list[Money]] | None = None
        self._given_commissions: list[tuple[dict[str, Any], bytes]] | None = None
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

    # What tests set and ask

    def add_account(self, api_key: str, secret_or_public_pem: str) -> None:
        """From now on this key may call every endpoint, with an HMAC secret or the public key of an RSA pair."""
        self.accounts[api_key] = secret_or_public_pem

    def add_user(
        self,
        open_id: str | None = None,
        *,
        parent: str = OWN_OPEN_ID,
        level: int = 0,
        registered_ms: int | None = None,
        first_trade_ms: int | None = None,
    ) -> str:
        """The openId of somebody new under us, by default just registered; trades as the others do from then on."""
        now = self._now()
        above = self._affiliates.find(parent, now)
        if above is None:
            raise ValueError(f"nobody has the openId {parent}")
        registered_ms = now if registered_ms is None else registered_ms
        return self._affiliates.add(open_id, above, level, registered_ms, first_trade_ms).open_id

    def set_money(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """From now on these are all the deposits and withdrawals, each sent as given.

        `subInOutType` is the word that is answered ("On-chain Deposit"); whoever we do not know is in ALL of our own.
        """
        kinds = {word: kind for kind, (word, _, _) in MONEY.items()}

        def given(row: Mapping[str, Any]) -> Money:
            at, text = int(row["createTime"]), encode(row)
            user = self._affiliates.find(str(row["openId"]), self._now())
            updated_at = int(row.get("updateTime") or at)
            return Money(at, kinds[row["subInOutType"]], str(row.get("assetCode")), user, updated_at, text, text)

        self._given_money = by_kind(map(given, rows))

    def set_commissions(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """From now on these are all the commissions, each sent as given, in this order within a day."""
        self._given_commissions = [
            (dict(row), encode(row)) for row in sorted(rows, key=lambda row: int(row["statsDate"]))
        ]

    @property
    def users(self) -> list[dict[str, Any]]:
        """Everybody under us as of now, as rows of the old list; we are not among them."""
        return _decoded(self._users(0, self._now(), with_id=True))

    def invite_users(self, day: date) -> list[dict[str, Any]]:
        """The old list's rows of a day, by id. This and all further rows are those as of now, without `transform_row`."""
        rows = _decoded(self._users(*_whole(day), with_id=True))
        return sorted(rows, key=lambda row: row["id"])

    def invite_team(self, day: date) -> list[dict[str, Any]]:
        """The new list's rows of a day."""
        return _decoded(self._users(*_whole(day), with_id=False))

    def user_info(self, open_id: str) -> dict[str, Any]:
        return decode(self._info(open_id))

    def commissions(self, day: date) -> list[dict[str, Any]]:
        """Ours and those of every agent under us."""
        agents = [user for user in self._asked() if user.is_agent]
        return [
            row for agent in agents for row in _decoded(self._commissions(agent, *_whole(day), (SPOT, FUTURES), ""))
        ]

    def trades(self, day: date, trade_type: int = 10) -> list[dict[str, Any]]:
        """Ours and those of everybody listed under us."""
        return [row for user in self._asked() for row in self._traded(user, day, trade_type, team=False)]

    def team_trades(self, day: date, trade_type: int = 10) -> list[dict[str, Any]]:
        """Of our team and of the team of every agent under us."""
        agents = [user for user in self._asked() if user.is_agent]
        return [row for agent in agents for row in self._traded(agent, day, trade_type, team=True)]

    def future(self, day: date, user_type: str) -> dict[str, Any]:
        """Seen from us."""
        return decode(self._futures(self._affiliates.own, *_whole(day), user_type, None))

    def money(self, day: date, sub_in_out_type: str) -> list[dict[str, Any]]:
        """Everybody's and ours."""
        found = self._money(self._affiliates.own, *_whole(day), "ALL", sub_in_out_type)
        return _decoded([money.row(self._now()) for money in found])

    # What the server and the faults ask

    def answer(self, call: Call) -> Answer:
        endpoint = self._endpoints.get(call.path) if call.method == "GET" else None
        if endpoint is None:
            return NOT_FOUND
        try:
            params = self._verified(call)
            self._check_names(params, endpoint)
            data = endpoint.data(params)
        except _Refused as refused:
            return self._refusal(refused.code, refused.name)
        if self.after_page and "pageSize" in params:
            self.after_page(call.path, params)
        if transform := self._faults.transform_row:
            data = (
                encode(transform(decode(data)))
                if isinstance(data, bytes)
                else [encode(transform(decode(row))) for row in data]
            )
        body = data if isinstance(data, bytes) else b"[" + b",".join(data) + b"]"
        return Answer(200, self._envelope(True, 0, "Success", b',"data":' + body))

    def refusal(self, status: int, code: int | None = None, retry_after_s: int | None = None) -> Answer:
        return self._refusal(CODES.get(status, 10000) if code is None else code)

    def days(self, call: Call) -> tuple[date, date] | None:
        if "startTime" not in call.params:
            return None
        return day_of(int(call.params["startTime"])), day_of(int(call.params["endTime"]))

    def _refusal(self, code: int, name: str = "") -> Answer:
        message = MESSAGES.get(code, MESSAGES[10000]) + (f": {name}" if name else "")
        return Answer(200, self._envelope(False, code, message), code=code)

    def _envelope(self, good: bool, code: int, message: str, data: bytes = b"") -> bytes:
        result = json.dumps(good if self.result_as_boolean else str(good).lower())
        head = f'{{"result":{result},"error_code":{code},"msg":{json.dumps(message)}'
        return head.encode() + data + b',"ts":%d}' % self._clock()

    def _clock(self) -> int:
        return self._now() + self._faults.clock_offset_ms

    # Who calls, and how often

    def _verified(self, call: Call) -> dict[str, str]:
        """The parameters of the call without those of the signature, once it is known who sent them."""
        pairs = parse_qsl(call.query, keep_blank_values=True)
        params = dict(pairs)
        api_key = params.get("api_key") or call.headers.get("api_key")
        if api_key in self.accounts:
            self._count(api_key, call.path)
        for name in STAMP:
            header = call.headers.get(name)
            if header and header != params.setdefault(name, header):
                raise _Refused(10003, name)
            if not params.get(name):
                raise _Refused(10001, name)
        stamp = {name: params[name] for name in STAMP}
        account = self.accounts.get(stamp["api_key"])
        if account is None:
            raise _Refused(10005)
        if not (sign := params.pop("sign", "")):
            raise _Refused(10001, "sign")
        if len(dict(pairs)) < len(pairs):
            raise _Refused(10003)
        if not ECHOSTR.fullmatch(stamp["echostr"]):
            raise _Refused(10031)
        if abs(_integer(stamp, "timestamp") - self._clock()) > MAX_CLOCK_DIFFERENCE_MS:
            raise _Refused(10600)
        if stamp["signature_method"] not in ("HmacSHA256", "RSA"):
            raise _Refused(10003, "signature_method")
        signed = "&".join(f"{name}={value}" for name, value in sorted(params.items()))
        digest = md5(signed.encode()).hexdigest().upper().encode()
        is_rsa = is_public_key(account)
        if (stamp["signature_method"] == "RSA") != is_rsa or not (is_rsa or sign == sign.lower()):
            raise _Refused(10007)
        if not verifier(account)(digest, sign):
            raise _Refused(10007)
        if code := self.refused_paths.get(call.path):
            raise _Refused(code)
        return {name: value for name, value in params.items() if name not in STAMP}

    def _count(self, api_key: str, path: str) -> None:
        most, window_ms = self.rate_limit
        with self._lock:
            now = self._now()
            arrivals = self._arrivals.setdefault((api_key, path), deque())
            while arrivals and arrivals[0] <= now - window_ms:
                arrivals.popleft()
            arrivals.append(now)
            if len(arrivals) > most:
                raise _Refused(10004)

    def _check_names(self, params: Params, endpoint: _Endpoint) -> None:
        for name in sorted(endpoint.required):
            if name not in params or (not params[name] and name != "coin"):
                raise _Refused(10001, name)
        if unknown := params.keys() - endpoint.required - endpoint.optional:
            raise _Refused(10003, min(unknown))

    # The endpoints

    def _user_list(self, params: Params) -> Rows:
        size, after = _page(params)
        rows = sorted(
            (user for user in self._listed(*_window(params)) if user.id > after),
            key=lambda user: user.id,
        )
        return [self._row(user, with_id=True) for user in rows[:size]]

    def _user_team_list(self, params: Params) -> Rows:
        size, start = _page(params)
        users = self._listed(*_window(params))[start : start + size]
        return [self._row(user, with_id=False) for user in users]

    def _user_info(self, params: Params) -> bytes:
        self._check_open_id(params)
        return self._info(params["openId"])

    def _commission_list(self, params: Params) -> Rows:
        size, start = _page(params)
        user = self._user(params)
        types = _choice(params, "tradeType", TRADE_TYPES)
        if params["coin"] == "null":  # the text; to mean all, it is sent empty
            raise _Refused(10003, "coin")
        return self._commissions(user, *_window(params), types, params["coin"])[start : start + size]

    def _trade_user(self, params: Params) -> Rows:
        user, types = self._user(params), _choice(params, "tradeType", TRADE_TYPES)
        return self._trades(user, *_window(params), types, team=False)

    def _trade_user_team(self, params: Params) -> Rows:
        user, types = self._user(params), _choice(params, "tradeType", TRADE_TYPES)
        return self._trades(user, *_window(params), types, team=True)

    def _trade_future(self, params: Params) -> bytes:
        user, scope = self._user(params), params["userType"]
        _choice(params, "userType", SCOPES)
        symbol = params.get("symbol")
        if symbol is not None and symbol not in SYMBOLS:
            raise _Refused(10003, "symbol")
        return self._futures(user, *_window(params), scope, symbol)

    def _money_list(self, params: Params) -> Rows:
        size, start = _page(params)
        user, scope, kind = self._user(params), params["userType"], params["subInOutType"]
        _choice(params, "userType", SCOPES)
        _choice(params, "subInOutType", MONEY)
        asset = params.get("assetCode")
        since = _integer(params, "updateStartTime") if "updateStartTime" in params else None
        until = _integer(params, "updateEndTime") if "updateEndTime" in params else None
        now = self._now()
        found = [
            money
            for money in self._money(user, *_window(params), scope, kind)
            if asset in (None, "", money.asset)
            and (since is None or money.updated_at(now) >= since)
            and (until is None or money.updated_at(now) <= until)
        ]
        return [money.row(now) for money in found[start : start + size]]

    # Their rows

    def _check_open_id(self, params: Params) -> None:
        if code := self.refused_open_ids.get(params["openId"]):
            raise _Refused(code)

    def _user(self, params: Params) -> User:
        self._check_open_id(params)
        user = self._affiliates.find(params["openId"], self._now())
        if user is None:
            raise _Refused(10022)
        return user

    def _asked(self) -> list[User]:
        """Those that one would ask about: us and everybody under us."""
        return [self._affiliates.own, *self._affiliates.listed(self._now())]

    def _listed(self, start: int, end: int) -> list[User]:
        users = [user for user in self._affiliates.listed(self._now()) if start <= user.registered_ms <= end]
        return users[::-1] if self.newest_first else users

    def _users(self, start: int, end: int, *, with_id: bool) -> Rows:
        return [self._row(user, with_id) for user in self._listed(start, end)]

    def _row(self, user: User, with_id: bool) -> bytes:
        now = self._now()
        head = f'"id":{user.id},' if with_id else ""
        return f"{{{head}{profile(user, now)},{balances(user, now)}}}".encode()

    def _info(self, open_id: str) -> bytes:
        now = self._now()
        user = next((user for user in self._asked() if user.open_id == open_id), None)
        if user:
            return f'{{{profile(user, now)},"inviteResult":true,{balances(user, now)}}}'.encode()
        void = dict.fromkeys(("openId", "code", "createTime"))
        void |= dict.fromkeys(("directInvitation", "deposit", "transaction"), False)
        void |= dict.fromkeys(("kycStatus", "userLevel", "currencyFeeAmt", "contractFeeAmt"))
        amounts = ("currencyTotalFeeAmt", "currencyTotalFeeAmtUsdt", "contractTotalFeeAmt", "reserveAmt")
        return encode(void | {"inviteResult": False} | dict.fromkeys(amounts, "0.0000"))

    def _commissions(self, user: User, start: int, end: int, types: tuple[int, ...], coin: str) -> Rows:
        paid_until = min(end, self._now() - PAID_AFTER_MS)
        if self._given_commissions is not None:
            return [
                row
                for given, row in self._given_commissions
                if given["openId"] == user.open_id
                and start <= int(given["statsDate"]) <= paid_until
                and int(given["tradeType"]) in types
                and coin.lower() in ("", given["coinSymbol"].lower())
            ]
        if not user.is_agent:
            return []
        return [
            row
            for day in self._days(max(start, user.registered_ms - DAY_MS), paid_until)
            for trade_type, symbol, row in self._affiliates.commissions(user, day)
            if trade_type in types and coin.lower() in ("", symbol)
        ]

    def _traded(self, user: User, day: date, trade_type: int, *, team: bool) -> list[dict[str, Any]]:
        return _decoded(self._trades(user, *_whole(day), TRADE_TYPES[str(trade_type)], team=team))

    def _trades(self, user: User, start: int, end: int, types: tuple[int, ...], *, team: bool) -> Rows:
        rows = []
        for day in self._days(start, end):
            totals = self._affiliates.totals(day, self._now())
            for trade_type in types:
                if total := (totals.team if team else totals.user).get((user.open_id, trade_type)):
                    rows.append(
                        f'{{"openId":"{user.open_id}","statsDate":{start_of(day)}'
                        f',"tradeAmt":"{total[0]}","feeAmt":"{total[1]}"}}'.encode()
                    )
        return rows

    def _futures(self, asked: User, start: int, end: int, scope: str, symbol: str | None) -> bytes:
        turnover = fee = NOTHING
        for day in self._days(start, end):
            for user, fills in self._affiliates.fills(day, self._now()):
                if SCOPES[scope](user, asked):
                    for fill in fills:
                        if fill.trade_type == FUTURES and symbol in (None, fill.symbol):
                            turnover, fee = turnover + fill.volume, fee + fill.fee
        return f'{{"turnover":"{turnover}","fee":"{fee}"}}'.encode()

    def _money(self, asked: User, start: int, end: int, scope: str, kind: str) -> list[Money]:
        """What was created in [start, end], in the order of answers."""
        end = min(end, self._now())
        given = self._given_money
        lists = (
            [self._affiliates.money(day) for day in self._days(start - DAY_MS + 1, end)] if given is None else [given]
        )
        money = [each for by_kind in lists for each in between(by_kind[kind], start, end)]
        if scope != "ALL" or asked is not self._affiliates.own:
            money = [each for each in money if each.user and SCOPES[scope](each.user, asked)]
        return money[::-1] if self.newest_first else money

    def _days(self, start: int, end: int) -> Iterator[date]:
        """The days whose first millisecond lies in [start, end] and is not in the future, from the first there is."""
        day = day_of(max(start, FOUNDED_MS) + DAY_MS - 1)
        end = min(end, self._now())
        while start_of(day) <= end:
            yield day
            day += timedelta(1)


def _decoded(rows: Rows) -> list[dict[str, Any]]:
    return [decode(row) for row in rows]


def _whole(day: date) -> tuple[int, int]:
    return start_of(day), start_of(day) + DAY_MS - 1


def _integer(params: Params, name: str) -> int:
    if not INTEGER.fullmatch(params[name]):
        raise _Refused(10003, name)
    return int(params[name])


def _choice(params: Params, name: str, choices: Mapping[str, Any]) -> Any:
    if params[name] not in choices:
        raise _Refused(10003, name)
    return choices[params[name]]


def _window(params: Params) -> tuple[int, int]:
    """The first and the last millisecond asked for."""
    start, end = _integer(params, "startTime"), _integer(params, "endTime")
    if end < start:
        raise _Refused(10003, "endTime")
    return start, end


def _page(params: Params) -> tuple[int, int]:
    """How many rows, and after how many or after which id; without `start` from the first."""
    size = _integer(params, "pageSize")
    if not 1 <= size <= MAX_PAGE_SIZE:
        raise _Refused(20026, "pageSize")
    return size, _integer(params, "start") if "start" in params else 0
