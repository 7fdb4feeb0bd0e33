"""Generated deposits and withdrawals."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date

from affiliate_pipeline.sandbox.amounts import ONE
from affiliate_pipeline.sandbox.days import DAY_MS, HOUR_MS
from affiliate_pipeline.sandbox.lbank.days import day_of, start_of
from affiliate_pipeline.sandbox.lbank.draws import Draw, draw_amount, draws
from affiliate_pipeline.sandbox.lbank.users import User, Users
from affiliate_pipeline.sandbox.prices import amount_worth

ASSETS = ("USDT", "USDT", "USDT", "BTC", "ETH", "LBK", "TRX", "1000SATS")
# Kind requested -> (subInOutType of responses, percentage of rows, subStatus of success)
MONEY = {
    "IN_DEPOSIT": ("On-chain Deposit", 35, "Deposit Successful"),
    "OUT_WITHDRAW": ("On-chain Withdrawal", 20, "Withdrawal Successful"),
    "IN_OTC_BUY": ("OTC Buy", 12, "Order Completed"),
    "OUT_OTC_SELL": ("OTC Sell", 8, "Order Completed"),
    "IN_INNER_TRANSFER_IN": ("Internal Transfer In", 13, "Transfer Successful"),
    "OUT_INNER_TRANSFER_OUT": ("Internal Transfer Out", 12, "Transfer Successful"),
}
# The mean value (USDT) of a deposit or withdrawal of the largest users, whose `User.size` is 100.
MEAN_VALUE = 3_000
BY_SHARE = [kind for kind, (_, share, _) in MONEY.items() for _ in range(share)]


@dataclass(frozen=True)
class Money:
    """One deposit or withdrawal: its row before and after it ended."""

    at: int
    kind: str
    asset: str
    user: User | None
    ended_at: int
    pending: bytes
    ended: bytes

    def updated_at(self, now: int) -> int:
        """The updateTime (ms) of the row as of now."""
        return self.ended_at if now >= self.ended_at else self.at

    def row(self, now: int) -> bytes:
        """The row as of now."""
        return self.ended if now >= self.ended_at else self.pending


def money_of(users: Users, day: date) -> dict[str, list[Money]]:
    """The deposits and withdrawals created on the UTC+8 day, by kind."""
    midnight = start_of(day)
    # Added users are excluded: they would change the draws of the others.
    candidates = [user for user in users.generated(midnight) if _moves_money(user, midnight)]
    draw_below = draws("money", day.isoformat())
    # As many deposits and withdrawals as 30 to 69 % of the users, but at least the two at the edges of the day (`_money`).
    percent_of_users = 30 + draw_below(40)
    count = max(2, users.listed_count * percent_of_users // 100)
    return by_kind(_money(candidates, midnight, number, users.offset) for number in range(count))


def by_kind(money: Iterable[Money]) -> dict[str, list[Money]]:
    """The deposits and withdrawals of each kind, in order of creation."""
    money_by_kind: dict[str, list[Money]] = {kind: [] for kind in MONEY}
    for each in sorted(money, key=lambda each: each.at):
        money_by_kind[each.kind].append(each)
    return money_by_kind


def between(money: list[Money], start: int, end: int) -> list[Money]:
    """The deposits or withdrawals created in [start, end], of a list in order of creation."""
    first = bisect_left(money, start, key=lambda each: each.at)
    stop = bisect_right(money, end, key=lambda each: each.at)
    return money[first:stop]


def _moves_money(user: User, midnight: int) -> bool:
    """Whether the user has deposited before, and is active on the day that begins at `midnight`."""
    return user.first_deposit_ms is not None and user.first_deposit_ms <= midnight and user.is_active(midnight)


def _money(users: list[User], midnight: int, number: int, offset: int) -> Money:
    """The `number`-th deposit or withdrawal of the day that begins at `midnight`, by one of the users."""
    draw_below = draws("money", midnight, offset + number)
    at = midnight + draw_below(DAY_MS)
    # The first two are at the edges of the day.
    if number == 0:
        at = midnight
    elif number == 1:
        at = midnight + DAY_MS - 1

    user = users[draw_below(len(users))]
    kind = BY_SHARE[draw_below(len(BY_SHARE))]
    asset = ASSETS[draw_below(len(ASSETS))]
    ended_at = at + _duration_ms(draw_below)
    mean = amount_worth(MEAN_VALUE * ONE * user.size // 100, asset, day_of(midnight))

    name, _, success = MONEY[kind]
    status, sub_status = ("Failed", "Rejected") if draw_below(20) == 0 else ("Completed", success)
    order_id = f'"2{10**14 + draw_below(9 * 10**14)}"' if kind == "OUT_WITHDRAW" else "null"
    amount = draw_amount(draw_below, mean)

    def row(status: str, sub_status: str, updated_at: int) -> bytes:
        text = (
            f'{{"openId":"{user.open_id}","userLevel":{user.level},"subInOutType":"{name}","assetCode":"{asset}"'
            f',"assetNum":"{amount}","status":"{status}","subStatus":"{sub_status}"'
            f',"createTime":{at},"updateTime":{updated_at},"withdrawOrderId":{order_id}}}'
        )
        return text.encode()

    pending = row("Processing", "Pending Confirmation", updated_at=at)
    ended = row(status, sub_status, updated_at=ended_at)
    return Money(at, kind, asset, user, ended_at, pending, ended)


def _duration_ms(draw_below: Draw) -> int:
    """How long a deposit or withdrawal takes: most end at once, some within hours, a few within three days."""
    slowness = draw_below(10)
    if slowness < 6:
        return 0
    max_ms = 2 * HOUR_MS if slowness < 9 else 71 * HOUR_MS
    return 1000 + draw_below(max_ms)
