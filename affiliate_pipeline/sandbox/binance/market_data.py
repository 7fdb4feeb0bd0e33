"""Binance's public market data: daily klines and the list of markets, without a key."""

import json
import math
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

        last_ms = min(end, self._now())
        if symbol in self.delisted:
            last_ms = min(last_ms, start_of(self.delisted[symbol]))
        # Days since 1970 that begin in the window.
        days = range(math.ceil(max(start, LISTED_SINCE_MS) / DAY_MS), last_ms // DAY_MS + 1)
        days = days[:limit] if "startTime" in params else days[-limit:]
        klines = [self._kline(symbol, number * DAY_MS) for number in days]
        return json.dumps(klines, separators=(",", ":")).encode()

    def exchange_info(self, params: BinanceParameters) -> bytes:
        """The markets requested as `symbol` or `symbols`, by default all."""
        markets = [self._market(symbol) for symbol in _requested_symbols(params)]
        info: dict[str, object] = {"timezone": "UTC", "serverTime": self._now(), "rateLimits": []}
        return encode({**info, "exchangeFilters": [], "symbols": markets})

    def _kline(self, symbol: str, opened: int) -> list[int | str]:
        """The kline of the day that begins at `opened`; on the current day, the price moves towards the close."""
        base, quote = MARKETS[symbol]
        day = day_of(opened)
        open_price = close(base, quote, day - timedelta(1))
        close_price = close(base, quote, day)
        elapsed_ms = min(DAY_MS, self._now() + 1 - opened)
        last_price = open_price + (close_price - open_price) * elapsed_ms // DAY_MS

        higher_price = max(open_price, last_price)
        lower_price = min(open_price, last_price)
        turnover = 10**7 * UNIT
        volume = turnover * UNIT // last_price
        return [
            opened,
            text_of(open_price),
            text_of(higher_price + higher_price // 200),
            text_of(lower_price - lower_price // 250),
            text_of(last_price),
            text_of(volume),
            opened + DAY_MS - 1,
            text_of(turnover),
            81_234,  # the number of trades
            text_of(volume // 2),
            text_of(turnover // 2),
            "0",
        ]

    def _market(self, symbol: str) -> dict[str, object]:
        base, quote = MARKETS[symbol]
        last_day = self.delisted.get(symbol)
        ended = last_day is not None and start_of(last_day) + DAY_MS <= self._now()
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


def _requested_symbols(params: BinanceParameters) -> list[str]:
    """The symbol or symbols of the parameters; without either, all."""
    if {"symbol", "symbols"} <= params.keys():
        raise Refused(-1128)
    if "symbol" in params:
        return [_listed(params.text("symbol"))]
    if "symbols" not in params:
        return list(MARKETS)
    try:
        return [_listed(symbol) for symbol in json.loads(params.text("symbols"))]
    except (ValueError, TypeError):
        raise Refused(-1100, "symbols") from None


def _listed(symbol: object) -> str:
    """The symbol itself if there is such a market; refuses any other value."""
    if isinstance(symbol, str) and symbol in MARKETS:
        return symbol
    raise Refused(-1121)
