"""Generated commissions of agents."""

from collections.abc import Iterator
from datetime import date

from affiliate_pipeline.sandbox.days import DAY_MS, HOUR_MS
from affiliate_pipeline.sandbox.lbank.days import start_of
from affiliate_pipeline.sandbox.lbank.draws import draws, with_drawn_scale
from affiliate_pipeline.sandbox.lbank.trades import FUTURES, SPOT, Totals
from affiliate_pipeline.sandbox.lbank.users import User
from affiliate_pipeline.sandbox.prices import amount_worth

# The commissions of a day are paid this long after its beginning: at 10:00 (UTC+8) of the next day.
PAID_AFTER_MS = DAY_MS + 10 * HOUR_MS
COINS = ("usdt", "btc", "eth", "lbk", "usdc", "sol")


def commissions_of(agent: User, day: date, totals: Totals) -> list[tuple[int, str, bytes]]:
    """The commissions of the agent for the UTC+8 day with these totals: trade type, coin, row.

    The coins' values at the day's close add up to the agent's share of the fees, except for decimals that are cut off;
    some rows have "0" as the value in USDT.
    """
    commissions: list[tuple[int, str, bytes]] = []
    for trade_type in (SPOT, FUTURES):
        units = totals.commission.get((agent.open_id, trade_type), 0)
        if units:
            rows = _rows(agent, day, trade_type, units)
            commissions += [(trade_type, coin, row) for coin, row in rows]
    return commissions


def _rows(agent: User, day: date, trade_type: int, units: int) -> Iterator[tuple[str, bytes]]:
    """The agent's commissions of one trade type, worth `units` in total, in the order of their coins: coin, row."""
    draw_below = draws("commission", agent.id, day.isoformat(), trade_type)
    count = 1 + draw_below(3)
    if agent.parent is None:
        count += 1
    first = draw_below(len(COINS))
    coins = sorted(COINS[(first + i) % len(COINS)] for i in range(count))
    parts = [1 + draw_below(100) for _ in coins]

    for coin, part in zip(coins, parts, strict=True):
        value = units * part // sum(parts)
        amount = with_drawn_scale(draw_below, amount_worth(value, coin.upper(), day))
        in_usdt = "0" if draw_below(4) == 0 else with_drawn_scale(draw_below, value)
        row = (
            f'{{"openId":"{agent.open_id}","coinSymbol":"{coin}","amount":"{amount}","tradeType":{trade_type}'
            f',"statsDate":{start_of(day)},"usdtAmount":"{in_usdt}"}}'
        )
        yield coin, row.encode()
