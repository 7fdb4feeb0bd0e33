"""Runs under the real daemon and from the command line: `kill -9` while a day lands."""

import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime

import psutil
import pytest

from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline_tests.e2e.project import (
    KEY,
    UI,
    Project,
    command_of,
    credentials,
    free_port,
    kill,
    last_days,
    materialize,
    reachable,
    wait_for,
)
from affiliate_pipeline_tests.webhook import Webhook

pytestmark = pytest.mark.e2e

ROWS = 20_000
LANDING_S = 2
DAY_MS = 86_400_000


@dataclass
class Daemon:
    """`dagster dev` on a project whose exchange and webhook are ours."""

    project: Project
    ui: UI
    webhook: Webhook
    exchange_port: int

    def alert(self, run_id: str) -> dict[str, str]:
        """The one message about the run."""

        def told() -> list[dict[str, str]]:
            return [message for message in self.webhook.messages if run_id in message["message"]]

        wait_for(told, timeout_s=90)
        (alert,) = told()
        return alert


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    project = Project(tmp_path_factory.mktemp("daemon"))
    exchange = Sandbox(port=free_port())
    port = free_port()
    command = [sys.executable, "-m", "dagster", "dev", "-p", str(port)]
    with Webhook() as webhook:
        project.configure(**credentials(exchange), ALERT_URLS=webhook.url)
        with project.started(command, DAGSTER_HOME=str(project.folder)):
            wait_for(lambda: reachable(port), timeout_s=120)
            yield Daemon(project, UI(port), webhook, exchange.port)
    project.remove()


@pytest.fixture
def daemons_exchange(daemon: Daemon) -> Iterator[Sandbox]:
    with Sandbox(port=daemon.exchange_port, rows_per_day=1000) as exchange:
        yield exchange


def test_a_killed_run_leaves_the_old_day_or_the_new_one_is_reported_failed_and_lands_again(
    daemon: Daemon, daemons_exchange: Sandbox
):
    day = last_days()[-1]

    def run_of(version: int) -> str:
        restate(daemons_exchange, day, version)
        return daemon.ui.launch(day)

    def status(run_id: str) -> str:
        return wait_for(lambda: (found := daemon.ui.run_status(run_id)) in ("SUCCESS", "FAILURE", "CANCELED") and found)

    assert status(run_of(version=0)) == "SUCCESS"
    asked = len(daemons_exchange.requests)
    run_id = run_of(version=1)
    wait_for(lambda: len(daemons_exchange.requests) > asked)
    time.sleep(random.uniform(0, LANDING_S))
    (server,) = (process for process in daemon.project.processes() if "grpc" in command_of(process))
    kill(server.children(recursive=True))

    if status(run_id) == "FAILURE":
        held = versions(daemon.project, day)
        assert held in ({0}, {1})
        # It may have been killed after the day was materialized and before the run's end.
        assert daemon.alert(run_id)["title"] in [f"{KEY} failed for {day}", *(["A run failed"] if held == {1} else [])]
    else:  # it had ended before
        assert versions(daemon.project, day) == {1}
    assert status(run_of(version=2)) == "SUCCESS"
    assert versions(daemon.project, day) == {2}


def test_a_killed_command_line_run_leaves_the_old_day_or_the_new_one_and_lands_again(fresh: Project, exchange: Sandbox):
    day = last_days()[-1]
    fresh.configure(**credentials(exchange))
    restate(exchange, day, version=0)
    assert fresh.materialize(day).returncode == 0
    held = {0}
    for version in (1, 2, 3):
        restate(exchange, day, version)
        asked = len(exchange.requests)
        with fresh.started([sys.executable, "-m", "dagster", *materialize(day)]) as run:
            wait_for(lambda asked=asked: len(exchange.requests) > asked)
            time.sleep(random.uniform(0, LANDING_S))
            leader = psutil.Process(run.process.pid)
            kill([leader, *leader.children(recursive=True)])

        before, held = held, versions(fresh, day)
        assert held in (before, {version})
    assert fresh.materialize(day).returncode == 0
    assert versions(fresh, day) == {version}


def restate(exchange: Sandbox, day: date, version: int) -> None:
    """From now on the exchange has other rows for the day."""
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
    """The versions that the day's rows are of; a whole day is of one."""
    rows = project.query(
        "select income::int, count(*) from binance.rebate_recent_record where partition_date = %s group by 1", day
    )
    assert sum(count for _, count in rows) == ROWS
    return {version for version, _ in rows}
