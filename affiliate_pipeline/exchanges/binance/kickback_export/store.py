"""The table of kickback exports, one row per request to the exchange. Which state comes next is decided in `advance`."""

from collections.abc import Collection
from contextlib import AbstractContextManager
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Final

from psycopg import sql
from psycopg.rows import class_row

from affiliate_pipeline.exchanges.binance.kickback_export.model import ASSET, KickbackExport
from affiliate_pipeline.exchanges.shared_state import HandledAt
from affiliate_pipeline.postgres.connection import connect
from affiliate_pipeline.postgres.errors import unavailable
from affiliate_pipeline.postgres.locks import Lock, try_locked
from affiliate_pipeline.postgres.migrations import Migrations
from affiliate_pipeline.postgres.table_store import TableStore

TABLE: Final = "binance.kickback_historical_collection"
# The sensor may be off for so long without an alert being lost.
_JUST_EXPIRED: Final = "state = 'expired' and coalesce(polled_at > now() - interval '3 days', false)"
# Polled every 10 seconds at first, and the less often the longer it takes, at least every 10 minutes.
_SELECT: Final = f"""
    select id, first_day, last_day, state, requested_at, code, msg, note, path, path_before, other_paths, expires_at,
        file is not null as is_kept, coalesce(expires_at < now(), false) as is_overdue,
        coalesce(now() >= polled_at + least(interval '10 minutes', greatest(interval '10 seconds',
            (now() - coalesce(requested_at, created_at)) / 20)), true) as is_due,
        {_JUST_EXPIRED} as is_just_expired, extract(epoch from now() - created_at)::float8 as age_s
    from {TABLE} where source = %s order by id
"""
# Of several exports of a day, the first of these has it, or will be the next to have it.
_NEAREST = ("ready", "collecting", "waiting", "landed")


def needs_attention(url: str) -> bool:
    """Whether an export of any account is open, or expired so recently that its alert may be missing."""
    with connect(url, autocommit=True) as connection, unavailable():
        if connection.execute("select to_regclass(%s)", (TABLE,)).fetchone() == (None,):
            return False
        is_open = "state in ('waiting', 'collecting', 'ready')"
        return connection.execute(f"select from {TABLE} where {is_open} or {_JUST_EXPIRED} limit 1").rowcount > 0


class KickbackExports(TableStore):
    """The exports of one source, which is one key at one exchange."""

    migrations = Migrations("binance", Path(__file__).parents[1] / "migrations")

    def __init__(self, url: str, source: str, handled_at: HandledAt) -> None:
        super().__init__(url)
        self._source, self._handled_at = source, handled_at

    def try_exclusive(self) -> AbstractContextManager[bool]:
        """Yields whether no other process changes this source's exports meanwhile."""
        lock = Lock("affiliate_pipeline.collection", self._source)
        return try_locked(self._connection, lock, "the exports of kickbacks")

    def all(self) -> list[KickbackExport]:
        """In the order they were added. A ready export becomes landed once each of its days has been handled since it was
        requested."""
        with unavailable(), self._connection.cursor(row_factory=class_row(KickbackExport)) as cursor:
            exports = cursor.execute(_SELECT, (self._source,)).fetchall()
        landed = [export for export in exports if export.state == "ready" and self._has_landed(export)]
        for export in landed:
            self.update(export, state="landed", file=None, note=None)
        return self.all() if landed else exports

    def get(self, number: int) -> KickbackExport:
        return next(export for export in self.all() if export.id == number)

    def open(self) -> list[KickbackExport]:
        """Exports that are waiting, collecting or ready."""
        return [export for export in self.all() if export.state in ("waiting", "collecting", "ready")]

    def covering(self, days: Collection[date]) -> dict[date, KickbackExport]:
        """The export that has the day, or will be the next to have it; days without one are missing."""
        candidates = [export for export in reversed(self.all()) if export.state in _NEAREST]
        candidates.sort(key=lambda export: _NEAREST.index(export.state))
        found = {day: next((each for each in candidates if each.covers(day)), None) for day in days}
        return {day: export for day, export in found.items() if export}

    def just_expired(self) -> list[KickbackExport]:
        """Exports whose alert may not have been raised yet."""
        return [export for export in self.all() if export.is_just_expired]

    def add(self, first: date, last: date) -> int:
        """The id of a new waiting export."""
        with unavailable():
            insert = f"insert into {TABLE} (source, first_day, last_day) values (%s, %s, %s) returning id"
            ((number,),) = self._connection.execute(insert, (self._source, first, last)).fetchall()
        return number

    def begin(self, export: KickbackExport, path_before: str | None) -> None:
        """Record that the POST is about to be sent. The table accepts no second collecting export of the source."""
        with unavailable():
            self._connection.execute(
                f"update {TABLE} set state = 'collecting', path_before = %s, requested_at = now() where id = %s",
                (path_before, export.id),
            )

    def update(self, export: KickbackExport, *, wait_s: float | None = None, **columns: Any) -> None:
        """Set columns of an export that no other process has given up; `wait_s`: it becomes overdue after that time."""
        changes = [sql.SQL("{} = {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in columns]
        if wait_s is not None:
            changes.append(sql.SQL("expires_at = now() + {} * interval '1 second'").format(wait_s))
        statement = sql.SQL(
            f"update {TABLE} set polled_at = now(), {{}} where id = %(id)s and state <> 'expired'"
        ).format(sql.SQL(", ").join(changes))
        with unavailable():
            self._connection.execute(statement, {**columns, "id": export.id})

    def kept_file(self, export: KickbackExport) -> bytes | None:
        with unavailable():
            ((file,),) = self._connection.execute(f"select file from {TABLE} where id = %s", (export.id,)).fetchall()
        return file

    def _has_landed(self, export: KickbackExport) -> bool:
        with unavailable():
            handled = self._handled_at(self._connection, ASSET, export.days)
        # Rejected rows have the time in milliseconds.
        since = export.requested_at and export.requested_at - timedelta(milliseconds=1)
        return since is not None and all(day in handled and handled[day] >= since for day in export.days)
