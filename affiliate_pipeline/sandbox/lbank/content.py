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


class Content:
    """The users and what they do. Times are in ms, ranges include both ends.

    Tests read rows as of now, without `transform_row`.
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
            at, encoded = int(row["createTime"]), encode(row)
            user = self._users.find(str(row["openId"]), self._now())
            updated_at = int(row.get("updateTime") or at)
            return Money(at, kinds[row["subInOutType"]], str(row.get("assetCode")), user, updated_at, encoded, encoded)

        self._money_override = by_kind(map(as_money, rows))

    def set_commissions(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace all commissions by these, each sent as given, in this order within a day."""
        self._commissions_override = [
            (dict(row), encode(row)) for row in sorted(rows, key=lambda row: int(row["statsDate"]))
        ]

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
        agents = [user for user in self._affiliate_and_listed() if user.is_agent]
        return [
            row
            for agent in agents
            for row in _decoded(self._commission_rows(agent, *bounds_of(day), (SPOT, FUTURES), ""))
        ]

    def trades(self, day: date, trade_type: int = 10) -> list[dict[str, Any]]:
        """The trades of the affiliate and of every user listed under it."""
        return [row for user in self._affiliate_and_listed() for row in self._traded(user, day, trade_type, team=False)]

    def team_trades(self, day: date, trade_type: int = 10) -> list[dict[str, Any]]:
        """The trades of the teams of the affiliate and of every agent under it."""
        agents = [user for user in self._affiliate_and_listed() if user.is_agent]
        return [row for agent in agents for row in self._traded(agent, day, trade_type, team=True)]

    def future(self, day: date, user_type: str) -> dict[str, Any]:
        """The futures turnover and fee of the users in the affiliate's scope."""
        return decode(self._futures_row(self._users.affiliate, *bounds_of(day), SCOPES[user_type], None))

    def money(self, day: date, sub_in_out_type: str) -> list[dict[str, Any]]:
        """The money of one kind, as in requests ("IN_DEPOSIT"), of the affiliate and of every user."""
        found = self._money_between(self._users.affiliate, *bounds_of(day), SCOPES["ALL"], sub_in_out_type)
        return _decoded([money.row(self._now()) for money in found])

    # What the endpoints return

    def _affiliate_and_listed(self) -> list[User]:
        """The affiliate and the users listed under it."""
        return [self._users.affiliate, *self._users.listed(self._now())]

    def _listed(self, start: int, end: int) -> list[User]:
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
        user = next((user for user in self._affiliate_and_listed() if user.open_id == open_id), None)
        if user:
            return f'{{{profile(user, now)},"inviteResult":true,{balances(user, now)}}}'.encode()
        unrelated = dict.fromkeys(("openId", "code", "createTime"))
        unrelated |= dict.fromkeys(("directInvitation", "deposit", "transaction"), False)
        unrelated |= dict.fromkeys(("kycStatus", "userLevel", "currencyFeeAmt", "contractFeeAmt"))
        amounts = ("currencyTotalFeeAmt", "currencyTotalFeeAmtUsdt", "contractTotalFeeAmt", "reserveAmt")
        return encode(unrelated | {"inviteResult": False} | dict.fromkeys(amounts, "0.0000"))

    def _commission_rows(self, user: User, start: int, end: int, types: tuple[int, ...], coin: str) -> Rows:
        paid_until = min(end, self._now() - PAID_AFTER_MS)
        if self._commissions_override is not None:
            return [
                row
                for given, row in self._commissions_override
                if given["openId"] == user.open_id
                and start <= int(given["statsDate"]) <= paid_until
                and int(given["tradeType"]) in types
                and coin.lower() in ("", given["coinSymbol"].lower())
            ]
        if not user.is_agent:
            return []
        return [
            row
            # The day on which the user registered begins up to a day earlier.
            for day in self._days(max(start, user.registered_ms - DAY_MS), paid_until)
            for trade_type, paid_coin, row in self._commissions_of(user, day)
            if trade_type in types and coin.lower() in ("", paid_coin)
        ]

    def _generate_commissions(self, agent: User, day: date) -> list[tuple[int, str, bytes]]:
        return commissions_of(agent, day, self._trades.totals(day, start_of(day) + DAY_MS))

    def _traded(self, user: User, day: date, trade_type: int, *, team: bool) -> list[dict[str, Any]]:
        return _decoded(self._trade_rows(user, *bounds_of(day), TRADE_TYPES[str(trade_type)], team=team))

    def _trade_rows(self, user: User, start: int, end: int, types: tuple[int, ...], *, team: bool) -> Rows:
        rows: Rows = []
        for day in self._days(start, end):
            totals = self._trades.totals(day, self._now())
            for trade_type in types:
                if total := (totals.team if team else totals.user).get((user.open_id, trade_type)):
                    rows.append(
                        f'{{"openId":"{user.open_id}","statsDate":{start_of(day)}'
                        f',"tradeAmt":"{total[0]}","feeAmt":"{total[1]}"}}'.encode()
                    )
        return rows

    def _futures_row(self, requested: User, start: int, end: int, scope: Scope, symbol: str | None) -> bytes:
        turnover = fee = NOTHING
        for day in self._days(start, end):
            for user, fills in self._trades.fills(day, self._now()):
                if scope(user, requested):
                    for fill in fills:
                        if fill.trade_type == FUTURES and symbol in (None, fill.symbol):
                            turnover, fee = turnover + fill.volume, fee + fill.fee
        return f'{{"turnover":"{turnover}","fee":"{fee}"}}'.encode()

    def _money_between(self, requested: User, start: int, end: int, scope: Scope, kind: str) -> list[Money]:
        """The deposits or withdrawals of this kind and scope created in [start, end], in the order of responses."""
        end = min(end, self._now())
        given = self._money_override
        # The first day is the one that contains `start`.
        groups = [self._money_of(day) for day in self._days(start - DAY_MS + 1, end)] if given is None else [given]
        money = [each for group in groups for each in between(group[kind], start, end)]
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
