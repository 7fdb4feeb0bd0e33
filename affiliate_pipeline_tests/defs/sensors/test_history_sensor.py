"""The sensor advances the exports one step per tick and requests the run that lands a file.

The schedule requests the days that the recent records have missed.
"""

from datetime import date, datetime
from pathlib import Path

import dagster as dg
import pytest

from affiliate_pipeline.defs.sensors.kickback_history import EXPORT_TAG, MAX_RUNS, expired_alert, export_endpoints
from affiliate_pipeline.domain.days import format_days
from affiliate_pipeline.exchanges.binance.endpoints import RECENT_KICKBACKS
from affiliate_pipeline.exchanges.binance.kickback_export import fetch
from affiliate_pipeline.exchanges.binance.kickback_export.exports import KickbackExport
from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline.monitoring.outbox import Outbox
from affiliate_pipeline.sandbox.binance.kickbacks import FileForm
from affiliate_pipeline_tests.code_location import loaded_definitions
from affiliate_pipeline_tests.conftest import instance_of_all_runs
from affiliate_pipeline_tests.defs.direct_runs import land
from affiliate_pipeline_tests.defs.kickbacks import (
    HISTORY,
    OLD,
    PATH,
    RECENT,
    REQUEST,
    Killed,
    exports,
    kickback,
    kickbacks,
    kill_before,
    landed,
    posts,
    sent,
)
from affiliate_pipeline_tests.defs.rebates import TODAY, ago, at

pytestmark = pytest.mark.usefixtures("verified_keys")


@pytest.fixture(autouse=True)
def nothing_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "sleep", lambda _: None)


@pytest.fixture
def rows(sandbox) -> dict:
    rows = {day: kickbacks(day, 5) for day in OLD}
    sandbox.binance.kickbacks.set(row for day in OLD for row in rows[day])
    return rows


@pytest.fixture
def tick(query, instance):
    """Evaluates the sensor and returns the runs that it requests; by default, every export is due for a poll."""
    definitions = loaded_definitions()
    sensor = definitions.resolve_sensor_def("kickback_history")

    def tick(due: bool = True) -> list[dg.RunRequest]:
        if due:
            query("update binance.kickback_historical_collection set polled_at = polled_at - interval '1 day'")
        context = dg.build_sensor_context(instance=instance, definitions=definitions, resources=definitions.resources)
        return list(sensor.evaluate_tick(context).run_requests or ())

    return tick


def alerts(query) -> list[tuple]:
    return query("select key, title, text from affiliate.alert order by key")


def add_run(instance: dg.DagsterInstance, request: dg.RunRequest, status: dg.DagsterRunStatus) -> None:
    """Add a run of the request with this status."""
    instance.add_run(
        dg.DagsterRun(
            job_name="__ASSET_JOB",
            run_id=f"{request.run_key}-{status.value}",
            status=status,
            tags=dict(request.tags),
            asset_selection=frozenset(request.asset_selection or ()),
        )
    )


def test_the_sensor_polls_until_the_file_is_ready_and_then_requests_one_run(sandbox, rows, query, tick):
    land(REQUEST, OLD[:1])
    land(HISTORY, OLD[:1])
    land(REQUEST, OLD)
    sandbox.faults.pending.extend(["error", "message", "empty", "null", "previous"])

    for _ in range(5):
        requests_before = len(sandbox.requests)
        assert tick() == []
        assert len(sandbox.requests) == requests_before + 1
    (request,) = tick()

    assert request.tags == {
        "dagster/sensor_name": "kickback_history",
        "dagster/asset_partition_range_start": f"{OLD[0]}",
        "dagster/asset_partition_range_end": f"{OLD[-1]}",
        EXPORT_TAG: "2",
    }
    assert (request.run_key, request.asset_selection) == ("2-1", [dg.AssetKey(HISTORY.split("/"))])
    assert len(posts(sandbox)) == 2
    assert land(HISTORY, OLD).success
    for day in OLD:
        assert landed(query, HISTORY, day) == sent(rows[day])
    assert tick() == [] and exports(query) == [("landed",), ("landed",)]


