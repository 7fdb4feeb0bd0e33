"""Market prices: each is the close of an ended day, lands once, and values what was earned that day."""

import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from decimal import MAX_PREC, ROUND_HALF_EVEN, Context, Decimal, localcontext
from random import Random
from urllib.parse import parse_qs

import dagster as dg
import pytest

from affiliate_pipeline import definitions
from affiliate_pipeline.domain.days import days_from, format_days
from affiliate_pipeline.domain.problem import SettingsError
from affiliate_pipeline.http import retry
from affiliate_pipeline.sandbox import prices as sandbox_prices
from affiliate_pipeline_tests.code_location import loaded_definitions
from affiliate_pipeline_tests.conftest import RESOURCES, instance_of_all_runs
from affiliate_pipeline_tests.defs.affiliates import commission
from affiliate_pipeline_tests.defs.direct_runs import land
from affiliate_pipeline_tests.defs.events import (
    failed_partitions,
    failed_reasons,
    failure_message,
    only_step_failure,
    recorded_events,
)
from affiliate_pipeline_tests.defs.rebates import DAYS, KEY, at, rebate
from affiliate_pipeline_tests.scripted_server import Response, ScriptedServer, http, reset

PRICE, COMMISSION, REPORT = "affiliate/price", "affiliate/daily_commission", "affiliate/daily_report"
CUSTOMERS = "affiliate/daily_customer_commission"
LBANK = "lbank/commission_stats_symbol_list"
DAY, NEXT_DAY = DAYS[0], DAYS[1]
DAY_MS = 86_400_000
VALUES = "select upper(coin), market_value_usdt from affiliate.daily_commission where partition_date = %s order by 1"


@dataclass
class Market:
    """Binance's public market data: the closes by symbol and day, as sent. A symbol without an entry does not exist."""

    closes: dict[str, dict[date, str]] = field(default_factory=dict)
    # Replaces the response to each request for the klines of a symbol.
    broken: dict[str, Response] = field(default_factory=dict)
    # The exchange's clock.
    now_ms: int = at(DAYS[-1] + timedelta(days=1), "01:00:00.000")
    requested: list[str] = field(default_factory=list)

    def respond(self, connection: socket.socket, request: str) -> None:
        """Respond to one request."""
        path, _, query = request.split(" ")[1].partition("?")
        if path == "/api/v3/time":
            connection.sendall(http(200, b'{"serverTime":%d}' % self.now_ms))
            return
        params = {name: value for name, (value,) in parse_qs(query).items()}
        assert (path, params["interval"]) == ("/api/v3/klines", "1d")
        assert "X-MBX-APIKEY" not in request and "signature" not in params
        self.requested.append(params["symbol"])
        response = self.broken.get(params["symbol"]) or self._klines(params)
        if callable(response):
            response(connection, request)
        else:
            connection.sendall(response)

    def _klines(self, params: dict[str, str]) -> bytes:
        if params["symbol"] not in self.closes:
            return http(400, b'{"code":-1121,"msg":"Invalid symbol."}')
        first, last = int(params["startTime"]), int(params["endTime"])
        days = sorted(day for day in self.closes[params["symbol"]] if first <= at(day, "00:00:00.000") <= last)
        return http(200, f"[{','.join(kline(day, self.closes[params['symbol']][day]) for day in days)}]".encode())


def kline(day: date, close: str) -> str:
    opened = at(day, "00:00:00.000")
    return f'[{opened},"1.0","9.0","0.5","{close}","10.0",{opened + DAY_MS - 1},"10.0",5,"1.0","1.0","0"]'


@pytest.fixture
def market(sandbox, monkeypatch) -> Iterator[Market]:
    """Prices from `Market`, while records land from the sandbox."""
    market = Market()
    with ScriptedServer(market.respond) as server:
        monkeypatch.setattr("affiliate_pipeline.defs.resources.EnvironmentPipeline.price_variables",
                            lambda _: {"BINANCE_BASE_URL": server.url, "AFFILIATE_RATE_SCALE": "1000"})  # fmt: skip
        yield market


