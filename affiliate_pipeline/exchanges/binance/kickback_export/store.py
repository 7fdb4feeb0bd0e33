"""The collections of the history file in the database: what `exchanges.binance.collection.CollectionStore` is. Which state
follows from what is decided there; here it is only written, each change in one statement."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from typing import Any

import psycopg
from psycopg.rows import class_row

from affiliate_pipeline.exchanges.binance.kickback_export.model import Collection
from affiliate_pipeline.postgres import ddl
from affiliate_pipeline.postgres.connection import (
    Lock,
    connect,
    connect_prepared,
    execute_once,
    explained,
    try_lock,
    unavailable,
    unlock,
)

TABLE = "binance.kickback_historical_collection"
# It is asked for the file the more seldom, the longer it takes: every 20th part of the time waited so far.
LEAST_POLL_S, MOST_POLL_S, POLLS_PER_WAIT = 10, 600, 20
_COLUMNS = (
    "id, first_day, last_day, state, requested_at, code, msg, path_before, path, msg is not null as is_asked, "
    "coalesce(expires_at < now(), false) as is_overdue, "
    f"coalesce(now() >= polled_at + least({MOST_POLL_S}, greatest({LEAST_POLL_S}, "
    f"extract(epoch from now() - coalesce(requested_at, created_at)) / {POLLS_PER_WAIT})) * interval '1 second', true) as is_due, "
    "extract(epoch from now() - created_at)::float8 as age_s, "
    f"file is not null as is_kept, note, exists (select from {TABLE} later where later.follows = {TABLE}.id) as is_followed, "
    f"(with recursive turn as (select {TABLE}.follows as before union all "
    f"select earlier.follows from {TABLE} earlier join turn on earlier.id = turn.before) select count(*) from turn) as turn"
)
_IN_VAIN = (
    "polled_at = now(), note = %(note)s, expires_at = coalesce(expires_at, now() + %(wait_s)s * interval '1 second')"
)
# While a run had its file somebody may have given it up, and another one may be under way in its place.
_NOT_GIVEN_UP = "state <> 'expired'"


def is_any_open(url: str) -> bool:
    """Whether any collection, of whatever source, waits for something to be done with it."""
    with connect(url, autocommit=True) as connection, unavailable():
        row = connection.execute("select to_regclass(%s) is null", (TABLE,)).fetchone()
        if row and row[0]:
            return False
        row = connection.execute(
            f"select exists (select from {TABLE} where state in ('waiting', 'collecting', 'ready') "
            "or state = 'expired' and not told)"
        ).fetchone()
        return bool(row and row[0])


class Collections:
    """The collections of one source, which is one key at one exchange."""

    def __init__(self, url: str, source: str):
        self._source = source
        self._connection = connect_prepared(url, autocommit=True)
        try:
            with unavailable():
                row = self._connection.execute("select to_regclass(%s) is null", (TABLE,)).fetchone()
            if row and row[0]:
                execute_once(self._connection, ddl.COLLECTION)
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Whether nobody else moves this source's collections meanwhile. Gone with the process that holds it."""
        lock = Lock("affiliate_pipeline.collection", self._source)
        if not try_lock(self._connection, lock, "the collections of the history"):
            yield False
            return
        try:
            yield True
        finally:
            unlock(self._connection, lock)

    def open(self) -> list[Collection]:
        """Those that wait, are collected or can be landed, in the order they were asked for."""
        return self._collections("state in ('waiting', 'collecting', 'ready') order by id", {})

    def covering(self, days: Iterable[date]) -> dict[date, Collection]:
        """The collection that has the day or comes nearest to having it."""
        wanted = list(days)
        found = self._collections(
            "state <> 'expired' and last_day >= %(first)s and first_day <= %(last)s "
            "order by array_position(array['ready', 'collecting', 'waiting', 'landed'], state), id desc",
            {"first": min(wanted), "last": max(wanted)},
        )
        firsts = {day: next((each for each in found if each.covers(day)), None) for day in wanted}
        return {day: collection for day, collection in firsts.items() if collection}

    def get(self, number: int) -> Collection:
        (found,) = self._collections("id = %(id)s", {"id": number})
        return found

    def expired_untold(self) -> list[Collection]:
        """Those that expired and that nobody was told of."""
        return self._collections("state = 'expired' and not told order by id", {})

    def add(self, first: date, last: date) -> int:
        return self._run(
            f"insert into {TABLE} (source, first_day, last_day) values (%s, %s, %s) returning id",
            (self._source, first, last),
        ).fetchone()[0]

    def forgotten(self, number: int, until: date, note: str) -> None:
        """Its days up to that one are given up, as one that expired; the others are still to be asked for."""
        with unavailable(), self._connection.transaction():
            self._run(
                f"insert into {TABLE} (source, first_day, last_day, state, note) "
                f"select source, first_day, %s, 'expired', %s from {TABLE} where id = %s",
                (until, note, number),
            )
            self._set(number, "first_day = %(until)s::date + 1", until=until)

    def begin(self, number: int, path_before: str | None) -> bool:
        """The exchange is about to be asked for its days; from here on it may have been. False if another one turns out to
        be under way: its turn has not come."""
        try:
            self._connection.execute(
                f"update {TABLE} set state = 'collecting', path_before = %s, requested_at = now(), polled_at = null "
                "where id = %s",
                (path_before, number),
            )
        except psycopg.errors.UniqueViolation:
            return False
        except psycopg.Error as error:
            raise explained(error) from None
        return True

    def asked(self, number: int, code: int | None, msg: str, wait_s: float) -> None:
        """The exchange has answered, and is given so long."""
        self._set(
            number,
            "code = %(code)s, msg = %(msg)s, expires_at = now() + %(wait_s)s * interval '1 second'",
            code=code,
            msg=msg,
            wait_s=wait_s,
        )

    def wait(self, number: int, note: str, wait_s: float) -> None:
        """The exchange was surely not asked; it will be again, for so long from the first time on."""
        self._set(number, f"state = 'waiting', requested_at = null, {_IN_VAIN}", note=note, wait_s=wait_s)

    def pending(self, number: int, note: str, wait_s: float) -> None:
        """There is no file yet; it is looked for so long, unless the exchange was given another time."""
        self._set(number, f"state = 'collecting', {_IN_VAIN}", _NOT_GIVEN_UP, note=note, wait_s=wait_s)

    def ready(self, number: int, path: str, wait_s: float) -> None:
        """Its file is there, and is to be landed within that time."""
        self._set(
            number,
            "state = 'ready', path = %(path)s, polled_at = now(), expires_at = now() + %(wait_s)s * interval '1 second', "
            "note = null",
            path=path,
            wait_s=wait_s,
        )

    def refuse(self, number: int, path: str, note: str) -> None:
        """That file is not the one asked for: it goes on being waited for."""
        self._set(
            number,
            "state = 'collecting', path = null, file = null, other_paths = other_paths || %(path)s::text, note = %(note)s",
            _NOT_GIVEN_UP,
            path=path,
            note=note,
        )

    def is_another(self, number: int, path: str) -> bool:
        """Whether the file is known not to be this collection's."""
        row = self._run(
            f"select exists (select from {TABLE} where source = %(source)s and case when id = %(id)s "
            "then path_before = %(path)s or %(path)s = any(other_paths) "
            "else %(path)s in (path, path_before) or %(path)s = any(other_paths) end)",
            {"source": self._source, "id": number, "path": path},
        ).fetchone()
        return bool(row and row[0])

    def keep(self, number: int, file: bytes, note: str) -> None:
        """The file could not be understood: it is kept, so that it can be landed once it is."""
        self._set(number, "file = %(file)s, note = %(note)s", file=file, note=note)

    def kept(self, number: int) -> bytes | None:
        row = self._run(f"select file from {TABLE} where id = %s", (number,)).fetchone()
        return row[0] if row else None

    def landed(self, number: int, asset: str) -> None:
        """It has landed if each of its days has since it was asked for, or has rows that wait for a mended schema."""
        self._run(
            f"update {TABLE} set state = 'landed', file = null, note = null where id = %(id)s and not exists ("
            "select from generate_series(first_day, last_day, '1 day') day "
            "where not exists (select from affiliate.landing where asset = %(asset)s and partition = day::date "
            "and checked_at >= requested_at) and not exists (select from affiliate.rejected_row "
            "where asset = %(asset)s and partition = day::date "
            "and rejected_at >= date_trunc('milliseconds', requested_at)))",
            {"id": number, "asset": asset},
        )

    def expire(self, number: int, note: str, *, again: bool) -> None:
        """It is given up; `again`: another one for the same days takes its place in the queue's end."""
        with unavailable(), self._connection.transaction():
            self._set(number, "state = 'expired', note = %(note)s", note=note)
            if again:
                self._run(
                    f"insert into {TABLE} (source, first_day, last_day, follows) "
                    f"select source, first_day, last_day, id from {TABLE} where id = %s",
                    (number,),
                )

    def told(self, number: int) -> None:
        self._set(number, "told = true")

    def _collections(self, condition: str, values: Mapping[str, Any]) -> list[Collection]:
        with unavailable(), self._connection.cursor(row_factory=class_row(Collection)) as cursor:
            cursor.execute(
                f"select {_COLUMNS} from {TABLE} where source = %(source)s and {condition}",
                {"source": self._source, **values},
            )
            return cursor.fetchall()

    def _set(self, number: int, change: str, condition: str = "true", **values: Any) -> None:
        self._run(f"update {TABLE} set {change} where id = %(id)s and {condition}", {**values, "id": number})

    def _run(self, statement: str, values: Any) -> psycopg.Cursor:
        with unavailable():
            return self._connection.execute(statement, values)
