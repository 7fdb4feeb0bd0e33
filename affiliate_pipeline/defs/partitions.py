"""The partitions: days in each exchange's own zone, from AFFILIATE_START_DATE on."""

from collections.abc import Iterable
from datetime import date
from functools import cache
from zoneinfo import ZoneInfo

from dagster import DailyPartitionsDefinition


@cache
def daily(zone: ZoneInfo, start: date, *, today: bool) -> DailyPartitionsDefinition:
    """The ended days of the zone, and the current one if `today`."""
    return DailyPartitionsDefinition(start.isoformat(), timezone=zone.key, end_offset=int(today))


def keys_to_days(keys: Iterable[str]) -> list[date]:
    return [date.fromisoformat(key) for key in keys]
