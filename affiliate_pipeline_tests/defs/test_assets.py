"""Landing rebates through the asset, from the sandbox into PostgreSQL."""

from collections import Counter
from datetime import UTC, date, datetime, timedelta

from affiliate_pipeline_tests.conftest import materialize

KEY = "binance/rebate_recent_record"
YESTERDAY = datetime.now(UTC).date() - timedelta(days=1)
COLUMNS = {
    "customer_id": "customerId",
    "email": "email",
    "income": "income",
    "asset": "asset",
    "symbol": "symbol",
    "time": "time",
    "order_id": "orderId",
    "trade_id": "tradeId",
    "distribute_time": "distributeTime",
    "commission_asset": "commissionAsset",
    "commission": "commission",
    "convert_price": "convertPrice",
}


def test_a_day_lands_exactly(sandbox, query):
    run = materialize(KEY, [YESTERDAY])

    assert run.success
    assert list(run.materialized) == [YESTERDAY]
    assert landed(query, YESTERDAY) == expected(sandbox, YESTERDAY)
    assert len(sandbox.binance.rebates(YESTERDAY)) > 100


def landed(query, day: date) -> Counter:
    """The day's rows as text: amounts with their scale, instants in milliseconds."""
    texts = [
        f"(extract(epoch from {name}) * 1000)::bigint::text" if name.endswith("time") else f"{name}::text"
        for name in COLUMNS
    ]
    return Counter(query(f"select {', '.join(texts)} from binance.rebate_recent_record where partition_date = %s", day))


def expected(sandbox, day: date) -> Counter:
    return Counter(
        tuple(None if row.get(name) is None else str(row[name]) for name in COLUMNS.values())
        for row in sandbox.binance.rebates(day)
    )
