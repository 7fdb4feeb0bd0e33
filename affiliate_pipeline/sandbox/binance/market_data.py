"""Binance's public market data: daily klines and the list of markets, without a key."""

import json
from collections.abc import Callable
from datetime import date, timedelta

from affiliate_pipeline.sandbox.binance.parameters import BinanceParameters
from affiliate_pipeline.sandbox.days import DAY_MS, day_of, start_of
from affiliate_pipeline.sandbox.parameters import Refused
from affiliate_pipeline.sandbox.prices import MARKETS, UNIT, close, text_of
from affiliate_pipeline.sandbox.rows import encode

KLINES, EXCHANGE_INFO = "/api/v3/klines", "/api/v3/exchangeInfo"
DEFAULT_KLINES, MAX_KLINES = 500, 1000
LISTED_SINCE_MS = start_of(date(2017, 8, 17))
INTERVALS = {"1d"}


class MarketData:
    """The markets of `prices` as Binance shows them.

    `delisted`: the last day of a market that ended, by symbol.
    """

    def __init__(self, *, now: Callable[[], int]) -> None:
        self.delisted: dict[str, date] = {}
        self._now = now

    def klines(self, params: BinanceParameters) -> bytes:
        """The klines that open in the requested window: the oldest `limit`, or without startTime the newest."""
        symbol = _listed(params.text("symbol"))
        if params.text("interval") not in INTERVALS:
            raise Refused(-1120)
        limit = params.integer("limit") if "limit" in params else DEFAULT_KLINES
        if not 1 <= limit <= MAX_KLINES:
            raise Refused(-1130, "limit")
        start = params.integer("startTime") if "startTime" in params else 0
        end = params.integer("endTime") if "endTime" in params else self._now()
        if end < start:
            raise Refused(-1128, "endTime")
        last_ms = min(end, self._now(), start_of(self.delisted[symbol]) if symbol in self.delisted else end)
        first_day = -(-max(start, LISTED_SINCE_MS) // DAY_MS)
        days = range(first_day, last_ms // DAY_MS + 1)
        days = days[:limit] if "startTime" in params else days[-limit:]
        return json.dumps([self._kline(symbol, number * DAY_MS) for number in days], separators=(",", ":")).encode()

    def exchange_info(self, params: BinanceParameters) -> bytes:
        """The markets requested as `symbol` or `symbols`, by default all."""
        if {"symbol", "symbols"} <= params.keys():
            raise Refused(-1128)
        symbols = list(MARKETS)
        if "symbol" in params:
            symbols = [_listed(params.text("symbol"))]
        elif "symbols" in params:
            try:
                symbols = [_listed(symbol) for symbol in json.loads(params.text("symbols"))]
            except (ValueError, TypeError):
                raise Refused(-1100, "symbols") from None
        markets = [self._market(symbol) for symbol in symbols]
        info: dict[str, object] = {"timezone": "UTC", "serverTime": self._now(), "rateLimits": []}
        return encode({**info, "exchangeFilters": [], "symbols": markets})

    def _kline(self, symbol: str, opened: int) -> list[int | str]:
        """The kline of the day that begins at `opened`; on the current day, the price moves towards the close."""
        base, quote = MARKETS[symbol]
        day = day_of(opened)
        open_price, close_price = close(base, quote, day - timedelta(1)), close(base, quote, day)
        last = open_price + (close_price - open_price) * min(DAY_MS, self._now() + 1 - opened) // DAY_MS
        high, low = max(open_price, last), min(open_price, last)
        high, low = high + high // 200, low - low // 250
        turnover = 10**7 * UNIT
        volume = turnover * UNIT // last
        prices = (text_of(price) for price in (open_price, high, low, last))
        by_takers = (text_of(volume // 2), text_of(turnover // 2))
        return [opened, *prices, text_of(volume), opened + DAY_MS - 1, text_of(turnover), 81_234, *by_takers, "0"]

    def _market(self, symbol: str) -> dict[str, object]:
        base, quote = MARKETS[symbol]
        ended = symbol in self.delisted and start_of(self.delisted[symbol]) + DAY_MS <= self._now()
        return {
            "symbol": symbol,
            "status": "BREAK" if ended else "TRADING",
            "baseAsset": base,
            "baseAssetPrecision": 8,
            "quoteAsset": quote,
            "quotePrecision": 8,
            "quoteAssetPrecision": 8,
            "isSpotTradingAllowed": not ended,
        }


def _listed(symbol: object) -> str:
    if isinstance(symbol, str) and symbol in MARKETS:
        return symbol
    raise Refused(-1121)
