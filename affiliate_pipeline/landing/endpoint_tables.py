"""The endpoints' tables, generated from their schemas. Columns are added, never dropped."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from affiliate_pipeline.domain.wording import count_of
from affiliate_pipeline.exchanges.endpoint import Endpoint, Records
from affiliate_pipeline.landing import ledger
from affiliate_pipeline.postgres.errors import as_store_unavailable
from affiliate_pipeline.postgres.locks import locked
from affiliate_pipeline.postgres.migrations import DDL_LOCK, ensure_schema
from affiliate_pipeline.schema.columns import Row, columns

PRIVILEGES = "select insert delete"
ACCOUNT_DESCRIPTION = "The alias of the account that the row belongs to; empty: the default account."


@dataclass(frozen=True)
class DayStats:
    """Statistics of a day's rows: exact sums (text) by group, first and last instant (UTC)."""

    rows: int
    first: datetime | None
    last: datetime | None
    sums: Mapping[str, str]
    rows_with_fee_above_volume: int = 0


@dataclass(frozen=True)
class Difference:
    """A group in which two assets that should have the same rows differ.

    Amounts are exact, as text.
    """

    name: str | None
    rows: int
    total: str
    other_rows: int
    other_total: str

    def __str__(self) -> str:
        own, other = count_of(self.rows, "row"), count_of(self.other_rows, "row")
        return f"{self.name}: {own} with a total of {self.total}, compared with {other} and {self.other_total}"


def table(endpoint: Endpoint) -> sql.Identifier:
    """The endpoint's table, quoted."""
    return sql.Identifier(endpoint.exchange.name, endpoint.name)


def rows_of(endpoint: Endpoint, day: date) -> sql.Composed:
    """The account's rows of the day: what follows `from` in every statement about a day."""
    return sql.SQL("{} where partition_date = {} and account = {}").format(table(endpoint), day, endpoint.alias)


def rows_since(endpoint: Endpoint, first: date) -> sql.Composed:
    """The account's rows from this day on, as `rows_of`."""
    return sql.SQL("{} where partition_date >= {} and account = {}").format(table(endpoint), first, endpoint.alias)


def data_columns(model: type[Row]) -> sql.Composed:
    """The names of the columns that come from the source, in the order they are copied."""
    names = [column.name for column in columns(model)]
    return sql.SQL(", ").join(map(sql.Identifier, [*names, "extra"]))


def definitions(model: type[Row]) -> sql.Composed:
    """The `data_columns` with their types."""
    # No `not null`: it would remain when the schema changes. Decoding checks nullability instead.
    return sql.SQL(", ").join(
        sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(kind)) for name, kind in _kinds(model).items()
    )


def _kinds(model: type[Row]) -> dict[str, LiteralString]:
    """The types of the `data_columns` by name, in order."""
    kinds: dict[str, LiteralString] = {column.name: column.kind.sql for column in columns(model)}
    kinds["extra"] = "jsonb"
    return kinds


def ensure(connection: psycopg.Connection[Any], endpoint: Endpoint) -> None:
    """Create the endpoint's table, or add the columns and comments its schema has gained."""
    # Skip DDL that changes nothing: it would wait for every reader of the table and block all others meanwhile.
    if _is_up_to_date(connection, endpoint):
        return
    # `if not exists` alone fails when two processes run it concurrently.
    with (
        locked(connection, DDL_LOCK, f"the table of {endpoint.key}"),
        as_store_unavailable(),
        connection.transaction(),
    ):
        ensure_schema(connection, endpoint.exchange.name)
        connection.execute(sql.SQL("\n").join(_statements(endpoint)))


def _is_up_to_date(connection: psycopg.Connection[Any], endpoint: Endpoint) -> bool:
    """Whether the table exists with all columns and comments."""
    with as_store_unavailable(), connection.transaction():
        described = connection.execute(
            "select attname, col_description(attrelid, attnum), obj_description(attrelid) "
            "from pg_attribute "
            "where attrelid = to_regclass(%s) and attnum > 0 and not attisdropped",
            (table(endpoint).as_string(connection),),
        ).fetchall()
    comments = {name: comment for name, comment, _ in described}
    table_comments = {table_comment for *_, table_comment in described}

    expected = {column.name: column.description for column in columns(endpoint.schema)}
    expected["account"] = ACCOUNT_DESCRIPTION
    return expected.items() <= comments.items() and table_comments == {endpoint.description}


def _statements(endpoint: Endpoint) -> Iterable[sql.Composed]:
    """The DDL of `ensure`; each statement has no effect if its object exists."""
    name = table(endpoint)
    # The landing transaction sets what these defaults read, so that COPY carries only the source's own columns.
    yield sql.SQL(
        "create table if not exists {} ({}, "
        "account text not null, "
        "partition_date date not null default current_setting('affiliate.partition_date')::date, "
        "landed_at timestamptz not null default now(), "
        "run_id text not null default current_setting('affiliate.run_id'));"
    ).format(name, definitions(endpoint.schema))
    # A program that sets no account writes rows of the default one.
    yield sql.SQL(
        "alter table {table} add column if not exists account text not null default ''; "
        "alter table {table} alter column account set default coalesce(current_setting('affiliate.account', true), ''); "
        "comment on column {table}.account is {text};"
    ).format(table=name, text=ACCOUNT_DESCRIPTION)
    index = sql.Identifier(f"{endpoint.name}_partition_date")
    yield sql.SQL("create index if not exists {} on {} (partition_date);").format(index, name)
    yield sql.SQL("comment on table {} is {};").format(name, endpoint.description)
    for column in columns(endpoint.schema):
        yield sql.SQL(
            "alter table {table} add column if not exists {column} {kind}; "
            "comment on column {table}.{column} is {text};"
        ).format(table=name, column=sql.Identifier(column.name), kind=sql.SQL(column.kind.sql), text=column.description)


