"""The public market data of the sandbox's Binance: daily klines and the list of markets."""

from datetime import date, timedelta
from decimal import Decimal
from urllib.parse import urlencode

import pytest

from affiliate_pipeline.sandbox.days import DAY_MS, HOUR_MS, start_of

KLINES, EXCHANGE_INFO = "/api/v3/klines", "/api/v3/exchangeInfo"
TODAY = date(2025, 6, 3)


@pytest.fixture
def get(caller):
    """Sends a request without a key."""
    caller.key = None

    def get(path, **params):
        return caller.raw(f"{path}?{urlencode(params)}")

    return get


@pytest.fixture
def klines(get):
    def klines(symbol="BTCUSDT", **params):
        return get(KLINES, **{"symbol": symbol, "interval": "1d"} | params)

    return klines


@pytest.fixture
def markets(get):
    return {each["symbol"]: each for each in get(EXCHANGE_INFO).json["symbols"]}


def test_a_kline_has_the_format_of_binance(klines, clock):
    opened = start_of(TODAY) - DAY_MS
    response = klines(startTime=opened, endTime=opened + DAY_MS - 1, limit=1)
    [row] = response.json
    assert [type(each) for each in row] == [int, *[str] * 5, int, str, int, *[str] * 3]
    assert (row[0], row[6]) == (opened, opened + DAY_MS - 1)
    first, high, low, close = map(Decimal, row[1:5])
    assert low < min(first, close) <= max(first, close) < high
    assert all(len(price.partition(".")[2]) == 8 for price in row[1:5])
    assert response.headers["X-MBX-USED-WEIGHT-1M"] == "2"


def test_klines_are_those_that_open_in_the_window_oldest_first(klines):
    start, end = start_of(TODAY) - 5 * DAY_MS, start_of(TODAY) - 2 * DAY_MS
    assert [row[0] for row in klines(startTime=start, endTime=end).json] == list(range(start, end + 1, DAY_MS))
    assert [row[0] for row in klines(startTime=start + 1, endTime=end - 1, limit=1).json] == [start + DAY_MS]
    assert klines(startTime=start + 1, endTime=start + 2).json == []


def test_without_a_start_klines_are_the_newest(klines):
    assert [row[0] for row in klines(limit=2).json] == [start_of(TODAY) - DAY_MS, start_of(TODAY)]
    assert len(klines().json) == 500


def test_the_close_of_the_running_day_changes_until_the_day_ends(klines, clock):
    noon = klines(limit=1).json[0]
    clock.ms += 6 * HOUR_MS
    evening = klines(limit=1).json[0]
    clock.ms = start_of(TODAY) + DAY_MS
    ended, following = klines(limit=2).json
    assert len({noon[4], evening[4], ended[4]}) == 3
    assert following[1] == ended[4]
    clock.ms += DAY_MS
    assert klines(startTime=ended[0], limit=1).json == [ended]


def test_prices_move_a_little_per_day(klines, markets):
    for symbol in markets:
        closes = [Decimal(row[4]) for row in klines(symbol, endTime=start_of(TODAY) - 1, limit=200).json]
        changes = [abs(b / a - 1) for a, b in zip(closes, closes[1:], strict=False)]
        # The limit includes rounding: a price such as 0.00000062 moves by whole units of its last decimal.
        assert max(changes) < Decimal("0.07"), symbol
        assert len(set(closes)) > 3 and max(closes) < 2 * min(closes), symbol


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"symbol": "LBKUSDT"}, -1121),
        ({"symbol": "btcusdt"}, -1121),
        ({"symbol": ""}, -1105),
        ({"interval": "1x"}, -1120),
        ({"limit": 0}, -1130),
        ({"limit": 1001}, -1130),
        ({"startTime": "now"}, -1100),
        ({"startTime": 2, "endTime": 1}, -1128),
        ({"timestamp": 1}, -1101),
    ],
)
def test_wrong_parameters_are_refused(klines, params, code):
    response = klines(**params)
    assert response.refusal == (400, code)
    if code == -1121:
        assert response.json["msg"] == "Invalid symbol."


def test_a_symbol_is_required(get):
    assert get(KLINES, interval="1d").refusal == (400, -1102)


def test_each_kind_of_coin_has_its_markets(markets):
    def quotes_of(coin):
        return {each["quoteAsset"] for each in markets.values() if each["baseAsset"] == coin}

    def bases_of(coin):
        return {each["baseAsset"] for each in markets.values() if each["quoteAsset"] == coin}

    assert len(bases_of("USDT")) > 24
    assert (quotes_of("XMR"), bases_of("XMR")) == ({"BTC"}, set())
    assert (quotes_of("LISTA"), bases_of("LISTA")) == ({"FDUSD"}, set())
    assert (quotes_of("TRY"), bases_of("TRY")) == (set(), {"USDT"})
    assert (quotes_of("LBK"), bases_of("LBK")) == (set(), set())
    assert all(each["symbol"] == each["baseAsset"] + each["quoteAsset"] for each in markets.values())


def test_prices_of_two_markets_agree(klines):
    prices = {
        symbol: Decimal(klines(symbol, endTime=start_of(TODAY) - 1, limit=1).json[0][4])
        for symbol in ("BTCUSDT", "ETHUSDT", "ETHBTC", "FDUSDUSDT", "BTCFDUSD")
    }
    assert abs(prices["ETHBTC"] * prices["BTCUSDT"] / prices["ETHUSDT"] - 1) < Decimal("1e-6")
    assert abs(prices["BTCFDUSD"] * prices["FDUSDUSDT"] / prices["BTCUSDT"] - 1) < Decimal("1e-6")


def test_markets_can_be_selected(get):
    one, two = '["BTCUSDT"]', '["USDTTRY","XMRBTC"]'
    assert [each["symbol"] for each in get(EXCHANGE_INFO, symbol="ETHBTC").json["symbols"]] == ["ETHBTC"]
    assert [each["symbol"] for each in get(EXCHANGE_INFO, symbols=two).json["symbols"]] == ["USDTTRY", "XMRBTC"]
    assert get(EXCHANGE_INFO, symbol="LBKUSDT").refusal == (400, -1121)
    assert get(EXCHANGE_INFO, symbols='["LBKUSDT"]').refusal == (400, -1121)
    assert get(EXCHANGE_INFO, symbols="BTCUSDT").refusal == (400, -1100)
    assert get(EXCHANGE_INFO, symbols="1").refusal == (400, -1100)
    assert get(EXCHANGE_INFO, symbols=one, symbol="ETHBTC").refusal == (400, -1128)


def test_a_delisted_market_has_no_later_klines(sandbox, klines, get):
    sandbox.binance.market_data.delisted["XMRBTC"] = TODAY - timedelta(2)
    assert klines("XMRBTC", limit=1).json[0][0] == start_of(TODAY) - 2 * DAY_MS
    assert klines("XMRBTC", startTime=start_of(TODAY) - DAY_MS).json == []
    assert get(EXCHANGE_INFO, symbol="XMRBTC").json["symbols"][0]["status"] == "BREAK"


def test_a_failing_day_fails_its_klines(sandbox, klines):
    sandbox.faults.fail_day(TODAY - timedelta(1))
    assert klines(startTime=start_of(TODAY) - DAY_MS).status == 500
    assert klines(startTime=start_of(TODAY)).status == 200
