"""The table of kickback exports, one row per request; `advance` explains their states."""

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

from psycopg import sql
from psycopg.rows import class_row

from affiliate_pipeline.domain.days import DAY, days_from, start_ms
from affiliate_pipeline.exchanges.shared_state import LandedOrRejectedAt
from affiliate_pipeline.postgres.connection import connect
from affiliate_pipeline.postgres.errors import as_store_unavailable
from affiliate_pipeline.postgres.locks import Lock, try_locked
from affiliate_pipeline.postgres.migrations import Migrations
from affiliate_pipeline.postgres.table_store import TableStore

TABLE: Final = "binance.kickback_historical_collection"
# The endpoints that request and land exports.
REQUESTED_BY = "kickback_historical_request"
LANDED_BY = "kickback_historical_record"
RETENTION = timedelta(days=30)
ZONE = ZoneInfo("UTC")
OPEN: Final = ("waiting", "collecting", "ready")
# The sensor may be off for this long without losing an alert. An expired export is not updated any more,
# so its `polled_at` is when it expired.
_JUST_EXPIRED: Final = "state = 'expired' and coalesce(polled_at > now() - interval '3 days', false)"
# The poll interval is a twentieth of the time since the request, at least 10 seconds and at most 10 minutes.
_SELECT: Final = f"""
    select id, first_day, last_day, state, requested_at, code, msg, note, path, path_before, other_paths, expires_at,
        file is not null as has_stored_file, coalesce(expires_at < now(), false) as is_overdue,
        coalesce(now() >= polled_at + least(
            interval '10 minutes',
            greatest(interval '10 seconds', (now() - coalesce(requested_at, created_at)) / 20)
        ), true) as is_due,
        {_JUST_EXPIRED} as is_just_expired, extract(epoch from now() - created_at)::float8 as age_s
    from {TABLE}
    where account = %s and source = any(%s)
    order by id
"""
# If several exports cover a day, the one that will land it first is preferred, and one that has landed it comes last;
# of those in one state, the newest is preferred.
_BY_PREFERENCE = ("ready", "collecting", "waiting", "landed")


@dataclass(frozen=True)
class KickbackExport:
    """Days that were, or will be, requested together.

    `msg` is the exchange's response to the POST, None until there is one; `note` is what happened last. `path` is that
    of the export's file; `path_before` and `other_paths` are those of files known to be another request's. `has_stored_file`:
    the file could not be read and is stored. `is_due`: it may be polled again; `is_overdue`: it has to expire;
    `is_just_expired`: its alert may not have been sent yet.
    """

    id: int
    first_day: date
    last_day: date
    state: str
    requested_at: datetime | None
    code: int | None
    msg: str | None
    note: str | None
    path: str | None
    path_before: str | None
    other_paths: list[str]
    expires_at: datetime | None
    has_stored_file: bool
    is_due: bool
    is_overdue: bool
    is_just_expired: bool
    age_s: float

    @property
    def days(self) -> list[date]:
        """All its days, in order."""
        return days_from(self.first_day, self.last_day)

    @property
    def start_ms(self) -> int:
        """The first millisecond of its days."""
        return start_ms(self.first_day, ZONE)

    @property
    def end_ms(self) -> int:
        """The first millisecond after its days."""
        return start_ms(self.last_day + DAY, ZONE)

    @property
    def requested_ms(self) -> int | None:
        """When (ms) the POST was last sent; None before that, and while it has to be sent again."""
        if self.state == "waiting" or self.requested_at is None:
            return None
        return int(self.requested_at.timestamp() * 1000)

    def covers(self, *days: date) -> bool:
        """Whether it has all of these days."""
        return all(self.first_day <= day <= self.last_day for day in days)


def is_retained(day: date, at_ms: int) -> bool:
    """Whether an export requested at `at_ms` has the whole day."""
    return start_ms(day, ZONE) >= at_ms - RETENTION // timedelta(milliseconds=1)


def needs_attention(url: str) -> bool:
    """Whether any account's export is open, or has just expired and may lack its alert."""
    with connect(url, autocommit=True) as connection, as_store_unavailable():
        if connection.execute("select to_regclass(%s)", (TABLE,)).fetchone() == (None,):
            return False
        query = f"select from {TABLE} where state = any(%s) or {_JUST_EXPIRED} limit 1"
        return connection.execute(query, (list(OPEN),)).rowcount > 0


