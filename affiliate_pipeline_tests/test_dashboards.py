"""`docs/dashboards.md`: its role, and its queries run by that role on landed data of both exchanges."""

import re
from collections.abc import Callable, Iterator
from datetime import datetime, time
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from affiliate_pipeline_tests.app.totals import add_up
from affiliate_pipeline_tests.defs.direct_runs import land
from affiliate_pipeline_tests.defs.rebates import DAYS, KEY
from affiliate_pipeline_tests.defs.test_commission_assets import LBANK

DOCUMENT = (Path(__file__).parent.parent / "docs" / "dashboards.md").read_text(encoding="utf-8")
STATEMENTS = {
    section.partition("\n")[0].strip(): statement
    for section in re.split(r"^###? ", DOCUMENT, flags=re.MULTILINE)
    for statement in re.findall(r"^```sql\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
}
ROLE = STATEMENTS.pop("Connect")
LANDED = {KEY: 3, "binance/acme/rebate_recent_record": 2, LBANK: 3}
Rows = list[dict[str, Any]]


@pytest.fixture
def run(two_accounts, database_url, query) -> Iterator[Callable[[str], Rows]]:
    """Runs a query, also by its title in the document, as the documented role; some days have landed."""
    for key, days in LANDED.items():
        assert land(key, DAYS[:days]).success
    query(
        "insert into affiliate.price select distinct upper(asset), partition_date, 2, 'market', 'host', partition_date, "
        "partition_date from binance.rebate_recent_record where asset <> 'USDT'"
    )
    add_up(DAYS[:3])
    with psycopg.connect(database_url, autocommit=True) as superuser:
        superuser.execute(ROLE.encode())
        superuser.execute("alter role affiliate_dashboard password 'p'")
        url = f"postgresql://affiliate_dashboard:p@{database_url.partition('@')[2]}"
        with psycopg.connect(url) as connection, connection.cursor(row_factory=dict_row) as session:
            yield lambda query: session.execute(STATEMENTS.get(query, query).encode()).fetchall()
        superuser.execute("drop owned by affiliate_dashboard")
        superuser.execute("drop role affiliate_dashboard")


COLUMNS = {
    "Total per day by exchange": "day exchange total_usdt records_without_value settled",
    "Totals per month": "month exchange account total_usdt records_without_value days_with_records settled",
    "Top coins": "coin amount total_usdt records",
    "Top customers": "exchange account customer identified_by total_usdt records_without_value",
    "Completeness": "asset first_day last_day days_ago missing_days unsettled_days last_checked_at",
    "Payouts per customer and month": "month exchange account customer identified_by coin amount total_usdt records settled",
    "Time series for Grafana": "time metric value",
}


def test_every_query_returns_rows_to_the_role_which_reads_nothing_but_the_views(run):
    assert {title: " ".join(run(title)[0]) for title in STATEMENTS} == COLUMNS
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        run("select from binance.rebate_recent_record")


def test_the_queries_return_every_record_and_amount_once(run, query):
    daily = query(
        "select partition_date, exchange, sum(market_value_usdt) from affiliate.daily_commission "
        "where exchange = 'binance' group by 1, 2 order by 1"
    )
    rows = run("Total per day by exchange")
    assert [(row["day"], row["exchange"], row["total_usdt"]) for row in rows if row["exchange"] == "binance"] == daily
    assert {row["exchange"] for row in rows} == {"binance", "lbank"}

    total = sum(row["total_usdt"] for row in rows)
    assert sum(row["total_usdt"] for row in run("Totals per month")) == total
    # The chart has each day at midnight in any zone of the session, and each value as a float.
    run("select set_config('timezone', 'Asia/Shanghai', false)")
    series = run("Time series for Grafana")
    assert sum(row["value"] for row in series) == pytest.approx(float(total))
    assert {row["time"] for row in series} == {datetime.combine(row["day"], time()) for row in rows}

    expected = query(
        "select upper(coin), sum(amount), sum(count)::bigint from affiliate.daily_commission group by 1 order by 1"
    )
    paid: dict[str, list[Any]] = {}
    for row in run("Payouts per customer and month"):
        sums = paid.setdefault(row["coin"], [0, 0])
        sums[0] += row["amount"]
        sums[1] += row["records"]
    assert [(coin, *paid[coin]) for coin in sorted(paid)] == expected

    completeness = {row["asset"]: (row["first_day"], row["last_day"]) for row in run("Completeness")}
    assert completeness == {asset: (DAYS[0], DAYS[days - 1]) for asset, days in LANDED.items()}
