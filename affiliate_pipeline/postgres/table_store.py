"""The base of classes that own tables: one connection to a database that has these tables."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, LiteralString, Self

import psycopg
from psycopg import sql

from affiliate_pipeline.postgres.connection import connect
from affiliate_pipeline.postgres.errors import as_store_unavailable
from affiliate_pipeline.postgres.migrations import CORE, Migrations, migrate


class TableStore:
    """A connection that the `with` block closes; driver errors become `StoreUnavailable`."""

    migrations: ClassVar[Migrations] = CORE

    def __init__(self, url: str, *, autocommit: bool = True, durable: bool = True) -> None:
        self._connection = connect(url, autocommit=autocommit, durable=durable)
        try:
            migrate(self._connection, self.migrations)
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Close the connection, which ends its session and releases its locks."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _execute(
        self,
        statement: LiteralString | sql.Composed,
        values: Sequence[object] | Mapping[str, object] | None = None,
    ) -> psycopg.Cursor[Any]:
        with as_store_unavailable():
            return self._connection.execute(statement, values)
