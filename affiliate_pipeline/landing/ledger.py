"""The ledger: one row per asset and day that has landed. Only this module names its table."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final, LiteralString

from psycopg import Connection, sql

from affiliate_pipeline.exchanges.identity import Key
from affiliate_pipeline.postgres.errors import as_store_unavailable
from affiliate_pipeline.postgres.locks import Lock

TABLE: Final = "affiliate.landing"
PRIVILEGES = {TABLE: "select insert update"}
_COLUMNS: Final = "partition, rows, content_hash, settled, source, landed_at, checked_at"


@dataclass(frozen=True)
class LedgerEntry:
    """A landed day: `landed_at` is its last write, `checked_at` its last write or confirmation."""

    partition: date
    rows: int
    content_hash: str
    settled: bool
    source: str
    landed_at: datetime
    checked_at: datetime


Ledgers = Mapping[str, Mapping[date, LedgerEntry]]


def day_lock(asset: str, day: date) -> Lock:
    """The lock of a transaction that writes the day."""
    # Not the asset's lock: a pooler may keep a session open that still holds it, and that must not block the transaction.
    return Lock("affiliate_pipeline.day", f"{asset} {day}")


def entries(connection: Connection[Any], asset: str, days: Iterable[date] | None = None) -> Mapping[date, LedgerEntry]:
    """The asset's landed days in order; with `days`, only those among them."""
    among = None if days is None else list(days)
    condition = "asset = %s and (%s::date[] is null or partition = any(%s))"
    return _read(connection, condition, asset, among, among).get(asset, {})


def entries_since(connection: Connection[Any], first: date = date.min) -> Ledgers:
    """By asset, the landed days from `first` on and the earliest landed day, in order."""
    earliest = f"(asset, partition) in (select asset, min(partition) from {TABLE} group by asset)"
    return _read(connection, f"partition >= %s or {earliest}", first)


def _read(connection: Connection[Any], condition: LiteralString, *values: object) -> Ledgers:
    ledgers: dict[str, dict[date, LedgerEntry]] = {}
    with as_store_unavailable(), connection.transaction():
        rows = connection.execute(
            f"select asset, {_COLUMNS} from {TABLE} where {condition} order by asset, partition", values
        )
        for asset, *columns in rows:
            entry = LedgerEntry(*columns)
            ledgers.setdefault(asset, {})[entry.partition] = entry
    return ledgers


def assets(connection: Connection[Any]) -> list[str]:
    """The assets that have landed any day, in order."""
    with as_store_unavailable(), connection.transaction():
        return [asset for (asset,) in connection.execute(f"select distinct asset from {TABLE} order by asset")]


def has_landed(connection: Connection[Any], key: Key, fingerprint: str) -> bool:
    """Whether a day of the account and role of `key` was fetched with the API key of this fingerprint, at any host.

    The fingerprint is that of `key` itself or of another API key of the account.
    """
    # Assets of the account are named `<account>/<endpoint>`; a source is the host, the role (if any) and the fingerprint.
    account = f"{key.exchange}/{key.alias}" if key.alias else key.exchange
    source_pattern = f"^[^ ]+ ({key.role} )?{fingerprint}$"
    with as_store_unavailable(), connection.transaction():
        cursor = connection.execute(
            f"select from {TABLE} where regexp_replace(asset, '/[^/]*$', '') = %s and source ~ %s limit 1",
            (account, source_pattern),
        )
        return cursor.rowcount > 0


def exists(connection: Connection[Any]) -> bool:
    """Whether the ledger's table exists, for readers that must not create it."""
    with as_store_unavailable(), connection.transaction():
        ((table_exists,),) = connection.execute("select to_regclass(%s) is not null", (TABLE,)).fetchall()
    return table_exists


def missing_since(
    connection: Connection[Any], days: Mapping[str, Collection[date]], since: datetime
) -> dict[str, frozenset[date]]:
    """By asset, those of its `days` that have neither landed nor been confirmed at `since` or later."""
    missing: dict[str, frozenset[date]] = {}
    for asset, expected in days.items():
        landed = entries(connection, asset, expected)
        confirmed = {day for day, entry in landed.items() if entry.checked_at >= since}
        missing[asset] = frozenset(expected) - confirmed
    return missing


def write(
    connection: Connection[Any],
    asset: str,
    day: date,
    run_id: str,
    rows: int,
    content_hash: str,
    settled: bool,
    source: str,
) -> None:
    """Record a landed day, in the transaction that writes its rows."""
    connection.execute(
        f"insert into {TABLE} "
        "(asset, partition, rows, content_hash, settled, source, landed_at, checked_at, run_id) "
        "values (%s, %s, %s, %s, %s, %s, now(), now(), %s) "
        "on conflict (asset, partition) do update set "
        "rows = excluded.rows, content_hash = excluded.content_hash, settled = excluded.settled, "
        "source = excluded.source, landed_at = excluded.landed_at, checked_at = excluded.checked_at, "
        "run_id = excluded.run_id",
        (asset, day, rows, content_hash, settled, source, run_id),
    )


def confirm(connection: Connection[Any], asset: str, day: date, *, settled: bool) -> None:
    """Record that the source still has exactly the landed rows, and whether the day has now settled."""
    connection.execute(
        f"update {TABLE} set checked_at = now(), settled = %s where asset = %s and partition = %s",
        (settled, asset, day),
    )


def by_day(assets: Sequence[str]) -> sql.Composed:
    """A query for the days that any of the assets has landed.

    Columns: `partition`, `inputs` (a fingerprint of the contents), `landed_at` (the latest) and `settled` (a JSON
    object by asset).
    """
    # `inputs` is not a time: transactions overlap, so a time would not identify the content that was read.
    return sql.SQL(
        "select partition, "
        "md5(string_agg(asset || ' ' || content_hash || ' ' || settled, ',' order by asset)) as inputs, "
        "max(landed_at) as landed_at, "
        "jsonb_object_agg(asset, settled) as settled "
        "from {} where asset = any({}) "
        "group by partition"
    ).format(sql.Identifier(*TABLE.split(".")), list(assets))
