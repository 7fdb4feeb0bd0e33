"""Lands days in a process that a test can kill, without Dagster, whose import takes seconds. Contains no tests."""

import os
import time
from collections.abc import Sequence
from datetime import date, datetime

from affiliate_pipeline.environment import configured
from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline.landing.pipeline import connected, land_days
from affiliate_pipeline.landing.store import Store


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
