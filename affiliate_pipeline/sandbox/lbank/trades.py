"""Generated trades of users, and their totals."""

from collections import defaultdict
from dataclasses import dataclass
from datetime import date
from functools import lru_cache

from affiliate_pipeline.sandbox.amounts import DRAW_LIMIT, NOTHING, ONE, Amount, spread, sum_of
from affiliate_pipeline.sandbox.days import DAY_MS, MINUTE_MS
from affiliate_pipeline.sandbox.lbank.days import day_of, start_of
from affiliate_pipeline.sandbox.lbank.draws import Draw, draws, with_drawn_scale
from affiliate_pipeline.sandbox.lbank.users import User, Users

SPOT, FUTURES = 0, 1
SYMBOLS = ("BTCUSDT", "ETHUSDT", "SOLUSDT", "DOGEUSDT")
DAYS_CACHED = 100
# The percentage of an invited user's fees that is paid in total; also the highest rate, the affiliate's.
MAX_RATE = 50
# The mean volume (USDT) of a trade of the largest users, and the rates from which a trade's fee is drawn, in 1/1000 %
# of its volume.
MEAN_VOLUME, FEES = 300_000, (0, 20, 20, 40, 40, 60, 60, 80, 100, 100)
WEEKEND_PERCENT = 60
# No trade is larger than this multiple of the mean: it would hide the weekly pattern.
MAX_MULTIPLE = 4


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
    """By (openId, trade type): volume and fee of each user and of each team without its agent, and commissions.

    The commissions are in units of 10^-18 USDT.
    """

    user: dict[tuple[str, int], tuple[Amount, Amount]]
    team: dict[tuple[str, int], tuple[Amount, Amount]]
    commission: dict[tuple[str, int], int]


class Trades:
    """The trades of the users, up to the last whole minute."""

    def __init__(self, users: Users) -> None:
        self._users = users
        self._of_day = lru_cache(DAYS_CACHED)(self._fills_of_day)
        self._until = lru_cache(DAYS_CACHED)(self._fills_until)
        self._sums = lru_cache(DAYS_CACHED)(self._sum)

    def clear(self) -> None:
        """Drop the caches, after users were added."""
        for cached in (self._of_day, self._until, self._sums):
            cached.cache_clear()

    def fills(self, day: date, now: int) -> list[tuple[User, list[Fill]]]:
        """The trades of the UTC+8 day by user, only of users that have any."""
        return self._until(day, _end(day, now))

    def totals(self, day: date, now: int) -> Totals:
        """The sums of the trades of the UTC+8 day."""
        return self._sums(day, _end(day, now))

    def _fills_of_day(self, day: date) -> list[tuple[User, list[Fill]]]:
        midnight = start_of(day)
        fills_by_user = [(user, _fills(user, midnight)) for user in self._users.registered(midnight + DAY_MS - 1)]
        return [(user, fills) for user, fills in fills_by_user if fills]

    def _fills_until(self, day: date, end: int) -> list[tuple[User, list[Fill]]]:
        fills_by_user = [(user, [fill for fill in fills if fill.at < end]) for user, fills in self._of_day(day)]
        return [(user, fills) for user, fills in fills_by_user if fills]

    def _sum(self, day: date, end: int) -> Totals:
        totals = Totals({}, {}, defaultdict(int))
        for user, fills in self._until(day, end):
            for trade_type in (SPOT, FUTURES):
                fills_of_type = [fill for fill in fills if fill.trade_type == trade_type]
                if fills_of_type:
                    _add(totals, user, trade_type, fills_of_type)
        return totals


def commission_rate(agent: User, trade_type: int) -> int:
    """The percentage of fees that the agent receives, for users whom it has invited itself."""
    if agent.parent is None:
        return MAX_RATE
    draw_below = draws("rate", agent.id, trade_type)
    return 20 + 5 * draw_below(3)


def _add(totals: Totals, user: User, trade_type: int, fills: list[Fill]) -> None:
    """Add the user's fills of this type to the totals: its own, those of the teams that it is in, and commissions."""
    volume = sum_of(fill.volume for fill in fills)
    fee = sum_of(fill.fee for fill in fills)
    totals.user[user.open_id, trade_type] = volume, fee
    for agent in user.above():
        key = agent.open_id, trade_type
        team_volume, team_fee = totals.team.get(key, (NOTHING, NOTHING))
        totals.team[key] = team_volume + volume, team_fee + fee
    for agent, percent in _shares(user, trade_type):
        totals.commission[agent.open_id, trade_type] += fee.units * percent // 100


def _shares(user: User, trade_type: int) -> list[tuple[User, int]]:
    """Who receives how many % of the user's fees: the inviting agent its rate, the affiliate the rest of MAX_RATE."""
    if user.parent is None:
        return []
    *_, affiliate = user.above()
    percent = commission_rate(user.parent, trade_type)
    shares = [(user.parent, percent)]
    if percent < MAX_RATE:
        shares.append((affiliate, MAX_RATE - percent))
    return shares


def _end(day: date, now: int) -> int:
    """The end of the day, or of the last whole minute if that is earlier."""
    return min(now // MINUTE_MS * MINUTE_MS, start_of(day) + DAY_MS)


def _fills(user: User, midnight: int) -> list[Fill]:
    """The user's trades of the day that begins at `midnight`, in order; none is before the user's `first_trade_ms`."""
    first = user.first_trade_ms
    if first is None or first >= midnight + DAY_MS or not user.is_active(midnight):
        return []
    start = max(first, midnight)
    day_percent = 100 if day_of(midnight).weekday() < 5 else WEEKEND_PERCENT
    mean = MEAN_VOLUME * ONE * user.size * day_percent // 10_000
    chance_percent = 100 if user.parent is None else 60

    draw_below = draws("fills", user.id, midnight)
    fills: list[Fill] = []
    for trade_type in (SPOT, FUTURES):
        if draw_below(100) >= chance_percent:
            continue
        count = 1 + draw_below(3)
        for _ in range(count):
            at = start + draw_below(midnight + DAY_MS - start)
            fills.append(_fill(at, trade_type, draw_below, mean))
        # Start anew, so that the further draws do not depend on the number of these trades.
        draw_below = draws("fills", user.id, midnight, trade_type)
    if first >= midnight:
        fills.append(_fill(first, draw_below(2), draw_below, mean))
    return sorted(fills, key=lambda fill: fill.at)


def _fill(at: int, trade_type: int, draw_below: Draw, mean: int) -> Fill:
    volume_units = min(spread(mean, draw_below(DRAW_LIMIT), draw_below(DRAW_LIMIT)), MAX_MULTIPLE * mean)
    volume = with_drawn_scale(draw_below, volume_units)

    rate = FEES[draw_below(len(FEES))]
    # Only small trades are free of fees.
    if volume.units > mean // 10:
        rate = max(rate, FEES[1])
    scale = max(8, volume.scale)
    # Cut off the decimals that are not written, so that the written fees add up to the totals.
    last_place = 10 ** (18 - scale)
    fee_units = volume.units * rate // 100_000 // last_place * last_place
    symbol = SYMBOLS[draw_below(len(SYMBOLS))]
    return Fill(at, trade_type, symbol, volume, Amount(fee_units, scale))
