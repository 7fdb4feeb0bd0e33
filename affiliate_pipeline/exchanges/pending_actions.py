"""Actions of runs at an exchange that have not landed yet, as rows of action logs."""

from typing import Any, Final

import psycopg

from affiliate_pipeline.postgres.table_store import TableStore

TABLE: Final = "affiliate.attempt"


class PendingActions(TableStore):
    """The pending rows of one asset and one account."""

    def __init__(self, url: str, asset: str, source: str) -> None:
        super().__init__(url)
        self._key = (asset, source)

    def rows(self) -> dict[str, bytes]:
        """The rows by name, in the order of the names."""
        rows = self._execute(
            f'select name, payload from {TABLE} where asset = %s and source = %s order by name collate "C"', self._key
        )
        return dict(rows.fetchall())

    def put(self, name: str, row: bytes) -> None:
        """Store the row durably; it replaces one of the same name."""
        self._execute(
            f"insert into {TABLE} values (%s, %s, %s, %s) "
            "on conflict (asset, source, name) do update set payload = excluded.payload",
            (*self._key, name, row),
        )


def drop_landed(connection: psycopg.Connection[Any], asset: str, source: str) -> None:
    """Delete the asset's pending rows, in the transaction that lands them."""
    connection.execute(f"delete from {TABLE} where asset = %s and source = %s", (asset, source))