def test_an_error_response_ends_the_tick(sandbox, rows, tick):
    land(REQUEST, OLD)
    sandbox.faults.path = PATH
    for status in (404, 404, 500, 500):
        sandbox.faults.next_responses.append((status, {}, b""))
        requests_before = len(sandbox.requests)
        assert tick() == [], status
        assert len(sandbox.requests) == requests_before + 1, status
    assert len(tick()) == 1


def test_the_interval_between_polls_grows_with_the_age_of_the_request(sandbox, rows, query, tick):
    sandbox.binance.kickbacks.collect_ms = 10**9
    land(REQUEST, OLD)
    tick()
    requests_before = len(sandbox.requests)
    set_times = "update binance.kickback_historical_collection set requested_at = now() - %s::interval, polled_at = now() - %s::interval"
    for age, last_poll, is_due in [
        ("1 s", "9 s", False),
        ("1 s", "11 s", True),
        ("1 h", "170 s", False),
        ("1 h", "190 s", True),
    ]:
        query(set_times, age, last_poll)
        tick(due=False)
        assert len(sandbox.requests) == requests_before + is_due, (age, last_poll)
        requests_before = len(sandbox.requests)


@pytest.mark.empty_database
def test_a_tick_without_an_open_export_sends_no_request(sandbox, tick, query):
    assert tick(due=False) == [] and sandbox.requests == []


def test_without_the_clients_account_the_sensor_requests_no_run(sandbox, tick, monkeypatch):
    monkeypatch.delenv("BINANCE_CLIENT_API_KEY")
    monkeypatch.delenv("BINANCE_CLIENT_API_SECRET")
    assert tick(due=False) == []


def test_no_run_is_requested_while_another_lands_the_history(sandbox, rows, tick, instance):
    land(REQUEST, OLD)
    (request,) = tick()
    add_run(instance, request, dg.DagsterRunStatus.STARTED)
    assert tick() == []


def test_another_teams_run_without_a_selection_does_not_delay_the_landing(sandbox, rows, tick, instance):
    instance.add_run(dg.DagsterRun(run_id="another", job_name="nightly", status=dg.DagsterRunStatus.STARTED))
    land(REQUEST, OLD)
    assert len(tick()) == 1


def test_a_daemon_killed_before_the_launch_requests_the_same_run_again(sandbox, rows, tick):
    land(REQUEST, OLD)
    assert [each.run_key for each in tick()] == [each.run_key for each in tick()] == ["1-1"]


def test_a_failed_run_is_retried_a_limited_number_of_times(sandbox, rows, tick, instance):
    land(REQUEST, OLD)
    # Failed runs of another code location do not count, although an export in its database has the same id.
    for number in range(MAX_RUNS):
        of_another = dg.RunRequest(f"another-{number}", asset_selection=[dg.AssetKey("other")], tags={EXPORT_TAG: "1"})
        add_run(instance, of_another, dg.DagsterRunStatus.FAILURE)
    for attempt in range(1, MAX_RUNS + 1):
        (request,) = tick()
        assert request.run_key == f"1-{attempt}"
        add_run(instance, request, dg.DagsterRunStatus.FAILURE)
    assert tick() == []


def test_an_export_that_no_run_can_land_expires_if_others_wait(sandbox, rows, query, tick, instance):
    land(REQUEST, OLD[:1])
    land(REQUEST, OLD[1:])
    for _ in range(MAX_RUNS):
        (request,) = tick()
        add_run(instance, request, dg.DagsterRunStatus.FAILURE)
    assert tick() == []
    assert exports(query) == [("expired",), ("waiting",)]

    tick()

    assert len(posts(sandbox)) == 2
    assert int(posts(sandbox)[-1]["startTime"]) == at(OLD[1], "00:00:00.000")
    ((_, _, text),) = alerts(query)
    assert "runs could not land it" in text and f"materialize {REQUEST}" in text


