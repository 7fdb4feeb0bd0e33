"""Exports of a table's rows from one snapshot: CSV, workbooks and Parquet, all without rounding."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from functools import cached_property
from itertools import chain
from typing import Any, BinaryIO

import pyarrow as arrow
from psycopg import sql
from pyarrow import parquet

from affiliate_pipeline.commission import workbook
from affiliate_pipeline.landing.store import Store
from affiliate_pipeline.postgres.errors import as_store_unavailable

ROWS_PER_READ = 20_000
MAX_DIGITS_128, MAX_DIGITS_256 = 38, 76
# JSON stays text: parsing it would convert its numbers to floats.
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
# The types of columns whose values are numbers, booleans or dates in a workbook. Values of other types are written as
# the text that CSV has.
CELL_TYPES = {"int2", "int4", "int8", "bool", "date"}
# A spreadsheet executes a text that begins with one of these (OWASP, CSV injection), among them the full-width forms.
FORMULA_STARTS = [*"=+-@\t\r\n", *"\uff1d\uff0b\uff0d\uff20"]


class Extract:
    """The rows of a range of days, ordered by day, or of a table without days. Use it only inside `snapshot`.

    With `account` (empty: the default one), only that account's rows. `day_column` has the day of a row.
    """

    def __init__(
        self,
        store: Store,
        table: str,
        days: Sequence[date] | None,
        account: str | None,
        day_column: str = "partition_date",
    ):
        self._connection = store.connection
        _, _, self._name = table.partition(".")
        self._day_column = day_column if days is not None else ""

        conditions: list[sql.Composable] = []
        if days is not None:
            conditions.append(sql.SQL("{} between {} and {}").format(sql.Identifier(day_column), days[0], days[-1]))
        if account is not None:
            conditions.append(sql.SQL("account = {}").format(account))
        # What follows `from`.
        self._from: sql.Composable = sql.Identifier(*table.split("."))
        if conditions:
            self._from += sql.SQL(" where ") + sql.SQL(" and ").join(conditions)

    @cached_property
    def _column_types(self) -> dict[str, str]:
        """The type of each column."""
        described = self._connection.execute(sql.SQL("select * from {} limit 0").format(self._from)).description or []
        return {column.name: self._connection.adapters.types[column.type_code].name for column in described}

    def write_csv(self, output: BinaryIO, *, raw: bool = False) -> dict[str, int]:
        """Write the rows with a header, every amount as the database has it.

        Unless `raw`, an apostrophe precedes each text that a spreadsheet would execute; their number by column is returned.
        """
        formula_counts = {} if raw else self._formula_counts()
        columns = [
            _with_apostrophes(name) if name in formula_counts else sql.Identifier(name) for name in self._column_types
        ]
        copy = sql.SQL("copy ({}) to stdout (format csv, header)").format(self._query(columns))
        with self._connection.cursor() as cursor, cursor.copy(copy) as blocks:
            for block in blocks:
                output.write(block)
        return formula_counts

    def write_workbook(self, output: BinaryIO) -> None:
        """Write the rows as a workbook; raises `TextTooLong`."""
        columns = [
            sql.Identifier(name) if kind in CELL_TYPES else _as_text(name) for name, kind in self._column_types.items()
        ]
        rows = chain.from_iterable(self._batches(columns))
        workbook.write_workbook(output, self._name, [*self._column_types], rows)

    def write_parquet(self, output: BinaryIO) -> dict[str, arrow.DataType]:
        """Write the rows; return the types of the columns of amounts. `output` must support `tell()`."""
        amount_types = {name: self._amount_type(name) for name, kind in self._column_types.items() if kind == "numeric"}
        types = {
            name: amount_types[name] if kind == "numeric" else PARQUET_TYPES[kind]
            for name, kind in self._column_types.items()
        }
        schema = arrow.schema([*types.items()])
        columns = [
            _as_text(name) if arrow.types.is_string(arrow_type) else sql.Identifier(name)
            for name, arrow_type in types.items()
        ]

        with parquet.ParquetWriter(output, schema) as writer:
            for batch in self._batches(columns):
                values_by_column = zip(*batch, strict=True)
                arrays = [
                    arrow.array(values, arrow_type)
                    for values, arrow_type in zip(values_by_column, schema.types, strict=True)
                ]
                writer.write_table(arrow.table(arrays, schema=schema))
        return amount_types

    def _query(self, columns: Sequence[sql.Composable]) -> sql.Composed:
        """The query of these columns of the rows, in the order of `Extract`."""
        if self._day_column:
            order_by = [self._day_column]
        else:  # a table without days is ordered by account and by its first column
            first, *_ = self._column_types
            order_by = ["account", first] if "account" in self._column_types else [first]
        return sql.SQL("select {} from {} order by {}").format(
            sql.SQL(", ").join(columns), self._from, sql.SQL(", ").join(map(sql.Identifier, order_by))
        )

    def _batches(self, columns: Sequence[sql.Composable]) -> Iterator[list[tuple[Any, ...]]]:
        with self._connection.cursor(name="extract") as cursor:
            cursor.execute(self._query(columns))
            while batch := cursor.fetchmany(ROWS_PER_READ):
                yield batch

    def _formula_counts(self) -> dict[str, int]:
        """By column that has any, the number of texts that a spreadsheet would execute."""
        text_columns = [name for name, kind in self._column_types.items() if kind == "text"]
        if not text_columns:
            return {}
        columns = [
            sql.SQL("count(*) filter (where left({}, 1) = any({}))").format(sql.Identifier(name), FORMULA_STARTS)
            for name in text_columns
        ]
        query = sql.SQL("select {} from {}").format(sql.SQL(", ").join(columns), self._from)
        [row] = self._connection.execute(query).fetchall()
        counts = dict(zip(text_columns, row, strict=True))
        return {name: count for name, count in counts.items() if count}

    def _amount_type(self, column: str) -> arrow.DataType:
        """The decimal type that is wide enough for every value of the column, or text if there is none."""
        query = sql.SQL(
            "select coalesce(max(length(trunc(abs({0}))::text)), 1), coalesce(max(scale({0})), 0) from {1}"
        ).format(sql.Identifier(column), self._from)
        [(integer_digits, scale)] = self._connection.execute(query).fetchall()
        digits = integer_digits + scale
        if digits <= MAX_DIGITS_128:
            return arrow.decimal128(MAX_DIGITS_128, scale)
        if digits <= MAX_DIGITS_256:
            return arrow.decimal256(MAX_DIGITS_256, scale)
        return arrow.string()


def _as_text(column: str) -> sql.Composed:
    return sql.SQL("{}::text").format(sql.Identifier(column))


def _with_apostrophes(column: str) -> sql.Composed:
    """The column with an apostrophe before each text that a spreadsheet would execute."""
    return sql.SQL("case when left({0}, 1) = any({1}) then '''' || {0} else {0} end as {0}").format(
        sql.Identifier(column), FORMULA_STARTS
    )


@contextmanager
def snapshot(store: Store) -> Generator[None]:
    """Read everything in the block from one snapshot of the database."""
    with as_store_unavailable(), store.connection.transaction():
        store.connection.execute("set transaction isolation level repeatable read, read only")
        # Otherwise PostgreSQL would end the session while nothing reads the output, as in a pager.
        store.connection.execute("set local tcp_user_timeout = 0")
        yield


def exists(store: Store, table: str) -> bool:
    """Whether the table or view `schema.name` exists; the first landing of an asset creates its table."""
    with as_store_unavailable():
        [(found,)] = store.connection.execute("select to_regclass(%s) is not null", (table,)).fetchall()
    return found
