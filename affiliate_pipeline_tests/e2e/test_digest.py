"""The digest under the real daemon, which is killed."""

import pytest

from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline_tests.e2e.project import Project, credentials, kill, last_days, wait_for
from affiliate_pipeline_tests.webhook import Webhook

pytestmark = pytest.mark.e2e

TICKS = "select count(*) from public.job_ticks where tick_body::json ->> 'job_name' = 'digest' and status = 'SKIPPED'"


def test_one_digest_is_sent_although_every_process_is_killed(fresh: Project, exchange: Sandbox, webhook: Webhook):
    first, *_, last = last_days()
    fresh.configure(**credentials(exchange), AFFILIATE_DIGEST="daily", AFFILIATE_PRICES="off", ALERT_URLS=webhook.url)
    assert fresh.materialize(first, last).returncode == 0

    def added() -> list[tuple]:
        return fresh.query("select title from affiliate.alert where kind = 'digest'")

    def ticks() -> int:
        return fresh.query(TICKS)[0][0]

    with fresh.dagster_dev():
        wait_for(added)
        kill(fresh.processes())
    before = ticks()
    with fresh.dagster_dev():
        wait_for(lambda: ticks() > before)
        wait_for(lambda: webhook.messages)

    ((title,),) = added()
    assert [message["title"] for message in webhook.messages] == [title]
    assert f"earned on {last}" in title and "incomplete" not in title
