"""Rows as received: the bytes of one JSON object each.

Fields are found in any spelling of their names. What jsonb cannot represent is stored in a form from which the
received bytes can be restored.
"""

import json
import re
from base64 import b64encode
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from affiliate_pipeline.domain.redaction import redact
from affiliate_pipeline.schema.columns import KINDS, Row, columns

SAMPLE_CHARACTERS, NAME_CHARACTERS = 40, 200
# A value that jsonb cannot represent is replaced by an object with only this key and the value's JSON text.
AS_RECEIVED = "$json"
# Just below the 16,383 digits that a number in jsonb can have after the decimal point.
MAX_NUMBER_DIGITS = 16_000
_SPACED_COLON = re.compile(rb'"\s+:')
# A short text without these fits jsonb: an exponent of three digits adds at most 999 digits to a number. An object
# does not fit if it has a field twice, or only the key `$json` (`_check_object`).
_SUSPECT = re.compile(rb"\\u0000|[eE][+-]?[0-9]{4}|[{]")
# An odd number of backslashes: after an even number, `u0000` is plain text.
_U0000 = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


def joined(chunks: Iterable[bytes]) -> bytes:
    """The JSON list of the rows; a chunk is one or more of them, separated by commas."""
    return b"[" + b",".join(chunks) + b"]"


