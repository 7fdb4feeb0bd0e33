"""Workers that are killed or lose their network during runs, and two workers compared with one."""

import re
import time
from collections.abc import Sequence
from datetime import UTC, date, datetime

import pytest

from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline_tests.cluster.deployment import cluster, last_days
from affiliate_pipeline_tests.defs.affiliates import requests_to
from affiliate_pipeline_tests.e2e.project import wait_for

pytestmark = pytest.mark.cluster

# Their runs take about a minute at this rate scale.
BUSY = ["lbank/trade_future", "lbank/trade_user"]
RATE_SCALE = 4
# Within this time, the run of a killed worker has failed.
REPORTED_S = 180
# Within this time, a worker without network has lost its lock, and another run sends requests.
UNLOCKED_S = 90
# How long, at least, that worker is without network.
CUT_S = 120
ENDED = re.compile(r"Task execute_plan\[.*\] (succeeded|raised)")


def wait_for_requests(exchange: Sandbox, keys: Sequence[str], count: int) -> None:
    """Wait until each asset's endpoint has received that many more requests."""
    names = [key.rpartition("/")[2] for key in keys]
    before = {name: len(requests_to(exchange, name)) for name in names}
    wait_for(lambda: all(len(requests_to(exchange, name)) >= before[name] + count for name in names))


@pytest.mark.short
def test_the_run_of_a_killed_worker_fails_with_its_name_and_the_days_land_on_the_other_worker():
    days = last_days(10)
    with cluster(days, rate_scale=RATE_SCALE, concurrency=1) as (running, exchange):
        backfills = {key: running.backfill([key], days) for key in BUSY}
        runs = {key: wait_for(lambda each=each: running.run_of(each)) for key, each in backfills.items()}
        workers = {key: running.worker_of(run_id) for key, run_id in runs.items()}
        assert {worker.name for worker in workers.values()} == {"worker1", "worker2"}
        wait_for_requests(exchange, BUSY, 10)
        lost, other = BUSY
        workers[lost].kill()
        killed_at = time.monotonic()

        assert running.run_end(runs[lost]) == "FAILURE"
        assert time.monotonic() - killed_at < REPORTED_S
        assert workers[lost].name in running.failure(runs[lost])
        shown = running.days(lost)
        assert shown["FAILED"]
        assert sorted(day for each in shown.values() for day in each) == days
        assert {*shown.get("MATERIALIZED", [])} <= running.landed_days(lost)
        assert running.run_end(runs[other]) == "SUCCESS"

        running.backfill_end(backfills[lost])
        again = running.backfill_end(running.backfill_again(backfills[lost]))
        assert again["status"] == "COMPLETED_SUCCESS", running.failures(again)
        [run] = [run for run in again["runs"] if run["id"] != runs[lost]]
        assert running.worker_of(run["id"]) == workers[other]
        running.assert_landed(exchange, BUSY, days)
        assert running.days(lost) == running.days(other) == {"MATERIALIZED": days}


def test_a_worker_without_network_loses_its_lock_and_neither_loses_nor_doubles_a_day():
    key, days = BUSY[0], last_days(30)
    with cluster(days, rate_scale=RATE_SCALE, concurrency=1) as (running, exchange):
        first = running.launch_range([key], days)
        worker = running.worker_of(first)
        wait_for(lambda: len(running.landed_days(key)) > 5)
        worker.cut()
        cut_at, cut = time.monotonic(), datetime.now(UTC)
        second = running.launch_range([key], days)
        assert running.worker_of(second) != worker
        wait_for_requests(exchange, [key], 10)
        assert time.monotonic() - cut_at < UNLOCKED_S
        wait_for(lambda: time.monotonic() - cut_at > CUT_S)
        worker.connect()

        assert running.run_end(second) == "SUCCESS"
        assert running.run_end(first) == "FAILURE"
        wait_for(lambda: ENDED.search(worker.log("worker").read_text()))
        running.assert_landed(exchange, [key], days)
        [(newest,)] = running.postgres.database.query(
            "select max(landed_at) from lbank.trade_future where run_id = %s", first
        )
        assert newest < cut
        assert running.days(key) == {"MATERIALIZED": days}


def test_two_workers_take_at_most_six_tenths_of_the_time_of_one():
    days, aliases = last_days(20), ["b", "c", "d", "e", "f", "g", "h"]
    keys = [BUSY[0], *(f"lbank/{alias}/trade_future" for alias in aliases)]
    with cluster(days, rate_scale=100, accounts=aliases, concurrency=1) as (running, exchange):
        for account in exchange.accounts.values():
            account.faults.slow_s = 1
            account.faults.mix(slow=1)

        def duration_s(days: Sequence[date] = days) -> float:
            run_id = running.launch_range(keys, days)
            assert running.run_end(run_id, timeout_s=900) == "SUCCESS", running.failure(run_id)
            return running.duration_s(run_id)

        duration_s(days[-1:])  # Creates the tables; both workers load the code.
        two = duration_s()
        running.workers[1].kill()
        one = duration_s()
        print(f"one worker: {one:.0f} s, two workers: {two:.0f} s")
        assert two <= 0.6 * one
