"""The documented columns of the derived tables and views, and the values that the views compute."""

from datetime import date, timedelta
from decimal import Decimal

import pytest

from affiliate_pipeline.commission import columns

RELATIONS = {
    "daily_commission": columns.DAILY,
    "daily_customer_commission": columns.CUSTOMER_DAILY,
    "price": columns.PRICE,
    "v_daily": columns.V_DAILY,
    "v_customer_daily": columns.V_CUSTOMER_DAILY,
    "v_health": columns.V_HEALTH,
}
SHORT = {"timestamp with time zone": "timestamptz", "boolean": "bool"}
LINE = """
insert into affiliate.daily_commission (partition_date, exchange, zone, coin, kind, count, amount, usdt_value, unvalued,
    market_value_usdt, settled, asset, run_id)
values ('2026-10-30', 'binance', 'UTC', %s, 'rebate', 3, 1, %s, %s, %s, true, 'a', 'r')"""


@pytest.mark.parametrize("name", RELATIONS)
def test_the_database_has_the_documented_columns_with_their_comments(query, name):
    found = query(
        "select attname, format_type(atttypid, null), attnotnull, col_description(attrelid, attnum) from pg_attribute "
        "where attrelid = ('affiliate.' || %s)::regclass and attnum > 0 and not attisdropped",
        name,
    )
    documented = {
        (column, SHORT.get(kind.split()[0], kind.split()[0]), "not null" in kind, about)
        for column, kind, about in RELATIONS[name]
    }
    assert {(column, SHORT.get(kind, kind), *more) for column, kind, *more in found} == documented
    # The columns of a table may be in another order, since migrations append columns.
    if name.startswith("v_"):
        assert [column for column, *_ in found] == [column for column, *_ in RELATIONS[name]]


@pytest.mark.parametrize(
    ("usdt_value", "unvalued", "market_value", "expected"),
    [
        ("7", 1, "5.12345678", ("5.12345678", "market", 0)),
        ("7.000000005", 1, None, ("7.00000000", "stated", 1)),
        ("-7.000000015", 0, None, ("-7.00000002", "stated", 0)),
        ("7.0000000150001", 0, None, ("7.00000002", "stated", 0)),
        (None, 3, None, (None, None, 3)),
    ],
)
def test_the_total_is_the_market_value_or_else_the_stated_one(query, usdt_value, unvalued, market_value, expected):
    query(LINE, "BTC", usdt_value, unvalued, market_value)
    query(
        "insert into affiliate.daily_customer_commission "
        "select partition_date, exchange, account, zone, 'c', 'customer_id', coin, kind, count, amount, usdt_value, unvalued, "
        "market_value_usdt, settled, asset, computed_at, run_id from affiliate.daily_commission"
    )

    total, valued_by, missing = expected
    for view in ("v_daily", "v_customer_daily"):
        found = query(
            f"select total_usdt, valued_by, records_without_value, stated_value_usdt, day from affiliate.{view}"
        )
        stated = Decimal(usdt_value) if usdt_value else None
        assert found == [(total and Decimal(total), valued_by, missing, stated, date(2026, 10, 30))]


def test_the_health_of_an_asset_counts_missing_and_unsettled_days(query):
    first = date(2026, 10, 1)
    for number, settled in ((0, True), (1, True), (4, True), (6, False)):
        query(
            "insert into affiliate.landing values ('a/b', %s, 0, 'h', %s, 's', %s, '2026-11-02', 'r')",
            first + timedelta(days=number),
            settled,
            f"2026-11-01 0{number}:00Z",
        )
    query("insert into affiliate.landing values ('c/d', %s, 0, 'h', true, 's', now(), now(), 'r')", first)

    found = query(
        "select asset, first_day, last_day, landed_days, missing_days, unsettled_days, last_landed_at::text, "
        "last_checked_at::date from affiliate.v_health order by asset"
    )
    days = first, first + timedelta(days=6)
    assert found[0] == ("a/b", *days, 4, 3, 1, "2026-11-01 06:00:00+00", date(2026, 11, 2))
    assert found[1][:6] == ("c/d", first, first, 1, 0, 0)
