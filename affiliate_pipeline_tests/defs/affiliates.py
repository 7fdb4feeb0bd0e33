"""What LBank's sandbox has and what the tables hold, in the same words. No test may live here."""

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
OBSERVED = "invite_user_info"
DATED = [name for name in ENDPOINT if name != OBSERVED]
TEAM_LIST = PATH["invite_user_team_list"]
SCOPES = ("SELF", "SUB", "SELF_SUB", "ALL")
DAY = timedelta(days=1)


def today() -> date:
    return (datetime.now(UTC) + timedelta(hours=8)).date()


# Five days over a month's end, three of them before it, all of which have settled.
_MONTH = (today() - 6 * DAY).replace(day=1)
DAYS = [_MONTH + number * DAY for number in range(-3, 2)]
CHUNKS = 2


def at(day: date, hour: float = 12) -> int:
    """The instant (ms) of the UTC+8 day."""
    return start_of(day) + round(hour * 3_600_000)


def last_ms(day: date) -> int:
    return start_of(day) + DAY_MS - 1


def deposit(day: date, number: int = 0, **fields: Any) -> dict[str, Any]:
    """One of many different deposits of the day, a second apart, as the exchange sends it."""
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
    """What should land: the rows that the exchange has, with what was asked for where they do not say it."""
    lbank = sandbox.lbank
    match name:
        case "invite_user_list":
            return lbank.invite_users(day)
        case "invite_user_team_list":
            return lbank.invite_team(day)
        case "invite_user_info":
            asked_about = dict.fromkeys(agents(sandbox) + traders(sandbox))
            return [lbank.user_info(open_id) for open_id in asked_about if open_id != OWN_OPEN_ID]
        case "commission_stats_symbol_list":
            return lbank.commissions(day)
        case "trade_user":
            return [{**row, "tradeType": kind} for kind in (0, 1) for row in lbank.trades(day, kind)]
        case "trade_user_team":
            return [{**row, "tradeType": kind} for kind in (0, 1) for row in lbank.team_trades(day, kind)]
        case "trade_future":
            return [{**lbank.future(day, scope), "openId": OWN_OPEN_ID, "userType": scope} for scope in SCOPES]
        case "money_detail_list":
            asked = {"userType": "ALL"}
            return [{**row, **asked, "requestedSubInOutType": kind} for kind in KINDS for row in lbank.money(day, kind)]
    raise AssertionError(name)


def agents(sandbox) -> list[str]:
    """Ours and every agent's openId."""
    return [OWN_OPEN_ID, *(user["openId"] for user in sandbox.lbank.users if 1 <= user["userLevel"] <= 21)]


def traders(sandbox) -> list[str]:
    return [OWN_OPEN_ID, *(user["openId"] for user in sandbox.lbank.users if user["transaction"])]


def questions(sandbox, name: str, days: Sequence[date] = DAYS) -> int:
    """How many requests the days are worth where every answer is one page."""
    chunks = len({(day.year, day.month) for day in days})
    match name:
        case "invite_user_list" | "invite_user_team_list":
            return chunks
        case "commission_stats_symbol_list":
            return chunks * len(agents(sandbox))
        case "trade_user":
            return chunks * 2 * len(traders(sandbox))
        case "trade_user_team":
            return chunks * 2 * len(agents(sandbox))
        case "trade_future":
            return len(days) * len(SCOPES)
        case "money_detail_list":
            return chunks * len(KINDS)
    raise AssertionError(name)


def sent(rows: Iterable[Mapping[str, Any]]) -> Counter:
    """These rows as `landed` gives them; a null is as good as nothing."""
    return Counter(
        frozenset((_snake(name), _text(value)) for name, value in row.items() if value is not None) for row in rows
    )


def landed(query, name: str, day: date) -> Counter:
    """The day's rows as (column, text) pairs without nulls: amounts with their scale, instants in milliseconds."""
    columns = query(
        "select column_name, data_type from information_schema.columns where table_schema = 'lbank' "
        "and table_name = %s and column_name not in ('partition_date', 'landed_at', 'run_id')",
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


def asked(sandbox, name: str) -> list:
    """The requests to the endpoint."""
    return [request for request in sandbox.requests if request.path == PATH[name]]


def plan(database_url: str, name: str, days: Sequence[date]) -> RequestPlan:
    with Store(database_url) as store, connected(ENDPOINT[name], store, configured().variables) as session:
        return plan_of(ENDPOINT[name], days, session=session, store=store)


def _snake(name: str) -> str:
    return re.sub("([A-Z])", r"_\1", name).lower()


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
