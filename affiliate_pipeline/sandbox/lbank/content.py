"""The data of one account at LBank as of now, generated or set by tests."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, timedelta
from functools import lru_cache, partial
from typing import Any

from affiliate_pipeline.sandbox.amounts import NOTHING
from affiliate_pipeline.sandbox.days import DAY_MS
from affiliate_pipeline.sandbox.lbank.commissions import PAID_AFTER_MS, commissions_of
from affiliate_pipeline.sandbox.lbank.days import bounds_of, day_of, start_of
from affiliate_pipeline.sandbox.lbank.money import MONEY, Money, between, by_kind, money_of
from affiliate_pipeline.sandbox.lbank.profiles import balances, profile
from affiliate_pipeline.sandbox.lbank.trades import FUTURES, SPOT, Trades
from affiliate_pipeline.sandbox.lbank.users import FOUNDED_MS, User, Users
from affiliate_pipeline.sandbox.rows import decode, encode

DAYS_CACHED = 100
# The cache of commissions has one entry per agent and day.
AGENTS_CACHED = 20
TRADE_TYPES = {"0": (SPOT,), "1": (FUTURES,), "10": (SPOT, FUTURES)}

Scope = Callable[[User, User], bool]
# By userType, whether a user is in the scope of the user whose openId is requested.
SCOPES: dict[str, Scope] = {
    "SELF": lambda user, requested: user is requested,
    "SUB": lambda user, requested: user.parent is requested,
    "SELF_SUB": lambda user, requested: requested in (user, user.parent),
    "ALL": lambda user, requested: user is requested or requested in user.above(),
}

Rows = list[bytes]

# The profile of an openId that is not listed under the affiliate.
EMPTY_PROFILE = {
    "openId": None,
    "code": None,
    "createTime": None,
    "directInvitation": False,
    "deposit": False,
    "transaction": False,
    "kycStatus": None,
    "userLevel": None,
    "currencyFeeAmt": None,
    "contractFeeAmt": None,
    "inviteResult": False,
    "currencyTotalFeeAmt": "0.0000",
    "currencyTotalFeeAmtUsdt": "0.0000",
    "contractTotalFeeAmt": "0.0000",
    "reserveAmt": "0.0000",
}


class Content:
    """The users and what they do. Times are in ms, ranges include both ends.

    Tests read rows as of now, not altered by `Faults.transform_row`.
    `newest_first`: users and money are ordered from the newest to the oldest.
    """

    def __init__(self, alias: str, *, now: Callable[[], int], users: int) -> None:
        self.newest_first = False
        self._now = now
        self._users = Users(users, alias)
        self.own_open_id = self._users.affiliate.open_id
        self._trades = Trades(self._users)
        self._money_of = lru_cache(DAYS_CACHED)(partial(money_of, self._users))
        self._commissions_of = lru_cache(AGENTS_CACHED * DAYS_CACHED)(self._generate_commissions)
        self._money_override: dict[str, list[Money]] | None = None
        self._commissions_override: list[tuple[dict[str, Any], bytes]] | None = None

    # What tests set and read

    def add_user(
        self,
        open_id: str | None = None,
        *,
        parent: str | None = None,
        level: int = 0,
        registered_ms: int | None = None,
        first_trade_ms: int | None = None,
    ) -> str:
        """Add a user, by default just registered under the affiliate; return its openId.

        From `first_trade_ms` on, it trades like the others; without `first_trade_ms`, it never trades.
        """
        now = self._now()
        inviting_user = self._users.affiliate if parent is None else self._users.find(parent, now)
        if inviting_user is None:
            raise ValueError(f"no user has the openId {parent}")
        registered_ms = now if registered_ms is None else registered_ms
        user = self._users.add(open_id, inviting_user, level, registered_ms, first_trade_ms)
        self._trades.clear()
        self._commissions_of.cache_clear()
        return user.open_id

    def set_money(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace all deposits and withdrawals by these, each sent as given.

        `subInOutType` is as in responses ("On-chain Deposit"). Rows of unknown users are returned only
        for the affiliate with userType ALL.
        """
        kinds = {name: kind for kind, (name, _, _) in MONEY.items()}

        def as_money(row: Mapping[str, Any]) -> Money:
            at = int(row["createTime"])
            encoded = encode(row)
            return Money(
                at,
                kind=kinds[row["subInOutType"]],
                asset=str(row.get("assetCode")),
                user=self._users.find(str(row["openId"]), self._now()),
                ended_at=int(row.get("updateTime") or at),
                pending=encoded,
                ended=encoded,
            )

        self._money_override = by_kind(map(as_money, rows))

    def set_commissions(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace all commissions by these, each sent as given, in this order within a day."""
        by_day = sorted(rows, key=lambda row: int(row["statsDate"]))
        self._commissions_override = [(dict(row), encode(row)) for row in by_day]

    @property
    def users(self) -> list[dict[str, Any]]:
        """The users under the affiliate, as rows of `invite/user/list`."""
        return _decoded(self._user_rows(0, self._now(), with_id=True))

    def invite_users(self, day: date) -> list[dict[str, Any]]:
        """The rows of `invite/user/list` of a day, by id."""
        rows = _decoded(self._user_rows(*bounds_of(day), with_id=True))
        return sorted(rows, key=lambda row: row["id"])

    def invite_team(self, day: date) -> list[dict[str, Any]]:
        """The rows of `invite/user/team/list` of a day."""
        return _decoded(self._user_rows(*bounds_of(day), with_id=False))

    def user_info(self, open_id: str) -> dict[str, Any]:
        """The profile of a user; an empty one if the openId is not listed."""
        return decode(self._info_row(open_id))

    def commissions(self, day: date) -> list[dict[str, Any]]:
        """The commissions of the affiliate and of every agent under it."""
        rows: Rows = []
        for agent in self._agents():
            rows += self._commission_rows(agent, *bounds_of(day), types=(SPOT, FUTURES), coin="")
        return _decoded(rows)

    def trades(self, day: date, trade_type: int = 10) -> list[dict[str, Any]]:
        """The trades of the affiliate and of every user listed under it."""
        return self._trades_of(self._affiliate_and_listed(), day, trade_type, team=False)

    def team_trades(self, day: date, trade_type: int = 10) -> list[dict[str, Any]]:
        """The trades of the teams of the affiliate and of every agent under it."""
        return self._trades_of(self._agents(), day, trade_type, team=True)

    def future(self, day: date, user_type: str) -> dict[str, Any]:
        """The futures turnover and fee of the users in the affiliate's scope."""
        return decode(self._futures_row(self._users.affiliate, *bounds_of(day), SCOPES[user_type], symbol=None))

    def money(self, day: date, sub_in_out_type: str) -> list[dict[str, Any]]:
        """The money of one kind, as in requests ("IN_DEPOSIT"), of the affiliate and of every user."""
        of_kind = self._money_between(self._users.affiliate, *bounds_of(day), SCOPES["ALL"], sub_in_out_type)
        return _decoded([money.row(self._now()) for money in of_kind])

    # What the endpoints return

    def _affiliate_and_listed(self) -> list[User]:
        """The affiliate and the users listed under it."""
        return [self._users.affiliate, *self._users.listed(self._now())]

    def _agents(self) -> list[User]:
        """The affiliate and the agents listed under it."""
        return [user for user in self._affiliate_and_listed() if user.is_agent]

    def _listed(self, start: int, end: int) -> list[User]:
        """The users listed under the affiliate who registered in [start, end], in the order of responses."""
        users = [user for user in self._users.listed(self._now()) if start <= user.registered_ms <= end]
        return users[::-1] if self.newest_first else users

    def _user_rows(self, start: int, end: int, *, with_id: bool) -> Rows:
        return [self._row(user, with_id) for user in self._listed(start, end)]

    def _row(self, user: User, with_id: bool) -> bytes:
        now = self._now()
        head = f'"id":{user.id},' if with_id else ""
        return f"{{{head}{profile(user, now)},{balances(user, now)}}}".encode()

    def _info_row(self, open_id: str) -> bytes:
        now = self._now()
        for user in self._affiliate_and_listed():
            if user.open_id == open_id:
                return f'{{{profile(user, now)},"inviteResult":true,{balances(user, now)}}}'.encode()
        return encode(EMPTY_PROFILE)

    def _commission_rows(self, user: User, start: int, end: int, types: tuple[int, ...], coin: str) -> Rows:
        """The user's commissions in this coin, or in all coins if it is empty, that have been paid."""
        paid_until = min(end, self._now() - PAID_AFTER_MS)
        coin = coin.lower()
        return [
            row
            for trade_type, paid_coin, row in self._commissions_between(user, start, paid_until)
            if trade_type in types and coin in ("", paid_coin)
        ]

    def _commissions_between(self, user: User, start: int, end: int) -> Iterator[tuple[int, str, bytes]]:
        """The user's commissions of the days that begin in [start, end]: trade type, coin in lower case, row."""
        if self._commissions_override is not None:
            for given, row in self._commissions_override:
                if given["openId"] == user.open_id and start <= int(given["statsDate"]) <= end:
                    yield int(given["tradeType"]), given["coinSymbol"].lower(), row
        elif user.is_agent:
            # The day on which the user registered begins up to a day earlier.
            for day in self._days(max(start, user.registered_ms - DAY_MS), end):
                yield from self._commissions_of(user, day)

    def _generate_commissions(self, agent: User, day: date) -> list[tuple[int, str, bytes]]:
        return commissions_of(agent, day, self._trades.totals(day, start_of(day) + DAY_MS))

    def _trades_of(self, users: list[User], day: date, trade_type: int, *, team: bool) -> list[dict[str, Any]]:
        """The trades of each of the users, or of each one's team."""
        rows: Rows = []
        for user in users:
            rows += self._trade_rows(user, *bounds_of(day), TRADE_TYPES[str(trade_type)], team=team)
        return _decoded(rows)

    def _trade_rows(self, user: User, start: int, end: int, types: tuple[int, ...], *, team: bool) -> Rows:
        rows: Rows = []
        for day in self._days(start, end):
            totals = self._trades.totals(day, self._now())
            volume_and_fee = totals.team if team else totals.user
            for trade_type in types:
                if (user.open_id, trade_type) in volume_and_fee:
                    volume, fee = volume_and_fee[user.open_id, trade_type]
                    row = (
                        f'{{"openId":"{user.open_id}","statsDate":{start_of(day)}'
                        f',"tradeAmt":"{volume}","feeAmt":"{fee}"}}'
                    )
                    rows.append(row.encode())
        return rows

    def _futures_row(self, requested: User, start: int, end: int, scope: Scope, symbol: str | None) -> bytes:
        """The turnover and fee of the scope's futures trades of this symbol, or of all symbols if it is None."""
        turnover = fee = NOTHING
        for day in self._days(start, end):
            for user, fills in self._trades.fills(day, self._now()):
                if not scope(user, requested):
                    continue
                for fill in fills:
                    if fill.trade_type == FUTURES and symbol in (None, fill.symbol):
                        turnover += fill.volume
                        fee += fill.fee
        return f'{{"turnover":"{turnover}","fee":"{fee}"}}'.encode()

    def _money_between(self, requested: User, start: int, end: int, scope: Scope, kind: str) -> list[Money]:
        """The deposits or withdrawals of this kind and scope created in [start, end], in the order of responses."""
        end = min(end, self._now())
        money: list[Money] = []
        if self._money_override is not None:
            money += between(self._money_override[kind], start, end)
        else:
            # The first day is the one that contains `start`.
            for day in self._days(start - DAY_MS + 1, end):
                money += between(self._money_of(day)[kind], start, end)

        # The affiliate's scope ALL has every row, even those of unknown users.
        if scope is not SCOPES["ALL"] or requested is not self._users.affiliate:
            money = [each for each in money if each.user and scope(each.user, requested)]
        return money[::-1] if self.newest_first else money

    def _days(self, start: int, end: int) -> Iterator[date]:
        """The days that begin in [start, end], neither in the future nor before the first users."""
        day = day_of(max(start, FOUNDED_MS) + DAY_MS - 1)
        end = min(end, self._now())
        while start_of(day) <= end:
            yield day
            day += timedelta(1)


def _decoded(rows: Rows) -> list[dict[str, Any]]:
    return [decode(row) for row in rows]
