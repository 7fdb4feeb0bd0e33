"""The prices of coins, the same for the same day in every process.

A market's price stays near the one in `_PRICED`. It moves by a few percent a week, the price of a stablecoin by less.
"""

from datetime import date
from functools import cache
from hashlib import blake2b

from affiliate_pipeline.sandbox.amounts import ONE, Amount, with_significant_digits

UNIT = 10**8
# The price moves from level to level; the levels are this many days apart.
LEVEL_DAYS = 16
SIGNIFICANT_DIGITS = 7
# The maximum distance of a day's close from the line between two levels, in 1/100 % of the price in `_PRICED`: of
# stablecoins, fiat currencies and other coins.
STABLE, FIAT, COIN = 3, 20, 150

# By market (coin, quote): the price, and the maximum distance of a day's close from the line between two levels, in
# 1/100 % of that price. Levels are up to 6 times as far from the price.
_PRICED = {
    ("BTC", "USDT"): ("97250", COIN), ("ETH", "USDT"): ("3420", COIN), ("BNB", "USDT"): ("612.4", COIN),
    ("SOL", "USDT"): ("187.5", COIN), ("XRP", "USDT"): ("2.18", COIN), ("DOGE", "USDT"): ("0.1885", COIN),
    ("ADA", "USDT"): ("0.6721", COIN), ("TRX", "USDT"): ("0.2714", COIN), ("LTC", "USDT"): ("98.3", COIN),
    ("LINK", "USDT"): ("15.62", COIN), ("DOT", "USDT"): ("4.213", COIN), ("AVAX", "USDT"): ("21.84", COIN),
    ("NEAR", "USDT"): ("2.631", COIN), ("ATOM", "USDT"): ("4.471", COIN), ("UNI", "USDT"): ("7.318", COIN),
    ("ARB", "USDT"): ("0.3914", COIN), ("OP", "USDT"): ("0.6817", COIN), ("SUI", "USDT"): ("3.274", COIN),
    ("TON", "USDT"): ("3.128", COIN), ("APT", "USDT"): ("4.882", COIN), ("FIL", "USDT"): ("2.614", COIN),
    ("XLM", "USDT"): ("0.2763", COIN), ("HBAR", "USDT"): ("0.1729", COIN), ("ICP", "USDT"): ("5.127", COIN),
    ("SHIB", "USDT"): ("0.000025", COIN), ("PEPE", "USDT"): ("0.0000105", COIN), ("BTTC", "USDT"): ("0.00000062", COIN),
    ("1000SATS", "USDT"): ("0.0002325", COIN), ("USDC", "USDT"): ("0.9998", STABLE), ("FDUSD", "USDT"): ("0.9985", STABLE),
    ("EUR", "USDT"): ("1.1340", FIAT), ("USDT", "TRY"): ("39.24", FIAT), ("XMR", "BTC"): ("0.003314", COIN),
    ("LISTA", "FDUSD"): ("0.2271", COIN), ("LBK", "USDT"): ("0.01163", COIN),
}  # fmt: skip
# The markets whose prices follow from those of their two coins.
_CROSSED = (
    ("ETH", "BTC"), ("BNB", "BTC"), ("SOL", "ETH"), ("SOL", "BNB"), ("BTC", "FDUSD"), ("ETH", "USDC"), ("BTC", "EUR"),
)  # fmt: skip
# By symbol, the coin and the quote. LBank's own coin has no market at Binance.
MARKETS = {base + quote: (base, quote) for base, quote in [*_PRICED, *_CROSSED] if base != "LBK"}


@cache
def close(base: str, quote: str, day: date) -> int:
    """The market's price at the end of the day, in units of 10^-8 of the quote coin."""
    if (base, quote) not in _PRICED:
        return price_in(base, quote, day) // (ONE // UNIT)
    text, max_distance = _PRICED[base, quote]
    whole, _, decimals = text.partition(".")
    reference_price = int(whole + decimals.ljust(8, "0"))

    # Relative to the reference price, in 1/100 %: on the way from one level to the next, plus the day's own distance.
    number, days_since_level = divmod(day.toordinal(), LEVEL_DAYS)
    level = _draw(6 * max_distance, base, "level", number)
    next_level = _draw(6 * max_distance, base, "level", number + 1)
    trend = level + (next_level - level) * days_since_level // LEVEL_DAYS
    deviation = trend + _draw(max_distance, base, day.isoformat())
    return with_significant_digits(reference_price * (10_000 + deviation) // 10_000, SIGNIFICANT_DIGITS)


@cache
def price_in(coin: str, quote: str, day: date) -> int:
    """The value of the coin in the quote at the end of the day, in units of 10^-18, rounded down."""
    coin_numerator, coin_denominator = _value(coin, day)
    quote_numerator, quote_denominator = _value(quote, day)
    return ONE * coin_numerator * quote_denominator // (coin_denominator * quote_numerator)


def amount_worth(usdt: int, coin: str, day: date) -> int:
    """How much of the coin has this value in USDT at the end of the day; both in units of 10^-18."""
    return usdt * ONE // price_in(coin, "USDT", day)


def _value(coin: str, day: date) -> tuple[int, int]:
    """The coin's value in USDT as a fraction: numerator and denominator."""
    if coin == "USDT":
        return 1, 1
    for base, quote in _PRICED:
        if base == coin:
            numerator, denominator = _value(quote, day)
            return close(base, quote, day) * numerator, UNIT * denominator
        if (base, quote) == ("USDT", coin):
            return UNIT, close(base, quote, day)
    raise ValueError(f"no price of {coin}")


def _draw(limit: int, *key: str | int) -> int:
    """An integer from -limit to limit that depends only on the key."""
    digest = blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % (2 * limit + 1) - limit


def text_of(units: int) -> str:
    """The price or amount (in units of 10^-8) as text with 8 decimals."""
    return str(Amount(units * (ONE // UNIT), 8))