def stats_of(connection: psycopg.Connection, endpoint: Endpoint, day: date) -> DayStats:
    """Statistics of the day's rows, read in the caller's transaction."""
    rows = rows_with_fee_above_volume = 0
    instants: list[datetime] = []
    sums: dict[str, str] = {}
    for group, total, row_count, excess_count, first, last in connection.execute(_stats_query(endpoint, day)):
        rows += row_count
        rows_with_fee_above_volume += excess_count
        if first:
            instants += [first, last]
        if total is not None:
            sums[group] = total
    return DayStats(
        rows=rows,
        first=min(instants, default=None),
        last=max(instants, default=None),
        sums=sums,
        rows_with_fee_above_volume=rows_with_fee_above_volume,
    )


def _stats_query(endpoint: Endpoint, day: date) -> sql.Composed:
    """A query for the day's groups.

    Columns: the group's name, the sum of its amounts, its rows, those with a fee above the volume, first and last
    instant. What the endpoint does not declare is null or 0.
    """
    group, amount = sql.SQL("null"), sql.SQL("null::numeric")
    instant = sql.SQL("null::timestamptz")
    is_fee_above_volume = sql.SQL("false")
    if isinstance(endpoint, Records):
        if endpoint.sum_by:
            amount, group = map(sql.Identifier, endpoint.sum_by)
        if endpoint.time_column:
            instant = sql.Identifier(endpoint.time_column)
        if endpoint.volume_and_fee:
            volume, fee = map(sql.Identifier, endpoint.volume_and_fee)
            is_fee_above_volume = sql.SQL("{fee} > {volume}").format(fee=fee, volume=volume)

    return sql.SQL(
        "select {group}::text, sum({amount})::text, "
        "count(*), count(*) filter (where {is_fee_above_volume}), "
        "min({instant}), max({instant}) "
        "from {rows} "
        "group by 1 order by 1"
    ).format(
        group=group,
        amount=amount,
        is_fee_above_volume=is_fee_above_volume,
        instant=instant,
        rows=rows_of(endpoint, day),
    )


def altering_features_query(connection: psycopg.Connection[Any], endpoint: Endpoint) -> sql.Composed:
    """A query for what could change rows as they are written: triggers, column types, a kind other than a plain table.

    It returns one array of texts, each of which names one such feature of the endpoint's table.
    """
    kinds = _kinds(endpoint.schema)
    return sql.SQL(
        "select array("
        "select 'trigger ' || tgname "
        "from pg_trigger "
        "where tgrelid = t.oid and not tgisinternal "
        "union all "
        "select 'a partitioned table, a foreign table or a view' "
        "where relkind <> 'r' "
        "union all "
        "select 'column ' || attname || ' ' || format_type(atttypid, atttypmod) "
        "from pg_attribute join unnest({names}::text[], {kinds}::regtype[]) as schema (name, kind) on name = attname "
        "where attrelid = t.oid and not attisdropped and (atttypid, atttypmod) <> (kind::oid, -1)"
        ") from pg_class t where t.oid = {table}::regclass"
    ).format(names=list(kinds), kinds=list(kinds.values()), table=table(endpoint).as_string(connection))


def matching_values(
    connection: psycopg.Connection[Any], endpoint: Endpoint, day: date, entries: Sequence[Mapping[str, object]]
) -> list[dict[str, str]]:
    """Those entries of `DayBatch.excluded` or `DayBatch.without_list` that match any landed row of the day.

    Their values are by JSON name; the result has them by column name, as text.
    """
    if not entries:
        return []
    column_names = {column.json_name: column.name for column in columns(endpoint.schema)}
    compared = [column_names[json_name] for json_name in entries[0]]
    as_texts = [sql.SQL("{}::text").format(sql.Identifier(name)) for name in compared]
    # The constant '' is selected too, so that the select list is not empty if the entries have no fields.
    selected = sql.SQL(", ").join([sql.SQL("''"), *as_texts])
    rows = connection.execute(sql.SQL("select distinct {} from {}").format(selected, rows_of(endpoint, day))).fetchall()
    landed = {tuple(values) for _, *values in rows}

    matches: list[dict[str, str]] = []
    for entry in entries:
        values = tuple(map(str, entry.values()))
        if values in landed:
            matches.append(dict(zip(compared, values, strict=True)))
    return matches


def differences(connection: psycopg.Connection, endpoint: Records, day: date) -> list[Difference] | None:
    """The groups that differ from those of the account's endpoint `compared_with`.

    None: no such endpoint is declared, or it has not landed the day.
    """
    if not endpoint.sum_by or not endpoint.compared_with:
        return None
    other = replace(endpoint, name=endpoint.compared_with)
    if not ledger.entries(connection, other.key, [day]):
        return None

    amount, group = map(sql.Identifier, endpoint.sum_by)
    sums = sql.SQL("select {} name, count(*) rows, sum({}) total from {} group by 1")
    statement = sql.SQL(
        "with own as ({}), others as ({}) "
        "select name, "
        "coalesce(own.rows, 0), coalesce(own.total, 0)::text, "
        "coalesce(others.rows, 0), coalesce(others.total, 0)::text "
        "from own full join others using (name) "
        "where (own.rows, own.total) is distinct from (others.rows, others.total) "
        "order by 1"
    ).format(
        sums.format(group, amount, rows_of(endpoint, day)),
        sums.format(group, amount, rows_of(other, day)),
    )
    with as_store_unavailable(), connection.transaction():
        return [Difference(*row) for row in connection.execute(statement)]
