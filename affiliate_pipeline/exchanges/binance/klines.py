"""Daily closes of Binance's public spot markets, which need no API key.

A market is written as the formula of the price from closes: `BTCUSDT`, `XYZBTC*BTCUSDT`, or `1/USDTTRY` for a coin
that is only quoted the other way round.
"""

import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import MAX_PREC, ROUND_HALF_EVEN, Context, Decimal
from functools import cached_property, partial
from zoneinfo import ZoneInfo

import msgspec

from affiliate_pipeline.domain.days import DAY, day_of, day_ranges, days_from, start_ms
from affiliate_pipeline.domain.settings import BaseUrl, RateScale, Settings
from affiliate_pipeline.exchanges.binance import responses
from affiliate_pipeline.exchanges.binance.exchange import BASE_URL
from affiliate_pipeline.exchanges.shared_state import SharedState
from affiliate_pipeline.http import error_body
from affiliate_pipeline.http.client import Client, Clock, Response
from affiliate_pipeline.http.errors import Refused
from affiliate_pipeline.http.failures import error_of
from affiliate_pipeline.http.network import Network, host_of

PATH = "/api/v3/klines"
# Of weight 2 each: a tenth of the 6,000 per minute that an IP address may use for `/api/`, which Binance counts apart
# from the 12,000 for `/sapi/`.
REQUESTS_PER_MINUTE = 300
MAX_DAYS = 1000
# A symbol that does not exist, and one with characters that no symbol has.
_NO_SUCH_SYMBOL = (-1121, -1100)
_NO_CANDLES = b"[]"
# Other characters could not be sent, or would be read as part of a market's formula.
_COIN = re.compile(r"[\w.-]+")
# How long after its day a missing candle may still arrive if the day before has one. After that, a missing candle means
# that trading has ended.
_LATE = DAY
_UTC = ZoneInfo("UTC")
# The positions of the values in a candle.
_OPEN_TIME, _CLOSE, _CLOSE_TIME = 0, 4, 6
_CLOSE_TEXT = re.compile(r'"?([0-9]{1,30}(?:\.[0-9]{1,30})?)"?')
_EXACT = Context(prec=MAX_PREC)
_QUOTIENT = Context(prec=18, rounding=ROUND_HALF_EVEN)


class MarketData(Settings):
    """The settings of requests for prices."""

    binance_base_url: BaseUrl = BASE_URL
    affiliate_rate_scale: RateScale = 1.0


class UnusableCandle(Refused):
    """A candle that is late or has no usable close."""


@dataclass(frozen=True)
class Quote:
    """A coin's close in USDT, and the market that it was computed from."""

    usdt: Decimal
    market: str
    open_time: datetime
    close_time: datetime


def markets_of(coin: str) -> list[str]:
    """The markets that may have the coin's price, the preferred one first."""
    if not _COIN.fullmatch(coin):
        return []
    return [f"{coin}USDT", f"1/USDT{coin}", f"{coin}BTC*BTCUSDT", f"{coin}FDUSD*FDUSDUSDT"]