@pytest.fixture(autouse=True)
def without_wait(monkeypatch) -> None:
    """The sensor requests a day as soon as something has landed for it."""
    monkeypatch.setattr("affiliate_pipeline.defs.commission_assets.QUIET_S", 0)


def run(days, *keys) -> dg.ExecuteInProcessResult:
    """Run the derived assets, by default all, over the days."""
    loaded = loaded_definitions()
    tags = {"dagster/asset_partition_range_start": f"{days[0]}", "dagster/asset_partition_range_end": f"{days[-1]}"}
    return dg.materialize(
        [loaded.get_assets_def(dg.AssetKey(COMMISSION.split("/")))],
        selection=[dg.AssetKey(key.split("/")) for key in keys] or None,
        instance=instance_of_all_runs(),
        resources=loaded.resources,
        tags=tags,
        raise_on_error=False,
    )


def materialized(result, key) -> dict[str | None, dict]:
    """The metadata of the asset's materializations in the run, by partition key."""
    return {
        event.partition: {
            name: value.value for name, value in event.step_materialization_data.materialization.metadata.items()
        }
        for event in recorded_events(instance_of_all_runs(), result.run_id)
        if event.is_step_materialization and event.asset_key == dg.AssetKey(key.split("/"))
    }


def run_requests() -> list[dg.RunRequest]:
    """The runs that the sensor requests now."""
    sensor = next(each for each in loaded_definitions().sensors or () if each.name == "stale_days")
    return [
        *(sensor.evaluate_tick(dg.build_sensor_context(instance_of_all_runs(), resources=RESOURCES)).run_requests or ())
    ]


def keys_of(request: dg.RunRequest) -> list[str]:
    return [key.to_user_string() for key in request.asset_selection or ()]


def outdated() -> list[tuple[str, str]]:
    """The first and last day of each run that the sensor requests now."""
    requests = run_requests()
    assert all(keys_of(each) in ([PRICE], [PRICE, COMMISSION, CUSTOMERS, REPORT]) for each in requests)
    names = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
    return [(each.tags[names[0]], each.tags[names[1]]) for each in requests]


def earn(sandbox, amounts: dict[date, dict[str, str]]) -> None:
    """Land one rebate per day and coin."""
    rows = [
        rebate(at(day), number, income=amount, asset=coin)
        for day, coins in amounts.items()
        for number, (coin, amount) in enumerate(coins.items())
    ]
    sandbox.binance.set_rebates(rows)
    assert land(KEY, [*amounts], allow_shrink=True).success


