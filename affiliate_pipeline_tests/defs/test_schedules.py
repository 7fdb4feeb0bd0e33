"""The runs that a schedule's tick requests: one per asset, over days of its exchange's time zone."""

import time
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import dagster as dg
import pytest

from affiliate_pipeline.exchanges.endpoint import Records
from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline_tests.code_location import loaded_definitions
from affiliate_pipeline_tests.conftest import RESOURCES, instance_of_all_runs

SHANGHAI = ZoneInfo("Asia/Shanghai")
DAY = timedelta(days=1)
# Parts of the schedules' names.
RECORDS, SNAPSHOTS = "_records_", "_snapshots_"


@pytest.fixture(autouse=True)
def configured(monkeypatch):
    monkeypatch.setenv("AFFILIATE_START_DATE", "2026-01-01")
    for endpoint in ENDPOINTS:
        for name in endpoint.credentials:
            monkeypatch.setenv(name, "configured")


@pytest.fixture(params=["UTC", "Europe/Berlin", "America/New_York", "Asia/Tokyo"])
def zone_of_the_machine(request, monkeypatch):
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def tick(
    schedule: dg.ScheduleDefinition, at: datetime, now: datetime | None = None
) -> tuple[dict[str, tuple[date, ...]], str]:
    """The first and last day that the tick of this time requests for each asset, and its skip message.

    The tick is evaluated at `now`, which is its own time by default.
    """
    with pytest.MonkeyPatch.context() as clock:
        clock.setattr("affiliate_pipeline.defs.schedules.now_ms", lambda: int((now or at).timestamp() * 1000))
        context = dg.build_schedule_context(instance_of_all_runs(), scheduled_execution_time=at, resources=RESOURCES)
        data = schedule.evaluate_tick(context)
    requested = {}
    for request in data.run_requests or ():
        [key] = request.asset_selection or []
        assert key.to_user_string() not in requested, "two runs for one asset"
        ends = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")
        requested[key.to_user_string()] = tuple(date.fromisoformat(request.tags[end]) for end in ends)
    return requested, data.skip_message or ""


def schedules(kind: str = "") -> dict[str, dg.ScheduleDefinition]:
    """The schedules by name, limited to those whose name contains `kind`."""
    found = {}
    for schedule in loaded_definitions().schedules or ():
        assert isinstance(schedule, dg.ScheduleDefinition)
        if kind in schedule.name:
            found[schedule.name] = schedule
    return found


def trigger(schedule: dg.ScheduleDefinition) -> tuple[str, str]:
    """The schedule's cron expression and its time zone."""
    assert isinstance(schedule.cron_schedule, str)
    assert schedule.execution_timezone is not None
    return schedule.cron_schedule, schedule.execution_timezone


def tick_time(schedule: dg.ScheduleDefinition, day: date) -> datetime:
    cron, zone = trigger(schedule)
    minute, hour = map(int, cron.split()[:2])
    return datetime(day.year, day.month, day.day, hour, minute, tzinfo=ZoneInfo(zone))


def requested_on(day: date, kind: str) -> dict[str, tuple[date, ...]]:
    """By asset, the first and last day that the schedules of this kind request on the day."""
    requested = {}
    for schedule in schedules(kind).values():
        requested |= tick(schedule, tick_time(schedule, day))[0]
    return requested


def test_a_tick_requests_the_last_days_of_the_exchanges_zone(zone_of_the_machine):
    # Days on which America or Europe changes its clocks, and the first of a year.
    for day in (date(2026, 3, 8), date(2026, 3, 29), date(2026, 10, 25), date(2027, 1, 1)):
        requested = requested_on(day, RECORDS)

        assert requested["binance/rebate_recent_record"] == (day - 3 * DAY, day - DAY)
        assert requested["lbank/trade_user"] == (day - 3 * DAY, day - DAY)
        # A day of this asset settles 72 hours after its end, so three days are not enough.
        assert requested["lbank/money_detail_list"] == (day - 4 * DAY, day - DAY)
        assert requested.keys() == {e.key for e in ENDPOINTS if e.lands_at and isinstance(e, Records)}


