"""From an endpoint's rows as received (JSON texts) to a validated Arrow table and to the text that PostgreSQL copies.

What cannot be read or is not valid is reported column by column; nothing is guessed, rounded or dropped.
"""

import io
import json
import re
from base64 import b64encode
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from hashlib import sha256
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pyarrow as arrow
import pyarrow.csv
import pyarrow.json
from pandera.errors import SchemaErrors
from pyarrow import compute

from affiliate_pipeline.domain.redaction import redact
from affiliate_pipeline.schema.columns import KINDS, Column, Row, columns

SAMPLE_CHARACTERS = 40
NAME_CHARACTERS = 200
# The only key of the object that replaces a field's value, as received, that jsonb cannot hold.
AS_RECEIVED = "$json"
# jsonb's numbers have no more digits after the point, and its reader recurses.
MAX_NUMBER_DIGITS, MAX_JSON_DEPTH = 16_000, 500
# Decoded at once: with more, what is made of it no longer fits the processor's caches.
DECODED_BYTES = 1 << 20


@dataclass(frozen=True)
class Problem:
    """What is wrong with one column: which check failed for how many rows, and one redacted example. `row` is the number
    of the first such row."""

    column: str
    check: str
    count: int
    sample: str | None = None
    row: int = 0

    def __str__(self) -> str:
        rows = "row" if self.count == 1 else "rows"
        return f"{self.column}: {self.check} in {self.count} {rows}" + (
            f", such as {self.sample}" if self.sample else ""
        )


class Invalid(Exception):
    """Rows that do not fit their schema: each problem once, with the rows of all batches counted."""

    def __init__(self, problems: Iterable[Problem]):
        merged: dict[tuple[str, str], Problem] = {}
        for problem in problems:
            seen = merged.get((problem.column, problem.check))
            merged[problem.column, problem.check] = replace(seen, count=seen.count + problem.count) if seen else problem
        self.problems = tuple(merged.values())
        self.first_row = min(problem.row for problem in self.problems)
        super().__init__("; ".join(map(str, self.problems)))


@dataclass
class Parsed:
    """Valid rows as an Arrow table (the schema's columns and `extra`), and the names of fields the schema lacks."""

    table: arrow.Table
    unknown: Counter[str] = field(default_factory=Counter)


def parse(model: type[Row], rows: Iterable[bytes], inside: tuple[str, int, int] | None = None) -> Parsed:
    """The rows, each chunk of `rows` being one or more JSON objects joined by commas; raises `Invalid`.

    `inside` names an instant column and the half-open range of milliseconds it has to lie in.
    """
    rows = list(rows)
    parsed, problems = _as_declared(model, rows), []
    if parsed is None:
        try:
            parsed, problems = _field_by_field(model, _list(rows))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Invalid([Problem("a row", f"not JSON ({error})", 1)]) from None
        # Unreadable values are null in the table: the column's null is the same problem.
        unread = {(problem.column, _NULL) for problem in problems}
        found = _validate(model, parsed.table)
        problems += [problem for problem in found if (problem.column, problem.check) not in unread]
    if inside and not problems:
        problems += _outside(parsed.table, *inside)
    if problems:
        raise Invalid(problems)
    return parsed


