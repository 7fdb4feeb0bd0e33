"""The endpoints' own tables, generated from their schemas. Columns are added, never dropped."""

from collections.abc import Iterable
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from affiliate_pipeline.exchanges.endpoint import Endpoint
from affiliate_pipeline.postgres.errors import unavailable
from affiliate_pipeline.postgres.locks import locked
from affiliate_pipeline.postgres.migrations import DDL_LOCK
from affiliate_pipeline.schema.columns import Row, columns

RIGHTS = "select insert delete"


def table(endpoint: Endpoint) -> sql.Identifier:
    """The endpoint's table, quoted."""
    return sql.Identifier(endpoint.exchange.name, endpoint.name)


def data_columns(model: type[Row]) -> sql.Composed:
    """The names of the columns that come from the source, in the order they are copied."""
    return sql.SQL(", ").join(map(sql.Identifier, [*(column.name for column in columns(model)), "extra"]))


def temporary_table(name: str, model: type[Row]) -> sql.Composed:
    """Creates a table of the transaction with the endpoint's `data_columns`."""
    return sql.SQL("create temporary table {} ({}) on commit drop").format(sql.Identifier(name), _definitions(model))


def ensure(connection: psycopg.Connection[Any], endpoint: Endpoint) -> None:
    """Creates the endpoint's table, or adds the columns and comments that its schema has gained."""
    wanted = {column.name: column.description for column in columns(endpoint.schema)}
    with unavailable(), connection.transaction():
        found = connection.execute(
            "select attname, col_description(attrelid, attnum), obj_description(attrelid) from pg_attribute "
            "where attrelid = to_regclass(%s) and attnum > 0 and not attisdropped",
            (table(endpoint).as_string(connection),),
        ).fetchall()
    present = {name: comment for name, comment, _ in found}
    # Even DDL that changes nothing waits for every reader of the table, and all others wait for it.
    if not (wanted.items() <= present.items() and all(comment == endpoint.description for *_, comment in found)):
        # `if not exists` alone is not safe from two processes at once.
        with locked(connection, DDL_LOCK, f"the table of {endpoint.key}"), unavailable(), connection.transaction():
            connection.execute(sql.SQL("\n").join(_statements(endpoint)))


def _definitions(model: type[Row]) -> sql.Composed:
    # Nullability is checked against the schema, which may change: a table would keep what it was created with.
    data: list[tuple[str, LiteralString]] = [(column.name, column.kind.sql) for column in columns(model)]
    data.append(("extra", "jsonb"))
    return sql.SQL(", ").join(sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(kind)) for name, kind in data)


def _statements(endpoint: Endpoint) -> Iterable[sql.Composed]:
    name, described = table(endpoint), columns(endpoint.schema)
    yield sql.SQL("create schema if not exists {};").format(sql.Identifier(endpoint.exchange.name))
    # The landing transaction sets both defaults, so that COPY carries only the source's own columns.
    yield sql.SQL(
        "create table if not exists {} ({}, "
        "partition_date date not null default current_setting('affiliate.partition_date')::date, "
        "landed_at timestamptz not null default now(), "
        "run_id text not null default current_setting('affiliate.run_id'));"
    ).format(name, _definitions(endpoint.schema))
    for column in described:
        yield sql.SQL("alter table {} add column if not exists {} {};").format(
            name, sql.Identifier(column.name), sql.SQL(column.kind.sql)
        )
    yield sql.SQL("create index if not exists {} on {} (partition_date);").format(
        sql.Identifier(f"{endpoint.name}_partition_date"), name
    )
    yield sql.SQL("comment on table {} is {};").format(name, endpoint.description)
    for column in described:
        yield sql.SQL("comment on column {}.{} is {};").format(name, sql.Identifier(column.name), column.description)
