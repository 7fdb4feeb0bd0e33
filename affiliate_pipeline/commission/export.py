"""Exports of a table's rows from one snapshot: CSV and Parquet, both without rounding."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import date
from typing import BinaryIO

import pyarrow as arrow
from psycopg import sql
from pyarrow import parquet

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


class Extract:
    """The rows of a range of days, ordered by day, or of a table without days. Use it only inside `snapshot`.

    With `account` (empty: the default one), only that account's rows.
    """

    def __init__(self, store: Store, table: str, days: Sequence[date] | None, account: str | None):
        self._connection = store.connection
        self._part: sql.Composable = sql.Identifier(*table.split("."))
        conditions: list[sql.Composable] = []
        if days is not None:
            conditions.append(sql.SQL("partition_date between {} and {}").format(days[0], days[-1]))
        if account is not None:
            conditions.append(sql.SQL("account = {}").format(account))
        if conditions:
            self._part += sql.SQL(" where ") + sql.SQL(" and ").join(conditions)
        self._order = sql.SQL("partition_date" if days is not None else "account, 1")

    def _rows(self, selected: sql.Composable) -> sql.Composed:
        return sql.SQL("select {} from {} order by {}").format(selected, self._part, self._order)

    def write_csv(self, output: BinaryIO) -> None:
        """Write the rows with a header, every amount as the database has it."""
        copy = sql.SQL("copy ({}) to stdout (format csv, header)").format(self._rows(sql.SQL("*")))
        with self._connection.cursor() as cursor, cursor.copy(copy) as blocks:
            for block in blocks:
                output.write(block)

    def write_parquet(self, output: BinaryIO) -> dict[str, arrow.DataType]:
        """Write the rows; return the types of amounts by column. `output` must support `tell()`."""
        described = self._connection.execute(sql.SQL("select * from {} limit 0").format(self._part)).description or []
        kinds = {column.name: self._connection.adapters.types[column.type_code].name for column in described}
        amounts = {name: self._amount_type(name) for name, kind in kinds.items() if kind == "numeric"}
        types = amounts | {name: PARQUET_TYPES[kind] for name, kind in kinds.items() if name not in amounts}
        schema = arrow.schema([(name, types[name]) for name in kinds])
        selected = sql.SQL(", ").join(
            sql.SQL("{}::text" if arrow.types.is_string(types[name]) else "{}").format(sql.Identifier(name))
            for name in kinds
        )
        with self._connection.cursor(name="extract") as cursor, parquet.ParquetWriter(output, schema) as writer:
            cursor.execute(self._rows(selected))
            while batch := cursor.fetchmany(ROWS_PER_READ):
                columns = zip(zip(*batch, strict=True), schema.types, strict=True)
                writer.write_table(arrow.table([arrow.array(cells, kind) for cells, kind in columns], schema=schema))
        return amounts

    def _amount_type(self, column: str) -> arrow.DataType:
        """A decimal wide enough for every value of the column, or text if none is."""
        query = sql.SQL(
            "select coalesce(max(length(trunc(abs({0}))::text)), 1), coalesce(max(scale({0})), 0) from {1}"
        ).format(sql.Identifier(column), self._part)
        [(before, after)] = self._connection.execute(query).fetchall()
        if before + after <= MAX_DIGITS_128:
            return arrow.decimal128(MAX_DIGITS_128, after)
        return arrow.decimal256(MAX_DIGITS_256, after) if before + after <= MAX_DIGITS_256 else arrow.string()


@contextmanager
def snapshot(store: Store) -> Generator[None]:
    """Read everything in the block from one snapshot of the database."""
    with as_store_unavailable(), store.connection.transaction():
        store.connection.execute("set transaction isolation level repeatable read, read only")
        yield


def exists(store: Store, table: str) -> bool:
    """Whether the table `schema.name` exists; the first landing of an asset creates its table."""
    with as_store_unavailable():
        [(found,)] = store.connection.execute("select to_regclass(%s) is not null", (table,)).fetchall()
    return found
