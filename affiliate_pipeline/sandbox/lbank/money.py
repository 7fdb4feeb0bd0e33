"""Generated deposits and withdrawals."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date

from affiliate_pipeline.sandbox.amounts import ONE
from affiliate_pipeline.sandbox.days import DAY_MS, HOUR_MS
from affiliate_pipeline.sandbox.lbank.days import day_of, start_of
from affiliate_pipeline.sandbox.lbank.draws import draw_amount, draws
from affiliate_pipeline.sandbox.lbank.users import User, Users
from affiliate_pipeline.sandbox.prices import worth

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
# Of the largest users, in USDT.
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
    active = [
        user
        # Added users are excluded: they would change the draws of the others.
        for user in users.generated(midnight)
        if user.first_deposit_ms is not None and user.first_deposit_ms <= midnight and user.is_active(midnight)
    ]
    below = draws("money", day.isoformat())
    count = max(2, users.size * (30 + below(40)) // 100)
    return by_kind(_money(active, midnight, number, users.offset) for number in range(count))


def by_kind(money: Iterable[Money]) -> dict[str, list[Money]]:
    """The deposits and withdrawals of each kind, in order of creation."""
    found: dict[str, list[Money]] = {kind: [] for kind in MONEY}
    for each in sorted(money, key=lambda each: each.at):
        found[each.kind].append(each)
    return found


def between(money: list[Money], start: int, end: int) -> list[Money]:
    """The deposits or withdrawals created in [start, end], of a list in order of creation."""
    first = bisect_left(money, start, key=lambda each: each.at)
    return money[first : bisect_right(money, end, key=lambda each: each.at)]


def _money(users: list[User], midnight: int, number: int, offset: int) -> Money:
    below = draws("money", midnight, offset + number)
    # The first two are at the edges of the day.
    at = midnight + (0, DAY_MS - 1, below(DAY_MS))[min(number, 2)]
    user = users[below(len(users))]
    kind = BY_SHARE[below(len(BY_SHARE))]
    asset = ASSETS[below(len(ASSETS))]
    slowness = below(10)
    ended_at = at if slowness < 6 else at + 1000 + below(2 * HOUR_MS if slowness < 9 else 71 * HOUR_MS)
    mean = worth(MEAN_VALUE * ONE * user.size // 100, asset, day_of(midnight))
    name, _, good = MONEY[kind]
    status, sub_status = ("Completed", good) if below(20) else ("Failed", "Rejected")
    order = f'"2{10**14 + below(9 * 10**14)}"' if kind == "OUT_WITHDRAW" else "null"
    head = (
        f'{{"openId":"{user.open_id}","userLevel":{user.level},"subInOutType":"{name}","assetCode":"{asset}"'
        f',"assetNum":"{draw_amount(below, mean)}"'
    )
    tail = f',"createTime":{at},"updateTime":%d,"withdrawOrderId":{order}}}'
    pending = f'{head},"status":"Processing","subStatus":"Pending Confirmation"{tail}' % at
    ended = f'{head},"status":"{status}","subStatus":"{sub_status}"{tail}' % ended_at
    return Money(at, kind, asset, user, ended_at, pending.encode(), ended.encode())