def test_each_kind_of_market_values_its_coin(both_exchanges, query):
    def close(base: str, quote: str) -> Decimal:
        return Decimal(sandbox_prices.close(base, quote, DAY)).scaleb(-8)

    earn(both_exchanges, {DAY: {"BTC": "0.5", "XMR": "2", "LISTA": "3", "TRY": "100", "LBK": "7", "USDT": "1.25"}})
    own = both_exchanges.lbank.own_open_id
    both_exchanges.lbank.set_commissions([commission(own, DAY, "4") | {"coinSymbol": "eth", "usdtAmount": "9000"}])
    assert land(LBANK, [DAY]).success

    result = run([DAY])

    assert result.success
    expected = {
        "BTC": ("BTCUSDT", close("BTC", "USDT")),
        "ETH": ("ETHUSDT", close("ETH", "USDT")),
        "XMR": ("XMRBTC*BTCUSDT", close("XMR", "BTC") * close("BTC", "USDT")),
        "LISTA": ("LISTAFDUSD*FDUSDUSDT", close("LISTA", "FDUSD") * close("FDUSD", "USDT")),
        "TRY": ("1/USDTTRY", Context(prec=18, rounding=ROUND_HALF_EVEN).divide(1, close("USDT", "TRY"))),
    }
    prices = query("select coin, market, usdt, source, open_time, close_time from affiliate.price where day = %s", DAY)
    assert {coin: (name, usdt) for coin, name, usdt, *_ in prices} == expected
    assert {source for _, _, _, source, _, _ in prices} == {"127.0.0.1"}
    [(opened, closed)] = {(opened, closed) for *_, opened, closed in prices}
    assert (opened.date(), closed - opened) == (DAY, timedelta(days=1, milliseconds=-1))
    amounts = {"BTC": Decimal("0.5"), "XMR": 2, "LISTA": 3, "TRY": 100, "ETH": 4}
    values = {
        coin: (amounts[coin] * usdt).quantize(Decimal("1e-8"), ROUND_HALF_EVEN) for coin, (_, usdt) in expected.items()
    }
    assert dict(query(VALUES, DAY)) == values | {"LBK": None, "USDT": Decimal("1.25")}
    priced, sums = materialized(result, PRICE)[f"{DAY}"], materialized(result, COMMISSION)[f"{DAY}"]
    assert priced["dagster/partition_row_count"] == 5
    assert priced["unvalued_coins"] == sums["unvalued_coins"] == ["LBK"] and priced["coins_without_market"] == 1
    assert priced["converted"] == {coin: expected[coin][0] for coin in ("LISTA", "TRY", "XMR")}
    assert Decimal(sums["total_usdt"]) == sum(values.values()) + Decimal("1.25")
    assert query("select usdt_value from affiliate.daily_commission where coin = 'eth'") == [(Decimal(9000),)]
    assert outdated() == []


def test_without_a_price_the_total_has_the_value_that_the_exchange_states(both_exchanges, query):
    own = both_exchanges.lbank.own_open_id
    both_exchanges.lbank.set_commissions(
        [commission(own, DAY, "4") | {"coinSymbol": "lbk", "usdtAmount": "9.123456785"},
         commission(own, DAY, "1") | {"coinSymbol": "nix", "usdtAmount": None}, commission(own, DAY, "2")]
    )  # fmt: skip
    assert land(LBANK, [DAY]).success

    sums = materialized(run([DAY], COMMISSION), COMMISSION)[f"{DAY}"]

    assert sums["total_usdt"] == "11.12345678" and sums["total_usdt_stated_by_exchanges"] == "9.12345678"
    assert sums["unvalued_coins"] == ["nix"]
    assert dict(query(VALUES, DAY)) == {"LBK": None, "NIX": None, "USDT": Decimal(2)}


def test_a_delisted_coin_is_named_and_its_day_lands(sandbox, market, query, tmp_path):
    market.closes = {"OLDUSDT": {DAY: "2"}}
    earn(sandbox, {DAY: {"OLD": "1"}, NEXT_DAY: {"OLD": "1"}})

    result = run([DAY, NEXT_DAY])

    assert result.success
    assert [materialized(result, PRICE)[f"{day}"]["unvalued_coins"] for day in (DAY, NEXT_DAY)] == [[], ["OLD"]]
    assert query(VALUES, DAY) == [("OLD", Decimal(2))] and query(VALUES, NEXT_DAY) == [("OLD", None)]
    lacks = "Without a value in USDT, so not in the total: OLD"
    assert [lacks in materialized(result, REPORT)[f"{day}"]["report"] for day in (DAY, NEXT_DAY)] == [False, True]
    page = (tmp_path / "reports" / f"{NEXT_DAY}.html").read_text()
    # The total of all days has a value, but lacks that of the second day.
    assert re.search(r"<dt>\d+ days, without a value in USDT</dt><dd>OLD</dd>", page)


