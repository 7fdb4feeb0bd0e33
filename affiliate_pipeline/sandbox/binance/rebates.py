"""Generated rebates, the same for the same day in every process.

All draws use `Random.random()`: Python promises the same numbers in every version only for this method.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from itertools import accumulate
from random import Random

from affiliate_pipeline.sandbox.amounts import DRAW_LIMIT, ONE, Amount, spread, with_significant_digits
from affiliate_pipeline.sandbox.binance.records import PAYOUT_AFTER_MS, Day
from affiliate_pipeline.sandbox.days import DAY_MS, HOUR_MS, MINUTE_MS, start_of
from affiliate_pipeline.sandbox.prices import price_in
from affiliate_pipeline.sandbox.rows import encode

# What all rebates of a usual day are worth in USDT. The more rows a day has, the smaller each rebate is; below MIN_ROWS
# rows, they grow no further.
DAY_TOTAL, MIN_ROWS = 2_500, 20

# (symbol, asset, asset of the commission, decimals of convertPrice, weight)
MARKETS = (
    ("BTCUSDT", "USDT", "USDT", 8, 24),
    ("ETHUSDT", "USDT", "USDT", 8, 16),
    ("SOLUSDT", "USDT", "BNB", 8, 9),
    ("BNBUSDT", "BNB", "BNB", 8, 8),
    ("ETHBTC", "BTC", "BTC", 8, 7),
    ("BNBBTC", "BTC", "BNB", 8, 4),
    ("XRPUSDT", "XRP", "XRP", 8, 5),
    ("SOLETH", "ETH", "ETH", 8, 4),
    ("BTCFDUSD", "FDUSD", "BNB", 8, 5),
    ("ETHUSDC", "USDC", "USDC", 8, 4),
    ("BTCEUR", "EUR", "EUR", 8, 3),
    ("USDTTRY", "TRY", "TRY", 8, 3),
    ("DOGEUSDT", "DOGE", "DOGE", 8, 3),
    ("1000SATSUSDT", "1000SATS", "USDT", 8, 2),
    ("SHIBUSDT", "SHIB", "BNB", 18, 2),
    ("SOLBNB", "SOL", "SOL", 8, 1),
    ("BTTCUSDT", "BTTC", "BTTC", 8, 1),
    ("XMRBTC", "XMR", "XMR", 8, 1),
    ("LISTAFDUSD", "LISTA", "LISTA", 8, 1),
)
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

    They include bursts, duplicate rows, times at the day's edges and odd amounts. A few customers trade most.
    """
    customers_of_account = customers_of(alias)
    cumulative_weights = _zipf(len(customers_of_account))
    markets = markets_of(day)
    mean = DAY_TOTAL * ONE // max(rows_per_day, MIN_ROWS)
    midnight = start_of(day)

    rnd = Random(f"{alias}rebates {day.isoformat()} {rows_per_day}").random
    is_weekend = day.weekday() >= 5
    share = 0.65 + 0.2 * rnd() if is_weekend else 0.95 + 0.25 * rnd()
    count = int(rows_per_day * share)
    duplicate_count = count // 400 + 1 if count >= 20 else 0
    duplicated_numbers = {int(rnd() * count) for _ in range(duplicate_count)}

    times: list[int] = []
    customers: list[str] = []
    rows: list[bytes] = []
    for number, offset in enumerate(offsets(rnd, count)):
        at = midnight + offset
        drawn_weight = int(cumulative_weights[-1] * rnd())
        customer, row_beginning = customers_of_account[bisect_right(cumulative_weights, drawn_weight)]
        market, commission, income = payment(rnd, mean, markets)
        order_id = 10**7 + int(rnd() * 2**42)
        trade_id = 10**5 + int(rnd() * 2**41)
        # Payouts are at whole hours, so round up.
        paid_at = (at + PAYOUT_AFTER_MS + HOUR_MS - 1) // HOUR_MS * HOUR_MS
        row = (
            f'{row_beginning},"income":"{income}","asset":"{market.asset}","symbol":"{market.symbol}","time":{at}'
            f',"orderId":{order_id},"tradeId":{trade_id},"distributeTime":{paid_at}'
            f',"commissionAsset":"{market.commission_asset}","commission":"{commission}"'
            f',"convertPrice":"{market.convert_price}"}}'
        ).encode()
        copies = 2 if number in duplicated_numbers else 1
        for _ in range(copies):
            times.append(at)
            customers.append(customer)
            rows.append(row)
    return Day(times, customers, rows, paid_later=True)


