"""Reads the days of a table for whoever takes them elsewhere: as CSV text or as rows, all as of one moment."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.string import TextLoader

from affiliate_pipeline.postgres.store import Store, unavailable

ROWS_PER_READ = 20_000


@dataclass(frozen=True)
class Column:
    """A column as PostgreSQL has it; of a `numeric` one, the digits before and after the point that its values need."""

    name: str
    kind: str
    before: int = 0
    after: int = 0


class Extract:
    """The rows of some days, in the order of days. To be used inside `extract`."""

    def __init__(self, connection: psycopg.Connection, table: sql.Identifier, first: date, last: date):
        self._connection = connection
        self._part = sql.SQL("{} where partition_date between {} and {}").format(table, first, last)
        self._rows = sql.SQL("select * from {} order by partition_date").format(self._part)

    def csv(self) -> Iterator[bytes]:
        """The rows with a header, every amount as the database writes it."""
        copy = sql.SQL("copy ({}) to stdout (format csv, header)").format(self._rows)
        with self._connection.cursor() as cursor, cursor.copy(copy) as copying:
            for block in copying:
                yield bytes(block)

    def columns(self) -> list[Column]:
        described = self._connection.execute(sql.SQL("{} limit 0").format(self._rows)).description or []
        kinds = [(column.name, self._connection.adapters.types[column.type_code].name) for column in described]
        numeric = [name for name, kind in kinds if kind == "numeric"]
        digits = self._digits(numeric) if numeric else {}
        return [Column(name, kind, *digits.get(name, ())) for name, kind in kinds]

    def _digits(self, names: list[str]) -> dict[str, tuple[int, int]]:
        each = [
            sql.SQL("coalesce(max(length(trunc(abs({0}))::text)), 1), coalesce(max(scale({0})), 0)").format(
                sql.Identifier(name)
            )
            for name in names
        ]
        row = self._connection.execute(sql.SQL("select {} from {}").format(sql.SQL(", ").join(each), self._part))
        found = row.fetchone() or ()
        return {name: (found[2 * at], found[2 * at + 1]) for at, name in enumerate(names)}

    def rows(self) -> Iterator[list[tuple[Any, ...]]]:
        """The rows in batches; amounts are Decimals with their scale, JSON is text."""
        with self._connection.cursor(name="extract") as cursor:
            # JSON as the database writes it: read, its numbers would become floats.
            cursor.adapters.register_loader("jsonb", TextLoader)
            cursor.execute(self._rows)
            while batch := cursor.fetchmany(ROWS_PER_READ):
                yield batch


@contextmanager
def extract(store: Store, table: str, first: date, last: date) -> Iterator[Extract | None]:
    """The days of a table (`schema.name`, one that the caller knows) as of one moment; None if it does not exist yet."""
    connection = store.connection
    with unavailable(), connection.transaction():
        connection.execute("set transaction isolation level repeatable read, read only")
        exists = connection.execute("select to_regclass(%s) is not null", (table,)).fetchone()
        yield Extract(connection, sql.Identifier(*table.split(".")), first, last) if exists and exists[0] else None
