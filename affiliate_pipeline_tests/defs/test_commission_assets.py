"""The daily earnings equal the sums of the raw tables, and the sensor requests every day that is out of date."""

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import psycopg
import pytest

from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline.landing import endpoint_tables
from affiliate_pipeline.landing.store import Store
from affiliate_pipeline_tests.code_location import loaded_definitions
from affiliate_pipeline_tests.conftest import RESOURCES, instance_of_all_runs
from affiliate_pipeline_tests.defs.affiliates import commission
from affiliate_pipeline_tests.defs.direct_runs import land
from affiliate_pipeline_tests.defs.events import (
    failed_partitions,
    failure_message,
    only_step_failure,
    recorded_events,
)
from affiliate_pipeline_tests.defs.rebates import DAYS, EMAIL, KEY, SETTLED, YESTERDAY, at, rebate

COMMISSION, REPORT = "affiliate/daily_commission", "affiliate/daily_report"
CUSTOMERS = "affiliate/daily_customer_commission"
LBANK = "lbank/commission_stats_symbol_list"
# Settled at both exchanges.
DAY = DAYS[0]
SUMS = """
select exchange, coin, kind, count, amount, usdt_value, unvalued from affiliate.daily_commission
where partition_date = %s order by exchange, coin, kind"""
SUMS_OF_RAW_TABLES = """
select 'binance', asset, 'rebate', count(*), sum(income), sum(income) filter (where asset = 'USDT'),
    count(*) filter (where asset <> 'USDT') from binance.rebate_recent_record where partition_date = %(day)s group by asset
union all select 'lbank', coin_symbol, 'commission ' || (array['spot', 'futures'])[trade_type + 1], count(*), sum(amount),
    sum(usdt_amount), count(*) filter (where usdt_amount is null)
    from lbank.commission_stats_symbol_list where partition_date = %(day)s group by coin_symbol, trade_type
order by 1, 2, 3"""


@pytest.fixture(autouse=True)
def no_prices(monkeypatch) -> None:
    """Market prices have tests of their own, in `test_prices`."""
    monkeypatch.setenv("AFFILIATE_PRICES", "off")


@pytest.fixture(autouse=True)
def no_page_contains_a_full_email(tmp_path):
    yield
    assert [page for page in (tmp_path / "reports").glob("*.html") if EMAIL in page.read_text()] == []


def add_up(days, *keys) -> dg.ExecuteInProcessResult:
    """Run the derived assets, by default all but the prices, over the days."""
    definitions = loaded_definitions()
    tags = {"dagster/asset_partition_range_start": f"{days[0]}", "dagster/asset_partition_range_end": f"{days[-1]}"}
    return dg.materialize(
        [definitions.get_assets_def(dg.AssetKey(COMMISSION.split("/")))],
        selection=[dg.AssetKey(key.split("/")) for key in keys or (COMMISSION, CUSTOMERS, REPORT)],
        instance=instance_of_all_runs(),
        resources=definitions.resources,
        tags=tags,
        raise_on_error=False,
    )


def materializations(result, key: str) -> dict[str | None, dg.AssetMaterialization]:
    """The asset's materializations in the run by partition key."""
    return {
        event.partition: event.step_materialization_data.materialization
        for event in recorded_events(instance_of_all_runs(), result.run_id)
        if event.is_step_materialization and event.asset_key == dg.AssetKey(key.split("/"))
    }


def metadata_of(result, key, day) -> dict[str, Any]:
    return {name: entry.value for name, entry in materializations(result, key)[f"{day}"].metadata.items()}


def sensor() -> dg.SensorDefinition:
    return next(each for each in loaded_definitions().sensors or () if each.name == "stale_days")


def run_requests() -> list[dg.RunRequest]:
    """The runs that the sensor requests now."""
    return list(
        sensor().evaluate_tick(dg.build_sensor_context(instance_of_all_runs(), resources=RESOURCES)).run_requests or []
    )


def requested_ranges() -> list[tuple[str, str]]:
    """The first and last day of each run that the sensor requests now."""
    return [
        (each.tags["dagster/asset_partition_range_start"], each.tags["dagster/asset_partition_range_end"])
        for each in run_requests()
    ]


