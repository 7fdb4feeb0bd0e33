"""LBank's days, those of UTC+8, as milliseconds since 1970."""

from datetime import date

from affiliate_pipeline.sandbox import days
from affiliate_pipeline.sandbox.days import DAY_MS, HOUR_MS

ZONE_AHEAD_MS = 8 * HOUR_MS


def day_of(ms: int) -> date:
    """The UTC+8 day that contains the instant."""
    return days.day_of(ms + ZONE_AHEAD_MS)


def start_of(day: date) -> int:
    """The first millisecond of the UTC+8 day."""
    return days.start_of(day) - ZONE_AHEAD_MS


def bounds_of(day: date) -> tuple[int, int]:
    """The first and the last millisecond of the UTC+8 day."""
    return start_of(day), start_of(day) + DAY_MS - 1
