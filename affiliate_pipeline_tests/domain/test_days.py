"""Days of a zone, the instants they span, and how they are written for people."""

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
def test_every_millisecond_lies_in_exactly_one_day(day, zone, data):
    start, end = start_ms(day, zone), start_ms(day + DAY, zone)
    assert end - start == 86_400_000
    inside = data.draw(st.integers(start, end - 1))
    assert {day_of(ms, zone) for ms in (start, inside, end - 1)} == {day}
    assert (day_of(start - 1, zone), day_of(end, zone)) == (day - DAY, day + DAY)


@given(st.integers(0, 4_102_444_800_000))
def test_an_instant_is_written_to_the_millisecond(ms):
    written = datetime.strptime(utc_text(ms), "%Y-%m-%d %H:%M:%S.%f UTC").replace(tzinfo=UTC)
    assert (written - datetime.fromtimestamp(0, UTC)) // timedelta(milliseconds=1) == ms


def test_both_ends_of_a_range_belong_to_it():
    assert days_from(date(2026, 2, 27), date(2026, 3, 2)) == [
        date(2026, 2, 27), date(2026, 2, 28), date(2026, 3, 1), date(2026, 3, 2),
    ]  # fmt: skip
    assert days_from(date(2026, 2, 27), date(2026, 2, 27)) == [date(2026, 2, 27)]
    assert days_from(date(2026, 2, 27), date(2026, 2, 26)) == []


@given(SOME_DAYS)
def test_runs_are_the_days_once_each_and_as_long_as_can_be(days):
    cut = day_ranges(days)
    assert [day for run in cut for day in run] == sorted(set(days))
    assert all(later - earlier == DAY for run in cut for earlier, later in zip(run, run[1:], strict=False))
    assert all(after[0] - before[-1] > DAY for before, after in zip(cut, cut[1:], strict=False))


@given(SOME_DAYS, st.integers(1, 9))
def test_spans_are_consecutive_days_once_each_and_not_too_long(days, longest):
    cut = day_ranges(days, longest)
    assert [day for span in cut for day in span] == sorted(set(days))
    assert all(0 < len(span) <= longest and span == days_from(span[0], span[-1]) for span in cut)
    # As few as can be: every span but the last of a run is full.
    assert len(cut) == sum(-(-len(run) // longest) for run in day_ranges(days))


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
def test_days_are_folded_as_people_write_them(days, written):
    assert format_days(map(date.fromisoformat, days)) == written


@given(SOME_DAYS)
def test_what_is_folded_can_be_read_back(days):
    read: list[date] = []
    for part in format_days(days).split(", ") if days else []:
        ends = []
        for text in part.split("…"):
            last = ends[-1] if ends else read[-1] if read else None
            ends.append(date.fromisoformat(text) if len(text) == 10 else last.replace(day=int(text)))
        read += days_from(ends[0], ends[-1])
    assert read == sorted(set(days))
