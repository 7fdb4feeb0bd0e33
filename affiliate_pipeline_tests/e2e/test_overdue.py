"""The overdue monitor and the heartbeat under the real daemon."""

import time
from datetime import timedelta

import pytest

from affiliate_pipeline.defs.sensors.overdue import EVERY_S
from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline_tests.e2e.project import KEY, Project, command_of, credentials, kill, last_days, wait_for
from affiliate_pipeline_tests.webhook import Webhook

pytestmark = pytest.mark.e2e


def test_the_overdue_monitor_lands_a_gap_and_alerts_about_lost_days_and_controls_the_heartbeat(
    fresh: Project, exchange: Sandbox, webhook: Webhook
):
    bad, before, gap, first, *_, last = last_days()
    expired, oldest = (bad - timedelta(days=days) for days in (1, 2))
    exchange.faults.fail_day(bad, status=400)
    settings = credentials(exchange) | {"AFFILIATE_START_DATE": f"{oldest}", "HEARTBEAT_URL": webhook.heartbeat_url}
    fresh.configure(**settings)
    assert fresh.materialize(before).returncode == 0
    assert fresh.materialize(first, last).returncode == 0
    fresh.query(
        "insert into affiliate.landing select asset, %s, rows, content_hash, true, source, landed_at, checked_at, run_id "
        "from affiliate.landing where partition = %s returning 1",
        oldest,
        before,
    )

    def titles() -> list[str]:
        return [title for (title,) in fresh.query("select title from affiliate.alert order by raised_at")]

    def landed() -> list:
        return fresh.query("select 1 from affiliate.landing where partition = %s", gap)

    def alerted() -> bool:
        return any("hours are left" in title for title in titles()) and any("is lost" in title for title in titles())

    with fresh.dagster_dev() as (_, ui):
        wait_for(landed)
        wait_for(alerted)
        (warning,) = fresh.query("select text from affiliate.alert where title like %s", "%hours are left%")
        assert f"{bad}: it has not landed; fetchable until {bad + timedelta(days=6)} 23:59 UTC" in warning[0]
        assert [title for title in titles() if "lost" in title] == [f"{KEY}: {expired} is lost"]
        assert ui.days()["FAILED"] == [expired, bad]

        # No heartbeat while a day is at risk.
        assert webhook.calls == []
        exchange.faults.clear()
        assert fresh.materialize(bad).returncode == 0

        def called() -> list[str]:
            return webhook.calls

        wait_for(called)
        daemons = [process for process in fresh.processes() if "dagster._daemon" in command_of(process)]
        assert daemons
        kill(daemons)
        calls = len(webhook.calls)
        time.sleep(EVERY_S + 5)
        assert len(webhook.calls) == calls
