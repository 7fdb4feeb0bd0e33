"""Rows as a Parquet file in which no amount is rounded: decimals wide enough for every value, else texts."""

from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any, BinaryIO

import pyarrow as arrow
from pyarrow import parquet

from affiliate_pipeline.commission.export import Column

KINDS = {
    "text": arrow.string(),
    "jsonb": arrow.string(),
    "int2": arrow.int16(),
    "int4": arrow.int32(),
    "int8": arrow.int64(),
    "bool": arrow.bool_(),
    "date": arrow.date32(),
    "timestamptz": arrow.timestamp("us", "UTC"),
}
MOST_DIGITS_128, MOST_DIGITS_256 = 38, 76


def kind_of(column: Column) -> arrow.DataType:
    """The column's type in the file."""
    if column.kind != "numeric":
        return KINDS[column.kind]
    digits = column.before + column.after
    if digits <= MOST_DIGITS_128:
        return arrow.decimal128(MOST_DIGITS_128, column.after)
    return arrow.decimal256(MOST_DIGITS_256, column.after) if digits <= MOST_DIGITS_256 else arrow.string()


def write(columns: Sequence[Column], batches: Iterable[list[tuple[Any, ...]]], output: BinaryIO) -> None:
    schema = arrow.schema([(column.name, kind_of(column)) for column in columns])
    with parquet.ParquetWriter(output, schema) as writer:
        for batch in batches:
            arrays = [
                arrow.array([_value(cell, kind) for cell in cells], kind)
                for cells, kind in zip(zip(*batch, strict=True), schema.types, strict=True)
            ]
            writer.write_table(arrow.table(arrays, schema=schema))


def _value(cell: Any, kind: arrow.DataType) -> Any:
    return f"{cell:f}" if isinstance(cell, Decimal) and arrow.types.is_string(kind) else cell
