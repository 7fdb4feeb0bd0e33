"""UTC days as milliseconds since 1970."""

from datetime import date

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
EPOCH = date(1970, 1, 1).toordinal()


def day_of(ms: int) -> date:
    """The UTC day that contains the instant."""
    return date.fromordinal(EPOCH + ms // DAY_MS)


def start_of(day: date) -> int:
    """The first millisecond of the UTC day."""
    return (day.toordinal() - EPOCH) * DAY_MS
