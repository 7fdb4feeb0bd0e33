"""The money by day: what it says is what the raw tables hold, and it is never out of date without being noticed."""

from datetime import datetime, timedelta
from decimal import Decimal

import dagster as dg
import psycopg
import pytest

from affiliate_pipeline.definitions import build_definitions
from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline.landing import endpoint_tables
from affiliate_pipeline.landing.store import Store
from affiliate_pipeline_tests.conftest import RESOURCES, instance_of_all_runs, materialize
from affiliate_pipeline_tests.defs.affiliates import commission
from affiliate_pipeline_tests.defs.rebates import DAYS, EMAIL, KEY, SETTLED, YESTERDAY, at, rebate

COMMISSION, REPORT = "affiliate/daily_commission", "affiliate/daily_report"
LBANK = "lbank/commission_stats_symbol_list"
# Long since settled at both exchanges.
DAY = DAYS[0]
SUMS = """
select exchange, coin, kind, count, amount, usdt_value, unvalued from affiliate.daily_commission
where partition_date = %s order by exchange, coin, kind"""
RAW = """
select 'binance', asset, 'rebate', count(*), sum(income), sum(income) filter (where asset = 'USDT'),
    count(*) filter (where asset <> 'USDT') from binance.rebate_recent_record where partition_date = %(day)s group by asset
union all select 'lbank', coin_symbol, 'commission ' || (array['spot', 'futures'])[trade_type + 1], count(*), sum(amount),
    sum(usdt_amount), count(*) filter (where usdt_amount is null)
    from lbank.commission_stats_symbol_list where partition_date = %(day)s group by coin_symbol, trade_type
order by 1, 2, 3"""


@pytest.fixture(autouse=True)
def nobody_told(request):
    """No full email in any page."""
    yield
    pages = (request.getfixturevalue("tmp_path") / "reports").glob("*.html")
    assert not any(EMAIL in page.read_text() for page in pages)


def add_up(days, *keys) -> dg.ExecuteInProcessResult:
    """A run of the derived assets over the days."""
    definitions = build_definitions()
    tags = {"dagster/asset_partition_range_start": f"{days[0]}", "dagster/asset_partition_range_end": f"{days[-1]}"}
    return dg.materialize(
        [definitions.get_assets_def(dg.AssetKey(COMMISSION.split("/")))],
        selection=[dg.AssetKey(key.split("/")) for key in keys or (COMMISSION, REPORT)],
        instance=instance_of_all_runs(),
        resources=definitions.resources,
        tags=tags,
        raise_on_error=False,
    )


def told(result, key, day) -> dict:
    """The metadata of a materialization."""
    (found,) = [
        event.step_materialization_data.materialization.metadata
        for event in (entry.dagster_event for entry in instance_of_all_runs().all_logs(result.run_id))
        if event
        and event.is_step_materialization
        and (event.asset_key.to_user_string(), event.partition) == (key, f"{day}")
    ]
    return {name: value.value for name, value in found.items()}


def days_of(result, key) -> list[str]:
    return sorted(
        event.partition
        for event in (entry.dagster_event for entry in instance_of_all_runs().all_logs(result.run_id))
        if event and event.is_step_materialization and event.asset_key.to_user_string() == key
    )


def sensor() -> dg.SensorDefinition:
    return next(each for each in build_definitions().sensors if each.name == "stale_days")


def tick() -> list[tuple[str, str]]:
    """The ranges that the sensor asks for now."""
    requests = sensor().evaluate_tick(dg.build_sensor_context(resources=RESOURCES)).run_requests
    return [
        (each.tags["dagster/asset_partition_range_start"], each.tags["dagster/asset_partition_range_end"])
        for each in requests
    ]


@pytest.fixture
def no_client(sandbox, monkeypatch) -> None:
    """Nobody has configured the client's account."""
    monkeypatch.delenv("BINANCE_CLIENT_API_KEY")
    monkeypatch.delenv("BINANCE_CLIENT_API_SECRET")


@pytest.fixture
def at_once(monkeypatch) -> None:
    monkeypatch.setattr("affiliate_pipeline.defs.commission_assets.QUIET_S", 0)


def test_a_day_is_what_the_tables_of_the_exchanges_hold_to_the_last_digit(both, query, database_url, no_client):
    odd = [rebate(at(DAY), i, income="0.000000000000000001", asset=f"C{i % 3}") for i in range(7)]
    both.binance.set_rebates([*odd, rebate(at(DAY), 8, income="12345678901234567890.123456789012345678")])
    assert materialize(KEY, [DAY]).success
    assert materialize(LBANK, [DAY]).success

    result = add_up([DAY])

    assert result.success
    sums = query(SUMS, DAY)
    with psycopg.connect(database_url) as connection:
        raw = connection.execute(RAW, {"day": DAY}).fetchall()
    assert [[str(cell) for cell in row] for row in sums] == [[str(cell) for cell in row] for row in raw]
    assert {row[0] for row in sums} == {"binance", "lbank"}
    assert {row[2] for row in sums} == {"rebate", "commission spot", "commission futures"}
    metadata = told(result, COMMISSION, DAY)
    assert metadata["records"] == sum(row[3] for row in sums)
    assert metadata["sums"]["binance rebate USDT"]["amount"] == "12345678901234567890.123456789012345678"
    assert metadata["missing_or_not_settled"] == {}
    assert {zone for (zone,) in query("select zone from affiliate.daily_commission")} == {"UTC", "Asia/Shanghai"}


