"""What a tick of a schedule asks for: one run per asset over the right days of its exchange's zone."""

import time
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import dagster as dg
import pytest

from affiliate_pipeline.definitions import build_definitions
from affiliate_pipeline.exchanges.endpoint import Records
from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline_tests.conftest import RESOURCES

SHANGHAI = ZoneInfo("Asia/Shanghai")
DAY = timedelta(days=1)


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


def tick(schedule, at, now=None):
    """The days asked for of each asset, and what else was yielded, of the tick of that time; evaluated then, or `now`."""
    with dg.DagsterInstance.ephemeral() as instance, pytest.MonkeyPatch.context() as clock:
        clock.setattr("affiliate_pipeline.defs.schedules.now_ms", lambda: int((now or at).timestamp() * 1000))
        context = dg.build_schedule_context(instance, scheduled_execution_time=at, resources=RESOURCES)
        data = schedule.evaluate_tick(context)
    asked = {}
    for request in data.run_requests:
        [key] = request.asset_selection
        assert key.to_user_string() not in asked, "two runs for one asset"
        ends = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")
        asked[key.to_user_string()] = tuple(date.fromisoformat(request.tags[end]) for end in ends)
    return asked, data.skip_message


def schedules():
    return {schedule.name: schedule for schedule in build_definitions().schedules if "_records_" in schedule.name}


def observations():
    return {schedule.name: schedule for schedule in build_definitions().schedules if "_observations_" in schedule.name}


# The nights in which Europe and America change their clocks, a turn of the year, and any other.
@pytest.mark.parametrize("day", [date(2026, 3, 8), date(2026, 3, 29), date(2026, 10, 25), date(2027, 1, 1)])
def test_a_tick_asks_for_the_last_days_of_the_exchanges_zone(zone_of_the_machine, day):
    asked = {}
    for schedule in schedules().values():
        minute, hour, *_ = map(int, schedule.cron_schedule.split()[:2])
        at = datetime(day.year, day.month, day.day, hour, minute, tzinfo=ZoneInfo(schedule.execution_timezone))
        asked |= tick(schedule, at)[0]

    assert asked["binance/rebate_recent_record"] == (day - 3 * DAY, day - DAY)
    assert asked["lbank/trade_user"] == (day - 3 * DAY, day - DAY)
    # A day of these has settled 72 hours after its end: three days do not reach that far.
    assert asked["lbank/money_detail_list"] == (day - 4 * DAY, day - DAY)
    assert asked.keys() == {e.key for e in ENDPOINTS if e.lands_at and isinstance(e, Records)}


@pytest.mark.parametrize("day", [date(2026, 3, 29), date(2027, 1, 1)])
def test_an_observation_is_asked_for_today(zone_of_the_machine, day):
    asked = {}
    for schedule in observations().values():
        minute, hour, *_ = map(int, schedule.cron_schedule.split()[:2])
        at = datetime(day.year, day.month, day.day, hour, minute, tzinfo=ZoneInfo(schedule.execution_timezone))
        asked |= tick(schedule, at)[0]

    assert asked == {
        endpoint.key: (day, day) for endpoint in ENDPOINTS if endpoint.lands_at and not isinstance(endpoint, Records)
    }


@pytest.mark.parametrize("exchange", ["binance", "lbank"])
def test_a_missed_tick_asks_for_no_observation_of_a_day_that_is_over(exchange):
    schedule = next(each for name, each in observations().items() if name.startswith(exchange))
    minute, hour, *_ = map(int, schedule.cron_schedule.split()[:2])
    at = datetime(2026, 6, 9, hour, minute, tzinfo=ZoneInfo(schedule.execution_timezone))
    midnight = at.replace(hour=0, minute=0) + DAY

    asked, _ = tick(schedule, at, now=midnight - timedelta(seconds=1))
    assert set(asked.values()) == {(date(2026, 6, 9), date(2026, 6, 9))}

    asked, skipped = tick(schedule, at, now=midnight)
    assert asked == {}
    assert "2026-06-09 is over" in skipped


def test_a_tick_around_midnight_is_of_the_zones_own_day():
    binance = schedules()["binance_records_0015"]
    lbank = schedules()["lbank_records_0035"]
    late = datetime(2026, 6, 10, 23, 59, 59, tzinfo=UTC)

    assert tick(binance, late)[0]["binance/rebate_recent_record"][1] == date(2026, 6, 9)
    assert tick(binance, late + timedelta(seconds=1))[0]["binance/rebate_recent_record"][1] == date(2026, 6, 10)
    # Then it is already the morning of the 11th there.
    assert tick(lbank, late)[0]["lbank/trade_user"][1] == date(2026, 6, 10)
    assert tick(lbank, late.replace(hour=15))[0]["lbank/trade_user"][1] == date(2026, 6, 9)


def test_ticks_come_after_the_exchanges_have_what_they_tell():
    at = {
        schedule.name: (schedule.cron_schedule, schedule.execution_timezone)
        for schedule in build_definitions().schedules
        if schedule.name.startswith(("binance_records", "lbank_records"))
    }

    assert at == {
        "binance_records_0015": ("15 0 * * *", "UTC"),
        "lbank_records_0035": ("35 0 * * *", "Asia/Shanghai"),
        "lbank_records_1035": ("35 10 * * *", "Asia/Shanghai"),
    }


def test_no_day_before_the_first_partition_is_asked_for(monkeypatch):
    monkeypatch.setenv("AFFILIATE_START_DATE", "2026-06-09")
    schedule = schedules()["binance_records_0015"]

    asked, _ = tick(schedule, datetime(2026, 6, 10, 0, 15, tzinfo=UTC))
    assert set(asked.values()) == {(date(2026, 6, 9), date(2026, 6, 9))}

    asked, skipped = tick(schedule, datetime(2026, 6, 9, 0, 15, tzinfo=UTC))
    assert asked == {}
    assert "AFFILIATE_START_DATE" in skipped


def test_an_exchange_without_credentials_is_not_asked(monkeypatch):
    for name in ("LBANK_API_KEY", "LBANK_API_SECRET", "LBANK_OPEN_ID"):
        monkeypatch.delenv(name)

    asked, skipped = tick(schedules()["lbank_records_0035"], datetime(2026, 6, 10, 0, 35, tzinfo=SHANGHAI))

    assert asked == {}
    assert "LBANK_API_KEY" in skipped


@pytest.mark.parametrize(("value", "status"), [("true", "RUNNING"), ("", "STOPPED")])
def test_whether_schedules_run_is_a_setting(monkeypatch, value, status):
    monkeypatch.setenv("AFFILIATE_SCHEDULES", value)

    assert {schedule.default_status.value for schedule in build_definitions().schedules} == {status}
