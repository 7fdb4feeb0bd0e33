"""Actions that runs have attempted at an exchange: one row per action, stored until its `ActionLog` lands it."""

from collections.abc import Sequence
from typing import Any, Final

import psycopg

from affiliate_pipeline.postgres.table_store import TableStore

TABLE: Final = "affiliate.attempt"


class PendingActions(TableStore):
    """The pending rows of one asset and one account, whose `sources` are those of all its keys."""

    def __init__(self, url: str, asset: str, source: str, sources: Sequence[str]) -> None:
        super().__init__(url)
        self._asset, self._source, self._sources = asset, source, list(sources)

    def rows(self) -> dict[str, bytes]:
        """The rows by name, in the order of the names, which begin with the times of the actions."""
        rows = self._execute(
            f'select name, payload from {TABLE} where asset = %s and source = any(%s) order by name collate "C"',
            (self._asset, self._sources),
        )
        return dict(rows.fetchall())

    def put(self, name: str, row: bytes) -> None:
        """Store the row durably; it replaces one of the same name, even one stored with another key of the account.

        The name is a unique id of the action that the caller chooses; it has to begin with the action's time (Unix ms).
        """
        self._execute(
            f"with stored_with_another_key as (delete from {TABLE} "
            "where asset = %(asset)s and name = %(name)s and source = any(%(sources)s) and source <> %(source)s) "
            f"insert into {TABLE} "
            "values (%(asset)s, %(source)s, %(name)s, %(row)s) "
            "on conflict (asset, source, name) do update set payload = excluded.payload",
            {"asset": self._asset, "source": self._source, "sources": self._sources, "name": name, "row": row},
        )


def drop_landed(connection: psycopg.Connection[Any], asset: str, sources: Sequence[str]) -> None:
    """Delete the asset's pending rows of these sources; for use in the transaction that lands the rows."""
    connection.execute(f"delete from {TABLE} where asset = %s and source = any(%s)", (asset, list(sources)))