def test_a_value_in_usdt_is_what_the_exchange_says_and_else_it_is_counted_as_none(both, query):
    own = both.lbank.own_open_id
    both.lbank.set_commissions(
        [
            commission(own, DAY, "1.50") | {"coinSymbol": "btc", "usdtAmount": "90000.123456789"},
            commission(own, DAY, "2") | {"coinSymbol": "btc", "usdtAmount": None},
            commission(own, DAY, "3") | {"coinSymbol": "eth", "usdtAmount": None},
            commission(own, DAY, "4") | {"usdtAmount": None},
        ]
    )
    assert materialize(LBANK, [DAY]).success

    assert add_up([DAY]).success

    assert query(SUMS, DAY) == [
        ("lbank", "btc", "commission spot", 2, Decimal("3.50"), Decimal("90000.123456789"), 1),
        ("lbank", "eth", "commission spot", 1, Decimal("3"), None, 1),
        ("lbank", "usdt", "commission spot", 1, Decimal("4"), Decimal("4"), 0),
    ]


def test_kinds_have_the_names_that_the_endpoint_declares_and_other_codes_stay_as_they_are(both, query):
    own = both.lbank.own_open_id
    both.lbank.set_commissions([commission(own, DAY, f"{code + 1}") | {"tradeType": code % 2} for code in range(3)])
    assert materialize(LBANK, [DAY]).success
    query("update lbank.commission_stats_symbol_list set trade_type = 7 where amount = 3")

    assert add_up([DAY]).success

    kinds = [(kind, amount) for _, _, kind, _, amount, *_ in query(SUMS, DAY)]
    assert kinds == [("commission 7", 3), ("commission futures", 2), ("commission spot", 1)]


def test_a_day_that_release_0_1_0_added_up_is_not_stale(both, query, at_once):
    materialize(KEY, [DAY, YESTERDAY])
    materialize(LBANK, [DAY])
    # The statement by which that release recorded what a day was added up from.
    query(
        "insert into affiliate.computed_day "
        "select partition, md5(string_agg(asset || ' ' || content_hash || ' ' || settled, ',' order by asset)) "
        "from affiliate.landing group by partition"
    )

    assert tick() == []


def test_of_two_endpoints_that_tell_of_the_same_money_one_counts(sandbox, query, database_url, at_once):
    recent, history = "binance/kickback_recent_record", "binance/kickback_historical_record"
    assert materialize(recent, [DAY]).success
    with Store(database_url) as store:
        endpoint_tables.ensure(store.connection, next(endpoint for endpoint in ENDPOINTS if endpoint.key == history))
    query(f"insert into {history.replace('/', '.')} select * from {recent.replace('/', '.')}")
    query("insert into affiliate.landing (select (jsonb_populate_record(l, %s::jsonb)).* from affiliate.landing l "
          "where asset = %s)", f'{{"asset": "{history}"}}', recent)  # fmt: skip
    (rows,) = query(f"select count(*), sum(income) from {recent.replace('/', '.')}")

    for settled, counted in (("true", recent), (f"asset = '{history}'", history)):
        query(f"update affiliate.landing set settled = {settled}")
        assert add_up([DAY]).success
        assert query("select sum(count)::bigint, sum(amount) from affiliate.daily_commission") == [rows]
        assert query("select distinct kind, asset from affiliate.daily_commission") == [("kickback", counted)]


def test_a_day_that_lands_again_is_added_up_again(sandbox, query, at_once):
    sandbox.binance.set_rebates([rebate(at(YESTERDAY), 1, income="1.5")])
    materialize(KEY, [DAYS[-2], YESTERDAY])
    assert tick() == [(f"{DAYS[-2]}", f"{YESTERDAY}")]
    assert add_up(DAYS[-2:]).success
    assert tick() == []

    materialize(KEY, [YESTERDAY])
    assert tick() == []  # the same rows

    sandbox.binance.set_rebates([rebate(at(YESTERDAY), 1, income="1.5"), rebate(at(YESTERDAY), 2, income="2")])
    materialize(KEY, [YESTERDAY])
    assert tick() == [(f"{YESTERDAY}", f"{YESTERDAY}")]
    assert add_up([YESTERDAY]).success

    assert [row[3:5] for row in query(SUMS, YESTERDAY)] == [(2, Decimal("3.5"))]
    assert tick() == []


