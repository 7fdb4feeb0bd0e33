"""Whether the database is usable: checked before requests to an exchange, and by `check`."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import psycopg

from affiliate_pipeline.postgres.connection import connect
from affiliate_pipeline.postgres.errors import (
    ENCODING,
    ENCODING_ACTION,
    READ_ONLY,
    READ_ONLY_ACTION,
    StoreUnavailable,
    as_store_unavailable,
)

# Not `to_regclass`: it fails where the role may not use the schema.
_SELECT_READINESS: Final = """
with existing as (
    select pg_class.oid, name, privilege from unnest(%(tables)s::text[], %(privileges)s::text[]) as needed (name, privilege)
    join pg_namespace on nspname = split_part(name, '.', 1)
    join pg_class on relnamespace = pg_namespace.oid and relname = split_part(name, '.', 2)
), schemas as (
    select schema, to_regnamespace(quote_ident(schema)) as oid from unnest(%(schemas)s::text[]) schema
), missing (privilege, statement) as (
    select 'usage on schema ' || schema, format('grant usage on schema %%I to %%I', schema, current_user)
    from schemas where not has_schema_privilege(oid, 'usage')
    union all
    select 'create on the database (for schema ' || string_agg(schema, ', ' order by schema) || ')',
        format('grant create on database %%I to %%I', current_database(), current_user)
    from schemas where oid is null and not has_database_privilege(current_database(), 'create') having count(*) > 0
    union all
    select 'temporary on the database', format('grant temporary on database %%I to %%I', current_database(), current_user)
    where not has_database_privilege(current_database(), 'temporary')
    union all
    select privilege || ' on ' || name, format('grant %%s on %%s to %%I', privilege, name, current_user)
    from existing where not has_table_privilege(oid, privilege)
)
select pg_is_in_recovery(),
    -- The setting with which the session began: `check` sets the current one to on.
    (select reset_val from pg_settings where name = 'default_transaction_read_only') = 'on',
    current_setting('server_encoding'),
    array(select privilege from missing),
    array(select statement from missing),
    array(select distinct name from existing where row_security_active(oid))
"""


class DatabaseReadOnly(StoreUnavailable):
    """Nothing can be written at all, Dagster's own tables included."""


def problems(connection: psycopg.Connection[Any], privileges: Mapping[str, str]) -> Iterator[StoreUnavailable]:
    """What prevents using tables (`schema.name`) with these privileges, such as "select insert"."""
    needed: list[tuple[str, str]] = []
    for table, table_privileges in privileges.items():
        needed += [(table, privilege) for privilege in table_privileges.split()]
    values = {
        "schemas": list({table.partition(".")[0] for table in privileges}),
        "tables": [table for table, _ in needed],
        "privileges": [privilege for _, privilege in needed],
    }
    with as_store_unavailable(), connection.transaction():
        rows = connection.execute(_SELECT_READINESS, values).fetchall()
    [(is_standby, is_read_only, encoding, missing, grants, hidden_tables)] = rows

    if is_standby:
        yield DatabaseReadOnly(f"{READ_ONLY}: its address leads to a standby", READ_ONLY_ACTION)
    elif is_read_only:
        yield DatabaseReadOnly(f"{READ_ONLY} (default_transaction_read_only is on)", READ_ONLY_ACTION)
    if encoding != "UTF8":
        yield StoreUnavailable(f"the database's encoding is {encoding}, {ENCODING}", ENCODING_ACTION)
    if missing:
        yield StoreUnavailable(
            f"the database's role lacks a privilege: {', '.join(missing)}",
            f"Run `{'; '.join(grants)}`, or see docs/least_privilege.sql",
        )
    if hidden_tables:
        yield StoreUnavailable(
            f"row-level security hides rows from the database's role in {', '.join(hidden_tables)}",
            "Use the owner of these tables, or a role with `bypassrls`",
        )


def require_storage(url: str) -> None:
    """Raise `StoreUnavailable` if the database is read-only, or if Dagster's tables neither exist nor can be created.

    Dagster has its tables in the schema `public`. In a database without this schema, the tables are not checked.
    """
    with connect(url, autocommit=True) as connection:
        for error in problems(connection, {}):
            if isinstance(error, DatabaseReadOnly):
                raise error
        with as_store_unavailable():
            # Without the schema, the query returns no row, and nothing is raised: the URL's `options` may set another
            # `search_path` for Dagster's tables.
            row = connection.execute(
                "select to_regclass('public.runs') is not null or has_schema_privilege('public', 'create') "
                "where to_regnamespace('public') is not null"
            ).fetchone()
    if row == (False,):
        raise StoreUnavailable(
            "the database's role lacks a privilege: create on schema public, where Dagster has its tables",
            "Grant it: `grant create on schema public to <role>`",
        )
