"""The building blocks of the endpoints' schemas.

One class per endpoint defines its columns in the exchange's JSON, in Arrow, in PostgreSQL and in the UI.
Amounts are text here and `numeric` in PostgreSQL, never float: their scale stays as sent. `decode` derives pandera
schemas and Arrow types from the declarations. Most processes need only the declarations, so this module does not import
those libraries.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, LiteralString

import msgspec

# PostgreSQL's numeric accepts exponents. Three-digit ones are rejected here, since their zeros could fill a disk.
_AMOUNT = r"^-?[0-9]{1,100}(\.[0-9]{1,100})?([eE][+-]?[0-9]{1,2})?$"
_WHOLE = re.compile("-?[0-9]{1,19}", re.ASCII)
# PostgreSQL's text cannot contain U+0000.
_TEXT = r"^[^\x00]*$"
# The plausible range of instants in Unix milliseconds: others are wrong, or in another unit.
OLDEST_MS, NEWEST_MS = 1_230_768_000_000, 4_102_444_800_000
# Smaller numbers are taken for seconds: as milliseconds, they would be before 1974. LBank v1.8 has sent seconds.
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
        if not _WHOLE.fullmatch(text):
            raise ValueError
        number = int(text)
        if not lowest <= number <= highest:
            raise ValueError
        return number

    return read


def _instant(raw: bytes) -> int:
    number = _integer(0, NEWEST_MS)(raw)
    ms = number * 1000 if number < MIN_MILLISECONDS else number
    if not OLDEST_MS <= ms <= NEWEST_MS:
        raise ValueError
    return ms


def _flag(raw: bytes) -> bool:
    return {"true": True, "false": False, "1": True, "0": False}[_string(raw).lower()]


# Spellings of null in a nullable column; in a text column, each of them is a value.
_NO_VALUE = frozenset({"", "-", "--", "null", "none", "n/a"})


@dataclass(frozen=True)
class Kind:
    """A kind of value, and the JSON spellings of it that are accepted.

    `noun` names it in messages. `read` parses any accepted spelling without loss, such as a number in quotes or an instant
    in seconds; it raises ValueError or KeyError. `pattern` is the regular expression that a value read as text has to
    match. `no_value` has the texts, stripped and in lower case, that mean null.
    """

    name: str
    noun: str
    sql: LiteralString
    read: Callable[[bytes], Any]
    pattern: str | None = None
    no_value: frozenset[str] = _NO_VALUE

    def means_null(self, raw: bytes) -> bool:
        """Whether this JSON text is null in a nullable column."""
        if raw == b"null":
            return True
        if not self.no_value or raw[:1] in b"{[":
            return False
        return _string(raw).strip().lower() in self.no_value


def _whole(name: LiteralString, bits: int) -> Kind:
    limit = 2 ** (bits - 1)
    return Kind(name, f"a whole number of {bits} bits", name, _integer(-limit, limit - 1))


_INSTANT_NOUN = "a time in milliseconds from 2009 to 2100"
KINDS = {
    kind.name: kind
    for kind in (
        Kind("text", "a text that can be stored", "text", _text, _TEXT, no_value=frozenset()),
        Kind("amount", "a decimal number", "numeric", _amount, _AMOUNT),
        Kind("instant", _INSTANT_NOUN, "timestamptz", _instant, no_value=_NO_VALUE | {"0", "-1"}),
        _whole("bigint", 64),
        _whole("smallint", 16),
        Kind("flag", "true or false", "boolean", _flag),
    )
}


@dataclass
class Column:
    """A column of a schema, and the field that it comes from."""

    kind: Kind
    description: str
    nullable: bool
    optional: bool
    json_name: str
    name: str = field(init=False)

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        first, *rest = name.split("_")
        self.json_name = self.json_name or first + "".join(map(str.capitalize, rest))


class Row:
    """The base of every schema: its columns are those declared, in this order; tables have `extra` and others too."""


def _column(kind: str):
    def column(description: str, *, nullable: bool = False, optional: bool = False, json_name: str = "") -> Column:
        """A column of the kind.

        `optional`: the source does not always send the field. `json_name`: the field's name, if it is not the
        column's name in camel case.
        """
        return Column(KINDS[kind], description, nullable or optional, optional, json_name)

    return column


text = _column("text")
# An exact decimal, as sent.
amount = _column("amount")
# A point in time, sent as milliseconds since 1970 UTC.
instant = _column("instant")
bigint = _column("bigint")
# For levels, types and statuses.
smallint = _column("smallint")
flag = _column("flag")


@cache
def columns(model: type[Row]) -> tuple[Column, ...]:
    """The model's columns in order, those of its bases first."""
    declared: dict[str, Column] = {}
    for each in reversed(model.__mro__):
        declared |= {name: column for name, column in vars(each).items() if isinstance(column, Column)}
    return tuple(declared.values())
