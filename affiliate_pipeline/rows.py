"""From an endpoint's rows as received (JSON texts) to a validated Arrow table and to the text that PostgreSQL copies.

What cannot be read or is not valid is reported column by column; nothing is guessed, rounded or dropped.
"""

import io
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from hashlib import sha256

import msgspec
import numpy as np
import pandas as pd
import pyarrow as arrow
import pyarrow.csv
import pyarrow.json
from pandera.errors import SchemaErrors
from pyarrow import compute

from affiliate_pipeline.rest.redact import redact
from affiliate_pipeline.schema import KINDS, Column, Row, columns

SAMPLE_CHARACTERS = 40
# Decoded at once: with more, what is made of it no longer fits the processor's caches.
DECODED_BYTES = 1 << 20


@dataclass(frozen=True)
class Problem:
    """What is wrong with one column: which check failed for how many rows, and one redacted example."""

    column: str
    check: str
    count: int
    sample: str | None = None

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
    try:
        parsed, problems = _as_declared(model, rows), []
    except (arrow.ArrowException, ValueError):
        try:
            parsed, problems = _field_by_field(model, _list(rows))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Invalid([Problem("a row", f"not JSON ({error})", 1)]) from None
    # What could not be read stands as null in the table: said once.
    unread = {(problem.column, _NULL) for problem in problems}
    problems += [problem for problem in _validate(model, parsed.table) if (problem.column, problem.check) not in unread]
    if inside and not problems:
        problems += _outside(parsed.table, *inside)
    if problems:
        raise Invalid(problems)
    return parsed


def split(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Each row's JSON text by itself."""
    for chunk in chunks:
        yield from map(bytes, msgspec.json.decode(_list([chunk]), type=list[msgspec.Raw]))


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


def _as_declared(model: type[Row], chunks: Sequence[bytes]) -> Parsed:
    """Rows that are exactly as the schema says; anything else raises ValueError and is left to `_field_by_field`."""
    return Parsed(
        arrow.concat_tables([_decoded(model, batch) for batch in (batches(chunks, DECODED_BYTES) if chunks else [[]])])
    )


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
        if array.null_count and not column.newer and text.count(f'"{column.json_name}":'.encode()) < len(rows):
            raise ValueError("a field is missing, or its name is spelled in another way")
        if column.kind.name == "amount" and column.nullable and compute.any(compute.equal(array, "")).as_py():
            raise ValueError("an amount is empty")
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
    found = []
    for row in rows:
        value = next((raw for key, raw in _fields(row).items() if _plain(key) == _plain(name)), None)
        if value is None:
            raise ValueError(f"a row has no `{name}`")
        try:
            found.append(KINDS["instant"].read(bytes(value)))
        except ValueError:
            raise ValueError(
                f"a row's `{name}` is {bytes(value).decode(errors='replace')[:SAMPLE_CHARACTERS]}"
            ) from None
    return found


def identities(rows: Iterable[bytes], names: Sequence[str]) -> Iterator[Hashable]:
    """What tells each row from others: these fields of it (JSON names), or all of it where none are named."""
    plain = [_plain(name) for name in names]
    for row in rows:
        if not names:
            yield row
            continue
        fields = {_plain(name): bytes(raw) for name, raw in _fields(row).items()}
        yield tuple(fields.get(name) for name in plain)


def emptied(model: type[Row], fields: Mapping[str, object]) -> bytes:
    """A row of the schema that has these fields (JSON names) and nothing else."""
    return msgspec.json.encode({column.json_name: fields.get(column.json_name) for column in columns(model)})


def is_false(row: bytes, name: str) -> bool:
    """Whether the row's flag of that JSON name is there and false."""
    value = next((raw for key, raw in _fields(row).items() if _plain(key) == _plain(name)), None)
    try:
        return value is not None and not KINDS["flag"].read(bytes(value))
    except (ValueError, KeyError):
        return False


def with_fields(row: bytes, fields: Mapping[str, object]) -> bytes:
    """The row with these fields (JSON names), which it lacks; the others byte for byte as received. Raises ValueError
    where it says something else."""
    given = {_plain(name): str(value) for name, value in fields.items()}
    others: dict[str, msgspec.Raw] = {}
    for name, raw in _fields(row).items():
        if _plain(name) not in given:
            others[name] = raw
        elif bytes(raw) != b"null" and (said := KINDS["text"].read(bytes(raw))) != given[_plain(name)]:
            raise ValueError(f"its `{name}` is {_sample(said)}, not {given[_plain(name)]}")
    return msgspec.json.encode({**fields, **others})


def _fields(row: bytes) -> dict[str, msgspec.Raw]:
    return msgspec.json.decode(row, type=dict[str, msgspec.Raw])


def _plain(name: str) -> str:
    """Field names as compared: `tradeId`, `trade_id` and `tradeid` are one field (LBank v1.8 lower-cased its names)."""
    return name.replace("_", "").lower()


def _field_by_field(model: type[Row], body: bytes) -> tuple[Parsed, list[Problem]]:
    rows = msgspec.json.decode(body, type=list[dict[str, msgspec.Raw]])
    by_name: dict[str, Column] = {_plain(column.name): column for column in columns(model)}
    required = {column.name for column in columns(model) if not column.newer}
    values: dict[str, list] = {column.name: [None] * len(rows) for column in columns(model)}
    extra: list[str | None] = [None] * len(rows)
    unknown: Counter[str] = Counter()
    unread: dict[tuple[str, str], list[bytes]] = {}
    for index, row in enumerate(rows):
        seen: set[str] = set()
        more: dict[str, msgspec.Raw] = {}
        for name, raw in row.items():
            column = by_name.get(_plain(name))
            if column is None or column.name in seen:
                more[name] = raw
                continue
            seen.add(column.name)
            received = bytes(raw)
            if received == b"null" or (received == b'""' and column.nullable and column.kind.name != "text"):
                continue
            try:
                values[column.name][index] = column.kind.read(received)
            except (ValueError, KeyError, msgspec.DecodeError):
                unread.setdefault((column.name, f"not {column.kind.noun}"), []).append(received)
        for name in required - seen:
            unread.setdefault((name, "the field is missing"), []).append(b"")
        if more:
            unknown.update(more.keys())
            # Of the same fields the same text, in whatever order they came: it is hashed.
            extra[index] = msgspec.json.encode(more, order="sorted").decode()
    problems = [
        Problem(name, check, len(samples), _sample(samples[0].decode(errors="replace")) if samples[0] else None)
        for (name, check), samples in unread.items()
    ]
    return Parsed(_table(model, values, len(rows), extra), unknown), problems


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
            )
            for (column, check), found in cases.groupby(["column", "check"], sort=False)
        ]
    return []


_NULL = "null"


def _outside(table: arrow.Table, column: str, start_ms: int, end_ms: int) -> list[Problem]:
    instants = table[column].cast(arrow.int64())
    outside = compute.or_(compute.less(instants, start_ms), compute.greater_equal(instants, end_ms))
    count = compute.sum(outside).as_py()
    return [Problem(column, "outside the day", count, _sample(instants.filter(outside)[0].as_py()))] if count else []
