"""Made-up users under an LBank affiliate and what they do. How it is asked for, and as whom, may not live here.

Everything follows from who and when alone, so that every process and every later day tells the same past. Founders
registered before 2025 and stay; newcomers register ever since, act for 50 days and are listed for about 100: `size`
users are listed at any time, and whoever leaves the lists has done nothing in the 50 days before.
"""

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from functools import lru_cache, reduce
from hashlib import blake2b

from affiliate_pipeline.sandbox.binance import rebates
from affiliate_pipeline.sandbox.binance.rebates import DAY_MS, HOUR_MS
from affiliate_pipeline.sandbox.rows import encode

ZONE_AHEAD_MS = 8 * HOUR_MS
PAID_AFTER_MS = DAY_MS + 10 * HOUR_MS
LISTED_DAYS = 100
ACTIVE_DAYS = 50
DAYS_CACHED = 100
USERS_CACHED = 4096
MINUTE_MS = 60_000

SPOT, FUTURES = 0, 1
AGENT_LEVELS = range(1, 22)
OTHER_LEVELS = (0, 99, 0, 0, 99, 100, 0, 99)
OWN_OPEN_ID = "LBA0SANDBOX"
FIRST_ID = 1000

SYMBOLS = ("BTCUSDT", "ETHUSDT", "SOLUSDT", "DOGEUSDT")
COINS = ("usdt", "btc", "eth", "lbk", "usdc", "sol")
ASSETS = ("USDT", "USDT", "USDT", "BTC", "ETH", "LBK", "TRX", "1000SATS")
SCALES = (2, 4, 8, 8, 8, 18)

# What is asked for -> (what is answered, share, what a good end is called)
MONEY = {
    "IN_DEPOSIT": ("On-chain Deposit", 35, "Deposit Successful"),
    "OUT_WITHDRAW": ("On-chain Withdrawal", 20, "Withdrawal Successful"),
    "IN_OTC_BUY": ("OTC Buy", 12, "Order Completed"),
    "OUT_OTC_SELL": ("OTC Sell", 8, "Order Completed"),
    "IN_INNER_TRANSFER_IN": ("Internal Transfer In", 13, "Transfer Successful"),
    "OUT_INNER_TRANSFER_OUT": ("Internal Transfer Out", 12, "Transfer Successful"),
}
BY_SHARE = [kind for kind, (_, share, _) in MONEY.items() for _ in range(share)]


def day_of(ms: int) -> date:
    """The UTC+8 day that the instant lies in."""
    return rebates.day_of(ms + ZONE_AHEAD_MS)


def start_of(day: date) -> int:
    """The first millisecond of the UTC+8 day."""
    return rebates.start_of(day) - ZONE_AHEAD_MS


FOUNDED_MS = start_of(date(2023, 11, 28))
NEWCOMERS_SINCE_MS = start_of(date(2025, 1, 1))


