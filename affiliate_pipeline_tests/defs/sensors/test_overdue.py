"""The monitor for overdue days and the heartbeat, as Dagster's daemon evaluates them."""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

import dagster as dg
import pytest
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus

from affiliate_pipeline.defs.checks import NO_DAY_MISSING
from affiliate_pipeline.defs.sensors import overdue as overdue_sensors
from affiliate_pipeline.domain.days import days_from, format_days
from affiliate_pipeline.domain.problem import SettingsError
from affiliate_pipeline.exchanges.endpoint import Records
from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline.monitoring.alerts import Alert
from affiliate_pipeline.monitoring.outbox import Outbox
from affiliate_pipeline_tests.code_location import loaded_definitions
from affiliate_pipeline_tests.conftest import RESOURCES
from affiliate_pipeline_tests.defs.direct_runs import land
from affiliate_pipeline_tests.defs.rebates import KEY, ago, at

TRADES = "lbank/trade_user"
ASSET = dg.AssetKey(KEY.split("/"))
CHECK = dg.AssetCheckKey(ASSET, NO_DAY_MISSING)
MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS


@dataclass
class Daemon:
    """Evaluates the sensors and runs jobs as Dagster's daemon does, with a clock that can be set."""

    instance: dg.DagsterInstance
    monkeypatch: pytest.MonkeyPatch
    definitions: dg.Definitions = field(default_factory=loaded_definitions)
    evaluations: int = 0

    def set_time(self, ms: int) -> None:
        self.monkeypatch.setattr(overdue_sensors, "now_ms", lambda: ms)

    def tick(self) -> list[dg.RunRequest]:
        """Evaluate the monitor, record its check evaluations, and return the runs that it requests."""
        result = self._evaluate("watch")
        assert isinstance(result, dg.SensorResult)
        self.evaluations = len(result.asset_events or [])
        for event in result.asset_events or []:
            self.instance.report_runless_asset_event(event)
        return list(result.run_requests or [])

    def beat(self) -> str:
        """Evaluate the heartbeat, and return the reason that it reports."""
        result = self._evaluate("heartbeat")
        assert isinstance(result, dg.SkipReason)
        return result.skip_message or ""

    def _evaluate(self, name: str) -> object:
        sensor = self.definitions.resolve_sensor_def(name)
        return sensor(dg.build_sensor_context(instance=self.instance, resources=RESOURCES))

    def launch(self, request: dg.RunRequest) -> bool:
        """Execute the requested run, and return whether it succeeds."""
        return self.run(dict(request.tags))

    def run(self, tags: dict[str, str]) -> bool:
        job = self.definitions.resolve_implicit_global_asset_job_def()
        return job.execute_in_process(
            instance=self.instance, asset_selection=[ASSET], tags=tags, raise_on_error=False
        ).success

    def evaluation(self) -> dg.AssetCheckEvaluation:
        """The last evaluation of the check for missing days."""
        record = self.instance.event_log_storage.get_latest_asset_check_execution_by_key([CHECK])[CHECK]
        assert record.event and record.event.dagster_event
        return record.event.dagster_event.asset_check_evaluation_data

    def severity(self) -> dg.AssetCheckSeverity:
        """The severity of the last evaluation of the check for missing days."""
        return self.evaluation().severity

    def check(self) -> tuple[AssetCheckExecutionRecordStatus, str]:
        """The status and description of the last evaluation of the check for missing days."""
        record = self.instance.event_log_storage.get_latest_asset_check_execution_by_key([CHECK])[CHECK]
        assert record.event and record.event.dagster_event
        evaluation = record.event.dagster_event.event_specific_data
        return record.status, getattr(evaluation, "description", None) or ""


@pytest.fixture
def daemon(sandbox, instance, monkeypatch) -> Daemon:
    return Daemon(instance, monkeypatch)


@pytest.fixture
def add_landed_days(query, sandbox) -> Callable[..., None]:
    """Adds days of an asset to the ledger."""

    def landed(key: str, *days: date) -> None:
        for day in days:
            query(
                "insert into affiliate.landing values (%s, %s, 1, 'hash', true, 'source', now(), now(), 'run')",
                key,
                day,
            )

    return landed


@pytest.fixture
def alerts(query) -> Callable[[], list[tuple[str, str]]]:
    """The titles and texts of all alerts about the rebates, oldest first."""

    def alerts() -> list[tuple[str, str]]:
        return query("select title, text from affiliate.alert where title like %s order by raised_at", f"%{KEY}%")

    return alerts


