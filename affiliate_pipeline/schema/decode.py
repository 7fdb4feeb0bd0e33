"""Parses an endpoint's rows, as received in JSON, into a validated Arrow table.

Invalid values are reported column by column; nothing is guessed, rounded or dropped.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any, cast

import msgspec
import pandas as pd  # pyright: ignore[reportMissingTypeStubs]  # pandas has none
import pandera.pandas as pa
import pyarrow as arrow
import pyarrow.json
from pandera.errors import SchemaErrors
from pyarrow import compute

from affiliate_pipeline.schema.columns import MIN_MILLISECONDS, NEWEST_MS, OLDEST_MS, Column, Kind, Row, columns
from affiliate_pipeline.schema.invalid import ColumnProblem, Invalid
from affiliate_pipeline.schema.raw_row import batches, extra_of, fields, joined, normalized, sample

# Larger parts are slower: their result would not fit into the processor's caches.
DECODED_BYTES = 1 << 20
_NULL = "null"
_ARROW_TYPES = {
    "text": arrow.string(),
    "amount": arrow.string(),
    "instant": arrow.timestamp("ms", "UTC"),
    "bigint": arrow.int64(),
    "smallint": arrow.int16(),
    "flag": arrow.bool_(),
}
# The types of the usual JSON spellings.
_JSON_TYPES = _ARROW_TYPES | {"instant": arrow.int64(), "smallint": arrow.int64()}
# pandera loads its backend at the first call: do so at import, not while the first day lands.
pa.DataFrameSchema().validate(pd.DataFrame())


@dataclass(frozen=True)
class Parsed:
    """Valid rows: the schema's columns and `extra`; `unknown` counts rows by unknown field."""

    table: arrow.Table
    unknown: Counter[str] = field(default_factory=Counter[str])


def parse(model: type[Row], chunks: Iterable[bytes], inside: tuple[str, int, int] | None = None) -> Parsed:
    """The rows as a table; raises `Invalid` with all problems if any row does not fit the schema.

    Each of the `chunks` is one or more JSON objects joined by commas. `inside` names an instant column and the
    half-open range of milliseconds that it has to be in.
    """
    chunks = list(chunks)
    parsed = _as_declared(model, chunks)
    problems: list[ColumnProblem] = []
    if parsed is None:
        parsed, problems = _by_field(model, chunks)
    if inside and not problems:
        problems = _outside(parsed.table, *inside)
    if problems:
        raise Invalid(problems)
    return parsed


def damaged(table: arrow.Table) -> Counter[str]:
    """By column, the number of rows with U+FFFD, which replaces text that cannot be decoded."""
    texts = [name for name in table.column_names if arrow.types.is_string(table[name].type)]
    found = {name: compute.sum(compute.match_substring(table[name], "\N{REPLACEMENT CHARACTER}")) for name in texts}
    # `+` drops the columns without such rows.
    return +Counter({name: count.as_py() or 0 for name, count in found.items()})


def _as_declared(model: type[Row], chunks: Sequence[bytes]) -> Parsed | None:
    """The fast path for valid rows of the declared types; None: `_FieldReader` is needed."""
    try:
        names = _names_sent(model, chunks)
        no_rows: list[bytes] = []
        parts = list(batches(chunks, DECODED_BYTES)) or [no_rows]
        table = arrow.concat_tables([_decoded(model, names, part) for part in parts])
    except (arrow.ArrowException, ValueError, RecursionError):
        return None
    return None if _problems_of(model, table) else Parsed(table)


def _names_sent(model: type[Row], chunks: Sequence[bytes]) -> tuple[str, ...]:
    """The JSON names of the columns, in order, as the first row spells them; raises ValueError for an unknown field."""
    first: object = {}
    if chunks:
        first, _ = json.JSONDecoder().raw_decode(chunks[0].decode())
    if not isinstance(first, dict):
        raise ValueError("not a row")  # noqa: TRY004 - the data are wrong, not an argument's type
    sent = {normalized(name): name for name in cast(dict[str, object], first)}
    names: list[str] = []
    for column in columns(model):
        names.append(sent.pop(normalized(column.json_name), column.json_name))
    if sent:
        raise ValueError("a field is unknown")
    return tuple(names)


