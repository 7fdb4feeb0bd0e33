"""The kickback export under the real daemon: requested once, awaited, landed in one run, without leaking a secret."""

import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta

import pytest

from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline_tests.defs.kickbacks import HISTORY, REQUEST, posts, sent
from affiliate_pipeline_tests.e2e.project import ROOT, Project, kill, wait_for

pytestmark = pytest.mark.e2e

DAY_MS = 86_400_000


@pytest.fixture
def exchange() -> Iterator[Sandbox]:
    """An exchange that has already prepared another export."""
    with Sandbox(rows_per_day=300) as exchange:
        now = exchange.now()
        exchange.binance.kickbacks.collect(now - 5 * DAY_MS, now - 3 * DAY_MS, None)
        yield exchange


@pytest.fixture
def project(fresh: Project, exchange: Sandbox) -> Project:
    fresh.configure(
        BINANCE_BASE_URL=exchange.url,
        BINANCE_CLIENT_API_KEY=exchange.binance.client_key,
        BINANCE_CLIENT_API_SECRET=exchange.binance.client_secret,
        AFFILIATE_START_DATE=f"{last(40)[0]}",
    )
    return fresh


def last(number: int) -> list[date]:
    """The last days that have ended, oldest first."""
    today = datetime.now(UTC).date()
    return [today - timedelta(days=i) for i in range(number, 0, -1)]


def assert_landed(project: Project, exchange: Sandbox, days: Sequence[date]) -> None:
    """Every day has exactly the rows of the exchange."""
    landed: dict[date, Counter] = {day: Counter() for day in days}
    for day, *row in project.query(
        "select partition_date, income::text, asset, symbol, (extract(epoch from time) * 1000)::bigint::text "
        "from binance.kickback_historical_record"
    ):
        landed[day][tuple(row)] += 1
    assert landed == {day: sent(exchange.binance.kickbacks.of(day)) for day in days}


def written_texts(project: Project) -> str:
    """Every row of the database, and every file written by a run, a sensor or Dagster."""
    tables = project.query(
        "select format('%%I.%%I', schemaname, tablename) from pg_tables "
        "where schemaname in ('public', 'affiliate', 'binance')"
    )
    rows = [str(project.query(f"select each::text from {table} each")) for (table,) in tables]
    files = [
        path
        for path in project.folder.rglob("*")
        if path.is_file()
        and path.name != ".env"
        # Skip the copies of the checkout's files, but nothing in `.affiliate`: the checkout may have one too, from an `up`.
        and (project.home in path.parents or not (ROOT / path.relative_to(project.folder)).exists())
    ]
    return "\n".join([*rows, *(path.read_text(errors="replace") for path in files)])


def test_29_days_are_requested_once_and_landed_by_one_run_and_no_secret_is_written(project: Project, exchange: Sandbox):
    days = last(29)
    # The responses to the first requests for the file's URL; `previous`: the URL of the previous export's file.
    exchange.faults.pending.extend(["previous", "error", "message", "previous", "empty", "null"])
    with project.dagster_dev() as (started, ui):
        assert ui.run_end(ui.launch_range([REQUEST], days)) == "SUCCESS"
        wait_for(lambda: ui.days(HISTORY) == {"MATERIALIZED": days})
        wait_for(lambda: project.query("select state from binance.kickback_historical_collection") == [("landed",)])
        printed = started.printed

    landed = project.query("select asset, count(*) from affiliate.landing group by 1 order by 1 desc")
    assert landed == [(REQUEST, 29), (HISTORY, 29)]
    assert len(posts(exchange)) == 1 and not exchange.faults.pending
    assert project.query("select count(*), min(value) from run_tags where key = 'affiliate/collection'") == [(1, "1")]
    assert_landed(project, exchange, days)

    everything = written_texts(project) + printed
    assert HISTORY in everything
    secrets = {exchange.binance.client_key, exchange.binance.client_secret}
    for url in exchange.binance.kickbacks.urls:
        parts = url.partition("?")[2].split("&")
        secrets |= {*parts, *(part.partition("=")[2] for part in parts if not part.startswith("Expires"))}
    secrets |= {request.params["signature"] for request in exchange.requests if "timestamp" in request.params}
    assert [secret for secret in secrets if secret in everything] == []
    (headers,) = exchange.binance.kickbacks.file_headers
    assert "x-mbx-apikey" not in headers and exchange.binance.client_key not in str(headers)


def test_request_and_record_selected_together_land_in_one_run(project: Project, exchange: Sandbox):
    days = last(9)
    exchange.binance.kickbacks.collect_ms = 15_000
    with project.dagster_dev() as (_, ui):
        assert ui.run_end(ui.launch_range([REQUEST, HISTORY], days)) == "SUCCESS"
        assert ui.days(HISTORY) == ui.days(REQUEST) == {"MATERIALIZED": days}
        time.sleep(12)  # The sensor ticks at least once.
        assert project.query("select count(*) from runs where pipeline_name = '__ASSET_JOB'")[0][0] == 1
    assert len(posts(exchange)) == 1
    assert_landed(project, exchange, days)


def test_two_concurrent_requests_land_after_every_process_was_killed_twice(project: Project, exchange: Sandbox):
    days = last(12)
    first, second = days[:5], days[5:]
    exchange.binance.kickbacks.collect_ms = 8_000
    kills = 0
    with project.dagster_dev() as (_, ui):
        for requested_days in (first, second):
            ui.launch_range([REQUEST], requested_days)
        wait_for(lambda: project.query("select to_regclass('affiliate.landing')") != [(None,)])
        time.sleep(random.uniform(0, 12))
        kills += 1
        kill(project.processes())
    with project.dagster_dev() as (_, ui):
        requested = "select count(*) from affiliate.landing where asset = %s and partition = %s"
        for requested_days in (first, second):
            if project.query(requested, REQUEST, requested_days[0]) == [(0,)]:
                assert ui.run_end(ui.launch_range([REQUEST], requested_days)) == "SUCCESS"
        time.sleep(random.uniform(0, 12))
        kills += 1
        kill(project.processes())
    with project.dagster_dev() as (_, ui):
        wait_for(
            lambda: (
                {state for (state,) in project.query("select state from binance.kickback_historical_collection")}
                == {"landed"}
            ),
        )
    assert_landed(project, exchange, days)
    assert len(posts(exchange)) <= 2 + kills
