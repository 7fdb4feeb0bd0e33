"""The table of actions taken at an exchange that have not landed yet. Landing the asset removes them, in its transaction."""

from affiliate_pipeline.postgres.connection import connect, unavailable


class PendingActions:
    """The actions of one asset with one account."""

    def __init__(self, url: str, asset: str, source: str):
        self._key = {"asset": asset, "source": source}
        self._connection = connect(url, autocommit=True)

    def close(self) -> None:
        self._connection.close()

    def rows(self) -> dict[str, bytes]:
        """By name, in order of the names."""
        with unavailable():
            return dict(
                self._connection.execute(
                    "select name, payload from affiliate.attempt where asset = %(asset)s and source = %(source)s "
                    'order by name collate "C"',
                    self._key,
                ).fetchall()
            )

    def keep(self, name: str, row: bytes) -> None:
        """Persist the row, in place of the one of that name."""
        with unavailable():
            self._connection.execute(
                "insert into affiliate.attempt values (%(asset)s, %(source)s, %(name)s, %(row)s) "
                "on conflict (asset, source, name) do update set payload = excluded.payload",
                {**self._key, "name": name, "row": row},
            )
