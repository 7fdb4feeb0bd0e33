"""The database of the tests: each test finds all tables, without rows. Contains no tests.

Creating the tables takes longer than most tests. So a copy of a template replaces the database only before the first
test and after a test that has altered or dropped a table. After any other test, its rows and new tables are removed.
"""

from typing import Any

import psycopg
from psycopg import sql

from affiliate_pipeline.exchanges.binance.kickback_export.exports import KickbackExports
from affiliate_pipeline.exchanges.lbank.roster import RosterStore
from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline.landing import endpoint_tables
from affiliate_pipeline.landing.store import Store
from affiliate_pipeline.postgres.migrations import migrate

# The version of all tables (creating, altering or dropping a table changes it), the tables with rows, the sequences in
# use, and the tables that a test has created.
STATE = """
select array[
    (select max(xmin::text::bigint) from pg_class where oid >= 16384 and relpersistence = 'p'),
    (select max(xmin::text::bigint) from pg_attribute where attrelid >= 16384),
    (select max(xmin::text::bigint) from pg_constraint),
    (select max(xmin::text::bigint) from pg_namespace where nspname !~ '^pg_'),
    (select count(*) from pg_class where oid >= 16384 and relpersistence = 'p'),
    (select count(*) from pg_constraint),
    (select count(*) from pg_namespace where nspname !~ '^pg_'),
    (select count(*) from pg_proc where oid >= 16384)
],
array(
    select oid::regclass::text from pg_class
    where oid >= 16384 and relkind = 'r' and relpersistence = 'p' and relname <> 'schema_migration' and pg_relation_size(oid) > 0
),
array(select seqrelid::regclass::text from pg_sequence where pg_sequence_last_value(seqrelid) is not null),
array(select oid::regclass::text from pg_class where oid > %s and relkind = 'r' and relpersistence = 'p')
"""


class Database:
    """The database at `url`, and one connection to it for the tests' own statements."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._server, _, self._name = url.rpartition("/")
        self._connection: psycopg.Connection[Any] | None = None
        self._version: list[int] | None = None
        self._newest_oid = 0

    def close(self) -> None:
        """Close the connection."""
        if self._connection:
            self._connection.close()
            self._connection = None

    def query(self, statement: str, *values: Any) -> list[tuple]:
        """Run SQL and return the rows."""
        try:
            cursor = self._connected().execute(statement.encode(), values)
        except psycopg.OperationalError:  # a test may terminate every connection
            self.close()
            cursor = self._connected().execute(statement.encode(), values)
        return cursor.fetchall() if cursor.description else []

    def reset(self) -> None:
        """Delete all rows and new tables; after a test that has altered or dropped a table, restore all tables."""
        if self._version is None:
            self._create_template()
        [(version, tables, sequences, created)] = self._state()
        # Without the tables that the test has created, the version is the former one unless other tables changed too.
        if self._version and created and version != self._version:
            self.query(f"drop table {', '.join(created)} cascade")
            [(version, tables, sequences, _)] = self._state()
        if version != self._version:
            self._copy_template()
            [(self._version, *_)] = self._state()
            [(self._newest_oid,)] = self.query("select max(oid)::bigint from pg_class where relpersistence = 'p'")
        elif tables:
            # Cheaper than `truncate`. Vacuumed, so that a test's rows are in the order in which they were inserted.
            deletions = [f"delete from {table};" for table in tables]
            restarts = [f"select setval('{sequence}', 1, false);" for sequence in sequences]
            # Without checks of foreign keys.
            self.query("".join(["set session_replication_role = replica;", *deletions, *restarts]))
            self.query("reset session_replication_role")
            self.query(f"vacuum {', '.join(tables)}")

    def clear(self) -> None:
        """Drop everything."""
        for (schema,) in self.query("select nspname from pg_namespace where nspname !~ '^pg_|^information_schema$'"):
            self._connected().execute(sql.SQL("drop schema {} cascade").format(sql.Identifier(schema)))
        self.query("create schema public")

    @property
    def _template(self) -> str:
        return f"{self._name}_template"

    def _create_template(self) -> None:
        with psycopg.connect(f"{self._server}/postgres", autocommit=True) as connection:
            connection.execute(f"create database {self._template}".encode())
        with Store(f"{self._server}/{self._template}") as store:
            store.connection.autocommit = True
            for migrations in (KickbackExports.migrations, RosterStore.migrations):
                migrate(store.connection, migrations)
            for endpoint in ENDPOINTS:
                endpoint_tables.ensure(store.connection, endpoint)

    def _copy_template(self) -> None:
        self.close()
        with psycopg.connect(f"{self._server}/postgres", autocommit=True) as connection:
            connection.execute(f"drop database {self._name} with (force)".encode())
            # Half the time of the default strategy, since the tests' server does not wait for the disk.
            connection.execute(f"create database {self._name} template {self._template} strategy file_copy".encode())

    def _state(self) -> list[tuple]:
        return self.query(STATE, self._newest_oid)

    def _connected(self) -> psycopg.Connection[Any]:
        if self._connection is None or self._connection.closed:
            # Without prepared statements, which would outlive changes of their tables. By default, the schema
            # with the name of the role would come first on the search path.
            options = "-c timezone=UTC -c search_path=public"
            self._connection = psycopg.connect(self.url, autocommit=True, prepare_threshold=None, options=options)
        return self._connection
