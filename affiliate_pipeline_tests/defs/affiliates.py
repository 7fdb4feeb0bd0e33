"""Rows of LBank's sandbox and of the tables in one comparable form. Contains no tests."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

from affiliate_pipeline.environment import configured
from affiliate_pipeline.exchanges.fetching import RequestPlan
from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline.landing.pipeline import connected, plan_of
from affiliate_pipeline.landing.store import Store
from affiliate_pipeline.sandbox.days import DAY_MS
from affiliate_pipeline.sandbox.lbank.days import start_of
from affiliate_pipeline.sandbox.lbank.money import MONEY as KINDS
from affiliate_pipeline.sandbox.lbank.users import OWN_OPEN_ID

ENDPOINT = {endpoint.name: endpoint for endpoint in ENDPOINTS if endpoint.exchange.name == "lbank"}
PATH = {name: endpoint.path for name, endpoint in ENDPOINT.items()}
SNAPSHOT = "invite_user_info"
DATED = [name for name in ENDPOINT if name != SNAPSHOT]
SCOPES = ("SELF", "SUB", "SELF_SUB", "ALL")
DAY = timedelta(days=1)


def today() -> date:
    return (datetime.now(UTC) + timedelta(hours=8)).date()


# The last three days of a month and the first two of the next month, all settled.
_MONTH_START = (today() - 6 * DAY).replace(day=1)
DAYS = [_MONTH_START + number * DAY for number in range(-3, 2)]
MONTHS = 2


def at(day: date, hour: float = 12) -> int:
    """Milliseconds since the epoch of this hour of the UTC+8 day."""
    return start_of(day) + round(hour * 3_600_000)


def last_ms(day: date) -> int:
    return start_of(day) + DAY_MS - 1


def deposit(day: date, number: int = 0, **fields: Any) -> dict[str, Any]:
    """A deposit as the exchange sends it. Deposits of successive numbers differ and are one second apart."""
    return {
        "openId": OWN_OPEN_ID,
        "userLevel": 21,
        "subInOutType": "On-chain Deposit",
        "assetCode": "USDT",
        "assetNum": f"{number}.10",
        "status": "Completed",
        "subStatus": "Deposit Successful",
        "createTime": at(day) + 1000 * number,
        "updateTime": at(day) + 1000 * number,
        "withdrawOrderId": None,
    } | fields


def commission(open_id: str, day: date, amount: str) -> dict[str, Any]:
    return {
        "openId": open_id,
        "coinSymbol": "usdt",
        "amount": amount,
        "tradeType": 0,
        "statsDate": start_of(day),
        "usdtAmount": amount,
    }


def rows_of(sandbox, name: str, day: date) -> list[dict[str, Any]]:
    """The rows that should land: the exchange's rows, with the parameters of the request that a row does not repeat."""
    lbank = sandbox.lbank
    match name:
        case "invite_user_list":
            return lbank.invite_users(day)
        case "invite_user_team_list":
            return lbank.invite_team(day)
        case "invite_user_info":
            open_ids = dict.fromkeys(agents(sandbox) + traders(sandbox))
            return [lbank.user_info(open_id) for open_id in open_ids if open_id != OWN_OPEN_ID]
        case "commission_stats_symbol_list":
            return lbank.commissions(day)
        case "trade_user":
            return [{**row, "tradeType": kind} for kind in (0, 1) for row in lbank.trades(day, kind)]
        case "trade_user_team":
            return [{**row, "tradeType": kind} for kind in (0, 1) for row in lbank.team_trades(day, kind)]
        case "trade_future":
            return [{**lbank.future(day, scope), "openId": OWN_OPEN_ID, "userType": scope} for scope in SCOPES]
        case "money_detail_list":
            return [
                {**row, "userType": "ALL", "requestedSubInOutType": kind}
                for kind in KINDS
                for row in lbank.money(day, kind)
            ]
    raise AssertionError(name)


def agents(sandbox) -> list[str]:
    """The affiliate's own openId and those of all agents."""
    return [OWN_OPEN_ID, *(user["openId"] for user in sandbox.lbank.users if 1 <= user["userLevel"] <= 21)]


def traders(sandbox) -> list[str]:
    """The affiliate's own openId and those of all users who have traded."""
    return [OWN_OPEN_ID, *(user["openId"] for user in sandbox.lbank.users if user["transaction"])]


def expected_requests(sandbox, name: str) -> int:
    """The number of requests for DAYS if each response is a single page."""
    match name:
        case "invite_user_list" | "invite_user_team_list":
            return MONTHS
        case "commission_stats_symbol_list":
            return MONTHS * len(agents(sandbox))
        case "trade_user":
            return MONTHS * 2 * len(traders(sandbox))
        case "trade_user_team":
            return MONTHS * 2 * len(agents(sandbox))
        case "trade_future":
            return len(DAYS) * len(SCOPES)
        case "money_detail_list":
            return MONTHS * len(KINDS)
    raise AssertionError(name)


def sent(rows: Iterable[Mapping[str, Any]]) -> Counter:
    """These rows in the form of `landed`, without nulls."""
    return Counter(
        frozenset((_snake(name), _text(value)) for name, value in row.items() if value is not None) for row in rows
    )


def landed(query, name: str, day: date) -> Counter:
    """The day's rows as (column, text) pairs without nulls: amounts with their scale, times in milliseconds."""
    columns = query(
        "select column_name, data_type from information_schema.columns where table_schema = 'lbank' "
        "and table_name = %s and column_name not in ('account', 'partition_date', 'landed_at', 'run_id')",
        name,
    )
    texts = [
        f"(extract(epoch from {column}) * 1000)::bigint::text" if kind.startswith("timestamp") else f"{column}::text"
        for column, kind in columns
    ]
    rows = query(f"select {', '.join(texts)} from lbank.{name} where partition_date = %s", day)
    names = [column for column, _ in columns]
    return Counter(
        frozenset((column, value) for column, value in zip(names, row, strict=True) if value is not None)
        for row in rows
    )


def requests_to(sandbox, name: str) -> list:
    """The endpoint's requests in the sandbox's log."""
    return [request for request in sandbox.requests if request.path == PATH[name]]


def plan(database_url: str, name: str, days: Sequence[date]) -> RequestPlan:
    with Store(database_url) as store, connected(ENDPOINT[name], store, configured().variables) as session:
        return plan_of(ENDPOINT[name], days, session=session, store=store)


def _snake(name: str) -> str:
    return re.sub("([A-Z])", r"_\1", name).lower()


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