def test_if_the_source_fails_only_the_price_fails_and_is_requested_again(sandbox, market, query, monkeypatch):
    monkeypatch.setattr(retry, "SILENCE_LIMIT_S", 0)
    # By coin: the day on which it was earned, the response to the request for its candles, and the cause. Coins are
    # requested in alphabetical order: BTC, which has a price, comes between A2 and C1, since no coin is requested after
    # three failures in a row. The last failure, of a source that does not respond, also ends the requests.
    failures = {
        "A1": (DAYS[0], http(500, b"{}"), "HTTP 500"),
        "A2": (DAYS[1], http(200, b"{}"), "cannot be read"),
        "C1": (DAYS[2], http(200, f"[{kline(DAYS[0] - timedelta(days=2), '5')}]".encode()), "other days"),
        "C2": (DAYS[3], reset, "did not respond"),
    }
    failed = DAYS[:4]
    market.closes = {f"{coin}USDT": {day: "5"} for coin, (day, _, _) in failures.items()} | {"BTCUSDT": {DAYS[4]: "7"}}
    market.broken = {f"{coin}USDT": response for coin, (_, response, _) in failures.items()}
    earn(sandbox, {day: {coin: "2", "USDT": "3"} for coin, (day, _, _) in failures.items()} | {DAYS[4]: {"BTC": "1"}})

    result = run(DAYS)

    failure = only_step_failure(result.all_events)
    reasons = failed_reasons(failure)
    assert reasons.keys() == {f"{day}" for day in failed}
    assert materialized(result, PRICE).keys() == {f"{DAYS[4]}"}
    sums, reports = materialized(result, COMMISSION), materialized(result, REPORT)
    assert sums.keys() == reports.keys() == {f"{day}" for day in DAYS}
    for coin, (day, _, cause) in failures.items():
        assert cause in reasons[f"{day}"] and "AFFILIATE_PRICES=off" in reasons[f"{day}"]
        assert sums[f"{day}"]["unvalued_coins"] == [coin]
        report = reports[f"{day}"]["report"].replace("\\", "")
        assert report.startswith(f"### {day}: 3.00 USDT so far\n")
        assert "not landed: market prices, so values may be missing" in report
        assert f"Without a value in USDT, so not in the total: {coin}" in report
        assert f"market prices: {format_days(days_from(DAYS[0], day))} not landed" in report
        assert query(VALUES, day) == [(coin, None), ("USDT", Decimal(3))]
    assert outdated() == [(f"{failed[0]}", f"{failed[-1]}")]
    market.broken = {}
    assert run(failed, PRICE, COMMISSION).success
    for coin, (day, _, _) in failures.items():
        assert query(VALUES, day) == [(coin, Decimal(10)), ("USDT", Decimal(3))]
    assert outdated() == []


def test_an_unusable_candle_fails_its_own_day_and_no_other_coin(sandbox, market, query):
    closes = dict(zip(DAYS, ["n/a", "0.00", "NaN", "6"], strict=False))
    *unusable, usable = closes
    market.closes = {"BTCUSDT": closes, "ETHUSDT": dict.fromkeys(closes, "2")}
    earn(sandbox, dict.fromkeys(closes, {"BTC": "1", "ETH": "1"}))

    result = run([*closes], PRICE, COMMISSION)

    reasons = failed_reasons(only_step_failure(result.all_events))
    assert reasons.keys() == {f"{day}" for day in unusable}
    assert [reason for reason in reasons.values() if "expected a positive price" not in reason] == []
    assert materialized(result, PRICE).keys() == {f"{usable}"}
    assert materialized(result, COMMISSION).keys() == {f"{day}" for day in closes}
    for day in unusable:
        assert query(VALUES, day) == [("BTC", None), ("ETH", Decimal(2))]
    assert query(VALUES, usable) == [("BTC", Decimal(6)), ("ETH", Decimal(2))]
    assert outdated() == [(f"{unusable[0]}", f"{unusable[-1]}")]


