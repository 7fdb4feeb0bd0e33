"""Kickback rows for the sandbox, and what the tables contain of them. Contains no tests."""

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any

import pytest

from affiliate_pipeline.exchanges.binance.kickback_export.exports import KickbackExports
from affiliate_pipeline_tests.defs.rebates import ago, at

RECENT = "binance/kickback_recent_record"
REQUEST = "binance/kickback_historical_request"
HISTORY = "binance/kickback_historical_record"
PATH = "/sapi/v1/apiReferral/kickback/historicalRecord"
# Expired at the recent records' endpoint; retained by the history endpoint even if midnight passes during the tests.
OLD = [ago(10), ago(9)]


def kickback(time_ms: int, number: int = 0, **fields: Any) -> dict[str, Any]:
    return {"income": f"0.0001{number:04d}", "asset": "USDT", "symbol": "BTCUSDT", "time": time_ms} | fields


def kickbacks(day: date, count: int) -> list[dict[str, Any]]:
    """Distinct rows at whole seconds in two coins, including the first and last second of the day."""
    seconds = [i * 86_399 // max(1, count - 1) for i in range(count)]
    return [
        kickback(at(day, "00:00:00.000") + second * 1000, number, asset=("USDT", "BNB")[number % 2])
        for number, second in enumerate(seconds)
    ]


def landed(query, key: str, day: date) -> Counter:
    """The day's rows as text: amounts with their scale, times in milliseconds."""
    return Counter(
        query(
            "select income::text, asset, symbol, (extract(epoch from time) * 1000)::bigint::text "
            f"from {key.replace('/', '.')} where partition_date = %s",
            day,
        )
    )


def sent(rows: Iterable[Mapping[str, Any]]) -> Counter:
    """These rows in the form of `landed`."""
    return Counter((str(row["income"]), row["asset"], row["symbol"], str(row["time"])) for row in rows)


def posts(sandbox) -> list[dict[str, str]]:
    """The parameters of every export request that the exchange received."""
    return [request.params for request in sandbox.requests if (request.method, request.path) == ("POST", PATH)]


def exports(query, columns: str = "state") -> list[tuple]:
    """These columns of every export, oldest first."""
    return query(f"select {columns} from binance.kickback_historical_collection order by id")


class Killed(BaseException):
    """Simulates the death of the process; no code of the pipeline suppresses it."""


def kill_before(monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    """Raise `Killed` before this update of an export: `mark_collecting`, a column's name, or `state=…`.

    `mark_collecting` precedes the POST; `msg` follows it, so that its response is not recorded.
    """
    update = KickbackExports.update

    def killed(*_: object) -> None:
        raise Killed

    def update_or_die(self: KickbackExports, export: Any, **columns: Any) -> None:
        if change in columns or change == f"state={columns.get('state')}":
            raise Killed
        update(self, export, **columns)

    if change == "mark_collecting":
        monkeypatch.setattr(KickbackExports, "mark_collecting", killed)
    else:
        monkeypatch.setattr(KickbackExports, "update", update_or_die)
