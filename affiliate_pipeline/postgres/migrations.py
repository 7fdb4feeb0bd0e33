"""Numbered SQL files that create and change tables, each applied once in one transaction.

The transaction also records the file in `affiliate.schema_migration`, so that any process can continue after a crash.
Files are named `<number>_<title>.sql`; a released file is never changed.
"""

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import sql

from affiliate_pipeline.postgres.errors import ENCODING, ENCODING_ACTION, StoreUnavailable, as_store_unavailable
from affiliate_pipeline.postgres.locks import Lock, locked

TABLE: Final = "affiliate.schema_migration"
# Earlier releases use the same lock.
DDL_LOCK = Lock("affiliate_pipeline.ddl")


@dataclass(frozen=True)
class Migrations:
    """A folder of migrations for the tables of one schema."""

    schema: str
    folder: Path

    @cached_property
    def files(self) -> dict[int, Path]:
        """The files by number, in order."""
        return {int(path.name.partition("_")[0]): path for path in sorted(self.folder.glob("[0-9]*_*.sql"))}


# Tables that do not belong to one exchange.
CORE = Migrations("affiliate", Path(__file__).with_name("migrations"))


def migrate(connection: psycopg.Connection[Any], migrations: Migrations) -> None:
    """Apply pending migrations; raise `StoreUnavailable` if the database is of a newer release."""
    if not _pending(connection, migrations):
        return
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise StoreUnavailable(f"the database's encoding is {encoding}, {ENCODING}", ENCODING_ACTION)

    with locked(connection, DDL_LOCK, f"the tables of schema {migrations.schema}"), as_store_unavailable():
        with connection.transaction():
            for schema in (CORE.schema, migrations.schema):
                ensure_schema(connection, schema)
            connection.execute(
                f"create table if not exists {TABLE} (schema text not null, number int not null, name text not null, "
                "applied_at timestamptz not null default now(), primary key (schema, number)); "
                f"comment on table {TABLE} is 'Which SQL files of a release have been applied to the tables of a schema.'"
            )

        # Read again, since another process may have applied them while this one waited for the lock.
        for number in _pending(connection, migrations):
            file = migrations.files[number]
            with connection.transaction():
                connection.execute(file.read_bytes())
                connection.execute(f"insert into {TABLE} values (%s, %s, %s)", (migrations.schema, number, file.stem))


def ensure_schema(connection: psycopg.Connection[Any], schema: str) -> None:
    """Create the schema if it does not exist."""
    # `create schema if not exists` needs the privilege to create schemas even where it exists.
    query = "select to_regnamespace(quote_ident(%s)) is null"
    if connection.execute(query, (schema,)).fetchone() == (True,):
        connection.execute(sql.SQL("create schema {}").format(sql.Identifier(schema)))


def _pending(connection: psycopg.Connection[Any], migrations: Migrations) -> list[int]:
    applied = set[int]()  # none if the table does not exist yet
    with as_store_unavailable(), suppress(psycopg.errors.UndefinedTable), connection.transaction():
        rows = connection.execute(f"select number from {TABLE} where schema = %s", (migrations.schema,))
        applied = {number for (number,) in rows}
    if unknown := applied - migrations.files.keys():
        raise StoreUnavailable(
            f"the tables of schema {migrations.schema} are of a newer release (migration {max(unknown)}) than this program",
            "Run that release or a newer one",
        )
    return [number for number in migrations.files if number not in applied]