def test_a_day_that_has_not_ended_by_the_exchanges_clock_is_refused(sandbox, market, query):
    market.closes = {"BTCUSDT": {DAY: "5", NEXT_DAY: "7"}}
    market.now_ms = at(NEXT_DAY, "23:59:59.999")
    earn(sandbox, {DAY: {"BTC": "1"}, NEXT_DAY: {"BTC": "1"}})

    result = run([DAY, NEXT_DAY], PRICE)

    assert failed_partitions(only_step_failure(result.all_events)) == {f"{NEXT_DAY}"}
    assert "has not ended" in failure_message(only_step_failure(result.all_events))
    assert query("select day, usdt from affiliate.price") == [(DAY, Decimal(5))]
    market.now_ms += 1
    assert run([NEXT_DAY], PRICE).success


def test_which_market_a_coin_has_if_any_is_looked_up_once_in_30_days(sandbox, market, query):
    market.closes = {"XYZBTC": dict.fromkeys(DAYS, "0.5"), "BTCUSDT": dict.fromkeys(DAYS, "10")}
    earn(sandbox, {day: {"XYZ": "1", "NIX": "1"} for day in DAYS[:4]})

    def requested(day: date) -> list[str]:
        market.requested.clear()
        assert run([day], PRICE).success
        return market.requested

    nix = ["NIXUSDT", "USDTNIX", "NIXBTC", "NIXFDUSD"]
    assert requested(DAYS[1]) == [*nix, "XYZUSDT", "USDTXYZ", "XYZBTC", "BTCUSDT"]
    assert requested(DAYS[2]) == ["XYZBTC", "BTCUSDT"]
    assert requested(DAYS[2]) == []  # All prices have landed.
    # NIX may have had a market before the day on which it had none, or may have one long after.
    assert requested(DAYS[0]) == [*nix, "XYZBTC", "BTCUSDT"]
    query("update affiliate.price_market set since = since - 30 where market is null")
    query("delete from affiliate.price where day = %s", DAYS[0])
    assert requested(DAYS[0]) == [*nix, "XYZBTC", "BTCUSDT"]
    query("update affiliate.price_market set checked_at = now() - interval '30 days'")
    assert requested(DAYS[3]) == [*nix, "XYZUSDT", "USDTXYZ", "XYZBTC", "BTCUSDT"]


def test_if_the_database_fails_after_the_prices_the_other_assets_fail(sandbox, market, query):
    market.closes = {"BTCUSDT": dict.fromkeys(DAYS[:3], "5")}
    earn(sandbox, {day: {"BTC": "2"} for day in DAYS[:3]})
    query(f"alter table affiliate.daily_commission add check (partition_date <> '{DAYS[1]}')")

    result = run(DAYS[:3])

    assert failed_partitions(only_step_failure(result.all_events)) == {f"{day}" for day in DAYS[1:3]}
    assert [*materialized(result, PRICE)] == [f"{day}" for day in DAYS[:3]]
    for key in (COMMISSION, CUSTOMERS, REPORT):
        assert [*materialized(result, key)] == [f"{DAYS[0]}"]


def test_days_before_a_coin_was_listed_do_not_hide_its_market(sandbox, market, query):
    market.closes = {"NEWUSDT": dict.fromkeys(DAYS[1:], "2")}
    earn(sandbox, {day: {"NEW": "1"} for day in DAYS[:3]})

    for day in (DAYS[1], DAYS[0], DAYS[2]):
        assert run([day], PRICE).success

    assert query("select day from affiliate.price order by 1") == [(DAYS[1],), (DAYS[2],)]


