"""Calendar days of an exchange's time zone and the milliseconds they span; reads no clock."""

from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)


def start_ms(day: date, zone: ZoneInfo) -> int:
    """The first Unix millisecond of the day, which ends before `start_ms(day + DAY, zone)`."""
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
    ranges: list[list[date]] = []
    for day in sorted(set(days)):
        is_consecutive = bool(ranges) and day == ranges[-1][-1] + DAY
        if is_consecutive and len(ranges[-1]) != max_days:
            ranges[-1].append(day)
        else:
            ranges.append([day])
    return ranges


def format_days(days: Iterable[date]) -> str:
    """The days as short text: `2026-11-03…05, 09, 2026-12-01`."""
    text = ""
    previous: date | None = None
    for consecutive in day_ranges(days):
        first, last = consecutive[0], consecutive[-1]
        text += ", " + _short(first, previous)
        if last != first:
            separator = "…" if len(consecutive) > 2 else ", "
            text += separator + _short(last, first)
        previous = last
    return text.removeprefix(", ")


def _short(day: date, previous: date | None) -> str:
    """The day as text, without its year and month if `previous` is of the same month."""
    is_same_month = previous is not None and (previous.year, previous.month) == (day.year, day.month)
    return f"{day:%d}" if is_same_month else f"{day}"
