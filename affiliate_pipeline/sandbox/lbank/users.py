"""Generated users under one account's affiliate.

Founders registered before 2025 and are listed permanently. Newcomers register from 2025 on; each is active for 50 days
and listed for about 100. So `listed_count` users are listed at any time, and newcomers stay listed after their last
activity.
"""

import threading
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date

from affiliate_pipeline.sandbox.days import DAY_MS, HOUR_MS
from affiliate_pipeline.sandbox.lbank.days import start_of
from affiliate_pipeline.sandbox.lbank.draws import Draw, draws

LISTED_DAYS = 100
ACTIVE_DAYS = 50
AGENT_LEVELS = range(1, 22)
OTHER_LEVELS = (0, 99, 0, 0, 99, 100, 0, 99)
OWN_OPEN_ID = "LBA0SANDBOX"
FIRST_ID = 1000
# The ids per block, and the number of blocks. An alias selects one block: accounts have users and openIds in common
# only if their aliases select the same one.
IDS_PER_BLOCK, BLOCKS = 10**5, 10**4
FOUNDED_MS = start_of(date(2023, 11, 28))
NEWCOMERS_SINCE_MS = start_of(date(2025, 1, 1))


@dataclass(frozen=True, eq=False)
class User:
    """One user; `first_trade_ms` and `first_deposit_ms` are None if it never trades or deposits."""

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
        """Whether the user can have a team and earn commissions."""
        return self.level in AGENT_LEVELS

    @property
    def size(self) -> int:
        """How much the user trades and deposits, as a percentage of the largest users: a few have most of the money."""
        return 100 // (1 + draws("size", self.id)(8)) ** 2

    @property
    def code(self) -> str:
        """The referral code that the user registered with."""
        parent_id = self.parent.id if self.parent else 0
        return _base36(parent_id * 7919 + 123_457, 4)

    def above(self) -> Iterator["User"]:
        """The agents whose teams the user is in, the nearest first."""
        user = self.parent
        while user:
            yield user
            user = user.parent

    def is_active(self, day_start: int) -> bool:
        """Whether the user trades and moves money on the day that starts then (ms)."""
        return self.active_until_ms is None or day_start < self.active_until_ms


