"""Which days are overdue, in both time zones, when runs are requested for them, and what is reported."""

import textwrap
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from affiliate_pipeline.domain.days import days_from
from affiliate_pipeline.domain.expected_days import ExpectedDay
from affiliate_pipeline.exchanges.endpoint import Endpoint, Retention
from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline.landing.ledger import LedgerEntry
from affiliate_pipeline.monitoring.alerts import Alert
from affiliate_pipeline.monitoring.overdue import (
    MAX_ATTEMPTS,
    NotificationLevel,
    State,
    actions_for,
    alerts_of,
    at_risk,
    described,
    overdue_days,
)

BY_KEY = {endpoint.key: endpoint for endpoint in ENDPOINTS}
REBATES = replace(
    BY_KEY["binance/rebate_recent_record"],
    lands_at=time(0, 15),
    settles_after=timedelta(hours=48),
    # Only the presence of a proof matters here, not its result.
    retention=Retention(timedelta(days=7), proof=lambda session, day, zone: None),
)
WITHOUT_PROOF = replace(REBATES, retention=Retention(timedelta(days=7)))
KICKBACKS = BY_KEY["binance/kickback_recent_record"]
COMMISSIONS = replace(BY_KEY["lbank/commission_stats_symbol_list"], lands_at=time(10, 35))
TRADES = replace(BY_KEY["lbank/trade_user"], lands_at=time(0, 35))
START = date(2025, 1, 1)
FIRST = date(2026, 11, 1)


def ms(day: date, at: str, zone: str = "UTC") -> int:
    return int(datetime.combine(day, time.fromisoformat(at), ZoneInfo(zone)).timestamp() * 1000)


def nov(day: int) -> date:
    return date(2026, 11, day)


def landed(*days: date, settled: bool = True) -> dict[date, LedgerEntry]:
    at = datetime(2026, 11, 1, tzinfo=UTC)
    return {day: LedgerEntry(day, 1, "hash", settled, "source", at, at) for day in days}


def overdue(endpoint: Endpoint, ledger: dict[date, LedgerEntry], now_ms: int, start: date = START) -> list[ExpectedDay]:
    return overdue_days(endpoint, {endpoint.key: ledger}, start, now_ms)


def overdue_dates(endpoint: Endpoint, ledger: dict[date, LedgerEntry], now_ms: int, start: date = START) -> list[date]:
    return [each.day for each in overdue(endpoint, ledger, now_ms, start)]


@pytest.mark.parametrize(
    ("endpoint", "at", "zone"),
    [
        (REBATES, "01:15", "UTC"),
        (TRADES, "01:35", "Asia/Shanghai"),
        (COMMISSIONS, "11:35", "Asia/Shanghai"),
    ],
)
def test_a_day_is_overdue_an_hour_after_its_schedule(endpoint, at, zone):
    overdue_at_ms = ms(nov(6), at, zone)
    assert overdue_dates(endpoint, landed(nov(4)), overdue_at_ms - 1) == []
    assert overdue_dates(endpoint, landed(nov(4)), overdue_at_ms) == [nov(5)]


@pytest.mark.parametrize(("endpoint", "zone"), [(REBATES, "UTC"), (TRADES, "Asia/Shanghai")])
def test_no_day_becomes_overdue_around_midnight_of_its_zone(endpoint, zone):
    ledger = landed(nov(4))
    assert overdue_dates(endpoint, ledger, ms(nov(6), "23:59:59", zone)) == [nov(5)]
    assert overdue_dates(endpoint, ledger, ms(nov(7), "00:00", zone)) == [nov(5)]
    assert overdue_dates(endpoint, ledger, ms(nov(7), "00:59", zone)) == [nov(5)]


def test_only_missing_days_after_the_first_landed_day_are_overdue():
    ledger = landed(nov(1), nov(3), nov(6))
    assert overdue_dates(TRADES, ledger, ms(nov(8), "12:00", "Asia/Shanghai")) == [nov(2), nov(4), nov(5), nov(7)]