@pytest.fixture
def no_client(sandbox, monkeypatch) -> None:
    """The client's account is not configured."""
    monkeypatch.delenv("BINANCE_CLIENT_API_KEY")
    monkeypatch.delenv("BINANCE_CLIENT_API_SECRET")


@pytest.fixture
def without_wait(monkeypatch) -> None:
    """The sensor requests a day as soon as something has landed for it."""
    monkeypatch.setattr("affiliate_pipeline.defs.commission_assets.QUIET_S", 0)


def test_a_days_sums_equal_those_of_the_raw_tables_to_the_last_digit(both_exchanges, query, database_url, no_client):
    odd = [rebate(at(DAY), i, income="0.000000000000000001", asset=f"C{i % 3}") for i in range(7)]
    both_exchanges.binance.set_rebates([*odd, rebate(at(DAY), 8, income="12345678901234567890.123456789012345678")])
    assert land(KEY, [DAY]).success
    assert land(LBANK, [DAY]).success

    result = add_up([DAY], COMMISSION)

    assert result.success
    sums = query(SUMS, DAY)
    with psycopg.connect(database_url) as connection:
        raw = connection.execute(SUMS_OF_RAW_TABLES, {"day": DAY}).fetchall()
    assert [[str(cell) for cell in row] for row in sums] == [[str(cell) for cell in row] for row in raw]
    assert {row[0] for row in sums} == {"binance", "lbank"}
    assert {row[2] for row in sums} == {"rebate", "commission spot", "commission futures"}
    metadata = metadata_of(result, COMMISSION, DAY)
    assert metadata["records"] == sum(row[3] for row in sums)
    assert metadata["sums"]["binance rebate USDT"]["amount"] == "12345678901234567890.123456789012345678"
    assert metadata["missing_or_not_settled"] == {}
    assert {zone for (zone,) in query("select zone from affiliate.daily_commission")} == {"UTC", "Asia/Shanghai"}


def test_usdt_values_come_from_the_exchange_and_amounts_without_a_value_are_counted(both_exchanges, query):
    own = both_exchanges.lbank.own_open_id
    both_exchanges.lbank.set_commissions(
        [
            commission(own, DAY, "1.50") | {"coinSymbol": "btc", "usdtAmount": "90000.123456789"},
            commission(own, DAY, "2") | {"coinSymbol": "btc", "usdtAmount": None},
            commission(own, DAY, "3") | {"coinSymbol": "eth", "usdtAmount": None},
            commission(own, DAY, "4") | {"usdtAmount": None},
        ]
    )
    assert land(LBANK, [DAY]).success

    assert add_up([DAY], COMMISSION).success

    assert query(SUMS, DAY) == [
        ("lbank", "btc", "commission spot", 2, Decimal("3.50"), Decimal("90000.123456789"), 1),
        ("lbank", "eth", "commission spot", 1, Decimal("3"), None, 1),
        ("lbank", "usdt", "commission spot", 1, Decimal("4"), Decimal("4"), 0),
    ]


def test_kinds_have_the_declared_names_and_undeclared_codes_stay_unchanged(both_exchanges, query):
    own = both_exchanges.lbank.own_open_id
    both_exchanges.lbank.set_commissions(
        [commission(own, DAY, f"{code + 1}") | {"tradeType": code % 2} for code in range(3)]
    )
    assert land(LBANK, [DAY]).success
    query("update lbank.commission_stats_symbol_list set trade_type = 7 where amount = 3")

    assert add_up([DAY], COMMISSION).success

    kinds = [(kind, amount) for _, _, kind, _, amount, *_ in query(SUMS, DAY)]
    assert kinds == [("commission 7", 3), ("commission futures", 2), ("commission spot", 1)]