@dataclass(frozen=True)
class Market:
    """A market on a day.

    `usdt` is the value of one `commission_asset` in USDT, `price` is `convert_price` as a number; both in units of
    10^-18.
    """

    symbol: str
    asset: str
    commission_asset: str
    usdt: int
    price: int
    convert_price: str


@cache
def markets_of(day: date) -> list[Market]:
    """The markets on the day, each as often as its weight."""
    markets: list[Market] = []
    for symbol, asset, commission_asset, decimals, weight in MARKETS:
        price = _cut(price_in(commission_asset, asset, day), decimals)
        usdt = price_in(commission_asset, "USDT", day)
        market = Market(symbol, asset, commission_asset, usdt, price.units, convert_price=str(price))
        markets += [market] * weight
    return markets


def payment(rnd: Callable[[], float], mean: int, markets: Sequence[Market]) -> tuple[Market, Amount, Amount]:
    """A payment for a trade: its market, commission and income. `mean` is the mean value in units of 10^-18 USDT.

    The income is the commission times the price, with no more decimals than the commission. A row has neither the
    trade's volume nor its fee. For orientation: if the fee is 0.05 % of the volume and
    the payment 40 % of the fee, 1 USDT is paid for a trade of 5,000 USDT.
    """
    market = markets[int(rnd() * len(markets))]
    value = spread(mean, int(rnd() * DRAW_LIMIT), int(rnd() * DRAW_LIMIT))
    commission = _commission(value * ONE // market.usdt, rnd)
    return market, commission, Amount(commission.units * market.price // ONE, commission.scale)


def offsets(rnd: Callable[[], float], count: int) -> list[int]:
    """`count` instants of a day in ms since midnight, sorted: both edges, a few bursts, the rest by hourly activity."""
    times = [0, DAY_MS - 1][:count]
    if count >= 100:
        burst_count = 2 + int(3 * rnd())
        for _ in range(burst_count):
            times += _burst(rnd, count)
    for _ in range(count - len(times)):
        hour = HOURS[int(rnd() * len(HOURS))]
        times.append(int((hour + rnd()) * HOUR_MS))
    return sorted(times)


def _burst(rnd: Callable[[], float], count: int) -> list[int]:
    """The times of 5 to 10 % of a day's `count` rows within one minute: up to 40 in the same ms, the rest at random."""
    size = min(800, int(count * (0.05 + 0.05 * rnd())))
    start = int(rnd() * (DAY_MS - MINUTE_MS))
    in_one_ms = min(40, size // 4)
    times = [start + int(rnd() * MINUTE_MS)] * in_one_ms
    times += [start + int(rnd() * MINUTE_MS) for _ in range(size - in_one_ms)]
    return times


def _commission(units: int, rnd: Callable[[], float]) -> Amount:
    """The commission of `units`: mostly cut to 8 decimals, some to 18 or 2; a few are next to nothing or 0 instead."""
    chance = rnd()
    if chance > 0.11:
        return _cut(units, 8)
    if chance > 0.06:
        return Amount(units, 18)
    if chance > 0.02:
        return _cut(with_significant_digits(units, 1), 8)
    if chance > 0.006:
        scale = 2 if units > ONE // 100 else 8
        return _cut(units, scale)
    if chance > 0.003:
        return Amount(10**10, 8)
    return Amount(0, 8) if chance > 0.001 else Amount(1, 18)


def _cut(units: int, scale: int) -> Amount:
    """The amount without the decimals after the first `scale`."""
    step = 10 ** (18 - scale)
    return Amount(units // step * step, scale)


@cache
def _zipf(count: int) -> list[int]:
    """The cumulative weights of `count` customers; the n-th one's own weight is proportional to 1 / n."""
    return list(accumulate(10**6 // number for number in range(1, count + 1)))


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
        mailbox = random_text(2 + int(rnd() * 3))
        domain = domains[int(rnd() * len(domains))]
        id = "" if rnd() < 0.2 else random_text(6)
        customers.append((id, f"{mailbox}*****@{domain}"))
        if number % 20 == 7:
            odd_id, odd_email = ODD_CUSTOMERS[number // 20 % len(ODD_CUSTOMERS)]
            customers.append((alias + odd_id if odd_id else "", alias + odd_email))

    # A row continues after the email.
    return [(id, encode({"customerId": id, "email": email}).decode().removesuffix("}")) for id, email in customers]
