"""The broker and PostgreSQL, stopped and started during runs."""

from collections.abc import Sequence
from datetime import date

import pytest

from affiliate_pipeline_tests.cluster.deployment import KEYS, Cluster, cluster, last_days
from affiliate_pipeline_tests.defs.affiliates import SCOPES, requests_to
from affiliate_pipeline_tests.e2e.project import wait_for

pytestmark = pytest.mark.cluster

# A run that has not ended by then is stuck, even on a slow machine.
STUCK_S = 400


def launch_and_queue(running: Cluster, days: Sequence[date]) -> list[str]:
    """Launch runs that occupy both workers, and one whose steps are queued meanwhile. Return their ids."""
    busy = ["lbank/trade_future", "lbank/trade_user"]
    runs = [running.launch_range([key], days) for key in busy]
    for run_id in runs:
        running.worker_of(run_id)
    others = [key for key in KEYS if key not in busy]
    runs.append(running.launch_range(others, days))
    wait_for(lambda: running.redis.queued() == len(others))
    return runs


def test_a_restart_of_the_broker_delays_queued_steps_only():
    days = last_days(20)
    with cluster(days, rate_scale=2, concurrency=1) as (running, exchange):
        runs = launch_and_queue(running, days)
        running.redis.stop()
        for run_id in runs:
            assert running.run_end(run_id, STUCK_S) == "SUCCESS", running.failure(run_id)
        running.assert_landed(exchange, KEYS, days)
        # No task was executed twice.
        assert len(requests_to(exchange, "trade_future")) == len(days) * len(SCOPES)


def test_steps_whose_tasks_the_broker_has_lost_fail_and_the_failure_names_the_broker():
    days = last_days(20)
    with cluster(days, rate_scale=2, concurrency=1, durable=False) as (running, exchange):
        *begun, queued = launch_and_queue(running, days)
        running.redis.kill()
        assert running.run_end(queued, STUCK_S) == "FAILURE"
        assert "broker" in running.failure(queued)
        for run_id in begun:
            assert running.run_end(run_id, STUCK_S) == "SUCCESS", running.failure(run_id)
        assert running.run_end(running.launch_range(KEYS, days)) == "SUCCESS"
        running.assert_landed(exchange, KEYS, days)
        for key in KEYS:
            assert running.days(key) == {"MATERIALIZED": days}


def test_a_backfill_ends_after_a_crash_of_postgresql_and_every_day_is_landed_or_shown_failed():
    days = last_days(15)
    with cluster(days, rate_scale=4) as (running, exchange):
        backfill_id = running.backfill(KEYS, days)
        wait_for(lambda: len(requests_to(exchange, "trade_future")) > 10)
        running.postgres.stop("immediate")
        running.postgres.start()
        wait_for(running.responds)
        running.backfill_end(backfill_id, STUCK_S)
        for key in KEYS:
            shown = running.days(key)
            assert sorted(day for each in shown.values() for day in each) == days
            assert shown.keys() <= {"MATERIALIZED", "FAILED"}
            assert {*shown.get("MATERIALIZED", [])} <= running.landed_days(key)

        assert running.run_end(running.launch_range(KEYS, days)) == "SUCCESS"
        running.assert_landed(exchange, KEYS, days)
