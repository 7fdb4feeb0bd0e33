"""The connection that lands days: its locks, and whether its database is ready."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import date

from psycopg import Connection, sql

from affiliate_pipeline.exchanges import identity
from affiliate_pipeline.exchanges.endpoint import Endpoint
from affiliate_pipeline.landing import day_writer, endpoint_tables, ledger, quarantine
from affiliate_pipeline.landing.ledger import LedgerEntry
from affiliate_pipeline.postgres import rate_limiter
from affiliate_pipeline.postgres.connection import connect
from affiliate_pipeline.postgres.errors import as_store_unavailable
from affiliate_pipeline.postgres.locks import Lock, locked
from affiliate_pipeline.postgres.readiness import problems
from affiliate_pipeline.postgres.table_store import TableStore


def privileges(endpoints: Iterable[Endpoint]) -> dict[str, str]:
    """The privileges, by table, that landing days of these endpoints requires."""
    tables = {endpoint.table: endpoint_tables.PRIVILEGES for endpoint in endpoints}
    shared = rate_limiter.PRIVILEGES | identity.PRIVILEGES
    return day_writer.PRIVILEGES | ledger.PRIVILEGES | quarantine.PRIVILEGES | shared | tables


def is_run_live(url: str, run_id: str) -> bool:
    """Whether a process that marked the run as live (`Store.mark_run_live`) is still connected."""
    with connect(url, autocommit=True) as connection, as_store_unavailable():
        lock = _run_lock(run_id).key
        row = connection.execute(sql.SQL("select pg_try_advisory_lock({})").format(lock)).fetchone()
        return not (row and row[0])


def _run_lock(run_id: str) -> Lock:
    return Lock("affiliate_pipeline.run", run_id)


class Store(TableStore):
    """One connection to the database with the data of one or more endpoints."""

    def __init__(self, url: str) -> None:
        super().__init__(url, autocommit=False)
        self.url = url

    @property
    def connection(self) -> Connection:
        """The connection, for the modules that own tables."""
        return self._connection

    def require_ready(self, *endpoints: Endpoint) -> None:
        """Raise `StoreUnavailable` unless the database is ready to land days of these endpoints."""
        for error in problems(self._connection, privileges(endpoints)):
            raise error

    def mark_run_live(self, run_id: str) -> None:
        """Mark the run as live until this connection ends; raise `StoreUnavailable` if not ready."""
        self.require_ready()
        with as_store_unavailable(), self._connection.transaction():
            self._connection.execute(sql.SQL("select pg_advisory_lock_shared({})").format(_run_lock(run_id).key))

    def exclusive(self, endpoint: Endpoint) -> AbstractContextManager[None]:
        """Hold the asset's lock, after waiting for the run that holds it.

        A lock of this connection rather than a Dagster pool: PostgreSQL releases it when its process ends or crashes.
        """
        return locked(self._connection, day_writer.asset_lock(endpoint.key), endpoint.key)

    def ledger(self, endpoint: Endpoint, days: Sequence[date] | None = None) -> Mapping[date, LedgerEntry]:
        """The endpoint's landed days; with `days`, only those among them."""
        return ledger.entries(self._connection, endpoint.key, days)