def batches(chunks: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    """The chunks in order, in lists of at least `size` bytes; only the last one may be smaller."""
    batch: list[bytes] = []
    batch_bytes = 0
    for chunk in chunks:
        batch.append(chunk)
        batch_bytes += len(chunk)
        if batch_bytes >= size:
            yield batch
            batch, batch_bytes = [], 0
    if batch:
        yield batch


def split(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Each row's JSON text; a chunk that cannot be parsed is yielded unchanged."""
    for chunk in chunks:
        try:
            yield from map(bytes, msgspec.json.decode(joined([chunk]), type=list[msgspec.Raw]))
        except msgspec.DecodeError:
            yield chunk


def instants_ms(rows: Iterable[bytes], name: str) -> list[int]:
    """Each row's instant (ms) in the field with this JSON name; raises ValueError if a row has no valid one."""
    return [_value(row, name, "instant") for row in rows]


def whole_numbers(rows: Iterable[bytes], name: str) -> list[int]:
    """Each row's whole number in the field with this JSON name; raises ValueError if a row has no valid one."""
    return [_value(row, name, "bigint") for row in rows]


def _value(row: bytes, name: str, kind: str) -> int:
    value = _field(row, name)
    if value is None:
        raise ValueError(f"a row has no `{name}`")
    try:
        return KINDS[kind].read(value)
    except ValueError:
        raise ValueError(f"a row's `{name}` is {sample(value)}") from None


def identities(rows: Iterable[bytes], names: Sequence[str]) -> Iterator[Hashable]:
    """Each row's identity: the `texts` of these fields, or the whole row if none are named."""
    for row in rows:
        yield texts(row, *names) if names else row


def texts(row: bytes, *names: str) -> tuple[str | None, ...]:
    """The texts of these fields, in any spelling of their names; None: no value."""
    return tuple(_text(_field(row, name)) for name in names)


def is_false(row: bytes, name: str) -> bool:
    """Whether the row has the flag with this JSON name, and it is false."""
    value = _field(row, name)
    if value is None:
        return False
    try:
        return not KINDS["flag"].read(value)
    except (ValueError, KeyError):
        return False


def new_row(model: type[Row], values: Mapping[str, object]) -> bytes:
    """A row of the schema with these values (by JSON name); all other fields are null."""
    return msgspec.json.encode({column.json_name: values.get(column.json_name) for column in columns(model)})


def with_fields(row: bytes, values: Mapping[str, object]) -> bytes:
    """The row with these values (by JSON name) added.

    The values of the row's other fields, repeated ones included, are unchanged. Their bytes may differ (spaces,
    escapes) only if a field is repeated. Raises ValueError if the row already has another value, not null, under one of
    the given names.
    """
    given = {normalized(name): str(value) for name, value in values.items()}
    members = [_member(name, msgspec.json.encode(value)) for name, value in values.items()]
    for name, raw in fields(row):
        expected = given.get(normalized(name))
        if expected is None:
            members.append(_member(name, raw))
        elif raw != b"null":
            received = _text(raw)
            if received != expected:
                raise ValueError(f"its `{name}` is {sample(received)}, not {expected}")
    return b"{" + b",".join(members) + b"}"


def fields(row: bytes) -> list[tuple[str, bytes]]:
    """The row's fields in order, repeated ones included, each with its JSON text."""
    found = msgspec.json.decode(row, type=dict[str, msgspec.Raw])
    # `found` has a repeated field once. Each occurrence of a field has a colon, after a quote or after spaces: no field is
    # repeated if there are no more colons than names, or no more `":` and none after spaces.
    has_more_colons = row.count(b":") > len(found)
    may_repeat = has_more_colons and (row.count(b'":') > len(found) or _SPACED_COLON.search(row))
    if may_repeat:  # only then use the slow parser
        pairs = _pairs(row)
        if len(pairs) > len(found):
            return pairs
    return [(name, bytes(raw)) for name, raw in found.items()]


def normalized(name: str) -> str:
    """The name in lower case without `_`, for comparisons: LBank v1.8 changed the case of its names."""
    return name.replace("_", "").lower()


def sample(value: object) -> str:
    """The value, or the text of its bytes, as shown in messages: redacted and shortened."""
    text = redact(value.decode(errors="replace") if isinstance(value, bytes) else value)
    if len(text) > SAMPLE_CHARACTERS:
        text = text[:SAMPLE_CHARACTERS] + "…"
    return repr(text)


def _field(row: bytes, name: str) -> bytes | None:
    return next((raw for key, raw in fields(row) if normalized(key) == normalized(name)), None)


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
    """The fields of a JSON object, repeated ones included, with numbers as written."""
    objects: list[list[tuple[str, Any]]] = []

    def of_object(pairs: list[tuple[str, Any]]) -> msgspec.Raw:
        objects.append(pairs)
        return msgspec.Raw(b"{" + b",".join(_member(name, msgspec.json.encode(value)) for name, value in pairs) + b"}")

    def as_written(number: str) -> msgspec.Raw:
        return msgspec.Raw(number.encode())

    json.loads(text, object_pairs_hook=of_object, parse_float=as_written, parse_int=as_written)
    # The outermost object ends last.
    return [(name, msgspec.json.encode(value)) for name, value in objects[-1]]


def payload(received: bytes) -> str:
    """The JSON text that stores a row or a body in jsonb without loss.

    The row itself if jsonb represents its values exactly, otherwise a JSON string of its text, or the object
    `{"$base64": …}` if it is not UTF-8 or has a NUL byte.
    """
    try:
        text = received.decode()
    except UnicodeDecodeError:
        return _in_base64(received)
    if "\0" in text:
        return _in_base64(received)
    return text if _fits_jsonb(received) else json.dumps(text)


def _in_base64(received: bytes) -> str:
    return json.dumps({"$base64": b64encode(received).decode()})


def extra_of(unknown: Iterable[tuple[str, bytes]]) -> tuple[str, set[str]]:
    """The JSON text of these unknown fields for `extra`, and their names for reports.

    A field that jsonb cannot represent (U+0000, a number or nesting beyond its limits, a field that occurs twice) becomes
    `{"$json": "…"}` with the JSON text of its value as received, or of its values joined by commas.
    """
    by_key: dict[str, list[bytes]] = defaultdict(list)
    wrapped: set[str] = set()
    for name, raw in unknown:
        # jsonb does not accept U+0000 in names either: use its JSON escape.
        key = json.dumps(name, ensure_ascii=False)[1:-1] if "\0" in name else name
        by_key[key].append(raw)
        if key != name or len(by_key[key]) > 1 or not _fits_jsonb(raw):
            wrapped.add(key)

    stored: dict[str, object] = {}
    for key, raws in by_key.items():
        if key in wrapped:
            stored[key] = {AS_RECEIVED: b",".join(raws).decode(errors="replace")}
        else:
            stored[key] = msgspec.Raw(raws[0])
    # Sort: the text is hashed, and the order of fields must not matter. Cut names: they are stored in an index, whose
    # entries are limited in size.
    return msgspec.json.encode(stored, order="sorted").decode(), {key[:NAME_CHARACTERS] for key in stored}


def _fits_jsonb(text: bytes) -> bool:
    """Whether jsonb represents the text exactly, and no object in it has only the key `$json`."""
    if len(text) <= MAX_NUMBER_DIGITS - 999 and not _SUSPECT.search(text):
        return True
    if _U0000.search(text):
        return False
    try:
        json.loads(text, object_pairs_hook=_check_object, parse_float=_check_number, parse_int=_check_number)
    except (ValueError, RecursionError):
        return False
    return True


def _check_object(pairs: list[tuple[str, object]]) -> None:
    names = {name for name, _ in pairs}
    if len(names) < len(pairs) or names == {AS_RECEIVED}:
        raise ValueError


def _check_number(text: str) -> None:
    digits, _, exponent = text.lower().partition("e")
    if len(digits) + abs(int(exponent or 0)) > MAX_NUMBER_DIGITS:
        raise ValueError
