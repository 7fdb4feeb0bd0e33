"""Generated rebates, the same for the same day in every process.

Only `Random.random()` and integers are used: Python promises the same numbers on every platform only for these.
"""

from collections.abc import Callable
from datetime import date
from functools import cache
from random import Random

from affiliate_pipeline.sandbox.binance.records import PAYOUT_AFTER_MS, Day
from affiliate_pipeline.sandbox.days import DAY_MS, HOUR_MS, MINUTE_MS, start_of
from affiliate_pipeline.sandbox.rows import encode

# (symbol, asset, asset of the commission, convertPrice, digits of an income in units of 1e-8, weight)
MARKETS = (
    ("BTCUSDT", "USDT", "USDT", "1.00000000", (3, 11), 24),
    ("ETHUSDT", "USDT", "USDT", "1.00000000", (3, 10), 16),
    ("SOLUSDT", "USDT", "BNB", "612.40000000", (3, 10), 9),
    ("BNBUSDT", "BNB", "BNB", "1.00000000", (2, 8), 8),
    ("ETHBTC", "BTC", "BTC", "1.00000000", (1, 7), 7),
    ("BNBBTC", "BTC", "BNB", "0.00911000", (1, 6), 4),
    ("XRPUSDT", "XRP", "XRP", "1.00000000", (4, 10), 5),
    ("SOLETH", "ETH", "ETH", "1.00000000", (1, 7), 4),
    ("BTCFDUSD", "FDUSD", "BNB", "611.95000000", (3, 10), 5),
    ("ETHUSDC", "USDC", "USDC", "1.00000000", (3, 9), 4),
    ("BTCEUR", "EUR", "EUR", "1.00000000", (3, 9), 3),
    ("USDTTRY", "TRY", "TRY", "1.00000000", (4, 11), 3),
    ("DOGEUSDT", "DOGE", "DOGE", "1.00000000", (4, 11), 3),
    ("1000SATSUSDT", "1000SATS", "USDT", "4301.07526881", (6, 13), 2),
    ("SHIBUSDT", "SHIB", "BNB", "24496000.000000000000000000", (8, 14), 2),
    ("SOLBNB", "SOL", "SOL", "1.00000000", (2, 8), 1),
)
BY_WEIGHT = [market for market in MARKETS for _ in range(market[-1])]

# Share of a day's activity per UTC hour: Asia's day, then Europe's and America's.
WEIGHTS = (6, 7, 8, 8, 7, 6, 6, 7, 8, 9, 9, 8, 9, 12, 14, 13, 12, 10, 9, 8, 8, 7, 6, 5)
HOURS = [hour for hour, weight in enumerate(WEIGHTS) for _ in range(weight)]

ODD_CUSTOMERS = (
    ("", "a+b@example.com"),
    ("plus+id", "first.last+tag*****@example.com"),
    ("", "tom&jerry@example.com"),
    ("k=v", "x=y*****@example.com"),
    ("", "50%off%20now@example.com"),
    ("客户01", "用户*****@例子.公司"),
    ("", "пользователь@пример.рф"),
    ("عميل", "مستخدم*****@مثال.com"),
    ("", '"quoted name"@example.com'),
    ("o'neil", "o'neil@example.com"),
    ("back\\slash", "tab\tand\\slash@example.com"),
    ("🙂", "smile🙂*****@example.com"),
    ("007", "jane.doe@example.org"),
)