@lru_cache
def _parse_options(model: type[Row], names: tuple[str, ...]) -> pyarrow.json.ParseOptions:
    """The options to parse an object whose `rows` have exactly the declared types."""
    types = [_JSON_TYPES[column.kind.name] for column in columns(model)]
    row = arrow.struct(list(zip(names, types, strict=True)))
    schema = arrow.schema([("rows", arrow.list_(row))])
    return pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")


def _decoded(model: type[Row], names: tuple[str, ...], chunks: Sequence[bytes]) -> arrow.Table:
    """The rows, if they have exactly the declared types; otherwise raises an error that `_as_declared` catches."""
    # Arrow reads one object as one row, whatever line ends it contains.
    text = b'{"rows":' + joined(chunks) + b"}"
    options = pyarrow.json.ReadOptions(use_threads=False, block_size=len(text) + 1)
    whole = pyarrow.json.read_json(arrow.BufferReader(text), options, _parse_options(model, names))
    if len(whole) != 1:
        raise ValueError("not one list of rows")

    rows = whole["rows"].combine_chunks().values
    # Arrow does not check that texts are UTF-8.
    rows.validate(full=True)
    if rows.null_count:
        raise ValueError("a row is null")

    values: dict[str, arrow.Array] = {}
    for column, name, array in zip(columns(model), names, rows.flatten(), strict=True):
        # Arrow reads a missing field as null, so count the names. A text cannot contain `"name":`, since its quotes are
        # escaped, and rows are flat.
        if array.null_count and not column.optional and text.count(f'"{name}":'.encode()) < len(rows):
            raise ValueError("a field is missing, or its name is spelled in another way")
        values[column.name] = _in_ms(array, column.kind).cast(_ARROW_TYPES[column.kind.name])
    return _table(model, values, len(rows))


def _in_ms(array: arrow.Array, kind: Kind) -> arrow.Array:
    """The array; instants in seconds become milliseconds. Raises ValueError if an instant is out of range."""
    if kind.name != "instant" or array.null_count == len(array):
        return array
    bounds = compute.min_max(array).as_py()
    lowest, highest = bounds["min"], bounds["max"]
    if highest < MIN_MILLISECONDS:
        array = compute.multiply(array, 1000)
        lowest, highest = lowest * 1000, highest * 1000
    # Seconds among milliseconds are out of range too: `_FieldReader` converts them one by one.
    if lowest < OLDEST_MS or highest > NEWEST_MS:
        raise ValueError("an instant is out of range")
    return array


def _table(
    model: type[Row], values: Mapping[str, Any], row_count: int, extra: Sequence[str | None] | None = None
) -> arrow.Table:
    arrays = {each.name: arrow.array(values[each.name], _ARROW_TYPES[each.kind.name]) for each in columns(model)}
    arrays["extra"] = arrow.array(extra, arrow.string()) if extra else arrow.nulls(row_count, arrow.string())
    return arrow.table(arrays)


def _by_field(model: type[Row], chunks: Sequence[bytes]) -> tuple[Parsed, list[ColumnProblem]]:
    """The rows, and all problems of their values; raises `Invalid` if a chunk is not JSON."""
    try:
        parsed, unread = _FieldReader(model, joined(chunks)).read()
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Invalid([ColumnProblem("a row", f"not JSON ({error})")]) from None
    # Unreadable values are null in the table, so drop the duplicate null problem.
    unread_values = {(problem.column, problem.row) for problem in unread}
    invalid = [
        problem
        for problem in _problems_of(model, parsed.table)
        if problem.check != _NULL or (problem.column, problem.row) not in unread_values
    ]
    return parsed, unread + invalid


