"""Runs under the real daemon and from the command line, killed with SIGKILL while a day lands."""

import random
import sys
import time
from datetime import UTC, date, datetime

import psutil
import pytest

from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline_tests.e2e.project import (
    KEY,
    Project,
    command_of,
    credentials,
    kill,
    last_days,
    materialize,
    wait_for,
)
from affiliate_pipeline_tests.webhook import Webhook

pytestmark = pytest.mark.e2e

ROWS = 20_000
LANDING_S = 2
DAY_MS = 86_400_000


def test_a_killed_run_is_reported_and_leaves_the_old_or_the_new_rows_and_its_day_lands_again(
    fresh: Project, exchange: Sandbox, webhook: Webhook
):
    day = last_days()[-1]
    fresh.configure(**credentials(exchange), ALERT_URLS=webhook.url)
    with fresh.dagster_dev() as (_, ui):

        def run_of(version: int) -> str:
            restate(exchange, day, version)
            return ui.launch(day)

        assert ui.run_end(run_of(version=0)) == "SUCCESS"
        requests = len(exchange.requests)
        run_id = run_of(version=1)
        wait_for(lambda: len(exchange.requests) > requests)
        time.sleep(random.uniform(0, LANDING_S))
        (server,) = (process for process in fresh.processes() if "grpc" in command_of(process))
        kill(server.children(recursive=True))

        if ui.run_end(run_id) == "FAILURE":
            stored = versions(fresh, day)
            assert stored in ({0}, {1})
            (alert,) = wait_for(lambda: [each for each in webhook.messages if run_id in each["message"]])
            # The process may have been killed after it materialized the day and before the run ended.
            assert alert["title"] in [f"{KEY} failed for {day}", *(["A run failed"] if stored == {1} else [])]
        else:  # The run ended before the kill.
            assert versions(fresh, day) == {1}
        assert ui.run_end(run_of(version=2)) == "SUCCESS"
        assert versions(fresh, day) == {2}


def test_a_killed_command_line_run_leaves_the_old_or_the_new_rows_and_its_day_lands_again(
    fresh: Project, exchange: Sandbox
):
    day = last_days()[-1]
    fresh.configure(**credentials(exchange))
    restate(exchange, day, version=0)
    assert fresh.materialize(day).returncode == 0
    stored = {0}
    for version in (1, 2):
        restate(exchange, day, version)
        requests = len(exchange.requests)
        with fresh.started([sys.executable, "-m", "dagster", *materialize(day)]) as run:
            wait_for(lambda requests=requests: len(exchange.requests) > requests)
            time.sleep(random.uniform(0, LANDING_S))
            leader = psutil.Process(run.process.pid)
            kill([leader, *leader.children(recursive=True)])

        before, stored = stored, versions(fresh, day)
        assert stored in (before, {version})
    assert fresh.materialize(day).returncode == 0
    assert versions(fresh, day) == {version}


def restate(exchange: Sandbox, day: date, version: int) -> None:
    """Replace the exchange's rows of the day."""
    start_ms = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1000
    exchange.binance.set_rebates(
        {
            "customerId": "",
            "email": "a*****@example.com",
            "income": f"{version}.00000000",
            "asset": "USDT",
            "symbol": "BTCUSDT",
            "time": start_ms + i * DAY_MS // ROWS,
            "orderId": i,
            "tradeId": i,
        }
        for i in range(ROWS)
    )


def versions(project: Project, day: date) -> set[int]:
    """The versions of the day's rows; a consistent day has one."""
    rows = project.query(
        "select income::int, count(*) from binance.rebate_recent_record where partition_date = %s group by 1", day
    )
    assert sum(count for _, count in rows) == ROWS
    return {version for version, _ in rows}