def test_only_one_of_two_endpoints_that_report_the_same_money_is_added_up(sandbox, query, database_url, without_wait):
    recent, history = "binance/kickback_recent_record", "binance/kickback_historical_record"
    assert land(recent, [DAY]).success
    with Store(database_url) as store:
        endpoint_tables.ensure(store.connection, next(endpoint for endpoint in ENDPOINTS if endpoint.key == history))
    query(f"insert into {history.replace('/', '.')} select * from {recent.replace('/', '.')}")
    query("insert into affiliate.landing (select (jsonb_populate_record(l, %s::jsonb)).* from affiliate.landing l "
          "where asset = %s)", f'{{"asset": "{history}"}}', recent)  # fmt: skip
    (rows,) = query(f"select count(*), sum(income) from {recent.replace('/', '.')}")

    for settled, counted in (("true", recent), (f"asset = '{history}'", history)):
        query(f"update affiliate.landing set settled = {settled}")
        assert add_up([DAY], COMMISSION).success
        assert query("select sum(count)::bigint, sum(amount) from affiliate.daily_commission") == [rows]
        assert query("select distinct kind, asset from affiliate.daily_commission") == [("kickback", counted)]


def test_a_day_that_lands_again_is_added_up_again(sandbox, query, without_wait):
    sandbox.binance.set_rebates([rebate(at(YESTERDAY), 1, income="1.5")])
    land(KEY, [DAYS[-2], YESTERDAY])
    assert requested_ranges() == [(f"{DAYS[-2]}", f"{YESTERDAY}")]
    assert add_up(DAYS[-2:], COMMISSION).success
    assert requested_ranges() == []

    land(KEY, [YESTERDAY])
    assert requested_ranges() == []  # The same rows landed.

    sandbox.binance.set_rebates([rebate(at(YESTERDAY), 1, income="1.5"), rebate(at(YESTERDAY), 2, income="2")])
    land(KEY, [YESTERDAY])
    assert requested_ranges() == [(f"{YESTERDAY}", f"{YESTERDAY}")]
    assert add_up([YESTERDAY], COMMISSION).success

    assert [row[3:5] for row in query(SUMS, YESTERDAY)] == [(2, Decimal("3.5"))]
    assert requested_ranges() == []


def test_a_day_that_settles_is_reported_as_final(sandbox, query, without_wait, no_client):
    sandbox.binance.set_rebates([rebate(at(YESTERDAY))])
    land(KEY, [YESTERDAY])
    result = add_up([YESTERDAY], COMMISSION)
    assert metadata_of(result, COMMISSION, YESTERDAY)["missing_or_not_settled"] == {KEY: "may still change"}
    query("update affiliate.landing set settled = true")

    assert requested_ranges() == [(f"{YESTERDAY}", f"{YESTERDAY}")]

    assert metadata_of(add_up([YESTERDAY], COMMISSION), COMMISSION, YESTERDAY)["missing_or_not_settled"] == {}
    assert query("select settled from affiliate.daily_commission") == [(True,)]


def test_the_sensor_waits_while_more_may_land(sandbox, monkeypatch):
    land(KEY, [SETTLED])

    assert requested_ranges() == []
    monkeypatch.setattr("affiliate_pipeline.defs.commission_assets.QUIET_S", 0)
    assert requested_ranges() == [(f"{SETTLED}", f"{SETTLED}")]


def test_the_sensor_repeats_a_request_for_the_same_content_once_an_hour(sandbox, without_wait, monkeypatch):
    def key_at(instant: datetime) -> str | None:
        clock = SimpleNamespace(now=lambda zone: instant)
        monkeypatch.setattr("affiliate_pipeline.defs.commission_assets.datetime", clock)
        [request] = run_requests()
        return request.run_key

    land(KEY, [SETTLED])
    hour = datetime.now(UTC).replace(minute=0, second=0)

    first = key_at(hour)

    # Dagster starts no second run of the same key.
    assert key_at(hour + timedelta(minutes=59)) == first
    assert key_at(hour + timedelta(minutes=60)) != first
    sandbox.binance.set_rebates([rebate(at(SETTLED), 1)])
    land(KEY, [SETTLED], allow_shrink=True)
    assert key_at(hour) != first


def test_the_sensor_runs_by_default():
    assert sensor().default_status == dg.DefaultSensorStatus.RUNNING