class KickbackExports(TableStore):
    """The exports of one account, requested with any of its keys; `asset` lands them.

    `sources` are those of all its keys, and `source` is the current key's, which new exports get.
    """

    migrations = Migrations("binance", Path(__file__).parents[1] / "migrations")

    def __init__(
        self,
        url: str,
        account: str,
        asset: str,
        source: str,
        sources: Sequence[str],
        landed_or_rejected_at: LandedOrRejectedAt,
    ) -> None:
        super().__init__(url)
        self._account, self._asset, self._landed_or_rejected_at = account, asset, landed_or_rejected_at
        self._source, self._sources = source, list(sources)

    def try_exclusive(self) -> AbstractContextManager[bool]:
        """Lock the account's exports against other processes; yields whether that succeeded."""
        lock = Lock("affiliate_pipeline.collection", self._asset)
        return try_locked(self._connection, lock, "the exports of kickbacks")

    def refresh(self) -> list[KickbackExport]:
        """Mark the ready exports whose days have landed; return all exports in the order added.

        A ready export has landed once each of its days has landed, or had its rows rejected, since it was requested.
        """
        with as_store_unavailable(), self._connection.cursor(row_factory=class_row(KickbackExport)) as cursor:
            exports = cursor.execute(_SELECT, (self._account, self._sources)).fetchall()
        landed = [export for export in exports if export.state == "ready" and self._has_landed(export)]
        for export in landed:
            self.update(export, state="landed", file=None, note=None)
        return self.refresh() if landed else exports

    def all_open(self) -> list[KickbackExport]:
        """The exports that are waiting, collecting or ready, after a `refresh`."""
        return [export for export in self.refresh() if export.state in OPEN]

    def covering(self, days: Collection[date]) -> dict[date, KickbackExport]:
        """By day, the export that will land it first, otherwise the newest that has landed it.

        Days that no export has are not in the result. Calls `refresh`.
        """
        candidates = [export for export in reversed(self.refresh()) if export.state in _BY_PREFERENCE]
        candidates.sort(key=lambda export: _BY_PREFERENCE.index(export.state))
        by_day: dict[date, KickbackExport] = {}
        for day in days:
            preferred = next((export for export in candidates if export.covers(day)), None)
            if preferred:
                by_day[day] = preferred
        return by_day

    def add(self, first: date, last: date) -> int:
        """Add a waiting export; returns its id."""
        insert = f"insert into {TABLE} (account, source, first_day, last_day) values (%s, %s, %s, %s) returning id"
        ((export_id,),) = self._execute(insert, (self._account, self._source, first, last)).fetchall()
        return export_id

    def expire_first_days(self, export: KickbackExport, expired: Sequence[date], note: str) -> None:
        """Cut the export to its first days, `expired`, and expire it; its other days become a new export."""
        retained = export.days[len(expired) :]
        # In one transaction: otherwise a killed process could leave the other days in two exports.
        with as_store_unavailable(), self._connection.transaction():
            if retained:
                self.add(retained[0], retained[-1])
            self.update(export, state="expired", last_day=expired[-1], note=note)

    def mark_collecting(self, export: KickbackExport, path_before: str | None) -> None:
        """Record that the POST is about to be sent; fails if another export of the source is collecting."""
        self._execute(
            f"update {TABLE} set state = 'collecting', path_before = %s, requested_at = now() where id = %s",
            (path_before, export.id),
        )

    def update(self, export: KickbackExport, *, wait_s: float | None = None, **columns: Any) -> None:
        """Set these columns, and `polled_at` to now, unless the export has expired.

        Also set `expires_at`, after which the export is overdue, to `wait_s` from now; None leaves it unchanged.
        """
        changes = [sql.SQL("{} = {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in columns]
        if wait_s is not None:
            changes.append(sql.SQL("expires_at = now() + {} * interval '1 second'").format(wait_s))
        statement = sql.SQL(
            "update {table} set polled_at = now(), {changes} where id = %(id)s and state <> 'expired'"
        ).format(table=sql.SQL(TABLE), changes=sql.SQL(", ").join(changes))
        self._execute(statement, {**columns, "id": export.id})

    def stored_file(self, export: KickbackExport) -> bytes | None:
        """The file that could not be read, as received; None if none is stored."""
        ((file,),) = self._execute(f"select file from {TABLE} where id = %s", (export.id,)).fetchall()
        return file

    def _has_landed(self, export: KickbackExport) -> bool:
        with as_store_unavailable():
            latest_by_day = self._landed_or_rejected_at(self._connection, self._asset, export.days)
        if export.requested_at is None:
            return False
        # The times of rejected rows are cut to milliseconds.
        since = export.requested_at - timedelta(milliseconds=1)
        return all(day in latest_by_day and latest_by_day[day] >= since for day in export.days)
