"""The connection with which a run lands days: its locks, and what has landed or was rejected."""

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from datetime import date

import psycopg
from psycopg import sql

from affiliate_pipeline.exchanges.endpoint import Endpoint, Records
from affiliate_pipeline.landing import day_writer, endpoint_tables, ledger, quarantine, table_stats
from affiliate_pipeline.landing.day_writer import DayWriter, Written, asset_lock
from affiliate_pipeline.landing.ledger import LedgerEntry
from affiliate_pipeline.landing.prepare import PreparedDay
from affiliate_pipeline.landing.table_stats import DayStats, Difference
from affiliate_pipeline.postgres import rate_limiter, readiness
from affiliate_pipeline.postgres.connection import connect
from affiliate_pipeline.postgres.errors import unavailable
from affiliate_pipeline.postgres.locks import Lock, locked
from affiliate_pipeline.postgres.table_store import TableStore


def rights(assets: Iterable[str]) -> dict[str, str]:
    """What landing days of these assets needs to do with which tables."""
    endpoints = {asset.replace("/", "."): endpoint_tables.RIGHTS for asset in assets}
    return day_writer.RIGHTS | rate_limiter.RIGHTS | ledger.RIGHTS | quarantine.RIGHTS | endpoints


def is_worked_for(url: str, run_id: str) -> bool:
    """Whether a process that works for the run (`Store.work_for`) is alive and connected."""
    with connect(url, autocommit=True) as connection, unavailable():
        lock = _run_lock(run_id).key
        row = connection.execute(sql.SQL("select pg_try_advisory_lock({})").format(lock)).fetchone()
        return not (row and row[0])


def _run_lock(run_id: str) -> Lock:
    return Lock("affiliate_pipeline.run", run_id)


class Store(TableStore):
    """One connection to the database that holds the data of one or more endpoints."""

    def __init__(self, url: str) -> None:
        super().__init__(url, autocommit=False)
        self.url = url
        # The assets whose lock this store acquired; its session may have lost it since.
        self._exclusive: set[str] = set()

    @property
    def connection(self) -> psycopg.Connection:
        """For other owners of tables."""
        return self._connection

    def require_ready(self, *endpoints: Endpoint) -> None:
        """Raises `StoreUnavailable` if days, of these endpoints among others, cannot land in the database."""
        readiness.require(self._connection, rights(endpoint.key for endpoint in endpoints))

    def work_for(self, run_id: str) -> None:
        """Marks the run as live until this connection ends. Raises `StoreUnavailable` if nothing can land."""
        self.require_ready()
        with unavailable(), self._connection.transaction():
            self._connection.execute(sql.SQL("select pg_advisory_lock_shared({})").format(_run_lock(run_id).key))

    @contextmanager
    def exclusive(self, endpoint: Endpoint) -> Generator[None]:
        """No other run lands the asset meanwhile; waits for the one that does.

        A lock of this connection instead of a Dagster pool: it ends with the process that holds it, however that ends.
        """
        with locked(self._connection, asset_lock(endpoint.key), endpoint.key):
            self._exclusive.add(endpoint.key)
            try:
                yield
            finally:
                self._exclusive.remove(endpoint.key)

    def create_table(self, endpoint: Endpoint) -> None:
        """The endpoint's table exists and has all columns of its schema."""
        endpoint_tables.ensure(self._connection, endpoint)

    def ledger(self, endpoint: Endpoint, days: Sequence[date] | None = None) -> dict[date, LedgerEntry]:
        """The days, among these if given, that have landed."""
        return ledger.entries(self._connection, endpoint.key, days)

    def write_day(
        self, endpoint: Endpoint, day: PreparedDay, *, settled: bool, source: str, run_id: str, allow_shrink: bool
    ) -> Written:
        """Land the day (`DayWriter.write`)."""
        is_exclusive = endpoint.key in self._exclusive
        writer = DayWriter(self._connection, endpoint, source, run_id, allow_shrink, is_exclusive)
        return writer.write(day, settled=settled)

    def stats(self, endpoint: Endpoint, day: date) -> DayStats:
        """What the table holds for the day."""
        with unavailable(), self._connection.transaction():
            return table_stats.stats_of(self._connection, endpoint, day)

    def differences(self, endpoint: Records, other: str, day: date) -> list[Difference] | None:
        """See `table_stats.differences`."""
        return table_stats.differences(self._connection, endpoint, other, day)