def test_a_day_for_which_nothing_has_landed_fails_alone_in_all_assets(sandbox):
    land(KEY, [DAYS[1]])

    result = add_up(DAYS[:3])

    assert not result.success
    for key in (COMMISSION, CUSTOMERS, REPORT):
        assert list(materializations(result, key)) == [f"{DAYS[1]}"]
    failure = only_step_failure(result.all_events)
    assert failed_partitions(failure) == {f"{DAYS[0]}", f"{DAYS[2]}"}
    assert "have landed for this day" in failure_message(failure)
    links = re.findall(r'href="(.+?)"', Path("reports", f"{DAYS[1]}.html").read_text())
    assert links and all(Path("reports", target).exists() for target in links)


def test_a_day_without_earnings_lands_with_no_rows(sandbox, query, without_wait):
    sandbox.binance.set_rebates([])
    land(KEY, [DAY])

    result = add_up([DAY])

    assert metadata_of(result, COMMISSION, DAY)["dagster/partition_row_count"] == 0
    assert "Nothing was earned" in metadata_of(result, REPORT, DAY)["report"]
    assert query(SUMS, DAY) == requested_ranges() == []


def test_the_report_shows_the_earnings_the_top_customers_and_missing_days(both_exchanges, tmp_path, monkeypatch):
    monkeypatch.setenv("AFFILIATE_START_DATE", f"{DAYS[0] - timedelta(days=40)}")
    both_exchanges.binance.set_rebates(
        [rebate(at(DAY), 1, income="7.25"), rebate(at(DAY), 2, income="8.5", customerId="<b>zz</b>"),
         rebate(at(DAY), 3, income="1", asset="BNB", customerId=""), rebate(at(DAY), 4, income="2", customerId="")]
    )  # fmt: skip
    land(KEY, [DAY])

    result = add_up([DAY])

    metadata = metadata_of(result, REPORT, DAY)
    report = metadata["report"]
    assert report.startswith(f"### {DAY}: 17.75 USDT so far\n")
    assert "| USDT | 17.75 | 17.75 | 17.75 |" in report and "| BNB | 1 | – | – |" in report
    assert "<b>" not in report and "data:image/svg+xml;base64," in report
    assert "- Without a value in USDT, so not in the total: BNB" in report
    assert "- not landed: binance kickback, lbank commission" in report
    page = (tmp_path / "reports" / f"{DAY}.html").read_text()
    assert "17.75" in page and "<b>zz" not in page
    assert "so***@example.com" in page and EMAIL not in page
    assert "http" not in page.replace("http-equiv", "")
    assert f'href="{DAY}.html"' in (tmp_path / "reports" / "index.html").read_text()


def test_the_metadata_have_exact_totals_and_numbers_to_plot(sandbox):
    sandbox.binance.set_rebates([rebate(at(day), 1, income="1.000000000000000001") for day in DAYS[:2]])
    land(KEY, DAYS[:2])

    result = add_up(DAYS[:2])

    metadata = metadata_of(result, REPORT, DAYS[1])
    # A value in USDT has 8 places.
    assert (metadata["total_usdt"], metadata["total_usdt_rounded"]) == ("1.00000000", 1.0)
    assert (metadata["last_7_days_usdt"], metadata["last_7_days_usdt_rounded"]) == ("2.00000000", 2.0)
    assert (metadata["last_30_days_usdt"], metadata["binance_usdt"]) == ("2.00000000", "1.00000000")
    assert metadata["incomplete_days"] > 0 and metadata["unvalued_coins"] == 0
    sums = metadata_of(result, COMMISSION, DAYS[1])
    assert (sums["total_usdt"], sums["total_usdt_rounded"]) == ("1.00000000", 1.0)


def test_each_asset_can_be_materialized_alone(sandbox):
    land(KEY, [DAY])

    for key in (COMMISSION, CUSTOMERS, REPORT):
        result = add_up([DAY], key)
        found = {each: [*materializations(result, each)] for each in (COMMISSION, CUSTOMERS, REPORT)}
        assert found == dict.fromkeys(found, []) | {key: [f"{DAY}"]}


