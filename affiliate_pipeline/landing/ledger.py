"""The ledger of landed days as a query, for tables that are derived from several assets."""

from collections.abc import Sequence
from datetime import date, datetime

import psycopg
from psycopg import sql


def by_day(assets: Sequence[str]) -> sql.Composed:
    """Selects the days that any of the assets has landed: `partition`, `inputs` (a fingerprint of the contents),
    `landed_at` (the latest) and `settled` (a JSON object by asset)."""
    # Fingerprint the contents: landing times do not identify what was read, since transactions overlap.
    return sql.SQL(
        "select partition, md5(string_agg(asset || ' ' || content_hash || ' ' || settled, ',' order by asset)) as inputs, "
        "max(landed_at) as landed_at, jsonb_object_agg(asset, settled) as settled "
        "from affiliate.landing where asset = any({}) group by partition"
    ).format(list(assets))


def handled_at(connection: psycopg.Connection, asset: str, days: Sequence[date]) -> dict[date, datetime]:
    """When each of the asset's days last landed, was compared, or had its rows rejected; other days are missing."""
    return dict(
        connection.execute(
            "select partition, max(at) from (select asset, partition, checked_at as at from affiliate.landing "
            "union all select asset, partition, rejected_at from affiliate.rejected_row) each "
            "where asset = %s and partition = any(%s) group by partition",
            (asset, list(days)),
        ).fetchall()
    )