def test_nothing_is_overdue_before_the_first_day_has_landed():
    assert overdue_dates(TRADES, {}, ms(nov(8), "12:00")) == []


def test_days_are_overdue_for_thirty_days_and_never_before_the_first_partition():
    ledger, now_ms = landed(date(2026, 8, 1)), ms(nov(20), "12:00", "Asia/Shanghai")
    assert overdue_dates(TRADES, ledger, now_ms) == days_from(date(2026, 10, 21), nov(19))
    assert overdue_dates(TRADES, ledger, now_ms, start=nov(18)) == [nov(18), nov(19)]


@pytest.mark.parametrize(
    ("endpoint", "overdue_at_ms"),
    [
        # The day settles 48 h after its end, at 00:00; the schedule reads it again at 00:15.
        (REBATES, ms(nov(8), "01:15")),
        # The day settles at 10:30; the schedule reads it at 10:35.
        (COMMISSIONS, ms(nov(6), "11:35", "Asia/Shanghai")),
        (replace(TRADES, settles_after=timedelta(hours=72)), ms(nov(9), "01:35", "Asia/Shanghai")),
    ],
)
def test_a_day_read_before_it_settled_is_overdue_again_after_the_next_schedule(endpoint, overdue_at_ms):
    ledger = landed(nov(4)) | landed(nov(5), settled=False) | landed(*days_from(nov(6), nov(9)))
    assert overdue_dates(endpoint, ledger, overdue_at_ms - 1) == []
    (found,) = overdue(endpoint, ledger, overdue_at_ms)
    assert found.day == nov(5) and found.last_read_at
    assert "before it had settled" in described(found, overdue_at_ms)


@pytest.mark.parametrize(
    "endpoint", [replace(TRADES, lands_at=None), replace(BY_KEY["lbank/invite_user_info"], lands_at=time(0, 35))]
)
def test_endpoints_without_a_schedule_and_snapshots_are_never_overdue(endpoint):
    assert overdue_dates(endpoint, landed(nov(1)), ms(nov(8), "12:00")) == []


def test_an_overdue_day_is_described_with_its_deadline():
    now_ms = ms(nov(14), "12:00")
    expired, retained = overdue(REBATES, landed(nov(6), *days_from(nov(9), nov(13))), now_ms)
    assert described(expired, now_ms) == "2026-11-07: it has not landed; was fetchable until 2026-11-13 23:59 UTC"
    assert described(retained, now_ms) == "2026-11-08: it has not landed; fetchable until 2026-11-14 23:59 UTC"
    assert [expired.is_retained(now_ms), retained.is_retained(now_ms)] == [False, True]
    (unlimited,) = overdue(TRADES, landed(nov(6)), now_ms := ms(nov(8), "02:00", "Asia/Shanghai"))
    assert (
        described(unlimited, now_ms)
        == "2026-11-07: it has not landed; it is not known how long the exchange retains it"
    )


def gap(endpoint: Endpoint, day: date, now_ms: int, landed_early: bool = False) -> ExpectedDay:
    ledger = landed(FIRST) | (landed(day, settled=False) if landed_early else {})
    return next(each for each in overdue(endpoint, ledger, now_ms) if each.day == day)


class Monitor:
    """Successive decisions about some overdue days; each one starts from the states that the previous one returned."""

    def __init__(self, endpoint: Endpoint, *days: date, landed_early: bool = False):
        self.endpoint, self.days, self.landed_early = endpoint, days, landed_early
        self.states: dict[date, State] = {}
        self.requested: list[tuple[int, list[list[date]]]] = []
        self.reported: list[tuple[int, NotificationLevel, list[date]]] = []

    def decide(self, now_ms: int, **conditions) -> None:
        days = [gap(self.endpoint, day, now_ms, self.landed_early) for day in self.days]
        actions = actions_for(self.endpoint, days, self.states, now_ms, **conditions)
        self.states = actions.states
        if actions.request:
            self.requested.append((now_ms, actions.request))
        self.reported += [
            (now_ms, level, [each.day for each in reported]) for level, reported in actions.report.items()
        ]