class Klines:
    """The candles of the UTC days from `first` to `last`; each symbol is requested once."""

    def __init__(self, client: Client, first: date, last: date) -> None:
        self._client, self._days = client, days_from(first, last)
        self._closes_by_symbol: dict[str, Mapping[date, Decimal | UnusableCandle]] = {}

    @property
    def source(self) -> str:
        """The host of the prices."""
        return self._client.host

    @property
    def requests(self) -> int:
        """The number of requests sent."""
        return self._client.requests_sent

    @cached_property
    def now_ms(self) -> int:
        """The exchange's time (ms), which decides whether a day has ended; raises `ExchangeError`."""
        return self._client.get(responses.SERVER_TIME_PATH, {}, responses.server_time_ms)

    def quote(self, market: str, day: date) -> Quote | None:
        """The price by the market's formula from the day's closes; None if there was no such market on that day.

        Raises `UnusableCandle` if this day's candle is late or has no usable close (other days may have one), and
        another `ExchangeError` if the request fails.
        """
        price = Decimal(1)
        for symbol in market.removeprefix("1/").split("*"):
            close = self._usable_close(symbol, day)
            if close is None:
                return None
            price = _EXACT.multiply(price, close)
        if market.startswith("1/"):
            price = _QUOTIENT.divide(1, price)
        open_time = datetime(day.year, day.month, day.day, tzinfo=UTC)
        close_time = open_time + DAY - timedelta(milliseconds=1)
        return Quote(price, market, open_time, close_time)

    def _usable_close(self, symbol: str, day: date) -> Decimal | None:
        """The symbol's close of the day, None if it was not traded; raises `UnusableCandle`."""
        closes = self._closes(symbol)
        close = closes.get(day)
        if isinstance(close, UnusableCandle):
            raise close
        if close is None and self._may_be_late(day) and day - DAY in closes:
            raise UnusableCandle(f"Binance has a candle of {symbol} for the day before, but none for this day yet")
        return close

    def _closes(self, symbol: str) -> Mapping[date, Decimal | UnusableCandle]:
        """The closes of the days that have a candle of the symbol; requested once."""
        if symbol in self._closes_by_symbol:
            return self._closes_by_symbol[symbol]
        days = self._days
        if self._may_be_late(days[-1]):
            # The day before the first one shows whether a missing candle is late.
            days = [days[0] - DAY, *days]

        closes: dict[date, Decimal | UnusableCandle] = {}
        for window_days in day_ranges(days, MAX_DAYS):
            params = {
                "symbol": symbol,
                "interval": "1d",
                "startTime": start_ms(window_days[0], _UTC),
                "endTime": start_ms(window_days[-1] + DAY, _UTC) - 1,
                "limit": MAX_DAYS,
            }
            closes |= self._client.get(PATH, params, partial(_closes_in, symbol=symbol, days=window_days))
        self._closes_by_symbol[symbol] = closes
        return closes

    def _may_be_late(self, day: date) -> bool:
        """Whether a candle of the day, if there is none yet, may still arrive."""
        return self.now_ms < start_ms(day + DAY + _LATE, _UTC)


@contextmanager
def open_klines(variables: Mapping[str, str], url: str, first: date, last: date) -> Generator[Klines]:
    """The candles of these days, requested within a rate limit shared through the database at `url`."""
    settings = MarketData.load(variables)
    base_url = settings.binance_base_url
    with SharedState(url) as shared:
        limit = shared.limit(
            f"binance prices {host_of(base_url)}", REQUESTS_PER_MINUTE, 60 / settings.affiliate_rate_scale
        )
        with Client(base_url, None, Clock(), limit, _read, network=Network(variables)) as client:
            yield Klines(client, first, last)


def _read(response: Response) -> bytes:
    """The body; without candles if there is no such symbol. Raises `ExchangeError`."""
    error = error_of(response) if response.status_code == 400 else None
    if error and error.code in _NO_SUCH_SYMBOL and "symbol" in error.message.lower():
        return _NO_CANDLES
    # These requests have no key: an error about key or secret has to name the base URL instead.
    return responses.read(response, "BINANCE_BASE_URL", "BINANCE_BASE_URL")


def _closes_in(body: bytes, symbol: str, days: list[date]) -> dict[date, Decimal | UnusableCandle]:
    """The close, or why it is unusable, of each of `days` that has a candle.

    Raises ValueError if the body is no list of candles, or has candles of other days or two of one day.
    """
    try:
        candles = msgspec.json.decode(body, type=list[list[msgspec.Raw]])
        open_times = [int(bytes(candle[_OPEN_TIME])) for candle in candles]
        by_day = {day_of(time, _UTC): candle for time, candle in zip(open_times, candles, strict=True)}
        closes = {
            day: (bytes(candle[_CLOSE]).decode(), int(bytes(candle[_CLOSE_TIME]))) for day, candle in by_day.items()
        }
    except (msgspec.DecodeError, IndexError, OverflowError, OSError) as error:  # the last two: an absurd time
        raise ValueError(f"no list of candles ({error})") from None

    # Each candle opens at the start of a requested day, and no two of them at the same time.
    has_duplicates = len(by_day) < len(candles)
    expected_times = {start_ms(day, _UTC) for day in days}
    if has_duplicates or not expected_times.issuperset(open_times):
        raise ValueError("candles of other days than those requested")
    return {day: _close(symbol, day, text, close_ms) for day, (text, close_ms) in closes.items()}


def _close(symbol: str, day: date, text: str, close_ms: int) -> Decimal | UnusableCandle:
    """The candle's close (`text`, as in the JSON), or why it is unusable."""
    number = _CLOSE_TEXT.fullmatch(text)
    price = Decimal(number[1]) if number else Decimal(0)
    last_ms = start_ms(day + DAY, _UTC) - 1
    if price > 0 and close_ms == last_ms:
        return price
    return UnusableCandle(
        f"Binance's candle of {symbol} has the close {error_body.quote(text.encode())} and the close time "
        f"{close_ms}; expected a positive price and the last millisecond of the day"
    )