def test_a_customer_is_the_customer_id_else_the_open_id_else_the_masked_email(both_exchanges, query):
    masked = {"customerId": "", "email": "so***@example.com"}
    both_exchanges.binance.set_rebates(
        [rebate(at(DAY), 1, income="1", customerId="c1"), rebate(at(DAY), 2, income="2", customerId="c1", email="x"),
         rebate(at(DAY), 3, income="4", **masked), rebate(at(DAY), 4, income="8", asset="BNB", **masked),
         rebate(at(DAY), 5, income="16", customerId="", email=None), rebate(at(DAY), 6, income="32", customerId=None, email="")]
    )  # fmt: skip
    own = both_exchanges.lbank.own_open_id
    both_exchanges.lbank.set_commissions([commission(own, DAY, "64")])
    assert land(KEY, [DAY]).success and land(LBANK, [DAY]).success

    metadata = metadata_of(add_up([DAY], CUSTOMERS), CUSTOMERS, DAY)

    lines = (
        "select customer, identified_by, coin, count, amount from affiliate.daily_customer_commission order by 1, 2, 3"
    )
    assert query(lines) == sorted([
        ("", "", "USDT", 2, Decimal(48)), ("c1", "customer_id", "USDT", 2, Decimal(3)),
        (own, "open_id", "usdt", 1, Decimal(64)),
        ("so***@example.com", "email", "BNB", 1, Decimal(8)), ("so***@example.com", "email", "USDT", 1, Decimal(4)),
    ])  # fmt: skip
    assert metadata == {
        "dagster/partition_row_count": 5,
        "customers": 3,
        "customers_identified_by_masked_email": 1,
        "records_without_customer": 2,
        "total_usdt": "119.00000000",
    }


def test_the_derived_assets_never_share_a_run_with_an_endpoints_asset():
    # Dagster runs assets of equal partitions together, and a day that fails upstream would fail every day here.
    graph = loaded_definitions().resolve_asset_graph()
    upstream = graph.get(dg.AssetKey(KEY.split("/")))
    derived = graph.get(dg.AssetKey(COMMISSION.split("/")))

    assert upstream.partitions_def != derived.partitions_def
    assert derived.partitions_def == graph.get(dg.AssetKey(REPORT.split("/"))).partitions_def
    assert {key.to_user_string() for key in derived.parent_keys} >= {KEY, LBANK}


def test_a_day_before_the_first_one_of_an_exchange_is_added_up(both_exchanges, query, monkeypatch, without_wait):
    own = both_exchanges.lbank.own_open_id
    both_exchanges.lbank.set_commissions([commission(own, DAY, "1.50")])
    monkeypatch.setenv("LBANK_START_DATE", f"{DAY}")
    monkeypatch.setenv("BINANCE_START_DATE", f"{YESTERDAY}")
    land(LBANK, [DAY])

    [request] = run_requests()
    # Unlike `add_up`, this defines the exchanges' assets too, as a code location does.
    job = loaded_definitions().resolve_implicit_global_asset_job_def()
    result = job.execute_in_process(
        instance=instance_of_all_runs(), asset_selection=list(request.asset_selection or ()), tags=request.tags
    )

    assert materializations(result, COMMISSION).keys() == {f"{DAY}"}
    assert [(row[0], row[3], row[4]) for row in query(SUMS, DAY)] == [("lbank", 1, Decimal("1.50"))]


def test_a_later_start_date_changes_no_landed_day(sandbox, query, monkeypatch, without_wait):
    monkeypatch.setenv("AFFILIATE_START_DATE", f"{DAY}")
    land(KEY, [DAY, YESTERDAY])
    assert add_up([DAY], COMMISSION).success
    landed = "select * from affiliate.landing order by partition"
    stored = query(landed), query(SUMS, DAY)

    monkeypatch.setenv("AFFILIATE_START_DATE", f"{YESTERDAY}")

    assert requested_ranges() == [(f"{YESTERDAY}", f"{YESTERDAY}")]
    assert add_up([YESTERDAY], COMMISSION).success
    assert (query(landed), query(SUMS, DAY)) == stored
    monkeypatch.setenv("AFFILIATE_START_DATE", f"{DAY}")
    assert requested_ranges() == []