def split(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Each row's JSON text by itself; a chunk that does not hold rows is yielded unchanged."""
    for chunk in chunks:
        try:
            yield from map(bytes, msgspec.json.decode(_list([chunk]), type=list[msgspec.Raw]))
        except msgspec.DecodeError:
            yield chunk


def payload(received: bytes) -> str:
    """The JSON text with which jsonb keeps a row, or a body, so that its bytes can be read back.

    It is the row itself where jsonb holds it exactly, else a JSON string of its text, else (not UTF-8) the object
    `{"$base64": …}`.
    """
    try:
        text = received.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        return json.dumps({"$base64": b64encode(received).decode()})
    return text if _fits_jsonb(received) else json.dumps(text)


def damaged(table: arrow.Table) -> Counter[str]:
    """The number of rows in which each column has U+FFFD, which replaces invalid text."""
    found = Counter()
    for name in table.column_names:
        if arrow.types.is_string(table[name].type):
            count = compute.sum(compute.match_substring(table[name], "\N{REPLACEMENT CHARACTER}")).as_py()
            found += Counter({name: count or 0})
    return found


def batches(chunks: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    """The chunks in order, in lists that end once they have so many bytes."""
    batch: list[bytes] = []
    held = 0
    for chunk in chunks:
        batch.append(chunk)
        held += len(chunk)
        if held >= size:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _list(chunks: Iterable[bytes]) -> bytes:
    return b"[" + b",".join(chunks) + b"]"


def copy_text(table: arrow.Table) -> bytes:
    """The table as PostgreSQL's COPY reads it (`format csv`) in a session that speaks UTC: null is nothing, an empty text
    is `""`."""
    # Written without their zone, instants cost half as much.
    utc = [
        field.with_type(arrow.timestamp("ms")) if arrow.types.is_timestamp(field.type) else field
        for field in table.schema
    ]
    table = table.cast(arrow.schema(utc))
    text = io.BytesIO()
    pyarrow.csv.write_csv(table, text, pyarrow.csv.WriteOptions(include_header=False))
    return text.getvalue()


class ContentHash:
    """A hash of a multiset of rows: the same whatever their order, another one if a row is added, lost or doubled.

    `of` is the `hexdigest` of rows to begin with.
    """

    def __init__(self, of: str = "0" * 64) -> None:
        # Four numbers of 64 bits, each summed by itself.
        self._sum = np.array([int(of[i : i + 16], 16) for i in range(0, 64, 16)], np.uint64)

    def add(self, table: arrow.Table) -> bytes:
        """Adds the table's rows, and gives their `copy_text`."""
        copied = copy_text(table)
        rows = copied.split(b"\n")[:-1]
        if len(rows) != len(table):  # there are line ends inside texts
            rows = [copy_text(table.slice(index, 1))[:-1] for index in range(len(table))]
        digests = b"".join([sha256(row).digest() for row in rows])
        self._sum += np.frombuffer(digests, "<u8").reshape(-1, 4).sum(axis=0, dtype=np.uint64)
        return copied

    def hexdigest(self) -> str:
        return "".join(f"{part:016x}" for part in self._sum.tolist())


@cache
def _declared(model: type[Row]) -> pyarrow.json.ParseOptions:
    """Of one object whose `rows` are exactly as the schema says."""
    row = arrow.struct([(column.json_name, column.kind.sent) for column in columns(model)])
    return pyarrow.json.ParseOptions(
        explicit_schema=arrow.schema([("rows", arrow.list_(row))]), unexpected_field_behavior="error"
    )


def _as_declared(model: type[Row], chunks: Sequence[bytes]) -> Parsed | None:
    """Rows that are exactly as the schema says, valid; None for anything else, which is left to `_field_by_field`."""
    try:
        table = arrow.concat_tables(
            [_decoded(model, batch) for batch in (batches(chunks, DECODED_BYTES) if chunks else [[]])]
        )
    except (arrow.ArrowException, ValueError):
        return None
    return None if _validate(model, table) else Parsed(table)


def _decoded(model: type[Row], chunks: Sequence[bytes]) -> arrow.Table:
    # To Arrow one object is one row, whatever line ends there are in it.
    text = b'{"rows":' + _list(chunks) + b"}"
    whole = pyarrow.json.read_json(
        arrow.BufferReader(text),
        pyarrow.json.ReadOptions(use_threads=False, block_size=len(text) + 1),
        _declared(model),
    )
    if len(whole) != 1:
        raise ValueError("not one list of rows")
    rows = whole["rows"].combine_chunks().values
    # Arrow trusts texts to be UTF-8.
    rows.validate(full=True)
    if rows.null_count:
        raise ValueError("a row is null")
    values = {}
    for column, array in zip(columns(model), rows.flatten(), strict=True):
        # Arrow takes a missing field for null. In rows of flat fields, each there once, only a field's name looks like this.
        if array.null_count and not column.optional and text.count(f'"{column.json_name}":'.encode()) < len(rows):
            raise ValueError("a field is missing, or its name is spelled in another way")
        if column.kind.range and array.null_count < len(array):
            least, most = (each.as_py() for each in compute.min_max(array).values())
            if least < column.kind.range[0] or most > column.kind.range[1]:
                raise ValueError("a number is out of range")
        values[column.name] = array.cast(column.kind.arrow)
    return _table(model, values, len(rows))


def _table(
    model: type[Row], values: Mapping[str, Sequence], rows: int, extra: list[str | None] | None = None
) -> arrow.Table:
    arrays = {column.name: arrow.array(values[column.name], column.kind.arrow) for column in columns(model)}
    arrays["extra"] = arrow.array(extra, arrow.string()) if extra else arrow.nulls(rows, arrow.string())
    return arrow.table(arrays)


def instants_ms(rows: Iterable[bytes], name: str) -> list[int]:
    """The instant of each row by its field's JSON name, however the source spells it; raises ValueError."""
    return _values(rows, name, "instant")


def whole_numbers(rows: Iterable[bytes], name: str) -> list[int]:
    """The whole number of each row by its field's JSON name, however the source spells it; raises ValueError."""
    return _values(rows, name, "bigint")


def _values(rows: Iterable[bytes], name: str, kind: str) -> list[Any]:
    found = []
    for row in rows:
        value = _field(row, name)
        if value is None:
            raise ValueError(f"a row has no `{name}`")
        try:
            found.append(KINDS[kind].read(value))
        except ValueError:
            raise ValueError(f"a row's `{name}` is {_sample(value.decode(errors='replace'))}") from None
    return found


def identities(rows: Iterable[bytes], names: Sequence[str]) -> Iterator[Hashable]:
    """What distinguishes each row: the texts of these fields (JSON names; None: no value), or the whole row if none are
    named."""
    for row in rows:
        yield tuple(_text(_field(row, name)) for name in names) if names else row


def _text(raw: bytes | None) -> str | None:
    if raw is None or raw == b"null":
        return None
    try:
        return KINDS["text"].read(raw)
    except ValueError:
        return raw.decode(errors="replace")


def _field(row: bytes, name: str) -> bytes | None:
    """The field's JSON text, however its name is spelled."""
    return next((raw for key, raw in _fields(row) if _plain(key) == _plain(name)), None)


def emptied(model: type[Row], fields: Mapping[str, object]) -> bytes:
    """A row of the schema that has these fields (JSON names) and nothing else."""
    return msgspec.json.encode({column.json_name: fields.get(column.json_name) for column in columns(model)})


def is_false(row: bytes, name: str) -> bool:
    """Whether the row's flag of that JSON name is there and false."""
    value = _field(row, name)
    try:
        return value is not None and not KINDS["flag"].read(value)
    except (ValueError, KeyError):
        return False


def with_fields(row: bytes, fields: Mapping[str, object]) -> bytes:
    """The row with these fields (JSON names), which it lacks; the others byte for byte as received. Raises ValueError
    where it says something else."""
    given = {_plain(name): str(value) for name, value in fields.items()}
    others = []
    for name, raw in _fields(row):
        if _plain(name) not in given:
            others.append(_member(name, raw))
        elif raw != b"null" and (said := _text(raw)) != given[_plain(name)]:
            raise ValueError(f"its `{name}` is {_sample(said)}, not {given[_plain(name)]}")
    return (
        b"{"
        + b",".join([*(_member(name, msgspec.json.encode(value)) for name, value in fields.items()), *others])
        + b"}"
    )


def _member(name: str, raw: bytes) -> bytes:
    return msgspec.json.encode(name) + b":" + raw


def _fields(row: bytes) -> list[tuple[str, bytes]]:
    """The row's fields in order, with repeated ones."""
    fields = msgspec.json.decode(row, type=dict[str, msgspec.Raw])
    # With as many colons after names as fields, no field is repeated: skip the slow parser.
    may_repeat = row.count(b":") > len(fields) and (row.count(b'":') > len(fields) or _SPACED_COLON.search(row))
    if may_repeat and len(pairs := _pairs(row)) > len(fields):
        return pairs
    return [(name, bytes(raw)) for name, raw in fields.items()]


_SPACED_COLON = re.compile(rb'"\s+:')


def _pairs(text: bytes) -> list[tuple[str, bytes]]:
    """The fields of a JSON object, numbers as they are written, with all fields of one name."""
    objects: list[list[tuple[str, Any]]] = []

    def of_object(pairs: list[tuple[str, Any]]) -> msgspec.Raw:
        objects.append(pairs)
        return msgspec.Raw(b"{" + b",".join(_member(name, msgspec.json.encode(value)) for name, value in pairs) + b"}")

    def as_written(number: str) -> msgspec.Raw:
        return msgspec.Raw(number.encode())

    json.loads(text, object_pairs_hook=of_object, parse_float=as_written, parse_int=as_written)
    # The outermost object ends last.
    return [(name, msgspec.json.encode(value)) for name, value in objects[-1]]


def _plain(name: str) -> str:
    """Field names as compared: `tradeId`, `trade_id` and `tradeid` are one field (LBank v1.8 lower-cased its names)."""
    return name.replace("_", "").lower()


def _field_by_field(model: type[Row], body: bytes) -> tuple[Parsed, list[Problem]]:
    rows = msgspec.json.decode(body, type=list[msgspec.Raw])
    by_name: dict[str, Column] = {_plain(column.name): column for column in columns(model)}
    required = {column.name for column in columns(model) if not column.optional}
    values: dict[str, list] = {column.name: [None] * len(rows) for column in columns(model)}
    extra: list[str | None] = [None] * len(rows)
    unknown: Counter[str] = Counter()
    unread: dict[tuple[str, str], list[tuple[int, bytes]]] = {}
    for index, row in enumerate(rows):
        seen: dict[str, tuple[str, bytes]] = {}
        more: list[tuple[str, bytes]] = []
        for name, received in _fields(bytes(row)):
            column = by_name.get(_plain(name))
            if column is None:
                more.append((name, received))
                continue
            first = seen.setdefault(column.name, (name, received))
            if first[1] is not received:
                if first[0] != name:
                    more.append((name, received))
                elif first[1] != received:
                    unread.setdefault((column.name, "the field occurs twice"), []).append((index, received))
                continue
            if received == b"null" or (column.nullable and column.kind.means_null(received)):
                continue
            try:
                values[column.name][index] = column.kind.read(received)
            except (ValueError, KeyError, msgspec.DecodeError):
                unread.setdefault((column.name, f"not {column.kind.noun}"), []).append((index, received))
        for name in required - seen.keys():
            unread.setdefault((name, "the field is missing"), []).append((index, b""))
        if more:
            extra[index], names = _extra(more)
            unknown.update(names)
    problems = [
        Problem(
            name, check, len(found), _sample(found[0][1].decode(errors="replace")) if found[0][1] else None, found[0][0]
        )
        for (name, check), found in unread.items()
    ]
    return Parsed(_table(model, values, len(rows), extra), unknown), problems


def _extra(fields: Iterable[tuple[str, bytes]]) -> tuple[str, set[str]]:
    """The JSON text for `extra`, and the names that unknown fields are reported by.

    A field that jsonb cannot hold (U+0000, a number or nesting beyond its limits, a field that occurs twice) becomes
    `{"$json": "…"}` with the value's JSON text as received; of several values, joined by commas.
    """
    by_key: dict[str, list[bytes]] = defaultdict(list)
    odd = set()
    for name, raw in fields:
        # jsonb has no U+0000 in names either: written as its JSON escape.
        key = json.dumps(name, ensure_ascii=False)[1:-1] if "\0" in name else name
        by_key[key].append(raw)
        if key != name or len(by_key[key]) > 1 or not _fits_jsonb(raw):
            odd.add(key)
    held = {
        key: {AS_RECEIVED: b",".join(raws).decode(errors="replace")} if key in odd else msgspec.Raw(raws[0])
        for key, raws in by_key.items()
    }
    # Sort: the text is hashed, and the order of fields must not matter. Cut names: they are stored in an index, whose
    # entries are limited in size.
    return msgspec.json.encode(held, order="sorted").decode(), {key[:NAME_CHARACTERS] for key in held}


_SUSPECT = re.compile(rb"\\u0000|[eE][+-]?[0-9]{4}|[{]")
_U0000 = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_NESTING = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)


class _Unfit(Exception):
    """jsonb would refuse or change a value."""


def _fits_jsonb(text: bytes) -> bool:
    """Whether jsonb holds all of the JSON text exactly, and none of its objects has `$json` as its only field."""
    if len(text) <= MAX_JSON_DEPTH and not _SUSPECT.search(text):
        return True
    depth = deepest = 0
    for token in _NESTING.finditer(text):
        depth += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(token[0], 0)
        deepest = max(deepest, depth)
    if deepest > MAX_JSON_DEPTH or _U0000.search(text):
        return False
    try:
        json.loads(text, object_pairs_hook=_fit_object, parse_float=_fit_number, parse_int=_fit_number)
    except (_Unfit, ValueError):
        return False
    return True


def _fit_object(pairs: list[tuple[str, object]]) -> None:
    names = {name for name, _ in pairs}
    if len(names) < len(pairs) or names == {AS_RECEIVED}:
        raise _Unfit


def _fit_number(text: str) -> None:
    digits, _, exponent = text.lower().partition("e")
    if (
        len(digits) > MAX_NUMBER_DIGITS
        or len(exponent) > 6
        or len(digits) + abs(int(exponent or 0)) > MAX_NUMBER_DIGITS
    ):
        raise _Unfit


def _sample(value: object) -> str:
    text = redact(value)
    return repr(text if len(text) <= SAMPLE_CHARACTERS else text[:SAMPLE_CHARACTERS] + "…")


def _validate(model: type[Row], table: arrow.Table) -> list[Problem]:
    frame = table.drop(["extra"]).to_pandas(types_mapper=pd.ArrowDtype)
    try:
        model.validate(frame, lazy=True)
    except SchemaErrors as errors:
        cases = errors.failure_cases
        nouns = {column.name: column.kind.noun for column in columns(model)}
        return [
            Problem(
                str(column),
                _NULL if check == "not_nullable" else f"not {nouns[column]}",
                len(found),
                None if check == "not_nullable" else _sample(found["failure_case"].iloc[0]),
                int(found["index"].iloc[0]),
            )
            for (column, check), found in cases.groupby(["column", "check"], sort=False)
        ]
    return []


_NULL = "null"


def _outside(table: arrow.Table, column: str, start_ms: int, end_ms: int) -> list[Problem]:
    instants = table[column].cast(arrow.int64())
    outside = compute.or_(compute.less(instants, start_ms), compute.greater_equal(instants, end_ms))
    count = compute.sum(outside).as_py()
    if not count:
        return []
    first = compute.index(
        outside.combine_chunks() if isinstance(outside, arrow.ChunkedArray) else outside, True
    ).as_py()
    return [Problem(column, "outside the day", count, _sample(instants[first].as_py()), first)]
