"""Figures that are hard to show: many accounts and coins, long names, 18 decimals, 40 digits, corrections, gaps."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

from affiliate_pipeline.commission.customers import Customer
from affiliate_pipeline.commission.figures import Figures, Incomplete
from affiliate_pipeline.commission.rollup import DayTotal, Sum

DAYS = [date(2026, 10, 31) + timedelta(days=number) for number in range(30)]
DAY = DAYS[-1]
AS_OF = datetime(2026, 11, 30, 6, 12, tzinfo=UTC)
ACCOUNTS = ("", "acme", "beta_partner", "gamma", "a_very_long_alias_of_31_letters")
EXCHANGES = {"binance": ("rebate", "kickback"), "lbank": ("commission spot", "commission futures")}
# Per account and kind, in the coin, of the day and of 30 days.
AMOUNTS = {
    "USDT": ("1843.217500000000000001", "61204.120000000000000007"),
    "BTC": ("0.012345678901234567", "0.401234567890123456"),
    "PEPE": ("1234567890123456789012345678901234567.890", "9876543210987654321098765432109876543.210"),
    "1000SATSLONGCOINNAMEWITHOUTAMARKET": ("0.000000000000000001", "0.000000000000000009"),
    "TRY": ("-25.5", "-120.75"),
    "ETH": ("0", "0"),
}
MARKET_PRICES = {"USDT": "1", "BTC": "90000.12", "TRY": "0.0289", "ETH": "3012.5"}
# In USDT, of the day and of 30 days.
STATED = {"PEPE": ("123.45678901", "4567.00000001")}

CUSTOMERS = {
    "customer12": "1204.12345678",
    "a_very_long_name_of_a_customer_without_any_space_in_it@example-of-a-long-domain.com": "1099.00000001",
    "17": "0.00000001",
    "q7*****@qq.com": "-12.5",
}


def line(
    exchange: str, account: str, coin: str, kind: str, amount: str, stated: str | None = None, day: date = DAY
) -> Sum:
    """One line, valued at the market price, else as the exchange states, else not at all."""
    price = MARKET_PRICES.get(coin)
    value = f"{Decimal(amount) * Decimal(price):.8f}" if price else None
    unvalued = int(not price and not stated)
    return Sum(
        day,
        exchange,
        account,
        coin,
        kind,
        count=1234,
        amount=amount,
        usdt_value=stated,
        unvalued=unvalued,
        market_value_usdt=value,
        stated_value_usdt=None if price else stated,
        without_value=unvalued,
    )


def lines(of: int, accounts: Sequence[str], exchanges: Sequence[str]) -> list[Sum]:
    """The lines of the day (0) or of the 30 days (1)."""
    return [
        line(exchange, account, coin, kind, amounts[of], STATED.get(coin, (None, None))[of])
        for exchange in exchanges
        for account in accounts
        for coin, amounts in AMOUNTS.items()
        for kind in EXCHANGES[exchange]
    ]


def deadline_ms(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000) + 7 * 86_400_000


def hard(accounts: Sequence[str] = ACCOUNTS, exchanges: Sequence[str] = tuple(EXCHANGES)) -> Figures:
    """The hard cases of these accounts at each of the exchanges.

    Days are incomplete in the first account at the first exchange, and in all other accounts at the last exchange.
    """
    first, last = exchanges[0], exchanges[-1]
    by_day = [
        DayTotal(
            day,
            exchange,
            account,
            100,
            # A correction makes one day negative, and nothing was earned on another.
            Decimal(
                "0" if number == 8 else "-412.5" if number == 11 else f"{700 + 91 * (number % 7) + 13 * place}.12345678"
            ),
            Decimal("12.5"),
            ["1000SATSLONGCOINNAMEWITHOUTAMARKET"],
        )
        for number, day in enumerate(DAYS)
        for place, exchange in enumerate(exchanges)
        for account in accounts
        if number not in (3, 27)
    ]
    missing = [DAYS[3], DAYS[27]]
    return Figures(
        day=DAY,
        days=DAYS,
        as_of=AS_OF,
        sums=lines(0, accounts, exchanges),
        totals=lines(1, accounts, exchanges),
        customers=[
            Customer(exchange, account, name, 1234, Decimal(usdt))
            for name, usdt in CUSTOMERS.items()
            for exchange in exchanges
            for account in accounts
        ],
        incomplete=[
            Incomplete(
                "binance/rebate",
                missing,
                [DAY],
                first,
                accounts[0],
                "rebate",
                {day: deadline_ms(day) for day in missing},
            ),
            *(Incomplete("lbank/list", [DAY], [], last, each, "commission", {DAY: None}) for each in accounts[1:]),
        ],
        unpriced=[DAYS[27]],
        is_sandbox=True,
        by_day=by_day,
    )
