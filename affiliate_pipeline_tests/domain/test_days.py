"""Days of a time zone: their boundaries, how they are split into ranges, and how they are displayed."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from affiliate_pipeline.domain.days import DAY, day_of, day_ranges, days_from, format_days, start_ms, utc_text

ZONES = st.sampled_from([ZoneInfo("UTC"), ZoneInfo("Asia/Shanghai")])
DAYS = st.dates(date(2015, 1, 1), date(2035, 12, 31))
SOME_DAYS = st.lists(st.dates(date(2026, 1, 1), date(2026, 3, 31)))


@pytest.mark.parametrize(
    ("zone", "starts"), [("UTC", "2024-07-17 00:00 +0000"), ("Asia/Shanghai", "2024-07-16 16:00 +0000")]
)
def test_a_day_starts_at_midnight_of_its_zone(zone, starts):
    expected = datetime.strptime(starts, "%Y-%m-%d %H:%M %z").timestamp() * 1000
    assert start_ms(date(2024, 7, 17), ZoneInfo(zone)) == expected


@given(DAYS, ZONES, st.data())
def test_every_millisecond_is_in_exactly_one_day(day, zone, data):
    start, end = start_ms(day, zone), start_ms(day + DAY, zone)
    assert end - start == 86_400_000
    inside = data.draw(st.integers(start, end - 1))
    assert {day_of(ms, zone) for ms in (start, inside, end - 1)} == {day}
    assert (day_of(start - 1, zone), day_of(end, zone)) == (day - DAY, day + DAY)


@given(st.integers(0, 4_102_444_800_000))
def test_an_instant_is_written_to_the_millisecond(ms):
    written = datetime.strptime(utc_text(ms), "%Y-%m-%d %H:%M:%S.%f UTC").replace(tzinfo=UTC)
    assert (written - datetime.fromtimestamp(0, UTC)) // timedelta(milliseconds=1) == ms


def test_a_range_includes_both_ends():
    assert days_from(date(2026, 2, 27), date(2026, 3, 2)) == [
        date(2026, 2, 27), date(2026, 2, 28), date(2026, 3, 1), date(2026, 3, 2),
    ]  # fmt: skip
    assert days_from(date(2026, 2, 27), date(2026, 2, 27)) == [date(2026, 2, 27)]
    assert days_from(date(2026, 2, 27), date(2026, 2, 26)) == []


@given(SOME_DAYS)
def test_day_ranges_contain_each_day_once_and_are_maximal(days):
    ranges = day_ranges(days)
    assert [day for each in ranges for day in each] == sorted(set(days))
    assert all(each == days_from(each[0], each[-1]) for each in ranges)
    assert all(after[0] - before[-1] > DAY for before, after in zip(ranges, ranges[1:], strict=False))


@given(SOME_DAYS, st.integers(1, 9))
def test_day_ranges_with_a_maximum_length_contain_each_day_once_and_are_as_few_as_possible(days, max_days):
    ranges = day_ranges(days, max_days)
    assert [day for each in ranges for day in each] == sorted(set(days))
    assert all(0 < len(each) <= max_days and each == days_from(each[0], each[-1]) for each in ranges)
    assert len(ranges) == sum(-(-len(each) // max_days) for each in day_ranges(days))


@pytest.mark.parametrize(
    ("days", "written"),
    [
        ([], ""),
        (["2026-11-03"], "2026-11-03"),
        (["2026-11-03", "2026-11-04"], "2026-11-03, 04"),
        (["2026-11-05", "2026-11-03", "2026-11-04"], "2026-11-03…05"),
        (["2026-11-03", "2026-11-04", "2026-11-05", "2026-11-09", "2026-12-01"], "2026-11-03…05, 09, 2026-12-01"),
        (["2026-11-29", "2026-11-30", "2026-12-01", "2026-12-02"], "2026-11-29…2026-12-02"),
        (["2025-11-03", "2026-11-03"], "2025-11-03, 2026-11-03"),
    ],
)
def test_formatted_days_are_as_short_as_possible(days, written):
    assert format_days(map(date.fromisoformat, days)) == written


def parse_days(text: str) -> list[date]:
    days: list[date] = []
    last = date.min
    for part in text.split(", ") if text else []:
        ends: list[date] = []
        for written in part.split("…"):
            last = date.fromisoformat(written) if len(written) == 10 else last.replace(day=int(written))
            ends.append(last)
        days += days_from(ends[0], ends[-1])
    return days


@given(SOME_DAYS)
def test_formatted_days_are_unambiguous(days):
    assert parse_days(format_days(days)) == sorted(set(days))