def test_a_snapshot_is_requested_for_today(zone_of_the_machine):
    for day in (date(2026, 3, 29), date(2027, 1, 1)):
        assert requested_on(day, SNAPSHOTS) == {
            endpoint.key: (day, day)
            for endpoint in ENDPOINTS
            if endpoint.lands_at and not isinstance(endpoint, Records)
        }


@pytest.mark.parametrize("exchange", ["binance", "lbank"])
def test_a_missed_tick_requests_no_snapshot_of_a_past_day(exchange):
    schedule = next(each for name, each in schedules(SNAPSHOTS).items() if name.startswith(exchange))
    at = tick_time(schedule, date(2026, 6, 9))
    midnight = at.replace(hour=0, minute=0) + DAY

    requested, _ = tick(schedule, at, now=midnight - timedelta(seconds=1))
    assert set(requested.values()) == {(date(2026, 6, 9), date(2026, 6, 9))}

    requested, skipped = tick(schedule, at, now=midnight)
    assert requested == {}
    assert "2026-06-09 is over" in skipped


def test_a_tick_around_midnight_belongs_to_the_day_of_the_exchanges_zone():
    binance, lbank = (schedules()[name] for name in ("binance_records_0015_utc", "lbank_records_0035_asia_shanghai"))
    late = datetime(2026, 6, 10, 23, 59, 59, tzinfo=UTC)

    assert tick(binance, late)[0]["binance/rebate_recent_record"][1] == date(2026, 6, 9)
    assert tick(binance, late + timedelta(seconds=1))[0]["binance/rebate_recent_record"][1] == date(2026, 6, 10)
    # In LBank's zone it is the morning of the 11th already.
    assert tick(lbank, late)[0]["lbank/trade_user"][1] == date(2026, 6, 10)
    assert tick(lbank, late.replace(hour=15))[0]["lbank/trade_user"][1] == date(2026, 6, 9)


def test_ticks_follow_the_times_at_which_the_exchanges_publish():
    assert {name: trigger(schedule) for name, schedule in schedules(RECORDS).items()} == {
        "binance_records_0015_utc": ("15 0 * * *", "UTC"),
        "lbank_records_0035_asia_shanghai": ("35 0 * * *", "Asia/Shanghai"),
        "lbank_records_1035_asia_shanghai": ("35 10 * * *", "Asia/Shanghai"),
    }


def test_no_day_before_the_first_partition_is_requested(monkeypatch):
    monkeypatch.setenv("AFFILIATE_START_DATE", "2026-06-09")
    schedule = schedules()["binance_records_0015_utc"]

    requested, _ = tick(schedule, datetime(2026, 6, 10, 0, 15, tzinfo=UTC))
    assert set(requested.values()) == {(date(2026, 6, 9), date(2026, 6, 9))}

    requested, skipped = tick(schedule, datetime(2026, 6, 9, 0, 15, tzinfo=UTC))
    assert requested == {}
    assert "before the first partition" in skipped


def test_no_run_is_requested_for_an_exchange_without_credentials(monkeypatch):
    for name in ("LBANK_API_KEY", "LBANK_API_SECRET", "LBANK_OPEN_ID"):
        monkeypatch.delenv(name)

    requested, skipped = tick(
        schedules()["lbank_records_0035_asia_shanghai"], datetime(2026, 6, 10, 0, 35, tzinfo=SHANGHAI)
    )

    assert requested == {}
    assert "LBANK_API_KEY" in skipped


@pytest.mark.parametrize(("value", "status"), [("true", "RUNNING"), ("", "STOPPED")])
def test_schedules_run_only_if_their_variable_is_true(monkeypatch, value, status):
    monkeypatch.setenv("AFFILIATE_SCHEDULES", value)

    assert {schedule.default_status.value for schedule in schedules().values()} == {status}
