"""Generated commissions of agents."""

from datetime import date

from affiliate_pipeline.sandbox.days import DAY_MS, HOUR_MS
from affiliate_pipeline.sandbox.lbank.days import start_of
from affiliate_pipeline.sandbox.lbank.draws import draw_amount, draws
from affiliate_pipeline.sandbox.lbank.trades import FUTURES, SPOT
from affiliate_pipeline.sandbox.lbank.users import User

PAID_AFTER_MS = DAY_MS + 10 * HOUR_MS
COINS = ("usdt", "btc", "eth", "lbk", "usdc", "sol")


def commissions_of(user: User, day: date) -> list[tuple[int, str, bytes]]:
    """The commissions of the agent for the UTC+8 day: trade type, coin, row."""
    paid: list[tuple[int, str, bytes]] = []
    for trade_type in (SPOT, FUTURES):
        below = draws("commission", user.id, day.isoformat(), trade_type)
        count = 2 + below(3) if user.parent is None else below(4)
        first = below(len(COINS))
        for coin in sorted(COINS[(first + i) % len(COINS)] for i in range(count)):
            amount, in_usdt = draw_amount(below), "0" if below(4) == 0 else draw_amount(below)
            row = (
                f'{{"openId":"{user.open_id}","coinSymbol":"{coin}","amount":"{amount}","tradeType":{trade_type}'
                f',"statsDate":{start_of(day)},"usdtAmount":"{in_usdt}"}}'
            )
            paid.append((trade_type, coin, row.encode()))
    return paid