def days_of(request: dg.RunRequest) -> tuple[str, str]:
    return request.tags["dagster/asset_partition_range_start"], request.tags["dagster/asset_partition_range_end"]


def nov(day: int) -> date:
    return date(2026, 11, day)


def test_a_missing_day_is_landed_by_the_run_that_is_requested(sandbox, daemon, query):
    land(KEY, [ago(5)])
    land(KEY, [ago(3), ago(2), ago(1)])

    (request,) = daemon.tick()

    assert (request.asset_selection, days_of(request)) == ([ASSET], (f"{ago(4)}", f"{ago(4)}"))
    assert daemon.check()[0] == AssetCheckExecutionRecordStatus.FAILED
    assert f"{ago(4)}: it has not landed; fetchable until" in daemon.check()[1]
    assert daemon.launch(request)
    assert query("select count(*) from affiliate.landing where partition = %s", ago(4)) == [(1,)]
    assert daemon.tick() == []
    assert daemon.check()[0] == AssetCheckExecutionRecordStatus.SUCCEEDED
    assert query("select count(*) from affiliate.watch") == [(0,)]


def test_one_run_is_requested_per_asset_and_range_of_missing_days(sandbox, daemon, add_landed_days, monkeypatch):
    monkeypatch.setenv("LBANK_API_KEY", "key")
    add_landed_days(KEY, nov(7), nov(10), nov(12))
    add_landed_days(TRADES, nov(8), *days_from(nov(10), nov(12)))
    daemon.set_time(at(nov(13)))
    requests = daemon.tick()
    assert [(request.asset_selection, days_of(request)) for request in requests] == [
        ([ASSET], ("2026-11-08", "2026-11-09")),
        ([ASSET], ("2026-11-11", "2026-11-11")),
        ([dg.AssetKey(TRADES.split("/"))], ("2026-11-09", "2026-11-09")),
    ]


def test_each_attempt_is_a_new_run_after_a_growing_pause(daemon, add_landed_days):
    add_landed_days(KEY, nov(9), nov(11), nov(12))
    first = at(nov(13))
    requests = []
    for hours in (0, 0.5, 1, 2, 3):
        daemon.set_time(first + int(hours * HOUR_MS))
        requests.append(daemon.tick())
    assert [len(each) for each in requests] == [1, 0, 1, 0, 1]
    keys = [request.run_key for each in requests for request in each]
    assert len({*keys}) == 3
    assert [request.tags[overdue_sensors.ATTEMPT_TAG] for each in requests for request in each] == [
        "attempt 1",
        "attempt 2",
        "attempt 3",
    ]


def test_an_asset_without_credentials_is_not_monitored(daemon, add_landed_days, monkeypatch):
    add_landed_days(TRADES, nov(8), *days_from(nov(10), nov(12)))
    daemon.set_time(at(nov(13)))
    assert daemon.tick() == []
    assert daemon.evaluations == 0


def test_nothing_is_requested_while_a_run_of_the_asset_is_in_progress(daemon, add_landed_days):
    add_landed_days(KEY, nov(9), nov(11), nov(12))
    daemon.set_time(at(nov(13)))
    run = daemon.instance.create_run_for_job(
        daemon.definitions.resolve_implicit_global_asset_job_def(),
        asset_selection=frozenset([ASSET]),
        status=dg.DagsterRunStatus.STARTED,
        tags={"dagster/partition": "2026-11-12"},
    )
    assert daemon.tick() == []
    daemon.instance.delete_run(run.run_id)
    assert len(daemon.tick()) == 1


def test_a_day_that_a_run_has_just_failed_to_land_is_requested_an_hour_later(sandbox, daemon, query):
    land(KEY, [ago(5)])
    land(KEY, [ago(3), ago(2), ago(1)])
    sandbox.faults.fail_day(ago(4), status=400, code=-1127)
    assert not daemon.run({"dagster/partition": f"{ago(4)}"})
    now = overdue_sensors.now_ms()
    assert daemon.tick() == []
    daemon.set_time(now + HOUR_MS + MINUTE_MS)
    assert [days_of(request) for request in daemon.tick()] == [(f"{ago(4)}", f"{ago(4)}")]