def test_all_overdue_days_are_requested_at_once_in_one_range_for_each_group_of_consecutive_days():
    monitor = Monitor(TRADES, nov(3), nov(4), nov(6))
    monitor.decide(ms(nov(8), "12:00"))
    assert monitor.requested[0][1] == [[nov(3), nov(4)], [nov(6)]]
    assert monitor.reported == []


def test_nothing_is_requested_while_a_run_of_the_asset_is_in_progress():
    monitor = Monitor(TRADES, nov(3))
    monitor.decide(ms(nov(8), "12:00"), in_progress=True)
    assert (monitor.requested, monitor.reported, monitor.states) == ([], [], {})


def test_a_day_that_has_just_failed_is_not_requested_yet():
    monitor = Monitor(TRADES, nov(3), nov(4))
    monitor.decide(ms(nov(8), "12:00"), just_failed={nov(3)})
    assert monitor.requested[0][1] == [[nov(4)]]


def test_attempts_are_limited_and_their_pauses_grow_to_a_day():
    monitor, now_ms = Monitor(TRADES, nov(3)), ms(nov(5), "12:00")
    for minutes in range(0, 12 * 24 * 60, 10):
        monitor.decide(now_ms + minutes * 60_000)
    times = [at for at, _ in monitor.requested]
    hours = [(later - earlier) // 3_600_000 for earlier, later in zip(times, times[1:], strict=False)]
    assert hours == [1, 2, 4, 8, 16, 24, 24, 24, 24]
    assert len(times) == MAX_ATTEMPTS
    assert [(level, days) for _, level, days in monitor.reported] == [(NotificationLevel.GIVEN_UP, [nov(3)])]


def test_the_attempts_span_a_retention_of_a_week():
    monitor, overdue_at_ms = Monitor(WITHOUT_PROOF, nov(8)), ms(nov(9), "01:15")
    for minutes in range(0, 8 * 24 * 60, 10):
        monitor.decide(overdue_at_ms + minutes * 60_000)
    assert monitor.requested[-1][0] > ms(nov(14), "00:00")
    assert max(at for at, _ in monitor.requested) <= ms(nov(15), "00:00")
    assert [level for _, level, _ in monitor.reported] == [
        NotificationLevel.BELOW_48_HOURS,
        NotificationLevel.BELOW_12_HOURS,
        NotificationLevel.LOST,
    ]


def test_each_warning_is_reported_once_at_its_time():
    monitor, until = Monitor(WITHOUT_PROOF, nov(8)), ms(nov(15), "00:00")
    for minutes in range(-50 * 60, 60, 5):
        monitor.decide(until + minutes * 60_000)
    reported = [(level, round((until - at) / 3_600_000)) for at, level, _ in monitor.reported]
    assert reported == [
        (NotificationLevel.BELOW_48_HOURS, 48),
        (NotificationLevel.BELOW_12_HOURS, 12),
        (NotificationLevel.LOST, 0),
    ]


def test_no_warning_precedes_the_first_attempt():
    monitor, now_ms = Monitor(WITHOUT_PROOF, nov(8)), ms(nov(13), "12:00")
    monitor.decide(now_ms)
    monitor.decide(now_ms + 60_000, in_progress=True)
    assert len(monitor.requested) == 1
    assert monitor.reported == []
    monitor.decide(now_ms + 120_000)
    assert [level for _, level, _ in monitor.reported] == [NotificationLevel.BELOW_48_HOURS]


def test_below_twelve_hours_a_hanging_run_does_not_prevent_the_warning():
    monitor, now_ms = Monitor(WITHOUT_PROOF, nov(8)), ms(nov(14), "12:30")
    monitor.decide(now_ms)
    monitor.decide(now_ms + 60_000, in_progress=True)
    assert [level for _, level, _ in monitor.reported] == [NotificationLevel.BELOW_12_HOURS]


def test_a_day_that_another_run_has_just_failed_to_land_is_reported_at_once():
    monitor = Monitor(WITHOUT_PROOF, nov(8))
    monitor.decide(ms(nov(13), "12:00"), just_failed={nov(8)})
    assert [level for _, level, _ in monitor.reported] == [NotificationLevel.BELOW_48_HOURS]


def test_an_expired_day_is_reported_as_lost_at_once_and_only_once():
    monitor, now_ms = Monitor(WITHOUT_PROOF, nov(8)), ms(nov(16), "12:00")
    for minutes in range(3):
        monitor.decide(now_ms + minutes * 60_000)
    assert monitor.requested == []
    assert monitor.reported == [(now_ms, NotificationLevel.LOST, [nov(8)])]


def test_a_day_that_the_source_may_still_retain_is_requested_once_more_before_it_is_lost():
    monitor, now_ms = Monitor(REBATES, nov(7), nov(8)), ms(nov(16), "12:00")
    monitor.decide(now_ms)
    monitor.decide(now_ms + 60_000, in_progress=True)
    assert monitor.requested == [(now_ms, [[nov(7), nov(8)]])]
    assert monitor.reported == []
    for minutes in range(2, 300):
        monitor.decide(now_ms + minutes * 60_000)
    assert len(monitor.requested) == 1
    assert monitor.reported == [(now_ms + 120_000, NotificationLevel.LOST, [nov(7), nov(8)])]


def test_a_day_that_another_run_has_just_failed_to_land_gets_its_last_attempt_before_it_is_lost():
    monitor, now_ms = Monitor(REBATES, nov(8)), ms(nov(16), "12:00")
    monitor.decide(now_ms, just_failed={nov(8)})
    assert (monitor.requested, monitor.reported) == ([], [])
    monitor.decide(now_ms + 3_600_000)
    monitor.decide(now_ms + 3_660_000)
    assert monitor.requested == [(now_ms + 3_600_000, [[nov(8)]])]
    assert monitor.reported == [(now_ms + 3_660_000, NotificationLevel.LOST, [nov(8)])]


def test_a_day_read_too_early_is_not_requested_after_its_deadline():
    monitor, now_ms = Monitor(REBATES, nov(8), landed_early=True), ms(nov(16), "12:00")
    monitor.decide(now_ms)
    assert monitor.requested == []
    (alert,) = alerts_of(REBATES, NotificationLevel.LOST, [gap(REBATES, nov(8), now_ms, landed_early=True)], now_ms)
    assert alert.title == "binance/rebate_recent_record: 2026-11-08 expired before settling"
    assert "The rows that had landed are unchanged" in alert.text


def test_an_expired_day_with_a_fallback_stays_at_risk_until_the_fallback_expires():
    monitor = Monitor(KICKBACKS, nov(8))
    for now_ms in (ms(nov(16), "12:00"), ms(nov(16), "12:01"), ms(date(2026, 12, 8), "00:00")):
        monitor.decide(now_ms)
        assert at_risk([gap(KICKBACKS, nov(8), now_ms)], monitor.states) == [nov(8)]
    monitor.decide(ms(date(2026, 12, 8), "00:01"))
    assert monitor.requested == []
    assert [(level, at) for at, level, _ in monitor.reported] == [
        (NotificationLevel.SECOND_CHANCE, ms(nov(16), "12:00")),
        (NotificationLevel.LOST, ms(date(2026, 12, 8), "00:01")),
    ]


def test_a_day_that_the_fallback_has_landed_is_overdue_only_while_its_own_source_retains_it():
    own_ledger, fallback_ledger = landed(nov(6), *days_from(nov(8), nov(20))), landed(nov(7))

    def found(now_ms: int) -> list[date]:
        ledgers = {KICKBACKS.key: own_ledger, "binance/kickback_historical_record": fallback_ledger}
        return [each.day for each in overdue_days(KICKBACKS, ledgers, START, now_ms)]

    assert found(ms(nov(14), "00:00")) == [nov(7)]
    assert found(ms(nov(14), "00:01")) == []


def test_a_day_is_at_risk_until_it_is_reported_as_lost():
    monitor, now_ms = Monitor(WITHOUT_PROOF, nov(8), nov(10)), ms(nov(16), "12:00")
    days = [gap(WITHOUT_PROOF, day, now_ms) for day in monitor.days]
    assert at_risk(days, monitor.states) == [nov(8), nov(10)]
    monitor.decide(now_ms)
    assert at_risk(days, monitor.states) == [nov(10)]


def test_a_warning_names_the_days_their_deadlines_and_the_action():
    now_ms = ms(nov(13), "12:00")
    (alert,) = alerts_of(
        REBATES, NotificationLevel.BELOW_48_HOURS, [gap(REBATES, day, now_ms) for day in (nov(7), nov(8))], now_ms
    )
    assert alert.title == "binance/rebate_recent_record: less than 48 hours are left to land 2026-11-07, 08"
    assert alert.text.splitlines()[:2] == [
        "2026-11-07: it has not landed; fetchable until 2026-11-13 23:59 UTC",
        "2026-11-08: it has not landed; fetchable until 2026-11-14 23:59 UTC",
    ]
    assert "To do: fix the cause" in alert.text
    assert alert.failed == {REBATES.key: [nov(7), nov(8)]}


def test_a_lost_day_and_one_read_too_early_have_different_alerts():
    now_ms = ms(nov(16), "12:00")
    lost = gap(REBATES, nov(7), now_ms)
    early = gap(REBATES, nov(8), now_ms, landed_early=True)
    titles = [alert.title.split(": ")[1] for alert in alerts_of(REBATES, NotificationLevel.LOST, [lost, early], now_ms)]
    assert titles == ["2026-11-07 is lost", "2026-11-08 expired before settling"]


def test_alerts_about_the_same_days_have_different_keys():
    now_ms = ms(nov(16), "12:00")
    keys = [
        alert.key
        for landed_early in (False, True)
        for level in NotificationLevel
        if level is not NotificationLevel.NOTHING
        for alert in alerts_of(KICKBACKS, level, [gap(KICKBACKS, nov(8), now_ms, landed_early)], now_ms)
    ]
    assert len(keys) == len({*keys}) == 10


def test_days_are_in_the_zone_of_the_exchange_whatever_the_zone_of_the_machine(monkeypatch):
    import time as clock

    try:
        for zone in ("America/New_York", "Pacific/Auckland"):
            monkeypatch.setenv("TZ", zone)
            clock.tzset()
            assert overdue_dates(TRADES, landed(nov(4)), ms(nov(6), "01:35", "Asia/Shanghai")) == [nov(5)]
            assert overdue_dates(REBATES, landed(nov(4)), ms(nov(6), "01:15")) == [nov(5)]
    finally:
        monkeypatch.undo()
        clock.tzset()


def other_alerts_in_the_runbook() -> list[Alert]:
    """The alerts of the runbook that `test_alerts.py` does not compare."""
    at = datetime(2026, 11, 5, 0, 15, tzinfo=UTC)
    given_up = ExpectedDay(nov(3), None, None)
    too_early = ExpectedDay(nov(4), None, REBATES.timetable.deadline_ms(nov(4)), at)
    (second,) = overdue(KICKBACKS, landed(nov(2), *days_from(nov(4), nov(10))), now_ms := ms(nov(11), "00:30"))
    return [
        *alerts_of(TRADES, NotificationLevel.GIVEN_UP, [given_up], now_ms),
        *alerts_of(REBATES, NotificationLevel.LOST, [too_early], ms(nov(30), "00:00")),
        *alerts_of(KICKBACKS, NotificationLevel.SECOND_CHANCE, [second], now_ms),
    ]


@pytest.mark.parametrize("alert", other_alerts_in_the_runbook(), ids=lambda alert: alert.key.split(",")[0])
def test_the_runbook_quotes_the_alerts_of_overdue_days(alert):
    runbook = (Path(__file__).parents[2] / "docs" / "runbook.md").read_text()
    assert textwrap.indent(f"{alert.title}\n{alert.text}\n", "    ") in runbook