def test_a_day_that_settles_is_told_of_as_final(sandbox, query, at_once, no_client):
    sandbox.binance.set_rebates([rebate(at(YESTERDAY))])
    materialize(KEY, [YESTERDAY])
    result = add_up([YESTERDAY])
    assert told(result, COMMISSION, YESTERDAY)["missing_or_not_settled"] == {KEY: "may still change"}
    query("update affiliate.landing set settled = true")

    assert tick() == [(f"{YESTERDAY}", f"{YESTERDAY}")]

    assert told(add_up([YESTERDAY]), COMMISSION, YESTERDAY)["missing_or_not_settled"] == {}
    assert query("select settled from affiliate.daily_commission") == [(True,)]


def test_while_more_may_be_landing_the_sensor_waits(sandbox):
    materialize(KEY, [SETTLED])

    assert tick() == []


def test_the_sensor_runs_by_itself_and_asks_for_the_same_content_only_once_an_hour(sandbox, at_once):
    materialize(KEY, [SETTLED])
    keys = [
        sensor().evaluate_tick(dg.build_sensor_context(resources=RESOURCES)).run_requests[0].run_key for _ in range(2)
    ]

    # Dagster starts no second run of the same key.
    if datetime.now().minute != 0:
        assert keys[0] == keys[1]
    sandbox.binance.set_rebates([rebate(at(SETTLED), 1)])
    materialize(KEY, [SETTLED], allow_shrink=True)
    assert sensor().evaluate_tick(dg.build_sensor_context(resources=RESOURCES)).run_requests[0].run_key not in keys
    assert sensor().default_status == dg.DefaultSensorStatus.RUNNING


def test_a_day_of_which_nothing_has_landed_fails_alone_in_both_assets(sandbox):
    materialize(KEY, [DAYS[1]])

    result = add_up(DAYS[:3])

    assert not result.success
    assert days_of(result, COMMISSION) == days_of(result, REPORT) == [f"{DAYS[1]}"]
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert set(failure.step_failure_data.user_failure_data.metadata["failed_partitions"].value) == {
        f"{DAYS[0]}",
        f"{DAYS[2]}",
    }
    assert "has landed for it" in failure.step_failure_data.error.message


def test_a_day_without_money_is_a_day(sandbox, query, at_once):
    sandbox.binance.set_rebates([])
    materialize(KEY, [DAY])

    result = add_up([DAY])

    assert told(result, COMMISSION, DAY)["dagster/partition_row_count"] == 0
    assert "Nothing was earned" in told(result, REPORT, DAY)["report"]
    assert query(SUMS, DAY) == tick() == []


def test_the_report_shows_the_money_who_earned_most_and_what_is_missing(both, tmp_path, monkeypatch):
    monkeypatch.setenv("AFFILIATE_START_DATE", f"{DAYS[0] - timedelta(days=40)}")
    both.binance.set_rebates(
        [rebate(at(DAY), 1, income="7.25"), rebate(at(DAY), 2, income="8.5", customerId="<b>zz</b>"),
         rebate(at(DAY), 3, income="1", asset="BNB", customerId="")]
    )  # fmt: skip
    materialize(KEY, [DAY])

    result = add_up([DAY])

    report = told(result, REPORT, DAY)["report"]
    assert "| binance | rebate | USDT | 15.75 | 15.75 | 2 |" in report
    assert "<b>" not in report
    assert f"{LBANK}: {DAY - timedelta(days=29)}" in report and "not landed" in report
    assert "data:image/svg+xml;base64," in report
    page = (tmp_path / "reports" / f"{DAY}.html").read_text()
    assert "15.75" in page and "<b>zz" not in page
    assert "so***@example.com" in page and EMAIL not in page
    assert "http" not in page.replace("http-equiv", "")


def test_either_asset_can_be_materialized_alone(sandbox):
    materialize(KEY, [DAY])

    only = add_up([DAY], COMMISSION)
    assert (days_of(only, COMMISSION), days_of(only, REPORT)) == ([f"{DAY}"], [])

    only = add_up([DAY], REPORT)
    assert (days_of(only, COMMISSION), days_of(only, REPORT)) == ([], [f"{DAY}"])


def test_a_day_that_fails_at_an_exchange_does_not_share_a_run_with_the_days_here():
    graph = build_definitions().resolve_asset_graph()
    upstream = graph.get(dg.AssetKey(KEY.split("/")))
    derived = graph.get(dg.AssetKey(COMMISSION.split("/")))

    assert upstream.partitions_def != derived.partitions_def
    assert derived.partitions_def == graph.get(dg.AssetKey(REPORT.split("/"))).partitions_def
    assert {key.to_user_string() for key in derived.parent_keys} >= {KEY, LBANK}
