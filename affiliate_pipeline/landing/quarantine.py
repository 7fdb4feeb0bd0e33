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
    common = (asset, day, run_id, why.source, why.requested_at, why.reason, why.complete)

    def replace(payloads: Iterable[str]) -> None:
        copy = f"copy {TABLE} (asset, partition, run_id, source, rejected_at, reason, complete, payload) from stdin"
        with connection.transaction():
            connection.execute(sql.SQL("select pg_advisory_xact_lock({})").format(day_lock(asset, day).key))
            drop(connection, asset, day)
            with connection.cursor() as cursor, cursor.copy(copy) as copying:
                for payload in payloads:
                    copying.write_row((*common, payload))

    with as_store_unavailable():
        if not why.complete and _has_better(connection, asset, day, sum(1 for _ in rows())):
            return False
        try:
            replace(rows())
        except DataError:
            # jsonb cannot represent every JSON text: store each row as a JSON string instead.
            replace(map(json.dumps, rows()))
    return True


def _has_better(connection: Connection[Any], asset: str, day: date, rows: int) -> bool:
    with connection.transaction():
        row = connection.execute(
            f"select coalesce(bool_or(complete), false) or count(*) > %s from {TABLE} where asset = %s and partition = %s",
            (rows, asset, day),
        ).fetchone()
    return bool(row and row[0])


def drop(connection: Connection[Any], asset: str, day: date) -> None:
    """Delete what was stored for the day, in the caller's transaction."""
    connection.execute(f"delete from {TABLE} where asset = %s and partition = %s", (asset, day))


def rejected(connection: Connection[Any], asset: str, day: date) -> tuple[Rejection, list[bytes]] | None:
    """Why the day did not land, and its stored rows; None if there are none."""
    with as_store_unavailable(), connection.transaction():
        found = connection.execute(
            "select source, rejected_at, reason, complete, "
            "case jsonb_typeof(payload) when 'string' then payload #>> '{}' else payload::text end "
            f"from {TABLE} where asset = %s and partition = %s",
            (asset, day),
        ).fetchall()
    return (Rejection(*found[0][:-1]), [payload.encode() for *_, payload in found]) if found else None


def handled_at(connection: Connection[Any], asset: str, days: Sequence[date]) -> dict[date, datetime]:
    """By day, the latest of: when it landed, was confirmed, or its rejected rows were requested.

    Days without any of these are missing.
    """
    handled = {day: entry.checked_at for day, entry in entries(connection, asset, days).items()}
    with as_store_unavailable(), connection.transaction():
        rows = connection.execute(
            f"select partition, max(rejected_at) from {TABLE} where asset = %s and partition = any(%s) group by 1",
            (asset, list(days)),
        ).fetchall()
    for day, at in rows:
        handled[day] = max(at, handled.get(day, at))
    return handled
