"""Raw rows of days that could not land. Only this module names their table."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final

from psycopg import Connection, DataError, sql

from affiliate_pipeline.landing.ledger import day_lock, entries
from affiliate_pipeline.postgres.errors import as_store_unavailable

TABLE: Final = "affiliate.rejected_row"
PRIVILEGES = {TABLE: "select insert delete"}


@dataclass(frozen=True)
class Rejection:
    """Why a day's rows did not land. `complete`: these are all rows of the day, so they may land with `from_rejected`.

    `requested_at`: when the run started or, if earlier, when the oldest response was requested (exchange time).
    """

    source: str
    requested_at: datetime
    reason: str
    complete: bool


def store(
    connection: Connection[Any], asset: str, day: date, run_id: str, why: Rejection, rows: Callable[[], Iterable[str]]
) -> bool:
    """Store what was received for the day, replacing what was stored before; return whether it was stored.

    `rows` returns the JSON texts at each call. Incomplete rows replace neither complete ones nor a larger number of
    incomplete ones.
    """
    # In the order of the columns below; the column `rejected_at` has when the rows were requested.
    shared_values = (asset, day, run_id, why.source, why.requested_at, why.reason, why.complete)

    def replace(payloads: Iterable[str]) -> None:
        copy = f"copy {TABLE} (asset, partition, run_id, source, rejected_at, reason, complete, payload) from stdin"
        with connection.transaction():
            connection.execute(sql.SQL("select pg_advisory_xact_lock({})").format(day_lock(asset, day).key))
            drop(connection, asset, day)
            with connection.cursor() as cursor, cursor.copy(copy) as copying:
                for payload in payloads:
                    copying.write_row((*shared_values, payload))

    with as_store_unavailable():
        if not why.complete:
            row_count = sum(1 for _ in rows())
            if _has_better(connection, asset, day, row_count):
                return False
        try:
            replace(rows())
        except DataError:
            # jsonb cannot represent every JSON text: store each row as a JSON string, as some of them may be already.
            replace(row if row.startswith('"') else json.dumps(row) for row in rows())
    return True


def _has_better(connection: Connection[Any], asset: str, day: date, row_count: int) -> bool:
    """Whether all rows of the day are stored, or more than `row_count` of them."""
    with connection.transaction():
        ((has_better,),) = connection.execute(
            "select coalesce(bool_or(complete), false) or count(*) > %s "
            f"from {TABLE} where asset = %s and partition = %s",
            (row_count, asset, day),
        ).fetchall()
    return has_better


def drop(connection: Connection[Any], asset: str, day: date) -> None:
    """Delete what was stored for the day, in the caller's transaction."""
    connection.execute(f"delete from {TABLE} where asset = %s and partition = %s", (asset, day))


def rejected(connection: Connection[Any], asset: str, day: date) -> tuple[Rejection, list[bytes]] | None:
    """Why the day did not land, and its stored rows; None if there are none."""
    with as_store_unavailable(), connection.transaction():
        stored = connection.execute(
            "select source, rejected_at as requested_at, reason, complete, "
            # A row that jsonb cannot represent is stored as a JSON string (see `store`): unwrap it.
            "case jsonb_typeof(payload) when 'string' then payload #>> '{}' else payload::text end "
            f"from {TABLE} where asset = %s and partition = %s",
            (asset, day),
        ).fetchall()
    if not stored:
        return None
    # These are the same in all rows.
    source, requested_at, reason, complete, _ = stored[0]
    rows = [payload.encode() for *_, payload in stored]
    return Rejection(source, requested_at, reason, complete), rows


def landed_or_rejected_at(connection: Connection[Any], asset: str, days: Sequence[date]) -> dict[date, datetime]:
    """By day, the latest of: when it landed, was confirmed, or its rejected rows were requested.

    Days without any of these are missing.
    """
    latest_by_day = {day: entry.checked_at for day, entry in entries(connection, asset, days).items()}
    with as_store_unavailable(), connection.transaction():
        rows = connection.execute(
            f"select partition, max(rejected_at) from {TABLE} where asset = %s and partition = any(%s) group by 1",
            (asset, list(days)),
        ).fetchall()
    for day, requested_at in rows:
        latest_by_day[day] = max(requested_at, latest_by_day.get(day, requested_at))
    return latest_by_day