def test_an_unreadable_file_does_not_delay_the_next_export(sandbox, rows, query, tick):
    sandbox.binance.kickbacks.form = FileForm(header=("amount", "asset", "symbol", "time"))
    land(REQUEST, OLD[:1])
    assert not land(HISTORY, OLD[:1]).success
    sandbox.binance.kickbacks.form = FileForm()
    land(REQUEST, OLD[1:])
    (request,) = tick()
    assert request.tags[EXPORT_TAG] == "2"


def test_the_next_export_is_requested_only_after_the_first_has_landed(sandbox, rows, query, tick):
    land(REQUEST, OLD[:1])
    land(REQUEST, OLD[1:])
    tick()
    tick()
    assert len(posts(sandbox)) == 1
    land(HISTORY, OLD[:1])
    tick()
    assert len(posts(sandbox)) == 2
    assert [each.tags[EXPORT_TAG] for each in tick()] == ["2"]


def test_an_export_without_a_file_expires_with_one_alert(sandbox, rows, query, tick):
    for key in (REQUEST, HISTORY):
        land(key, OLD[:1])
    sandbox.binance.kickbacks.collect_ms = 10**9
    land(REQUEST, OLD)
    for _ in range(3):
        tick()
    query("update binance.kickback_historical_collection set expires_at = now() - interval '1 s' where id = 2")

    for _ in range(3):
        assert tick() == []

    assert exports(query) == [("landed",), ("expired",)]
    assert len(posts(sandbox)) == 2
    ((key, title, text),) = alerts(query)
    assert key == f"{HISTORY} collection 2" and HISTORY in title
    assert "Historical data is collecting" in text and f"materialize {REQUEST}" in text
    assert landed(query, HISTORY, OLD[0]) == sent(rows[OLD[0]])


@pytest.mark.parametrize("state", ["collecting", "waiting"])
def test_a_rejected_key_delays_the_next_poll_and_the_export_expires_with_one_alert(
    sandbox, rows, query, tick, monkeypatch, state
):
    with monkeypatch.context() as patched:
        if state == "waiting":
            patched.setenv("BINANCE_CLIENT_API_SECRET", "wrong")
        land(REQUEST, OLD)
    monkeypatch.setenv("BINANCE_CLIENT_API_SECRET", "wrong")
    tick()
    requested = len(sandbox.requests)
    tick(due=False)
    assert len(sandbox.requests) == requested and alerts(query) == []
    found = exports(query, "state, note like '%%BINANCE_CLIENT_API_SECRET%%', expires_at > now()")
    assert found == [(state, True, True)]

    query("update binance.kickback_historical_collection set expires_at = now() - interval '1 s'")
    tick()

    assert exports(query) == [("expired",)]
    ((_, _, text),) = alerts(query)
    assert "BINANCE_CLIENT_API_SECRET" in text and "in time" in text
    assert f"Fix the cause, then materialize {REQUEST}" in text
    requested = len(sandbox.requests)
    assert tick() == [] and len(sandbox.requests) == requested
    assert len(alerts(query)) == 1


