"""Rows as received: the bytes of one JSON object each, whose fields are found however the exchange spells their names."""

import json
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from affiliate_pipeline.domain.redaction import redact
from affiliate_pipeline.schema.columns import KINDS, Row, columns

SAMPLE_CHARACTERS = 40
_SPACED_COLON = re.compile(rb'"\s+:')


def joined(chunks: Iterable[bytes]) -> bytes:
    """The JSON list of the rows; a chunk is one or more of them, separated by commas."""
    return b"[" + b",".join(chunks) + b"]"


def split(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Each row's JSON text by itself; a chunk that does not hold rows is yielded unchanged."""
    for chunk in chunks:
        try:
            yield from map(bytes, msgspec.json.decode(joined([chunk]), type=list[msgspec.Raw]))
        except msgspec.DecodeError:
            yield chunk


def instants_ms(rows: Iterable[bytes], name: str) -> list[int]:
    """The instant of each row by its field's JSON name; raises ValueError."""
    return [_value(row, name, "instant") for row in rows]


def whole_numbers(rows: Iterable[bytes], name: str) -> list[int]:
    """The whole number of each row by its field's JSON name; raises ValueError."""
    return [_value(row, name, "bigint") for row in rows]


def _value(row: bytes, name: str, kind: str) -> int:
    value = _field(row, name)
    if value is None:
        raise ValueError(f"a row has no `{name}`")
    try:
        return KINDS[kind].read(value)
    except ValueError:
        raise ValueError(f"a row's `{name}` is {sample(value.decode(errors='replace'))}") from None


def identities(rows: Iterable[bytes], names: Sequence[str]) -> Iterator[Hashable]:
    """What distinguishes each row: the texts of these fields (JSON names; None: no value), or the whole row if none are
    named."""
    for row in rows:
        yield texts(row, *names) if names else row


def texts(row: bytes, *names: str) -> tuple[str | None, ...]:
    """The texts of these fields (JSON names; None: no value), however the row spells their names."""
    return tuple(_text(_field(row, name)) for name in names)


def is_false(row: bytes, name: str) -> bool:
    """Whether the row's flag of that JSON name is there and false."""
    value = _field(row, name)
    try:
        return value is not None and not KINDS["flag"].read(value)
    except (ValueError, KeyError):
        return False


def emptied(model: type[Row], values: Mapping[str, object]) -> bytes:
    """A row of the schema that has these values (by JSON name) and nothing else."""
    return msgspec.json.encode({column.json_name: values.get(column.json_name) for column in columns(model)})


def with_fields(row: bytes, values: Mapping[str, object]) -> bytes:
    """The row with these values (by JSON name), which it lacks; its own fields stay byte for byte as received.

    Raises ValueError where the row has another value.
    """
    given = {plain(name): str(value) for name, value in values.items()}
    members = [_member(name, msgspec.json.encode(value)) for name, value in values.items()]
    for name, raw in fields(row):
        if plain(name) not in given:
            members.append(_member(name, raw))
        elif raw != b"null" and (received := _text(raw)) != given[plain(name)]:
            raise ValueError(f"its `{name}` is {sample(received)}, not {given[plain(name)]}")
    return b"{" + b",".join(members) + b"}"


def fields(row: bytes) -> list[tuple[str, bytes]]:
    """The row's fields in order, with repeated ones."""
    found = msgspec.json.decode(row, type=dict[str, msgspec.Raw])
    # With as many colons after names as fields, no field is repeated: skip the slow parser.
    may_repeat = row.count(b":") > len(found) and (row.count(b'":') > len(found) or _SPACED_COLON.search(row))
    if may_repeat and len(pairs := _pairs(row)) > len(found):
        return pairs
    return [(name, bytes(raw)) for name, raw in found.items()]


def plain(name: str) -> str:
    """Field names as compared: `tradeId`, `trade_id` and `tradeid` are one field (LBank v1.8 lower-cased its names)."""
    return name.replace("_", "").lower()


def sample(value: object) -> str:
    """The value as shown in messages: redacted and shortened."""
    text = redact(value)
    return repr(text if len(text) <= SAMPLE_CHARACTERS else text[:SAMPLE_CHARACTERS] + "…")


def _field(row: bytes, name: str) -> bytes | None:
    return next((raw for key, raw in fields(row) if plain(key) == plain(name)), None)


def _text(raw: bytes | None) -> str | None:
    if raw is None or raw == b"null":
        return None
    try:
        return KINDS["text"].read(raw)
    except ValueError:
        return raw.decode(errors="replace")


def _member(name: str, raw: bytes) -> bytes:
    return msgspec.json.encode(name) + b":" + raw


def _pairs(text: bytes) -> list[tuple[str, bytes]]:
    """The fields of a JSON object, repeated ones included, with numbers as they are written."""
    objects: list[list[tuple[str, Any]]] = []

    def of_object(pairs: list[tuple[str, Any]]) -> msgspec.Raw:
        objects.append(pairs)
        return msgspec.Raw(b"{" + b",".join(_member(name, msgspec.json.encode(value)) for name, value in pairs) + b"}")

    def as_written(number: str) -> msgspec.Raw:
        return msgspec.Raw(number.encode())

    json.loads(text, object_pairs_hook=of_object, parse_float=as_written, parse_int=as_written)
    # The outermost object ends last.
    return [(name, msgspec.json.encode(value)) for name, value in objects[-1]]
