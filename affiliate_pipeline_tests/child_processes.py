"""Processes that tests start, and mostly kill, without Dagster, whose import takes seconds. Contains no tests."""

import multiprocessing
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import date, datetime
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from affiliate_pipeline.environment import configured
from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline.landing.pipeline import connected, land_days
from affiliate_pipeline.landing.store import Store
from affiliate_pipeline.postgres import rate_limiter
from affiliate_pipeline.postgres.connection import connect
from affiliate_pipeline.postgres.migrations import Migrations, migrate

# Each process is forked from a server that has imported the pipeline, which would take a new interpreter a second.
_FORKSERVER = multiprocessing.get_context("forkserver")
_FORKSERVER.set_forkserver_preload(["pytest", "affiliate_pipeline.environment", "affiliate_pipeline.landing.pipeline"])


def start(function: Callable[..., object], *arguments: object) -> BaseProcess:
    """Start a process that calls a function of this module with this process's environment variables."""
    path = list(sys.path)
    # For the new process: the tests are not installed.
    sys.path.insert(0, str(Path(__file__).parents[1]))
    try:
        process = _FORKSERVER.Process(target=_call, args=(dict(os.environ), function, arguments), daemon=True)
        process.start()
    finally:
        sys.path[:] = path
    return process


def _call(environment: dict[str, str], function: Callable[..., object], arguments: Sequence[Any]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    function(*arguments)


def pipe() -> tuple[Connection, Connection]:
    """Two connected ends, one of which is an argument of a process."""
    return _FORKSERVER.Pipe()


def continue_clock_from(now: datetime) -> None:
    """Set this process's clock to `now`; the clock runs on from there."""
    real = time.time_ns
    ahead = real() - int(now.timestamp()) * 10**9
    time.time_ns = lambda: real() - ahead


def land_at(now: datetime, key: str, days: Sequence[date]) -> None:
    """Land the days of the endpoint into the configured database, as if it were `now`."""
    continue_clock_from(now)
    endpoint = next(endpoint for endpoint in ENDPOINTS if endpoint.key == key)
    with (
        Store(os.environ["AFFILIATE_DATABASE_URL"]) as store,
        connected(endpoint, store, configured().variables) as session,
    ):
        for _ in land_days(endpoint, days, session=session, store=store, run_id="killed"):
            continue


def open_store(url: str) -> None:
    """Migrate the database."""
    Store(url).close()


def migrate_from(url: str, folder: Path) -> None:
    """Apply the migrations in the folder."""
    migrate(connect(url, autocommit=True), Migrations("thing", folder))


def lock_assets(url: str, keys: Sequence[str], locked: Connection) -> None:
    """Lock each asset in a session with a temporary table; only the first session has an open transaction."""
    with ExitStack() as stack:
        for number, key in enumerate(keys):
            [endpoint] = [each for each in ENDPOINTS if each.key == key]
            store = stack.enter_context(Store(url))
            stack.enter_context(store.exclusive(endpoint))
            # `DayWriter` creates a table of this name, which fails in a session that the pooler has not reset.
            store.connection.execute("create temporary table superseded (n int)")
            if number > 0:
                store.connection.commit()
        locked.send("locked")
        threading.Event().wait()


def take_slot(url: str, lease_s: float, taken: Connection) -> None:
    """Take the only slot of the scope `shared`, and never end the request."""
    rate_limiter.SLOT_LEASE_S = lease_s
    limiter = rate_limiter.RateLimiter(url, "shared", 1, 0.1)
    began = time.monotonic()
    with limiter.slot():
        taken.send(began)
        threading.Event().wait()


def send_names(url: str, names: Connection) -> None:
    """Send the names of two sessions, as in a container: process ids are small and host names may be long or equal."""
    os.getpid = lambda: 1
    socket.gethostname = lambda: "h" * 63
    with connect(url) as one, connect(url) as other:
        shown = [each.execute("select current_setting('application_name')").fetchone() for each in (one, other)]
    names.send(shown)
