"""The data dictionary, made of the endpoints' schemas and declarations: `make docs` writes docs/data_dictionary.md with it,
and a test compares the two."""

import sys
from collections.abc import Iterable, Iterator, Sequence

from affiliate_pipeline.commission.rollup import COLUMNS, TABLE
from affiliate_pipeline.exchanges.endpoint import Endpoint, Records
from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline.schema.columns import columns

HEAD = """# Data dictionary

Made of the schemas by `make docs`; do not edit. Every amount is `numeric` with the digits and the scale that the exchange
sent, every time a `timestamptz`. A column that is not marked `null` is always there.

Each endpoint's table also has `extra` (`jsonb`: fields of the answer that the schema does not know, null if none),
`partition_date` (`date`: the day, in the zone named below), `landed_at` (`timestamptz`) and `run_id` (`text`: the Dagster
run that wrote the row).

A value that `jsonb` cannot hold exactly (U+0000, a number or nesting beyond its limits, a field that occurs twice) is in
`extra` as `{"$json": "…"}`: the text is the value's JSON as received (several values of one field are joined by commas).
Read it with `extra->'name'->>'$json'`. U+0000 in a field's name is written `\\u0000`. In every column, invalid
Unicode, such as half an emoji, is replaced by U+FFFD, and the day's check warns of it. In a response that is not valid
JSON, values nested deeper than 100 levels are stored as their JSON text.

In a column marked `null`, these spellings mean null: null, an empty or blank text, `-`, `--`, `null`, `none`, `n/a`, and for
times also 0 and -1; in a text column only null. Everywhere a number may also be sent as its text, and a time in seconds.
"""
DERIVED = (
    "Derived from the tables above, and added up again whenever one of their days lands anew. A day is that of each \
exchange, in its own zone."
)


def markdown() -> str:
    """The whole file."""
    return "\n".join([HEAD, *_exchanges(), *_derived()])


def _exchanges() -> Iterator[str]:
    for endpoint in ENDPOINTS:
        yield f"## `{endpoint.key.replace('/', '.')}`\n\n{endpoint.description}\n\n{_facts(endpoint)}\n"
        yield _table(
            (column.name, column.kind.sql, "null" if column.nullable else "", column.description)
            for column in columns(endpoint.schema)
        )


def _facts(endpoint: Endpoint) -> str:
    """The endpoint, its zone and what is known of its memory, in one line."""
    if not isinstance(endpoint, Records):
        memory = "tells only how things are now"
    elif endpoint.retention is None:
        memory = "no limit of the exchange's memory is known"
    else:
        memory = f"the exchange promises {endpoint.retention.promised.days} days"
    return f"`{endpoint.path}`, days in {endpoint.exchange.zone.key}; {memory}."


def _derived() -> Iterator[str]:
    yield f"## `{TABLE}`\n\n{DERIVED}\n"
    yield _table((name, kind.split()[0], "" if "not null" in kind else "null", about) for name, kind, about in COLUMNS)


def _table(rows: Iterable[Sequence[str]]) -> str:
    lines = ["| column | type | | what |", "| --- | --- | --- | --- |"]
    for name, kind, null, about in rows:
        lines.append(f"| `{name}` | `{kind}` | {null} | {about.replace('|', '&#124;')} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(markdown())