def test_the_check_counts_failed_and_missing_partitions_as_dagster_does(sandbox, daemon, monkeypatch):
    monkeypatch.setenv("AFFILIATE_START_DATE", f"{ago(5)}")
    sandbox.faults.fail_day(ago(1), status=400, code=-1127)
    days = {"dagster/asset_partition_range_start": f"{ago(3)}", "dagster/asset_partition_range_end": f"{ago(1)}"}
    assert not daemon.run(days)
    daemon.set_time(at(ago(0), "00:30:00.000"))

    assert daemon.tick() == []

    keys = [f"{ago(days)}" for days in range(5, 0, -1)]
    partitions = dg.DailyPartitionsDefinition(keys[0], timezone="UTC")
    statuses = daemon.instance.get_status_by_partition(ASSET, keys, partitions)
    assert statuses
    counts = Counter(status and status.value for status in statuses.values())
    evaluation = daemon.evaluation()
    assert {name: evaluation.metadata[name].value for name in ("failed", "missing")} == {
        "failed": counts["FAILED"],
        "missing": counts[None],
    }
    assert not evaluation.passed
    assert evaluation.description is not None
    assert evaluation.description.startswith(f"Landed: {counts['MATERIALIZED']} of 5 days since {ago(5)}.")
    assert f"{ago(1)}: the last run failed" in evaluation.description
    assert f"Not expected to have landed: {format_days([ago(5), ago(4)])}." in evaluation.description


def test_a_day_that_cannot_land_raises_two_warnings_with_its_deadline(sandbox, daemon, alerts):
    land(KEY, [ago(6)])
    land(KEY, [ago(4), ago(3), ago(2), ago(1)])
    bad = ago(5)
    sandbox.faults.fail_day(bad, status=400, code=-1127)
    deadline = f"{bad + timedelta(days=6)} 23:59 UTC"
    until = at(bad + timedelta(days=7), "00:00:00.000")
    (request,) = daemon.tick()
    assert not daemon.launch(request)

    for minutes in (-47 * 60, -47 * 60 + 1, -11 * 60, -11 * 60 + 1):
        daemon.set_time(until + minutes * MINUTE_MS)
        daemon.tick()

    warnings = [(title, text) for title, text in alerts() if "hours are left" in title and f"{bad}" in title]
    assert [title for title, _ in warnings] == [
        f"{KEY}: less than 48 hours are left to land {bad}",
        f"{KEY}: less than 12 hours are left to land {bad}",
    ]
    assert all(f"{bad}: it has not landed; fetchable until {deadline}" in text for _, text in warnings)
    assert f"{bad}: it has not landed; fetchable until {deadline}" in daemon.check()[1]


def test_an_expired_day_is_reported_as_lost_once(sandbox, daemon, add_landed_days, alerts):
    add_landed_days(KEY, ago(10), ago(8), *(ago(days) for days in range(7, 0, -1)))

    (request,) = daemon.tick()
    assert days_of(request) == (f"{ago(9)}", f"{ago(9)}")
    assert alerts() == []
    assert not daemon.launch(request)

    assert daemon.tick() == []
    ((title, text),) = alerts()
    assert title == f"{KEY}: {ago(9)} is lost"
    assert f"was fetchable until {ago(3)} 23:59 UTC" in text
    assert daemon.check()[1].endswith("; lost")
    daemon.set_time(overdue_sensors.now_ms() + 5 * HOUR_MS)
    daemon.tick()
    assert len([title for title, _ in alerts() if "lost" in title]) == 1


def test_an_expired_day_lands_if_the_source_still_has_it(sandbox, daemon, add_landed_days, alerts, query):
    add_landed_days(KEY, ago(10), *(ago(days) for days in range(8, 0, -1)))
    sandbox.binance.retention_ms = None
    (request,) = daemon.tick()
    assert daemon.launch(request)
    assert daemon.tick() == []
    assert alerts() == []


def test_the_check_is_listed_with_each_asset_whose_days_can_be_missing():
    listed = {spec.key for assets in loaded_definitions().assets or () for spec in getattr(assets, "check_specs", ())}
    with_check = {key.asset_key.to_user_string() for key in listed if key.name == NO_DAY_MISSING}
    assert with_check == {each.key for each in ENDPOINTS if each.lands_at and isinstance(each, Records)}