class _FieldReader:
    """Reads rows field by field: values in any accepted spelling, unknown fields into `extra`."""

    def __init__(self, model: type[Row], body: bytes):
        self._model = model
        self._rows = msgspec.json.decode(body, type=list[msgspec.Raw])
        self._columns: dict[str, Column] = {normalized(column.json_name): column for column in columns(model)}
        self._required = {column.name for column in columns(model) if not column.optional}
        self._values: dict[str, list[Any]] = {each.name: [None] * len(self._rows) for each in columns(model)}
        self._problems: list[ColumnProblem] = []

    def read(self) -> tuple[Parsed, list[ColumnProblem]]:
        unknown: Counter[str] = Counter()
        extra: list[str | None] = []
        for index, row in enumerate(self._rows):
            others = self._read_row(index, bytes(row))
            text, names = extra_of(others) if others else (None, ())
            extra.append(text)
            unknown.update(names)
        return Parsed(_table(self._model, self._values, len(self._rows), extra), unknown), self._problems

    def _read_row(self, index: int, row: bytes) -> list[tuple[str, bytes]]:
        """Add the row's values and problems; return the fields that belong to no column."""
        seen: dict[str, tuple[str, bytes]] = {}
        others: list[tuple[str, bytes]] = []
        for name, raw in fields(row):
            column = self._columns.get(normalized(name))
            if column is None:
                others.append((name, raw))
            elif column.name not in seen:
                seen[column.name] = name, raw
                self._read_value(index, column, raw)
            else:
                first_name, first_raw = seen[column.name]
                # Of several spellings of a column's name, the first is the column's; the others are unknown fields.
                if name != first_name:
                    others.append((name, raw))
                elif raw != first_raw:
                    self._problems.append(ColumnProblem(column.name, "the field occurs twice", index, sample(raw)))

        for name in self._required - seen.keys():
            self._problems.append(ColumnProblem(name, "the field is missing", index))
        return others

    def _read_value(self, index: int, column: Column, raw: bytes) -> None:
        # A null in a column that is not nullable is reported by `_problems_of`.
        if raw == b"null" or (column.nullable and column.kind.means_null(raw)):
            return
        try:
            self._values[column.name][index] = column.kind.read(raw)
        except (ValueError, KeyError, msgspec.DecodeError):
            self._problems.append(ColumnProblem(column.name, f"not {column.kind.noun}", index, sample(raw)))


@cache
def _validator(model: type[Row]) -> pa.DataFrameSchema:
    """The pandera schema: exactly the declared columns, in their order."""
    declared = {
        each.name: pa.Column(
            pd.ArrowDtype(_ARROW_TYPES[each.kind.name]),
            cast(Any, pa.Check).str_matches(each.kind.pattern) if each.kind.pattern else None,
            nullable=each.nullable,
        )
        for each in columns(model)
    }
    return pa.DataFrameSchema(declared, strict=True, ordered=True)


def _problems_of(model: type[Row], table: arrow.Table) -> list[ColumnProblem]:
    # An empty table has no problem: its columns are as declared. Validating it would take pandera as long as validating
    # thousands of rows.
    if not len(table):
        return []
    frame = table.drop(["extra"]).to_pandas(types_mapper=pd.ArrowDtype)
    try:
        _validator(model).validate(frame, lazy=True)
    except SchemaErrors as errors:
        cases = cast(Any, errors).failure_cases.to_dict("records")
    else:
        return []

    checks = {column.name: f"not {column.kind.noun}" for column in columns(model)}
    problems: list[ColumnProblem] = []
    for case in cases:
        column, row = case["column"], int(case["index"])
        if case["check"] == "not_nullable":
            problems.append(ColumnProblem(column, _NULL, row))
        else:
            problems.append(ColumnProblem(column, checks[column], row, sample(case["failure_case"])))
    return problems


def _outside(table: arrow.Table, column: str, start_ms: int, end_ms: int) -> list[ColumnProblem]:
    instants = table[column].cast(arrow.int64())
    is_outside = compute.or_(compute.less(instants, start_ms), compute.greater_equal(instants, end_ms))
    # Before version 26, pyarrow's `indices_nonzero` crashes the process for a table without rows.
    if not compute.any(is_outside).as_py():
        return []
    rows = compute.indices_nonzero(is_outside).to_pylist()
    first = rows[0]
    return [ColumnProblem(column, "outside the day", first, sample(instants[first].as_py()), count=len(rows))]
