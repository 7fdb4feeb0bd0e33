"""A backfill of seven assets on two workers: exact, at the exchange's own rate limit, without a rejected request."""

from collections.abc import Sequence

import pytest

from affiliate_pipeline.sandbox import Request
from affiliate_pipeline_tests.cluster.deployment import KEYS, cluster, last_days
from affiliate_pipeline_tests.defs.affiliates import SCOPES, requests_to

pytestmark = pytest.mark.cluster

REQUESTS_PER_WINDOW = 5
# The exchange permits `REQUESTS_PER_WINDOW` in 10 s, which is 30 per minute.
MIN_PER_MINUTE = 29


@pytest.mark.parametrize("count", [pytest.param(5, marks=pytest.mark.short), 30])
def test_a_backfill_runs_on_both_workers_and_lands_exact_rows_at_the_exchanges_rate_limit(count):
    days = last_days(count)
    with cluster(days) as (running, exchange):
        backfill = running.backfill_end(running.backfill(KEYS, days), timeout_s=900)

        assert backfill["status"] == "COMPLETED_SUCCESS", running.failures(backfill)
        workers = {worker for run in backfill["runs"] for worker in running.workers_of(run["id"]).values()}
        assert workers == {"worker1", "worker2"}
        running.assert_landed(exchange, KEYS, days)
        for key in KEYS:
            assert running.days(key) == {"MATERIALIZED": days}
        assert [request for request in exchange.requests if request.code] == []
        busy = requests_to(exchange, "trade_future")
        assert len(busy) == count * len(SCOPES)
        assert per_minute(busy) >= MIN_PER_MINUTE


def per_minute(requests: Sequence[Request]) -> float:
    """The rate of the requests after those of the first window, which were sent at once."""
    complete = requests[: len(requests) // REQUESTS_PER_WINDOW * REQUESTS_PER_WINDOW]
    return (len(complete) - REQUESTS_PER_WINDOW) / (complete[-1].received_ms - complete[0].received_ms) * 60_000
