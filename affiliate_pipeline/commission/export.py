"""Exports a range of days from one snapshot: CSV as PostgreSQL writes it, Parquet without rounding."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any, BinaryIO

import pyarrow as arrow
from psycopg import sql
from pyarrow import parquet

from affiliate_pipeline.landing.store import Store
from affiliate_pipeline.postgres.errors import unavailable

ROWS_PER_READ = 20_000
MAX_DIGITS_128, MAX_DIGITS_256 = 38, 76
# JSON stays the database's text: parsed, its numbers would become floats.
PARQUET_TYPES = {
    "text": arrow.string(),
    "jsonb": arrow.string(),
    "int2": arrow.int16(),
    "int4": arrow.int32(),
    "int8": arrow.int64(),
    "bool": arrow.bool_(),
    "date": arrow.date32(),
    "timestamptz": arrow.timestamp("us", "UTC"),
}


@dataclass(frozen=True)
class Column:
    """A PostgreSQL column; for `numeric`, the digits its values need before and after the point."""

    name: str
    kind: str
    before: int = 0
    after: int = 0

    @property
    def parquet_type(self) -> arrow.DataType:
        """A decimal wide enough for every value, or text where there is none."""
        if self.kind != "numeric":
            return PARQUET_TYPES[self.kind]
        digits = self.before + self.after
        if digits <= MAX_DIGITS_128:
            return arrow.decimal128(MAX_DIGITS_128, self.after)
        return arrow.decimal256(MAX_DIGITS_256, self.after) if digits <= MAX_DIGITS_256 else arrow.string()


class Extract:
    """The rows of a range of days, ordered by day. Use it only inside `extract`."""

    def __init__(self, store: Store, table: sql.Identifier, first: date, last: date):
        self._connection = store.connection
        self._part = sql.SQL("{} where partition_date between {} and {}").format(table, first, last)

    def _rows(self, selected: sql.Composable) -> sql.Composed:
        return sql.SQL("select {} from {} order by partition_date").format(selected, self._part)

    def write_csv(self, output: BinaryIO) -> None:
        """Writes the rows with a header, every amount as the database has it."""
        copy = sql.SQL("copy ({}) to stdout (format csv, header)").format(self._rows(sql.SQL("*")))
        with self._connection.cursor() as cursor, cursor.copy(copy) as blocks:
            for block in blocks:
                output.write(block)

    def write_parquet(self, output: BinaryIO) -> list[Column]:
        """Writes the rows as Parquet and returns the columns. `output` must support `tell()`."""
        columns = self._columns()
        schema = arrow.schema([(column.name, column.parquet_type) for column in columns])
        selected = sql.SQL(", ").join(
            sql.SQL("{}::text" if column.kind == "jsonb" else "{}").format(sql.Identifier(column.name))
            for column in columns
        )
        with (
            self._connection.cursor(name="extract") as cursor,
            parquet.ParquetWriter(output, schema) as writer,
        ):
            cursor.execute(self._rows(selected))
            while batch := cursor.fetchmany(ROWS_PER_READ):
                arrays = [
                    arrow.array([_value(cell, kind) for cell in cells], kind)
                    for cells, kind in zip(zip(*batch, strict=True), schema.types, strict=True)
                ]
                writer.write_table(arrow.table(arrays, schema=schema))
        return columns

    def _columns(self) -> list[Column]:
        described = self._connection.execute(sql.SQL("select * from {} limit 0").format(self._part)).description or []
        types = self._connection.adapters.types
        kinds = {column.name: types[column.type_code].name for column in described}
        numeric = [name for name, kind in kinds.items() if kind == "numeric"]
        digits = self._digits(numeric) if numeric else {}
        return [Column(name, kind, *digits.get(name, ())) for name, kind in kinds.items()]

    def _digits(self, names: Sequence[str]) -> dict[str, tuple[int, int]]:
        each = [
            sql.SQL("coalesce(max(length(trunc(abs({0}))::text)), 1), coalesce(max(scale({0})), 0)").format(
                sql.Identifier(name)
            )
            for name in names
        ]
        found = self._connection.execute(sql.SQL("select {} from {}").format(sql.SQL(", ").join(each), self._part))
        [numbers] = found.fetchall()
        return dict(zip(names, zip(numbers[::2], numbers[1::2], strict=True), strict=True))


def _value(cell: Any, kind: arrow.DataType) -> Any:
    return f"{cell:f}" if isinstance(cell, Decimal) and arrow.types.is_string(kind) else cell


@contextmanager
def extract(store: Store, table: str, first: date, last: date) -> Generator[Extract | None]:
    """An export from one snapshot of a known table (`schema.name`), or None if the table does not exist yet."""
    with unavailable(), store.connection.transaction():
        run = store.connection.execute
        run("set transaction isolation level repeatable read, read only")
        [(exists,)] = run("select to_regclass(%s) is not null", (table,)).fetchall()
        yield Extract(store, sql.Identifier(*table.split(".")), first, last) if exists else None
