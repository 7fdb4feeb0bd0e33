"""Rebate rows for the sandbox, and what the table and the sandbox's log contain of them. Contains no tests."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline.exchanges.window_walk import WindowWalk

KEY = "binance/rebate_recent_record"
ENDPOINT = next(endpoint for endpoint in ENDPOINTS if endpoint.key == KEY)
TODAY = datetime.now(UTC).date()
# The source retains all of them for another day, so midnight may pass during the tests. The last two are not settled.
DAYS = [TODAY - timedelta(days=days) for days in range(5, 0, -1)]
YESTERDAY = DAYS[-1]
SETTLED = DAYS[0]
DAY_MS = 86_400_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Not masked, so that a leaked row is detected.
EMAIL = "someone.private@example.com"
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


def with_row_limit(rows: int) -> WindowWalk:
    """The endpoint's strategy with this row limit, so that few rows fill many pages."""
    assert isinstance(ENDPOINT.strategy, WindowWalk)
    return replace(ENDPOINT.strategy, row_limit=rows)


def ago(days: int) -> date:
    return TODAY - timedelta(days=days)


def at(day: date, time: str = "12:00:00.000") -> int:
    """Milliseconds since the epoch of this time of the UTC day."""
    return (datetime.fromisoformat(f"{day}T{time}+00:00") - EPOCH) // timedelta(milliseconds=1)


def rebate(time_ms: int, number: int = 0, **fields: Any) -> dict[str, Any]:
    """A row as the exchange sends it before the payout, so without the fields from `distributeTime` on.

    `fields` override its defaults.
    """
    return {
        "customerId": "abc123",
        "email": EMAIL,
        "income": f"0.0001{number:04d}",
        "asset": "USDT",
        "symbol": "BTCUSDT",
        "time": time_ms,
        "orderId": 10_000_000 + number,
        "tradeId": number,
    } | fields


def rebates(day: date, count: int, start: str = "00:00:00.000", within_ms: int = DAY_MS) -> list[dict[str, Any]]:
    """Distinct rows, spread evenly over the span."""
    return [rebate(at(day, start) + i * within_ms // count, i) for i in range(count)]


def landed(query, day: date) -> Counter:
    """The day's rows as text: amounts with their scale, times in milliseconds."""
    texts = [
        f"(extract(epoch from {name}) * 1000)::bigint::text" if name.endswith("time") else f"{name}::text"
        for name in COLUMNS
    ]
    return Counter(query(f"select {', '.join(texts)} from binance.rebate_recent_record where partition_date = %s", day))


def sent(rows: Iterable[Mapping[str, Any]]) -> Counter:
    """These rows in the form of `landed`."""
    return Counter(
        tuple(None if row.get(name) is None else str(row[name]) for name in COLUMNS.values()) for row in rows
    )


def indices_of_requests_touching(sandbox, day: date) -> list[int]:
    """The indices of the requests whose time window overlaps the day."""
    return [
        number
        for number, request in enumerate(sandbox.requests)
        if "startTime" in request.params
        and int(request.params["startTime"]) <= at(day, "23:59:59.999")
        and int(request.params["endTime"]) >= at(day, "00:00:00.000")
    ]


def refusals(sandbox) -> list:
    """The requests that the exchange itself refused, without an injected fault."""
    return [request for request in sandbox.requests if (request.code or request.status == 404) and not request.fault]
