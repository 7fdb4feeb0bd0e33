"""The vocabulary of the endpoints' schemas: one pandera model per endpoint says what its columns are in the exchange's
JSON, in Arrow, in PostgreSQL and in the UI. Names no endpoint.

Amounts are text here and `numeric` in PostgreSQL: never float, the scale as sent.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

import msgspec
import pandas as pd
import pandera.pandas as pa
import pyarrow as arrow

Text = Annotated[pd.ArrowDtype, arrow.string()]
Amount = Annotated[pd.ArrowDtype, arrow.string()]
Instant = Annotated[pd.ArrowDtype, arrow.timestamp("ms", "UTC")]
BigInt = Annotated[pd.ArrowDtype, arrow.int64()]
SmallInt = Annotated[pd.ArrowDtype, arrow.int16()]
Flag = Annotated[pd.ArrowDtype, arrow.bool_()]

# PostgreSQL's numeric takes exponents too; three digits of it are more than any source sends and cannot fill a disk.
_AMOUNT = r"^-?[0-9]{1,100}(\.[0-9]{1,100})?([eE][+-]?[0-9]{1,2})?$"
# PostgreSQL's text cannot hold U+0000.
_TEXT = r"^[^\x00]*$"
_OLDEST, _NEWEST = pd.Timestamp("2009-01-01", tz="UTC"), pd.Timestamp("2100-01-01", tz="UTC")


def _string(raw: bytes) -> str:
    return msgspec.json.decode(raw) if raw[:1] == b'"' else raw.decode()


def _text(raw: bytes) -> str:
    if raw[:1] in (b"{", b"["):
        raise ValueError
    return _string(raw)


def _amount(raw: bytes) -> str:
    if raw[:1] not in b'"-0123456789':
        raise ValueError
    return _string(raw)


def _integer(bits: int) -> Callable[[bytes], int]:
    def read(raw: bytes) -> int:
        number = int(_string(raw))
        if not -(2 ** (bits - 1)) <= number < 2 ** (bits - 1):
            raise ValueError
        return number

    return read


def _flag(raw: bytes) -> bool:
    return {"true": True, "false": False, "1": True, "0": False}[_string(raw).lower()]


@dataclass(frozen=True)
class Kind:
    """One kind of value: as PostgreSQL type, as Arrow type, as the JSON type usually sent, and how to read any other
    spelling of it exactly (raises ValueError or KeyError)."""

    name: str
    sql: str
    arrow: arrow.DataType
    json: type
    read: Callable[[bytes], Any]


KINDS = {
    kind.name: kind
    for kind in (
        Kind("text", "text", arrow.string(), str, _text),
        Kind("amount", "numeric", arrow.string(), str, _amount),
        Kind("instant", "timestamptz", arrow.timestamp("ms", "UTC"), int, _integer(64)),
        Kind("bigint", "bigint", arrow.int64(), int, _integer(64)),
        Kind("smallint", "smallint", arrow.int16(), int, _integer(16)),
        Kind("flag", "boolean", arrow.bool_(), bool, _flag),
    )
}


class Row(pa.DataFrameModel):
    """What every landed table has: the endpoint's columns in the order declared."""

    class Config:
        strict = True
        ordered = True


def _field(kind: str, description: str, nullable: bool, newer: bool, **checks: Any) -> Any:
    return pa.Field(
        nullable=nullable or newer,
        description=description,
        metadata={"kind": kind, "newer": newer},
        **checks,
    )


def text(description: str, *, nullable: bool = False, newer: bool = False) -> Any:
    """A text column. `newer`: the source does not always send the field."""
    return _field("text", description, nullable, newer, str_matches=_TEXT)


def amount(description: str, *, nullable: bool = False, newer: bool = False) -> Any:
    """An exact decimal, as sent."""
    return _field("amount", description, nullable, newer, str_matches=_AMOUNT)


def instant(description: str, *, nullable: bool = False, newer: bool = False) -> Any:
    """A point in time, sent as milliseconds since 1970 UTC."""
    return _field("instant", description, nullable, newer, in_range={"min_value": _OLDEST, "max_value": _NEWEST})


def bigint(description: str, *, nullable: bool = False, newer: bool = False) -> Any:
    """A 64-bit whole number."""
    return _field("bigint", description, nullable, newer)


def smallint(description: str, *, nullable: bool = False, newer: bool = False) -> Any:
    """A 16-bit whole number: a level, a type, a status."""
    return _field("smallint", description, nullable, newer)


def flag(description: str, *, nullable: bool = False, newer: bool = False) -> Any:
    """True or false."""
    return _field("flag", description, nullable, newer)


@dataclass(frozen=True)
class Column:
    name: str
    kind: Kind
    nullable: bool
    newer: bool
    description: str

    @property
    def json_name(self) -> str:
        first, *rest = self.name.split("_")
        return first + "".join(part.capitalize() for part in rest)


@cache
def columns(model: type[Row]) -> tuple[Column, ...]:
    """The model's columns in order."""
    return tuple(
        Column(name, KINDS[column.metadata["kind"]], column.nullable, column.metadata["newer"], column.description)
        for name, column in model.to_schema().columns.items()
    )