class Users:
    """The users under the account's affiliate: `listed_count` generated ones listed at any time, and added ones.

    All draws depend on `offset`, by which the account's ids differ from those of the default account.
    """

    def __init__(self, listed_count: int, alias: str = "") -> None:
        self.listed_count = listed_count
        self.offset = 0
        if alias:
            draw_below = draws("account", alias)
            self.offset = IDS_PER_BLOCK * (1 + draw_below(BLOCKS - 1))
        own_id = FIRST_ID + self.offset
        self.affiliate = User(
            own_id,
            _open_id(own_id) if alias else OWN_OPEN_ID,
            parent=None,
            level=21,
            registered_ms=FOUNDED_MS,
            first_trade_ms=FOUNDED_MS,
            first_deposit_ms=FOUNDED_MS,
        )

        self._founders = self._generate_founders(listed_count * 2 // 5)
        self._agents = [user for user in self._founders if user.is_agent]
        self._newcomers: list[User] = []
        self._listed_newcomer_count = listed_count - len(self._founders)
        self._added: list[User] = []
        self._by_open_id = {user.open_id: user for user in [self.affiliate, *self._founders]}
        self._lock = threading.Lock()

    def listed(self, now: int) -> list[User]:
        """The users listed under the affiliate now, by time of registration."""
        newcomers = self._newcomers_by(now)[-self._listed_newcomer_count :]
        users = [user for user in [*self._founders, *newcomers, *self._added] if user.registered_ms <= now]
        if self._added:
            users.sort(key=lambda user: user.registered_ms)
        return users

    def find(self, open_id: str, now: int) -> User | None:
        """The user with this openId: the affiliate, or one who is or was under it."""
        self._newcomers_by(now)  # adds them to `_by_open_id`
        user = self._by_open_id.get(open_id)
        return user if user and user.registered_ms <= now else None

    def generated(self, now: int) -> list[User]:
        """The affiliate and all users who registered by now, without added ones."""
        return [
            user for user in [self.affiliate, *self._founders, *self._newcomers_by(now)] if user.registered_ms <= now
        ]

    def registered(self, now: int) -> list[User]:
        """The affiliate and all users who registered by now, even if they are no longer listed."""
        return [*self.generated(now), *(user for user in self._added if user.registered_ms <= now)]

    def add(
        self, open_id: str | None, parent: User, level: int, registered_ms: int, first_trade_ms: int | None
    ) -> User:
        """Add a user, who never leaves the lists; raises ValueError if the openId exists already."""
        with self._lock:
            id = 10**9 + self.offset + len(self._added)
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
                raise ValueError(f"the user {user.open_id} exists already")
            self._added = [*self._added, user]
            self._by_open_id[user.open_id] = user
        return user

    def _generate_founders(self, count: int) -> list[User]:
        founders: list[User] = []
        agents: list[User] = [self.affiliate]
        for number in range(count):
            draw_below = draws("founder", self.offset + number)
            gap = (NEWCOMERS_SINCE_MS - FOUNDED_MS) // count
            registered = FOUNDED_MS + number * gap + draw_below(gap * 9 // 10)
            is_agent = number % 5 == 0
            is_trader = number % 5 in (0, 3)
            first_trade = registered + draw_below(20 * DAY_MS) if is_trader else None
            parent = self.affiliate if draw_below(10) < 4 else agents[draw_below(len(agents))]
            level = 1 + draw_below(20) if is_agent else OTHER_LEVELS[draw_below(len(OTHER_LEVELS))]
            id = FIRST_ID + self.offset + 1 + number
            user = User(
                id,
                _open_id(id),
                parent=parent,
                level=level,
                registered_ms=registered,
                first_trade_ms=first_trade,
                first_deposit_ms=_first_deposit(registered, first_trade, draw_below),
            )
            founders.append(user)
            if is_agent:
                agents.append(user)
        return founders

    def _newcomers_by(self, now: int) -> list[User]:
        """Generate the newcomers up to `now`; return those who registered by then, in order."""
        if not self._listed_newcomer_count:
            return []
        gap = LISTED_DAYS * DAY_MS // self._listed_newcomer_count
        last_number = (now - NEWCOMERS_SINCE_MS) // gap
        with self._lock:
            for number in range(len(self._newcomers), last_number + 1):
                user = self._newcomer(number, gap)
                self._newcomers.append(user)
                self._by_open_id[user.open_id] = user
            registered_count = bisect_right(self._newcomers, now, key=lambda user: user.registered_ms)
            return self._newcomers[:registered_count]

    def _newcomer(self, number: int, gap: int) -> User:
        draw_below = draws("newcomer", self.offset + number)
        registered = NEWCOMERS_SINCE_MS + number * gap + draw_below(gap * 9 // 10)
        first_trade = None
        if number % 5 in (1, 3):
            max_delay_ms = HOUR_MS if draw_below(4) == 0 else 10 * DAY_MS
            first_trade = registered + draw_below(max_delay_ms)
        agents = [self.affiliate, *self._agents]
        parent = self.affiliate if draw_below(10) < 3 else agents[draw_below(len(agents))]
        id = FIRST_ID + self.offset + 1 + len(self._founders) + number
        return User(
            id,
            _open_id(id),
            parent=parent,
            level=OTHER_LEVELS[number % len(OTHER_LEVELS)],
            registered_ms=registered,
            first_trade_ms=first_trade,
            first_deposit_ms=_first_deposit(registered, first_trade, draw_below),
            active_until_ms=registered + ACTIVE_DAYS * DAY_MS,
        )


def _first_deposit(registered: int, first_trade: int | None, draw_below: Draw) -> int | None:
    if first_trade is not None:
        return registered + (first_trade - registered) // 2
    if draw_below(4) == 0:
        return registered + draw_below(5 * DAY_MS)
    return None


def _open_id(id: int) -> str:
    # The factor is odd and no multiple of three, so that no two ids have the same openId.
    return "LBA0" + _base36(id * 0x9E3779B1 % 36**7, 7)


def _base36(number: int, length: int) -> str:
    digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return "".join(digits[number // 36**place % 36] for place in reversed(range(length)))
