"""Rows, as received, of days that could not land. Only this module names their table."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Final

import psycopg
from psycopg import sql

from affiliate_pipeline.landing.ledger import day_lock, entries
from affiliate_pipeline.postgres.errors import unavailable

TABLE: Final = "affiliate.rejected_row"
RIGHTS = {TABLE: "select insert delete"}


@dataclass(frozen=True)
class Rejected:
    """What was received for a day: the rows as JSON texts, `complete` if they are all of the day's, and why they did not
    land."""

    source: str
    rejected_at: datetime
    reason: str
    complete: bool
    rows: list[bytes]


def keep(
    connection: psycopg.Connection[Any],
    asset: str,
    day: date,
    rows: Callable[[], Iterable[str]],
    *,
    run_id: str,
    source: str,
    reason: str,
    received_ms: int,
    complete: bool,
) -> None:
    """Keeps what was received for the day, in place of what was kept for it before.

    `rows` returns the JSON texts each time it is called. Incomplete rows replace neither complete ones nor more of them.
    """
    common = (asset, day, run_id, source, datetime.fromtimestamp(received_ms / 1000, UTC), reason, complete)
    with unavailable():
        if not complete and _has_better(connection, asset, day, sum(1 for _ in rows())):
            return
        try:
            _replace(connection, asset, day, common, rows())
        except psycopg.DataError:
            # jsonb cannot hold every JSON text: then each row is kept as a JSON string.
            _replace(connection, asset, day, common, map(json.dumps, rows()))


def _has_better(connection: psycopg.Connection[Any], asset: str, day: date, rows: int) -> bool:
    with connection.transaction():
        row = connection.execute(
            f"select coalesce(bool_or(complete), false) or count(*) > %s from {TABLE} where asset = %s and partition = %s",
            (rows, asset, day),
        ).fetchone()
    return bool(row and row[0])


def _replace(
    connection: psycopg.Connection[Any], asset: str, day: date, common: tuple[object, ...], payloads: Iterable[str]
) -> None:
    copy = f"copy {TABLE} (asset, partition, run_id, source, rejected_at, reason, complete, payload) from stdin"
    with connection.transaction():
        connection.execute(sql.SQL("select pg_advisory_xact_lock({})").format(day_lock(asset, day).key))
        drop(connection, asset, day)
        with connection.cursor() as cursor, cursor.copy(copy) as copying:
            for payload in payloads:
                copying.write_row((*common, payload))


def drop(connection: psycopg.Connection[Any], asset: str, day: date) -> None:
    """Drops what was kept for the day, in the transaction that lands it."""
    connection.execute(f"delete from {TABLE} where asset = %s and partition = %s", (asset, day))


def rejected(connection: psycopg.Connection[Any], asset: str, day: date) -> Rejected | None:
    """What is kept for the day."""
    with unavailable(), connection.transaction():
        found = connection.execute(
            "select source, rejected_at, reason, complete, "
            "case jsonb_typeof(payload) when 'string' then payload #>> '{}' else payload::text end "
            f"from {TABLE} where asset = %s and partition = %s",
            (asset, day),
        ).fetchall()
    if not found:
        return None
    source, rejected_at, reason, complete, _ = found[0]
    return Rejected(source, rejected_at, reason, complete, [payload.encode() for *_, payload in found])


def handled_at(connection: psycopg.Connection[Any], asset: str, days: Sequence[date]) -> dict[date, datetime]:
    """When each of the days last landed, was found unchanged, or had its rows rejected; other days are missing."""
    handled = {day: entry.checked_at for day, entry in entries(connection, asset, days).items()}
    with unavailable(), connection.transaction():
        rejected = connection.execute(
            f"select partition, max(rejected_at) from {TABLE} where asset = %s and partition = any(%s) group by 1",
            (asset, list(days)),
        ).fetchall()
    for day, at in rejected:
        handled[day] = max(at, handled.get(day, at))
    return handled
