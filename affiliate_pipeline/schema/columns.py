"""The building blocks of the endpoints' schemas.

One pandera model per endpoint defines its columns in the exchange's JSON, in Arrow, in PostgreSQL and in the UI.
Amounts are text here and `numeric` in PostgreSQL, never float: their scale stays as sent.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, LiteralString

import msgspec
import pandas as pd  # pyright: ignore[reportMissingTypeStubs]  # pandas has none
import pandera.pandas as pa
import pyarrow as arrow

Text = Annotated[pd.ArrowDtype, arrow.string()]
Amount = Annotated[pd.ArrowDtype, arrow.string()]
Instant = Annotated[pd.ArrowDtype, arrow.timestamp("ms", "UTC")]
BigInt = Annotated[pd.ArrowDtype, arrow.int64()]
SmallInt = Annotated[pd.ArrowDtype, arrow.int16()]
Flag = Annotated[pd.ArrowDtype, arrow.bool_()]

# PostgreSQL's numeric accepts exponents. Three-digit ones are rejected here, since their zeros could fill a disk.
_AMOUNT = r"^-?[0-9]{1,100}(\.[0-9]{1,100})?([eE][+-]?[0-9]{1,2})?$"
_WHOLE = re.compile("-?[0-9]{1,19}", re.ASCII)
# PostgreSQL's text cannot contain U+0000.
_TEXT = r"^[^\x00]*$"
# The plausible range of instants in Unix milliseconds: others are wrong, or in another unit.
OLDEST_MS, NEWEST_MS = 1_230_768_000_000, 4_102_444_800_000
# Smaller numbers are taken for seconds: as milliseconds, they would be before 1973. LBank v1.8 has sent seconds.
MIN_MILLISECONDS = 10**11


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


def _integer(lowest: int, highest: int) -> Callable[[bytes], int]:
    def read(raw: bytes) -> int:
        text = _string(raw)
        if not _WHOLE.fullmatch(text) or not lowest <= int(text) <= highest:
            raise ValueError
        return int(text)

    return read


def _instant(raw: bytes) -> int:
    number = _integer(0, NEWEST_MS)(raw)
    ms = number * 1000 if number < MIN_MILLISECONDS else number
    if not OLDEST_MS <= ms <= NEWEST_MS:
        raise ValueError
    return ms


def _flag(raw: bytes) -> bool:
    return {"true": True, "false": False, "1": True, "0": False}[_string(raw).lower()]


# Spellings of null in a nullable column, except in a text column, where an empty text is a value.
_NO_VALUE = frozenset({"", "-", "--", "null", "none", "n/a"})


@dataclass(frozen=True)
class Kind:
    """A kind of value, and the JSON spellings of it that are accepted.

    `noun` names it in messages. `json_type` is the Arrow type of its usual JSON spelling. `read` parses any accepted
    spelling without loss, such as a number in quotes or an instant in seconds; it raises ValueError or KeyError.
    `no_value` has the texts, stripped and in lower case, that mean null.
    """

    name: str
    noun: str
    sql: LiteralString
    arrow_type: arrow.DataType
    json_type: arrow.DataType
    read: Callable[[bytes], Any]
    no_value: frozenset[str] = _NO_VALUE

    def means_null(self, raw: bytes) -> bool:
        """Whether this JSON text is null in a nullable column."""
        is_scalar = raw[:1] not in b"{["
        return raw == b"null" or (is_scalar and bool(self.no_value) and _string(raw).strip().lower() in self.no_value)


def _whole(name: LiteralString, bits: int, type_: arrow.DataType) -> Kind:
    read = _integer(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return Kind(name, f"a whole number of {bits} bits", name, type_, arrow.int64(), read)


_INSTANT_NOUN, _UTC = "a time in milliseconds from 2009 to 2100", arrow.timestamp("ms", "UTC")
KINDS = {
    kind.name: kind
    for kind in (
        Kind("text", "a text that can be stored", "text", arrow.string(), arrow.string(), _text, no_value=frozenset()),
        Kind("amount", "a decimal number", "numeric", arrow.string(), arrow.string(), _amount),
        Kind("instant", _INSTANT_NOUN, "timestamptz", _UTC, arrow.int64(), _instant, _NO_VALUE | {"0", "-1"}),
        _whole("bigint", 64, arrow.int64()),
        _whole("smallint", 16, arrow.int16()),
        Kind("flag", "true or false", "boolean", arrow.bool_(), arrow.bool_(), _flag),
    )
}


class Row(pa.DataFrameModel):
    """The base of every schema: a table has exactly the declared columns, in this order."""

    class Config(pa.DataFrameModel.Config):
        """Reject other columns, and another order."""

        strict = True
        ordered = True


# pandera loads its backend at the first call: do so at import, not while the first day lands.
Row.validate(pd.DataFrame())


def _column(kind: str, **checks: Any):
    def column(
        description: str, *, nullable: bool = False, optional: bool = False, json_name: str | None = None
    ) -> Any:
        """A column of the kind.

        `optional`: the source does not always send the field. `json_name`: the field's name, if it is not the
        column's name in camel case.
        """
        metadata = {"kind": kind, "optional": optional, "json_name": json_name}
        return pa.Field(nullable=nullable or optional, description=description, metadata=metadata, **checks)

    return column


text = _column("text", str_matches=_TEXT)
# An exact decimal, as sent.
amount = _column("amount", str_matches=_AMOUNT)
# A point in time, sent as milliseconds since 1970 UTC.
instant = _column("instant")
bigint = _column("bigint")
# For levels, types and statuses.
smallint = _column("smallint")
flag = _column("flag")


@dataclass(frozen=True)
class Column:
    """A column of a schema, and the field that it comes from."""

    name: str
    kind: Kind
    nullable: bool
    optional: bool
    description: str
    json_name: str


@cache
def columns(model: type[Row]) -> tuple[Column, ...]:
    """The model's columns in order."""
    found: list[Column] = []
    for name, column in model.to_schema().columns.items():
        metadata: dict[str, Any] = column.metadata or {}
        first, *rest = name.split("_")
        json_name = metadata["json_name"] or first + "".join(map(str.capitalize, rest))
        kind = KINDS[metadata["kind"]]
        found.append(Column(name, kind, column.nullable, metadata["optional"], str(column.description), json_name))
    return tuple(found)
