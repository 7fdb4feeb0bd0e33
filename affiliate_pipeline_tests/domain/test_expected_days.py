"""Which days are expected, when they are overdue, and until when they can be fetched, in the time zone of their exchange."""

from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from affiliate_pipeline.domain.days import days_from
from affiliate_pipeline.domain.expected_days import Timetable, expected_days, newest_scheduled

HOUR = timedelta(hours=1)
HISTORY = Timetable("history", ZoneInfo("UTC"), lands_at=None, settles_after=timedelta(0), retention=timedelta(days=30))
RECENT = Timetable("recent", ZoneInfo("UTC"), time(0, 15), 48 * HOUR, timedelta(days=7), fallback=HISTORY)
SHANGHAI = Timetable("trades", ZoneInfo("Asia/Shanghai"), time(10, 35), 10.5 * HOUR, None)
SNAPSHOT = Timetable("users", ZoneInfo("Asia/Shanghai"), time(12), timedelta(0), None, is_snapshot=True)


@dataclass(frozen=True)
class Landed:
    settled: bool
    checked_at: datetime


def nov(day: int) -> date:
    return date(2026, 11, day)


def ms(day: date, at: str, zone: ZoneInfo = RECENT.zone) -> int:
    return int(datetime.combine(day, time.fromisoformat(at), zone).timestamp() * 1000)


def test_days_are_expected_once_they_have_ended_until_they_have_settled():
    read_at = datetime(2026, 11, 8, tzinfo=UTC)
    landed = {nov(7): Landed(True, read_at), nov(8): Landed(False, read_at)}
    days = list(expected_days(RECENT, nov(6), ms(nov(10), "00:00"), landed))
    assert [(each.day, each.last_read_at) for each in days] == [(nov(6), None), (nov(8), read_at), (nov(9), None)]
    assert [each.day for each in expected_days(RECENT, nov(9), ms(nov(10), "00:00") - 1)] == []


def test_a_day_is_overdue_an_hour_after_the_schedule_that_should_land_or_settle_it():
    assert RECENT.overdue_at_ms(nov(5), settled=False) == ms(nov(6), "01:15")
    assert RECENT.overdue_at_ms(nov(5), settled=True) == ms(nov(8), "01:15")
    assert SHANGHAI.overdue_at_ms(nov(5), settled=True) == ms(nov(6), "11:35", SHANGHAI.zone)
    assert replace(SHANGHAI, settles_after=11 * HOUR).overdue_at_ms(nov(5), settled=True) == ms(
        nov(7), "11:35", SHANGHAI.zone
    )
    assert HISTORY.overdue_at_ms(nov(5), settled=False) is None


def test_the_newest_scheduled_day_is_the_newest_that_all_schedules_should_have_landed():
    def newest(now_ms: int, *timetables: Timetable) -> date:
        return newest_scheduled(timetables, now_ms)

    assert newest(ms(nov(6), "00:15") - 1, RECENT) == nov(4)
    assert newest(ms(nov(6), "00:15"), RECENT) == nov(5)
    # 10:35 in Shanghai is 02:35 in UTC.
    assert newest(ms(nov(6), "02:35") - 1, RECENT, SHANGHAI) == nov(4)
    assert newest(ms(nov(6), "02:35"), RECENT, SHANGHAI) == nov(5)
    # A day of an asset that no schedule lands should have landed at its end.
    assert (newest(ms(nov(6), "00:00") - 1, HISTORY), newest(ms(nov(6), "00:00"), HISTORY)) == (nov(4), nov(5))


def test_a_schedule_follows_the_local_time_of_its_zone_across_a_clock_change():
    berlin = replace(RECENT, zone=ZoneInfo("Europe/Berlin"), lands_at=time(3, 30))
    # On 2026-10-25 at 3:00, the clock is set back to 2:00.
    for day, at in ((date(2026, 10, 23), "01:30"), (date(2026, 10, 24), "02:30"), (date(2026, 10, 25), "02:30")):
        landed_ms = ms(day + timedelta(days=1), at)
        found = [newest_scheduled([berlin], landed_ms - 1), newest_scheduled([berlin], landed_ms)]
        assert found == [day - timedelta(days=1), day]


def test_the_deadline_is_the_last_millisecond_at_which_the_day_is_retained():
    deadline_ms = ms(nov(12), "00:00")
    assert RECENT.deadline_ms(nov(5)) == deadline_ms
    assert RECENT.is_retained(nov(5), deadline_ms) and not RECENT.is_retained(nov(5), deadline_ms + 1)
    assert SHANGHAI.deadline_ms(nov(5)) is None and SHANGHAI.is_retained(date(2000, 1, 1), deadline_ms)


def test_a_day_has_its_fallback_while_the_fallback_retains_the_day():
    def fallbacks(now_ms: int) -> list[tuple[str, int] | None]:
        return [each.fallback for each in expected_days(RECENT, nov(1), now_ms)][:1]

    deadline_ms = ms(date(2026, 12, 1), "00:00")
    assert HISTORY.deadline_ms(nov(1)) == deadline_ms
    assert fallbacks(deadline_ms) == [("history", deadline_ms)] and fallbacks(deadline_ms + 1) == [None]


def test_a_snapshot_is_expected_on_the_current_day_of_its_zone():
    evening = ms(nov(9), "23:59", SNAPSHOT.zone)
    (today,) = expected_days(SNAPSHOT, nov(1), evening)
    assert (today.day, today.deadline_ms) == (nov(9), ms(nov(10), "00:00", SNAPSHOT.zone) - 1)
    assert today.is_retained(evening) and not today.is_retained(evening + 60_000)
    assert list(expected_days(SNAPSHOT, nov(10), evening)) == []


def test_the_lookback_covers_days_until_they_have_settled_and_at_least_three_days():
    now_ms = ms(nov(10), "00:15")
    assert RECENT.lookback_start(now_ms) == nov(7)
    assert replace(RECENT, settles_after=72 * HOUR).lookback_start(now_ms) == nov(6)
    assert HISTORY.lookback_start(now_ms) == nov(7)
    assert [each.day for each in expected_days(RECENT, RECENT.lookback_start(now_ms), now_ms)] == days_from(
        nov(7), nov(9)
    )