def test_a_late_candle_fails_its_day_until_the_market_has_been_silent_for_a_day(sandbox, market, query):
    day = DAYS[-1]
    market.closes = {"BTCUSDT": {DAYS[-2]: "5"}}
    earn(sandbox, {day: {"BTC": "2"}})

    result = run([day], PRICE, COMMISSION)

    assert failed_partitions(only_step_failure(result.all_events)) == {f"{day}"}
    assert "none for this day yet" in failure_message(only_step_failure(result.all_events))
    [request] = run_requests()
    assert keys_of(request) == [PRICE]  # The sums would be the same.
    without_candle = market.closes["BTCUSDT"].copy()
    market.closes["BTCUSDT"][day] = "6"
    assert run([day], PRICE).success
    assert [COMMISSION in keys_of(each) for each in run_requests()] == [True]
    assert run([day], COMMISSION).success
    assert query(VALUES, day) == [("BTC", Decimal(12))] and outdated() == []

    query("delete from affiliate.price")
    query("delete from affiliate.priced_day")
    market.closes["BTCUSDT"] = without_candle
    market.now_ms = at(day + timedelta(days=2), "00:00:00.000")  # a day after the end of the missing candle
    priced = materialized(run([day], PRICE), PRICE)[f"{day}"]
    assert priced["unvalued_coins"] == ["BTC"]


def test_the_sensor_requests_no_day_of_an_unfinished_run_and_the_sums_again_only_after_a_new_price(
    sandbox, market, query
):
    market.closes = {"BTCUSDT": {DAY: "?"}, "ETHUSDT": {DAY: "2"}}
    earn(sandbox, {DAY: {"BTC": "1", "ETH": "1"}})
    instance, loaded = instance_of_all_runs(), loaded_definitions()
    started = instance.create_run_for_job(
        loaded.resolve_implicit_global_asset_job_def(),
        asset_selection=frozenset({dg.AssetKey(COMMISSION.split("/"))}),
        tags={"dagster/asset_partition_range_start": f"{DAY}", "dagster/asset_partition_range_end": f"{DAY}"},
        status=dg.DagsterRunStatus.STARTED,
    )
    assert outdated() == []
    instance.delete_run(started.run_id)
    market.broken = dict.fromkeys(["BTCUSDT", "ETHUSDT"], http(500, b"{}"))
    assert not run([DAY], PRICE, COMMISSION).success
    [request] = run_requests()
    assert keys_of(request) == [PRICE]

    market.broken = {}
    assert not run([DAY], PRICE).success
    assert [COMMISSION in keys_of(each) for each in run_requests()] == [True]
    assert not run([DAY], PRICE, COMMISSION).success

    assert query(VALUES, DAY) == [("BTC", None), ("ETH", Decimal(2))]
    assert [keys_of(each) for each in run_requests()] == [[PRICE]]


def test_a_coin_with_characters_that_no_symbol_has_is_not_requested(sandbox, market):
    coins = ["ETHUSDT*BTC", "1/ETH", "<b>", "A B", "€"]
    market.closes = {"ETHUSDT": {DAY: "2"}, "BTCUSDT": {DAY: "5"}}
    earn(sandbox, {DAY: dict.fromkeys(coins, "1")})

    result = run([DAY], PRICE)

    assert result.success and market.requested == []
    assert set(materialized(result, PRICE)[f"{DAY}"]["unvalued_coins"]) == {coin.upper() for coin in coins}


def test_a_restated_price_changes_nothing(sandbox, market, query):
    market.closes = {"BTCUSDT": {DAY: "5"}, "ETHUSDT": {DAY: "2"}}
    earn(sandbox, {DAY: {"BTC": "1"}})
    assert run([DAY], PRICE, COMMISSION).success
    market.closes["BTCUSDT"][DAY] = "500"

    earn(sandbox, {DAY: {"BTC": "2", "ETH": "1"}})
    assert run([DAY], PRICE, COMMISSION).success

    assert query(VALUES, DAY) == [("BTC", Decimal(10)), ("ETH", Decimal(2))]