@dataclass(frozen=True, slots=True)
class Amount:
    """A decimal: how many 10^-18, and how many decimals of it are written."""

    units: int
    scale: int

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(self.units + other.units, max(self.scale, other.scale))

    def __str__(self) -> str:
        whole, rest = divmod(self.units // 10 ** (18 - self.scale), 10**self.scale)
        return f"{whole}.{rest:0{self.scale}d}" if self.scale else f"{whole}"


NOTHING = Amount(0, 0)


@dataclass(frozen=True, eq=False)
class User:
    """One user; `first_trade_ms` and `first_deposit_ms` are None for whoever never trades or deposits."""

    id: int
    open_id: str
    parent: "User | None"
    level: int
    registered_ms: int
    first_trade_ms: int | None
    first_deposit_ms: int | None
    active_until_ms: int | None = None

    @property
    def is_agent(self) -> bool:
        return self.level in AGENT_LEVELS

    @property
    def code(self) -> str:
        """The referral code that the user came with."""
        return _base36((self.parent.id if self.parent else 0) * 7919 + 123_457, 4)

    def above(self) -> Iterator["User"]:
        """Everybody whose team the user is in, the nearest first."""
        user = self.parent
        while user:
            yield user
            user = user.parent

    def is_active(self, day_start: int) -> bool:
        return self.active_until_ms is None or day_start < self.active_until_ms


@dataclass(frozen=True)
class Fill:
    """One trade of a user."""

    at: int
    trade_type: int
    symbol: str
    volume: Amount
    fee: Amount


@dataclass(frozen=True)
class Totals:
    """Volume and fee of a day by (openId, trade type): each user's own, and each agent's team's without the agent."""

    user: dict[tuple[str, int], tuple[Amount, Amount]]
    team: dict[tuple[str, int], tuple[Amount, Amount]]


@dataclass(frozen=True)
class Money:
    """One deposit or withdrawal: its row until it ended, and since."""

    at: int
    kind: str
    asset: str
    user: User | None
    ended_at: int
    pending: bytes
    ended: bytes

    def updated_at(self, now: int) -> int:
        return self.ended_at if now >= self.ended_at else self.at

    def row(self, now: int) -> bytes:
        """What is told of it as of now."""
        return self.ended if now >= self.ended_at else self.pending


class Affiliates:
    """The users under the affiliate and what they do; `size` of them are listed at any time, and those added."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.own = User(FIRST_ID, OWN_OPEN_ID, None, 21, FOUNDED_MS, FOUNDED_MS, FOUNDED_MS)
        self._founders = self._found(size * 2 // 5)
        self._agents = [user for user in self._founders if user.is_agent]
        self._newcomers: list[User] = []
        self._listed_newcomers = size - len(self._founders)
        self._added: list[User] = []
        self._by_open_id = {user.open_id: user for user in [self.own, *self._founders]}
        self._lock = threading.Lock()
        self._fills = lru_cache(DAYS_CACHED)(self._make_fills)
        self._fills_until = lru_cache(DAYS_CACHED)(self._make_fills_until)
        self._totals_until = lru_cache(DAYS_CACHED)(self._sum_until)
        self.money = lru_cache(DAYS_CACHED)(self._make_money)
        self.commissions = lru_cache(20 * DAYS_CACHED)(_commissions)

    def listed(self, now: int) -> list[User]:
        """Everybody under us by now, us not included, by time of registration."""
        newcomers = self._newcomers_by(now)[-self._listed_newcomers :] if self._listed_newcomers else []
        users = [user for user in [*self._founders, *newcomers, *self._added] if user.registered_ms <= now]
        return sorted(users, key=lambda user: user.registered_ms) if self._added else users

    def find(self, open_id: str, now: int) -> User | None:
        """Whoever has it and is, or was once, under us; or we ourselves."""
        self._newcomers_by(now)
        user = self._by_open_id.get(open_id)
        return user if user and user.registered_ms <= now else None

    def add(
        self, open_id: str | None, parent: User, level: int, registered_ms: int, first_trade_ms: int | None
    ) -> User:
        """Somebody new, who is listed for ever."""
        with self._lock:
            id = 10**9 + len(self._added)
            user = User(
                id,
                open_id or _open_id(id),
                parent,
                level,
                registered_ms,
                first_trade_ms,
                first_deposit_ms=first_trade_ms,
            )
            if user.open_id in self._by_open_id:
                raise ValueError(f"there is a user {user.open_id} already")
            self._added = [*self._added, user]
            self._by_open_id[user.open_id] = user
        for cached in (self._fills, self._fills_until, self._totals_until):
            cached.cache_clear()
        return user

    def fills(self, day: date, now: int) -> list[tuple[User, list[Fill]]]:
        """The trades of the UTC+8 day up to the last whole minute, of everybody who had any."""
        return self._fills_until(day, _told_until(day, now))

    def totals(self, day: date, now: int) -> Totals:
        """Their sums."""
        return self._totals_until(day, _told_until(day, now))

    def _make_fills_until(self, day: date, until: int) -> list[tuple[User, list[Fill]]]:
        found = ((user, [fill for fill in fills if fill.at < until]) for user, fills in self._fills(day))
        return [(user, fills) for user, fills in found if fills]

    def _sum_until(self, day: date, until: int) -> Totals:
        totals = Totals({}, {})
        for user, fills in self._fills_until(day, until):
            for trade_type in (SPOT, FUTURES):
                chosen = [fill for fill in fills if fill.trade_type == trade_type]
                if not chosen:
                    continue
                volume, fee = _sum(fill.volume for fill in chosen), _sum(fill.fee for fill in chosen)
                totals.user[user.open_id, trade_type] = volume, fee
                for agent in user.above():
                    key = agent.open_id, trade_type
                    others = totals.team.get(key, (NOTHING, NOTHING))
                    totals.team[key] = others[0] + volume, others[1] + fee
        return totals

    def _make_fills(self, day: date) -> list[tuple[User, list[Fill]]]:
        midnight = start_of(day)
        found = ((user, _fills(user, midnight)) for user in self._everybody(midnight + DAY_MS - 1))
        return [(user, fills) for user, fills in found if fills]

    def _make_money(self, day: date) -> dict[str, list[Money]]:
        midnight = start_of(day)
        users = [
            user
            # Not those added: they would change who did what before.
            for user in [self.own, *self._founders, *self._newcomers_by(midnight)]
            if user.first_deposit_ms is not None and user.first_deposit_ms <= midnight and user.is_active(midnight)
        ]
        below = _draws("money", day.isoformat())
        count = max(2, self.size * (30 + below(40)) // 100)
        return by_kind(_money(users, midnight, number) for number in range(count))

    def _everybody(self, now: int) -> list[User]:
        """Us and whoever registered by now, also those who are not listed any more."""
        users = [self.own, *self._founders, *self._newcomers_by(now), *self._added]
        return [user for user in users if user.registered_ms <= now]

    def _found(self, count: int) -> list[User]:
        founders: list[User] = []
        agents: list[User] = [self.own]
        for number in range(count):
            id = FIRST_ID + 1 + number
            below = _draws("founder", number)
            span = (NEWCOMERS_SINCE_MS - FOUNDED_MS) // count
            registered = FOUNDED_MS + number * span + below(span * 9 // 10)
            is_agent = number % 5 == 0
            first_trade = registered + below(20 * DAY_MS) if number % 5 in (0, 3) else None
            user = User(
                id,
                _open_id(id),
                parent=self.own if below(10) < 4 else agents[below(len(agents))],
                level=1 + below(20) if is_agent else OTHER_LEVELS[below(len(OTHER_LEVELS))],
                registered_ms=registered,
                first_trade_ms=first_trade,
                first_deposit_ms=_first_deposit(registered, first_trade, below),
            )
            founders.append(user)
            if is_agent:
                agents.append(user)
        return founders

    def _newcomers_by(self, now: int) -> list[User]:
        """The newcomers who registered by now, in order."""
        if not self._listed_newcomers:
            return []
        gap = LISTED_DAYS * DAY_MS // self._listed_newcomers
        with self._lock:
            for number in range(len(self._newcomers), max(0, (now - NEWCOMERS_SINCE_MS) // gap + 1)):
                user = self._newcomer(number, gap)
                self._newcomers.append(user)
                self._by_open_id[user.open_id] = user
            return self._newcomers[: bisect_right(self._newcomers, now, key=lambda user: user.registered_ms)]

    def _newcomer(self, number: int, gap: int) -> User:
        below = _draws("newcomer", number)
        id = FIRST_ID + 1 + len(self._founders) + number
        registered = NEWCOMERS_SINCE_MS + number * gap + below(gap * 9 // 10)
        first_trade = None
        if number % 5 in (1, 3):
            first_trade = registered + below(HOUR_MS if below(4) == 0 else 10 * DAY_MS)
        agents = [self.own, *self._agents]
        return User(
            id,
            _open_id(id),
            parent=self.own if below(10) < 3 else agents[below(len(agents))],
            level=OTHER_LEVELS[number % len(OTHER_LEVELS)],
            registered_ms=registered,
            first_trade_ms=first_trade,
            first_deposit_ms=_first_deposit(registered, first_trade, below),
            active_until_ms=registered + ACTIVE_DAYS * DAY_MS,
        )


def profile(user: User, now: int) -> str:
    """What is told of the user as of now, as members of a JSON object from openId to contractFeeAmt."""
    deposit, transaction = (
        since is not None and since <= now for since in (user.first_deposit_ms, user.first_trade_ms)
    )
    return _profile(user, deposit, transaction)


@lru_cache(USERS_CACHED)
def _profile(user: User, deposit: bool, transaction: bool) -> str:
    below = _draws("profile", user.id)
    told = {
        "openId": user.open_id,
        "code": user.code,
        "createTime": user.registered_ms,
        "directInvitation": user.parent is not None and user.parent.parent is None,
        "deposit": deposit,
        "transaction": transaction,
        "kycStatus": below(2),
        "userLevel": user.level,
        "currencyFeeAmt": str(10 + 10 * below(9)) if user.is_agent else None,
        "contractFeeAmt": str(10 + 10 * below(9)) if user.is_agent else None,
    }
    return encode(told)[1:-1].decode()


def balances(user: User, now: int) -> str:
    """What the user owns since the last UTC+8 midnight, as members of a JSON object."""
    midnight = start_of(day_of(now))
    return _balances(user, midnight if user.first_deposit_ms is not None and user.first_deposit_ms < midnight else None)


@lru_cache(USERS_CACHED)
def _balances(user: User, midnight: int | None) -> str:
    spot = usdt = futures = bonus = "0.0000"
    if midnight is not None:
        below = _draws("balances", user.id, midnight)
        held = _amount(below)
        spot, usdt, futures = str(held), str(Amount(held.units // (1 + below(3)), held.scale)), str(_amount(below))
        bonus = "10.0000" if below(10) == 0 else bonus
    return (
        f'"currencyTotalFeeAmt":"{spot}","currencyTotalFeeAmtUsdt":"{usdt}"'
        f',"contractTotalFeeAmt":"{futures}","reserveAmt":"{bonus}"'
    )


def by_kind(money: Iterable[Money]) -> dict[str, list[Money]]:
    """For each kind, in order of creation."""
    found: dict[str, list[Money]] = {kind: [] for kind in MONEY}
    for each in sorted(money, key=lambda each: each.at):
        found[each.kind].append(each)
    return found


def between(money: list[Money], start: int, end: int) -> list[Money]:
    """Those created in [start, end]."""
    first = bisect_left(money, start, key=lambda each: each.at)
    return money[first : bisect_right(money, end, key=lambda each: each.at)]


def _commissions(user: User, day: date) -> list[tuple[int, str, bytes]]:
    """(trade type, coin, row) of what the agent was paid for the UTC+8 day."""
    paid = []
    for trade_type in (SPOT, FUTURES):
        below = _draws("commission", user.id, day.isoformat(), trade_type)
        count = 2 + below(3) if user.parent is None else below(4)
        first = below(len(COINS))
        for coin in sorted(COINS[(first + i) % len(COINS)] for i in range(count)):
            amount, in_usdt = _amount(below), "0" if below(4) == 0 else _amount(below)
            row = (
                f'{{"openId":"{user.open_id}","coinSymbol":"{coin}","amount":"{amount}","tradeType":{trade_type}'
                f',"statsDate":{start_of(day)},"usdtAmount":"{in_usdt}"}}'
            )
            paid.append((trade_type, coin, row.encode()))
    return paid


def _fills(user: User, midnight: int) -> list[Fill]:
    """What the user trades on the day, in order; on the first day beginning with the first trade."""
    first = user.first_trade_ms
    if first is None or first >= midnight + DAY_MS or not user.is_active(midnight):
        return []
    start = max(first, midnight)
    below = _draws("fills", user.id, midnight)
    busy = 100 if user.parent is None else 60
    fills = []
    for trade_type in (SPOT, FUTURES):
        if below(100) >= busy:
            continue
        fills += [_fill(start + below(midnight + DAY_MS - start), trade_type, below) for _ in range(1 + below(3))]
        below = _draws("fills", user.id, midnight, trade_type)
    if first >= midnight:
        fills.append(_fill(first, below(2), below))
    return sorted(fills, key=lambda fill: fill.at)


def _fill(at: int, trade_type: int, below: Callable[[int], int]) -> Fill:
    volume = _amount(below)
    scale = max(8, volume.scale)
    unit = 10 ** (18 - scale)
    fee = volume.units * (0, 5, 20, 60, 100)[below(5)] // 100_000 // unit * unit
    return Fill(at, trade_type, SYMBOLS[below(len(SYMBOLS))], volume, Amount(fee, scale))


def _money(users: list[User], midnight: int, number: int) -> Money:
    below = _draws("money", midnight, number)
    at = midnight + (0, DAY_MS - 1, below(DAY_MS))[min(number, 2)]
    user = users[below(len(users))]
    kind = BY_SHARE[below(len(BY_SHARE))]
    asset = ASSETS[below(len(ASSETS))]
    speed = below(10)
    ended_at = at if speed < 6 else at + 1000 + below(2 * HOUR_MS if speed < 9 else 71 * HOUR_MS)
    word, _, good = MONEY[kind]
    status, sub_status = ("Completed", good) if below(20) else ("Failed", "Rejected")
    order = f'"2{10**14 + below(9 * 10**14)}"' if kind == "OUT_WITHDRAW" else "null"
    head = (
        f'{{"openId":"{user.open_id}","userLevel":{user.level},"subInOutType":"{word}","assetCode":"{asset}"'
        f',"assetNum":"{_amount(below)}"'
    )
    tail = f',"createTime":{at},"updateTime":%d,"withdrawOrderId":{order}}}'
    pending = f'{head},"status":"Processing","subStatus":"Pending Confirmation"{tail}' % at
    ended = f'{head},"status":"{status}","subStatus":"{sub_status}"{tail}' % ended_at
    return Money(at, kind, asset, user, ended_at, pending.encode(), ended.encode())


def _told_until(day: date, now: int) -> int:
    return min(now // MINUTE_MS * MINUTE_MS, start_of(day) + DAY_MS)


def _sum(amounts: Iterable[Amount]) -> Amount:
    return reduce(Amount.__add__, amounts, NOTHING)


def _first_deposit(registered: int, first_trade: int | None, below: Callable[[int], int]) -> int | None:
    if first_trade is not None:
        return registered + (first_trade - registered) // 2
    return registered + below(5 * DAY_MS) if below(4) == 0 else None


def _amount(below: Callable[[int], int]) -> Amount:
    """More than nothing, of any size up to some ten millions."""
    scale = SCALES[below(len(SCALES))]
    unit = 10 ** (18 - scale)
    units = (below(10 ** (3 + below(9))) + 1) * 10**14 + below(10**14)
    if below(8) == 0:  # zeros at the end
        units = max(1, units // 10**18) * 10**18
    return Amount(max(1, units // unit) * unit, scale)


def _draws(*key: str | int) -> Callable[[int], int]:
    """Draws integers below a limit; the same ones for the same key, in every process."""
    rest = int.from_bytes(blake2b(repr(key).encode()).digest(), "big")

    def below(limit: int) -> int:
        nonlocal rest
        rest, drawn = divmod(rest, limit)
        return drawn

    return below


def _open_id(id: int) -> str:
    # Odd and no multiple of three, so that no two ids come to the same.
    return "LBA0" + _base36(id * 0x9E3779B1 % 36**7, 7)


def _base36(number: int, length: int) -> str:
    digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return "".join(digits[number // 36**place % 36] for place in reversed(range(length)))
