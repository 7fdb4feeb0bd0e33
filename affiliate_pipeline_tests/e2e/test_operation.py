"""Backfills by date range under the real daemon, in which days fail and processes are killed."""

import random
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

import psutil
import pytest

from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline_tests.e2e.project import Project, command_of, kill, wait_for
from affiliate_pipeline_tests.webhook import Webhook

pytestmark = pytest.mark.e2e

KEY = "lbank/trade_future"
RATE_SCALE = 20
# Each day takes one request for each of LBank's scopes: SELF, SUB, SELF_SUB and ALL. At this rate scale, five requests
# are permitted every half second.
SCOPES = 4
# A backfill that has not ended after this time is stuck, even on a slow machine.
STUCK_S = 600


def fortnight() -> list[date]:
    """The last fourteen days that have ended in UTC+8, oldest first.

    The range includes yesterday: otherwise the overdue monitor would request a run for the missing day.
    """
    today = (datetime.now(UTC) + timedelta(hours=8)).date()
    return [today - timedelta(days=i) for i in range(14, 0, -1)]


def variables(exchange: Sandbox, **more: str) -> dict[str, str]:
    return {
        "AFFILIATE_START_DATE": f"{fortnight()[0]}",
        "AFFILIATE_RATE_SCALE": f"{RATE_SCALE}",
        "LBANK_BASE_URL": exchange.url,
        "LBANK_API_KEY": exchange.lbank.api_key,
        "LBANK_API_SECRET": exchange.lbank.api_secret,
        "LBANK_OPEN_ID": exchange.lbank.own_open_id,
        **more,
    }


@pytest.fixture
def exchange() -> Iterator[Sandbox]:
    with Sandbox(rate_scale=RATE_SCALE) as exchange:
        yield exchange


def landed(project: Project) -> dict[date, int]:
    """The number of rows of each day: one per scope."""
    return dict(project.query("select partition_date, count(*) from lbank.trade_future group by 1 order by 1"))


def test_a_backfill_fails_exactly_the_bad_days_and_a_reexecution_lands_them(fresh: Project, exchange: Sandbox):
    days = fortnight()
    bad = [days[3], days[4], days[9]]
    good = [day for day in days if day not in bad]
    for day in bad:
        exchange.faults.fail_day(day)
    with Webhook() as webhook:
        fresh.configure(**variables(exchange, ALERT_URLS=webhook.url))
        with fresh.dagster_dev() as (_, ui):
            backfill_id = ui.backfill([KEY], days)
            backfill = ui.backfill_end(backfill_id)

            assert backfill["status"] == "COMPLETED_FAILED"
            assert [run["status"] for run in backfill["runs"]] == ["FAILURE"]
            assert ui.days(KEY) == {"MATERIALIZED": good, "FAILED": bad}
            assert landed(fresh) == dict.fromkeys(good, SCOPES)
            alert = wait_for(lambda: webhook.messages)[0]
            assert alert["title"].startswith(KEY)
            alerted = alert["title"] + alert["message"]
            assert f"{bad[0]}" in alerted
            assert backfill["runs"][0]["id"] in alerted
            assert "11 landed" in alerted
            assert not [day for day in good if f"{day}" in alerted]

            exchange.faults.clear()
            again = ui.backfill_end(ui.backfill_again(backfill_id))

            assert again["status"] == "COMPLETED_SUCCESS"
            assert [run["status"] for run in again["runs"]] == ["SUCCESS", "SUCCESS"]
            assert ui.days(KEY) == {"MATERIALIZED": days}
            assert landed(fresh) == dict.fromkeys(days, SCOPES)
            wait_for(lambda: len(webhook.messages) > 1)
            # The failed days caused one alert only.
            [_, recovery] = webhook.messages
            assert KEY in recovery["title"] + recovery["message"]
            assert "landed" in recovery["title"] + recovery["message"]


def victims(project: Project, name: str) -> list[psutil.Process]:
    """The processes of that name. `run` means the processes of a run and of its steps."""
    if name == "postgres":
        return [project.postmaster()]
    processes = project.processes()
    if name == "run":
        servers = [process for process in processes if "grpc" in command_of(process)]
        return [child for server in servers for child in server.children(recursive=True)]
    return [process for process in processes if name in " ".join(command_of(process)[:6])]


def test_a_backfill_ends_after_a_kill_and_every_day_is_landed_or_shown_failed(fresh: Project, exchange: Sandbox):
    days = fortnight()
    # Only one kind of process per test run, because each takes minutes. The seed that pytest prints selects it again.
    name = random.choice(["run", "postgres", "dagster._daemon", "dagster_webserver", "grpc"])
    print(f"killed first: {name}")
    fresh.configure(**variables(exchange))
    with fresh.dagster_dev() as (_, ui):
        backfill_id = ui.backfill([KEY], days)
        wait_for(lambda: len(exchange.requests) > SCOPES)
        time.sleep(random.uniform(0, 4))
        kill(victims(fresh, name))
        time.sleep(random.uniform(0, 2))
        kill(fresh.processes())
    restarted = time.monotonic()
    with fresh.dagster_dev() as (_, ui):
        ui.backfill_end(backfill_id, timeout_s=STUCK_S)
        assert time.monotonic() - restarted < STUCK_S
        shown = ui.days(KEY)
        rows = landed(fresh)
        assert set(rows.values()) <= {SCOPES}
        assert set(shown.get("MATERIALIZED", [])) <= rows.keys()
        assert sorted(day for each in shown.values() for day in each) == days
        assert not [status for status in shown if status not in ("MATERIALIZED", "FAILED")]

        assert ui.run_end(ui.launch_range([KEY], days)) == "SUCCESS"
        assert landed(fresh) == dict.fromkeys(days, SCOPES)
