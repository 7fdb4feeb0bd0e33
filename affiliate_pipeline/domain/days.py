"""Calendar days of an exchange's time zone and the milliseconds they span; reads no clock."""

from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from itertools import groupby
from zoneinfo import ZoneInfo

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)


def start_ms(day: date, zone: ZoneInfo) -> int:
    """The first Unix millisecond of the day, which ends before `start_ms(day + DAY)`."""
    return int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp()) * 1000


def day_of(instant_ms: int, zone: ZoneInfo) -> date:
    """The day that contains the millisecond."""
    return datetime.fromtimestamp(instant_ms // 1000, zone).date()


def utc_text(ms: int) -> str:
    """The millisecond as text in UTC: `2026-11-22 23:59:59.999 UTC`."""
    return datetime.fromtimestamp(ms // 1000, UTC).strftime("%Y-%m-%d %H:%M:%S") + f".{ms % 1000:03d} UTC"


def last_minute_before(ms: int) -> str:
    """The last whole minute before the millisecond, as text: `2026-11-22 23:59 UTC`."""
    return f"{datetime.fromtimestamp((ms - 1) // 60_000 * 60, UTC):%Y-%m-%d %H:%M} UTC"


def days_from(first: date, last: date) -> list[date]:
    """Every day from first to last, both included."""
    return [first + i * DAY for i in range((last - first).days + 1)]


def day_ranges(days: Iterable[date], max_days: int | None = None) -> list[list[date]]:
    """The distinct days in order, split into ranges of at most `max_days` consecutive days."""
    ordered = enumerate(sorted(set(days)))
    # In consecutive days, the day minus its index is the same.
    ranges = [[day for _, day in pairs] for _, pairs in groupby(ordered, key=lambda pair: pair[1] - pair[0] * DAY)]
    if max_days is None:
        return ranges
    return [each[i : i + max_days] for each in ranges for i in range(0, len(each), max_days)]


def format_days(days: Iterable[date]) -> str:
    """The days as short text: `2026-11-03…05, 09, 2026-12-01`."""
    text, month = "", ""
    for consecutive in day_ranges(days):
        for day in dict.fromkeys((consecutive[0], consecutive[-1])):
            separator = "…" if day != consecutive[0] and len(consecutive) > 2 else ", "
            text += separator + (f"{day:%d}" if f"{day:%Y-%m}" == month else f"{day}")
            month = f"{day:%Y-%m}"
    return text.removeprefix(", ")