def test_the_check_is_recorded_daily_and_after_each_change_or_run(sandbox, daemon, add_landed_days, query):
    add_landed_days(KEY, *(ago(days) for days in range(6, 1, -1)))
    land(KEY, [ago(1)])
    now = overdue_sensors.now_ms()

    def evaluations() -> int:
        daemon.tick()
        return daemon.evaluations

    assert [evaluations(), evaluations()] == [1, 0]
    assert daemon.run({"dagster/partition": f"{ago(1)}"})
    assert [evaluations(), evaluations()] == [1, 0]
    query("delete from affiliate.landing where partition = %s", ago(4))
    assert [evaluations(), evaluations()] == [1, 0]
    daemon.set_time(now + 24 * HOUR_MS)
    assert evaluations() == 1


def test_the_check_is_recorded_when_only_its_severity_changes(sandbox, daemon, add_landed_days, query):
    add_landed_days(KEY, ago(4), ago(2), ago(1))
    daemon.tick()
    # `said` is the level last reported, on which the severity depends.
    query("update affiliate.watch set said = 'BELOW_12_HOURS'")
    daemon.tick()
    assert (daemon.evaluations, daemon.severity()) == (1, dg.AssetCheckSeverity.ERROR)
    daemon.tick()
    assert daemon.evaluations == 0


@pytest.fixture
def heartbeat(daemon, webhook, monkeypatch) -> str:
    monkeypatch.setenv("HEARTBEAT_URL", webhook.heartbeat_url)
    return webhook.heartbeat_url


def test_the_heartbeat_is_called_while_no_day_is_at_risk(daemon, webhook, heartbeat, add_landed_days):
    add_landed_days(KEY, *days_from(nov(9), nov(12)))
    daemon.set_time(at(nov(13)))
    assert "was called" in daemon.beat()
    assert webhook.calls == ["/beat?secret=hidden-in-the-url"]


def test_the_heartbeat_stops_with_a_day_at_risk_and_resumes_once_it_has_landed(
    daemon, webhook, heartbeat, add_landed_days
):
    add_landed_days(KEY, nov(9), nov(11), nov(12))
    daemon.set_time(at(nov(13)))
    assert daemon.beat() == f"not called, since days are at risk: {KEY}: 2026-11-10"
    assert webhook.calls == []
    add_landed_days(KEY, nov(10))
    daemon.beat()
    assert len(webhook.calls) == 1


def test_a_lost_day_stops_the_heartbeat_until_it_is_reported(daemon, webhook, heartbeat, add_landed_days):
    add_landed_days(KEY, nov(2), *days_from(nov(4), nov(12)))
    daemon.set_time(at(nov(13)))
    daemon.tick()
    daemon.beat()
    assert webhook.calls == []
    daemon.tick()
    daemon.beat()
    assert len(webhook.calls) == 1


def test_the_heartbeat_stops_while_alerts_are_not_delivered(daemon, webhook, heartbeat, database_url):
    now = datetime.now(UTC)
    with Outbox(database_url) as outbox:
        outbox.add(Alert("1", "new", "text"), now - timedelta(minutes=50))
        assert "was called" in daemon.beat()
        outbox.add(Alert("2", "old", "text"), now - timedelta(minutes=70))
        assert "an hour old have not been delivered: 1. The failed ticks of alert_delivery" in daemon.beat()
        assert len(webhook.calls) == 1
        outbox.complete_deliveries([])  # Without targets, every alert counts as delivered.
    daemon.beat()
    assert len(webhook.calls) == 2


def test_a_malformed_url_fails_the_tick_without_being_quoted(daemon, monkeypatch):
    monkeypatch.setenv("HEARTBEAT_URL", "hidden-in-the-url")
    with pytest.raises(SettingsError, match="HEARTBEAT_URL is not an http") as raised:
        daemon.beat()
    assert "hidden" not in f"{raised.value}"


def test_without_a_url_nothing_is_called(daemon):
    assert daemon.beat() == "HEARTBEAT_URL is not set"


@pytest.mark.parametrize("failure", ["status", "stopped"])
def test_a_failed_heartbeat_is_reported_without_its_url(daemon, webhook, heartbeat, caplog, capfd, failure):
    caplog.set_level(logging.DEBUG)
    if failure == "status":
        webhook.status = 500
    else:
        webhook.stop()
        webhook.stop = lambda: None
    reason = daemon.beat()
    assert reason.startswith("HEARTBEAT_URL could not be called: ")
    assert {"status": "HTTP 500", "stopped": "ConnectError"}[failure] in reason
    assert "hidden-in-the-url" not in reason + caplog.text + "".join(capfd.readouterr())