def generated_day(day: date, rows_per_day: int, alias: str = "") -> Day:
    """About `rows_per_day` rebates of the account, fewer at weekends.

    They include bursts, duplicate rows, times at the day's edges and odd amounts.
    """
    customers_of_account = customers_of(alias)
    rnd = Random(f"{alias}rebates {day.isoformat()} {rows_per_day}").random
    count = int(rows_per_day * (0.65 + 0.2 * rnd() if day.weekday() >= 5 else 0.95 + 0.25 * rnd()))
    midnight = start_of(day)
    duplicated = {int(rnd() * count) for _ in range(count // 400 + (count >= 20))}
    times: list[int] = []
    customers: list[str] = []
    rows: list[bytes] = []
    for number, offset in enumerate(offsets(rnd, count)):
        at = midnight + offset
        # Squared, so that a few customers trade most.
        customer, head = customers_of_account[int(len(customers_of_account) * rnd() ** 2)]
        (symbol, asset, commission_asset, price), units = market(rnd)
        row = (
            f'{head},"income":"{income(units, rnd)}","asset":"{asset}","symbol":"{symbol}","time":{at}'
            f',"orderId":{10**7 + int(rnd() * 2**42)},"tradeId":{10**5 + int(rnd() * 2**41)}'
            f',"distributeTime":{-(-(at + PAYOUT_AFTER_MS) // HOUR_MS) * HOUR_MS}'
            f',"commissionAsset":"{commission_asset}","commission":"{_eight_decimals(5 * units)}"'
            f',"convertPrice":"{price}"}}'
        ).encode()
        for _ in range(2 if number in duplicated else 1):
            times.append(at)
            customers.append(customer)
            rows.append(row)
    return Day(times, customers, rows, paid_later=True)


def market(rnd: Callable[[], float]) -> tuple[tuple[str, str, str, str], int]:
    """A trade's market (the first four fields of MARKETS), and an income in units of 1e-8."""
    symbol, asset, commission_asset, price, (min_digits, max_digits), _ = BY_WEIGHT[int(rnd() * len(BY_WEIGHT))]
    units = int(rnd() * 10 ** (min_digits + int(rnd() * (max_digits - min_digits + 1)))) + 1
    return (symbol, asset, commission_asset, price), units


def offsets(rnd: Callable[[], float], count: int) -> list[int]:
    """`count` milliseconds of a day, in order: both edges, bursts, the rest by activity."""
    offsets = [0, DAY_MS - 1][:count]
    for _ in range(2 + int(3 * rnd()) if count >= 100 else 0):
        size = min(800, int(count * (0.05 + 0.05 * rnd())))
        start = int(rnd() * (DAY_MS - MINUTE_MS))
        in_one_ms = min(40, size // 4)
        offsets += [start + int(rnd() * MINUTE_MS)] * in_one_ms
        offsets += [start + int(rnd() * MINUTE_MS) for _ in range(size - in_one_ms)]
    offsets += [int((HOURS[int(rnd() * len(HOURS))] + rnd()) * HOUR_MS) for _ in range(count - len(offsets))]
    return sorted(offsets)


def income(units: int, rnd: Callable[[], float]) -> str:
    """The income as text: mostly with 8 decimals, some with 18 or 2, and some of 0."""
    chance = rnd()
    if chance > 0.11:
        return _eight_decimals(units)
    if chance > 0.06:
        return _eight_decimals(units) + f"{int(rnd() * 10**10):010d}"
    if chance > 0.02:
        return _eight_decimals(units // 10**6 * 10**6 + 10**7)
    if chance > 0.01:
        return f"{units % 1000}.{units % 10}0"
    if chance > 0.006:
        return _eight_decimals(units * 10**6 + 1)
    return "0.00000001" if chance > 0.003 else "0.00000000" if chance > 0.001 else "0.000000000000000001"


def _eight_decimals(units: int) -> str:
    whole, rest = divmod(units, 10**8)
    return f"{whole}.{rest:08d}"


@cache
def customers_of(alias: str) -> list[tuple[str, str]]:
    """About 300 customers of the account: customerId, and the beginning of a JSON row with it and the email."""
    rnd = Random(f"{alias}customers").random
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    domains = ("126.com", "163.com", "qq.com", "gmail.com", "outlook.com", "yahoo.co.jp", "proton.me")

    def random_text(length: int) -> str:
        return "".join(letters[int(rnd() * len(letters))] for _ in range(length))

    customers: list[tuple[str, str]] = []
    for number in range(290):
        email = f"{random_text(2 + int(rnd() * 3))}*****@{domains[int(rnd() * len(domains))]}"
        customers.append(("" if rnd() < 0.2 else random_text(6), email))
        if number % 20 == 7:
            odd_id, odd_email = ODD_CUSTOMERS[number // 20 % len(ODD_CUSTOMERS)]
            customers.append((alias + odd_id if odd_id else "", alias + odd_email))
    return [(each, encode({"customerId": each, "email": email})[:-1].decode()) for each, email in customers]