def test_a_price_that_lands_later_and_a_coin_seen_late_make_the_day_stale(sandbox, market, query):
    market.closes = {"BTCUSDT": {DAY: "5"}, "ETHUSDT": {DAY: "2"}}
    earn(sandbox, {DAY: {"BTC": "1"}})
    assert run([DAY], COMMISSION).success
    assert query(VALUES, DAY) == [("BTC", None)]
    assert outdated() == [(f"{DAY}", f"{DAY}")]

    assert run([DAY], PRICE).success
    assert outdated() == [(f"{DAY}", f"{DAY}")]
    assert run([DAY], COMMISSION).success
    assert query(VALUES, DAY) == [("BTC", Decimal(5))] and outdated() == []

    earn(sandbox, {DAY: {"BTC": "1", "ETH": "1"}})
    assert outdated() == [(f"{DAY}", f"{DAY}")]
    assert run([DAY], PRICE, COMMISSION).success
    assert query(VALUES, DAY) == [("BTC", Decimal(5)), ("ETH", Decimal(2))] and outdated() == []


def test_if_prices_are_off_nothing_is_requested_and_values_are_null(sandbox, market, query, monkeypatch):
    earn(sandbox, {DAY: {"BTC": "1", "USDT": "2"}})
    monkeypatch.setenv("AFFILIATE_PRICES", "off")

    assert run([DAY]).success

    keys = {key.to_user_string() for key in loaded_definitions().resolve_asset_graph().get_all_asset_keys()}
    assert PRICE not in keys and COMMISSION in keys
    assert query(VALUES, DAY) == [("BTC", None), ("USDT", None)]
    assert market.requested == [] and outdated() == []
    monkeypatch.delenv("AFFILIATE_PRICES")
    assert outdated() == [(f"{DAY}", f"{DAY}")]


def test_an_unknown_value_of_the_variable_is_refused_by_name(monkeypatch):
    monkeypatch.setenv("AFFILIATE_PRICES", "sometimes")
    with pytest.raises(SettingsError, match="AFFILIATE_PRICES is not on or off"):
        definitions.build_definitions()


def test_totals_equal_the_raw_rows_times_the_prices_rounded_once(sandbox, market, query):
    draw = Random(0)

    def amount() -> str:
        return f"{draw.choice(['', '-'])}{draw.randrange(10 ** draw.randrange(1, 12))}.{draw.randrange(10**18):018d}"

    coins = [f"C{number}" for number in range(6)]
    market.closes = {
        f"{coin}USDT": {
            day: draw.choice(["1", "0.5", f"{draw.randrange(10**6)}.{draw.randrange(1, 10**8):08d}"])
            for day in DAYS
            if draw.random() < 0.7
        }
        for coin in coins[:5]
    }
    for _ in range(2):  # The second time, rows and prices are restated.
        rows = [
            rebate(
                at(day), number, income=draw.choice([amount(), "0.000000005", "0.000000015"]), asset=draw.choice(coins)
            )
            for day in DAYS[:3]
            for number in range(draw.randrange(12))
        ]
        sandbox.binance.set_rebates(rows)
        assert land(KEY, DAYS[:3], allow_shrink=True).success
        assert run(DAYS[:3], PRICE, COMMISSION, CUSTOMERS).success
        for closes in market.closes.values():
            closes.update((day, f"{draw.randrange(1, 99)}") for day in closes)

    raw = query(
        "select partition_date, asset, sum(income), sum(income) * usdt from binance.rebate_recent_record "
        "left join affiliate.price on coin = asset and day = partition_date group by 1, 2, usdt order by 1, 2"
    )
    with localcontext(Context(prec=MAX_PREC)):
        expected = [
            (*line, None if value is None else value.quantize(Decimal("1e-8"), ROUND_HALF_EVEN)) for *line, value in raw
        ]
    found = query(
        "select partition_date, coin, amount, market_value_usdt from affiliate.daily_commission order by 1, 2"
    )
    assert found == expected
    assert {value is None for *_, value in found} == {True, False}
    assert outdated() == []