def test_waiting_days_land_once_the_key_is_accepted(sandbox, rows, query, tick, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setenv("BINANCE_CLIENT_API_SECRET", "wrong")
        assert not land(REQUEST, OLD).success
        tick()
    tick()
    assert len(posts(sandbox)) == 1
    assert land(HISTORY, OLD).success
    assert landed(query, HISTORY, OLD[0]) == sent(rows[OLD[0]])


def test_an_export_that_does_not_land_in_time_expires(sandbox, rows, query, tick):
    for key in (REQUEST, HISTORY):
        land(key, OLD)
    sandbox.binance.kickbacks.set(rows[OLD[0]])
    land(REQUEST, OLD)
    assert tick()
    assert "allow_shrink" in land(HISTORY, OLD).failed[OLD[1]]
    query("update binance.kickback_historical_collection set expires_at = now() - interval '1 s'")
    tick()
    tick()
    assert len(posts(sandbox)) == 2
    assert exports(query) == [("landed",), ("expired",)]
    assert len(alerts(query)) == 1


def test_an_alert_that_could_not_be_stored_is_raised_by_a_later_tick(sandbox, rows, query, tick, monkeypatch):
    sandbox.binance.kickbacks.collect_ms = 10**9
    land(REQUEST, OLD)
    query("update binance.kickback_historical_collection set expires_at = now() - interval '1 s'")
    with monkeypatch.context() as patched:
        patched.setattr(Outbox, "add", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tick()
    assert exports(query) == [("expired",)] and alerts(query) == []
    tick(due=False)
    tick(due=False)
    assert len(alerts(query)) == 1


def test_a_rejected_request_raises_an_alert_and_is_not_repeated(sandbox, rows, query, tick):
    land(REQUEST, OLD[:1])
    land(REQUEST, OLD[1:])
    land(HISTORY, OLD[:1])
    sandbox.faults.fail_day(OLD[1], status=400, code=-1130)
    tick()
    tick()
    assert len(posts(sandbox)) == 2
    ((_, _, text),) = alerts(query)
    assert "-1130" in text and f"materialize {REQUEST}" in text


def test_days_that_expired_while_they_waited_are_not_requested(sandbox, rows, query, tick):
    sandbox.binance.kickbacks.set([*(row for day in OLD for row in rows[day]), kickback(at(ago(31)))])
    land(REQUEST, OLD[:1])
    land(REQUEST, OLD[1:])
    query("update binance.kickback_historical_collection set first_day = %s where id = 2", ago(31))
    land(HISTORY, OLD[:1])
    tick()
    tick()
    assert exports(query, "first_day, last_day, state")[1:] == [
        (ago(31), ago(30), "expired"),
        (ago(29), OLD[-1], "collecting"),
    ]
    ((_, title, text),) = alerts(query)
    assert f"the export of {format_days([ago(31), ago(30)])} was given up" in title
    assert "within the 30 days" in text and "These days can no longer be requested" in text and "cause" not in text
    assert [each.tags["dagster/asset_partition_range_start"] for each in tick()] == [f"{ago(29)}"]


def test_days_that_all_expired_while_they_waited_are_reported_as_lost(sandbox, rows, query, tick):
    land(REQUEST, OLD[:1])
    land(REQUEST, OLD[1:])
    query(
        "update binance.kickback_historical_collection set first_day = %s, last_day = %s where id = 2", ago(33), ago(32)
    )
    land(HISTORY, OLD[:1])
    tick()
    assert exports(query) == [("landed",), ("expired",)]
    ((_, _, text),) = alerts(query)
    assert "These days can no longer be requested" in text and "cause" not in text


@pytest.mark.parametrize(("killed_before", "max_posts"), [("mark_collecting", 2), ("msg", 3), ("state=ready", 2)])
def test_a_killed_daemon_resumes_from_every_state(sandbox, rows, query, tick, monkeypatch, killed_before, max_posts):
    # The exchange offers no file during the two requests and the next two polls.
    sandbox.faults.pending.extend(["message"] * 4)
    land(REQUEST, OLD[:1])
    land(REQUEST, OLD[1:])
    if killed_before != "state=ready":
        assert land(HISTORY, OLD[:1]).success
    with monkeypatch.context() as patched:
        kill_before(patched, killed_before)
        for _ in range(50):
            try:
                tick()
            except Killed:
                break
        else:
            pytest.fail("the daemon was not killed")

    if killed_before == "state=ready":
        assert land(HISTORY, OLD[:1]).success
    tick()
    tick()
    assert land(HISTORY, OLD[1:]).success

    assert len(posts(sandbox)) <= max_posts
    for day in OLD:
        assert landed(query, HISTORY, day) == sent(rows[day])


def test_a_post_without_a_recorded_response_is_repeated_once(sandbox, rows, query, tick, monkeypatch):
    sandbox.binance.kickbacks.collect_ms = 10**9
    with monkeypatch.context() as patched:
        kill_before(patched, "msg")
        with pytest.raises(Killed):
            land(REQUEST, OLD)
    for _ in range(4):
        tick()
    assert len(posts(sandbox)) == 2
    assert exports(query) == [("collecting",)]


def test_the_runbook_quotes_the_alert():
    expired = KickbackExport(
        id=1,
        first_day=date(2026, 11, 1),
        last_day=date(2026, 11, 5),
        state="expired",
        requested_at=None,
        code=None,
        msg=None,
        note="no file was offered in time; the last response was: Historical data is collecting",
        path=None,
        path_before=None,
        other_paths=[],
        expires_at=None,
        has_stored_file=False,
        is_due=True,
        is_overdue=True,
        is_just_expired=True,
        age_s=0.0,
    )
    [account_endpoints] = export_endpoints(ENDPOINTS)
    alert = expired_alert(account_endpoints, expired, at(date(2026, 11, 20)))
    runbook = (Path(__file__).parents[3] / "docs" / "runbook.md").read_text()
    assert f"    {alert.title}\n    {alert.text}\n" in runbook


# The schedule


@pytest.fixture
def requested_ranges(sandbox, query):
    """Replaces the ledger's content with these landed days, and returns the ranges that the schedule then requests."""

    def requested_ranges(recent=(), history=()) -> list[str]:
        query("delete from affiliate.landing")
        for key, days in ((RECENT, recent), (HISTORY, history)):
            for day in days:
                query(
                    "insert into affiliate.landing values (%s, %s, 0, '', true, 'somewhere', now(), now(), 'run')",
                    key,
                    day,
                )
        definitions = loaded_definitions()
        schedule = definitions.resolve_schedule_def("binance_kickback_history_0045_utc")
        at_0045 = datetime.fromisoformat(f"{TODAY}T00:45:00+00:00")
        context = dg.build_schedule_context(
            instance_of_all_runs(), scheduled_execution_time=at_0045, resources=definitions.resources
        )
        return [
            f"{request.tags['dagster/asset_partition_range_start']}...{request.tags['dagster/asset_partition_range_end']}"
            for request in schedule.evaluate_tick(context).run_requests or ()
        ]

    return requested_ranges


def days(first: int, last: int) -> list[date]:
    return [ago(number) for number in range(first, last - 1, -1)]


def test_days_that_recent_records_missed_are_requested_with_one_run_per_range(sandbox, requested_ranges):
    assert requested_ranges(recent=[*days(20, 16), *days(12, 9)], history=days(14, 14)) == [
        f"{ago(15)}...{ago(15)}",
        f"{ago(13)}...{ago(13)}",
        f"{ago(8)}...{ago(7)}",
    ]


def test_days_before_the_first_landed_one_and_days_that_recent_records_retain_are_not_requested(
    sandbox, requested_ranges
):
    assert RECENT_KICKBACKS.timetable.is_retained(ago(6), int(datetime.now().timestamp() * 1000))
    assert requested_ranges(recent=days(8, 7)) == []
    assert requested_ranges() == []


def test_days_that_the_history_no_longer_retains_are_not_requested(sandbox, requested_ranges):
    assert requested_ranges(recent=[ago(60)]) == [f"{ago(29)}...{ago(7)}"]


def test_requested_days_are_not_requested_again(sandbox, requested_ranges):
    land(REQUEST, days(12, 9))
    assert requested_ranges(recent=days(15, 13)) == [f"{ago(8)}...{ago(7)}"]


def test_without_the_clients_account_the_schedule_skips(sandbox, requested_ranges, monkeypatch):
    assert requested_ranges(recent=[ago(20)]) != []
    monkeypatch.delenv("BINANCE_CLIENT_API_KEY")
    monkeypatch.delenv("BINANCE_CLIENT_API_SECRET")
    assert requested_ranges(recent=[ago(20)]) == []
