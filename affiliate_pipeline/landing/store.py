"""The connection that lands days: its locks, and whether its database is ready."""

import threading
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import date

from psycopg import Connection, sql

from affiliate_pipeline.exchanges import identity
from affiliate_pipeline.exchanges.endpoint import Endpoint
from affiliate_pipeline.landing import day_writer, endpoint_tables, ledger, quarantine
from affiliate_pipeline.landing.ledger import LedgerEntry
from affiliate_pipeline.postgres import rate_limiter
from affiliate_pipeline.postgres.connection import connect
from affiliate_pipeline.postgres.errors import StoreUnavailable, as_store_unavailable
from affiliate_pipeline.postgres.locks import Lock, locked
from affiliate_pipeline.postgres.readiness import problems
from affiliate_pipeline.postgres.table_store import TableStore

# How often `live_run` checks the connection that marks the run as live.
LIVE_CHECK_S = 5


def privileges(endpoints: Iterable[Endpoint]) -> dict[str, str]:
    """The privileges, by table, that landing days of these endpoints requires."""
    of_fetching = rate_limiter.PRIVILEGES | identity.PRIVILEGES
    of_landing = day_writer.PRIVILEGES | ledger.PRIVILEGES | quarantine.PRIVILEGES
    of_endpoints = {endpoint.table: endpoint_tables.PRIVILEGES for endpoint in endpoints}
    return of_landing | of_fetching | of_endpoints


def is_run_live(url: str, run_id: str, step: str = "") -> bool:
    """Whether a process that marked the run, or this step of it, as live is still connected (`Store.mark_run_live`)."""
    with connect(url, autocommit=True) as connection, as_store_unavailable():
        lock = _run_lock(run_id, step)
        ((is_free,),) = connection.execute(sql.SQL("select pg_try_advisory_lock({})").format(lock.key)).fetchall()
        return not is_free


@contextmanager
def live_run(url: str, run_id: str) -> Generator[None]:
    """Mark the run as live during the `with` block, and again after each restart of the database."""
    ended = threading.Event()

    def mark() -> None:
        while not ended.is_set():
            # `suppress` ends this `with` block once the connection is lost: then mark the run with a new one.
            with suppress(StoreUnavailable), Store(url) as store:
                store.mark_run_live(run_id)
                while not ended.wait(LIVE_CHECK_S):
                    store.require_session()
            ended.wait(LIVE_CHECK_S)

    thread = threading.Thread(target=mark, name=f"run {run_id} is live", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _run_lock(run_id: str, step: str = "") -> Lock:
    return Lock("affiliate_pipeline.run", f"{run_id} {step}".rstrip())


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
        first_problem = next(problems(self._connection, privileges(endpoints)), None)
        if first_problem:
            raise first_problem

    def mark_run_live(self, run_id: str, step: str = "") -> None:
        """Mark the run, and this step of it, as live until this connection ends.

        Raises `StoreUnavailable` if the database is not ready.
        """
        self.require_ready()
        # Without a step, both locks are the same.
        locks = {_run_lock(run_id), _run_lock(run_id, step)}
        with as_store_unavailable(), self._connection.transaction():
            for lock in locks:
                self._connection.execute(sql.SQL("select pg_advisory_lock_shared({})").format(lock.key))

    def require_session(self) -> None:
        """Raise `StoreUnavailable` if the connection is lost."""
        with as_store_unavailable(), self._connection.transaction():
            self._connection.execute("select 1")

    def exclusive(self, endpoint: Endpoint) -> AbstractContextManager[None]:
        """Hold the asset's lock, after waiting for the run that holds it.

        A lock of this connection rather than a Dagster pool: PostgreSQL releases it when its process ends or crashes.
        """
        return locked(self._connection, day_writer.asset_lock(endpoint.key), endpoint.key)

    def ledger(self, endpoint: Endpoint, days: Sequence[date] | None = None) -> Mapping[date, LedgerEntry]:
        """The endpoint's landed days; with `days`, only those among them."""
        return ledger.entries(self._connection, endpoint.key, days)
