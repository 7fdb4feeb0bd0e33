"""The partitions: days in each exchange's own zone, from AFFILIATE_START_DATE on."""

from collections.abc import Iterable
from datetime import date
from functools import cache
from zoneinfo import ZoneInfo

from dagster import DailyPartitionsDefinition

from affiliate_pipeline.settings import Project


@cache
def daily(zone: ZoneInfo) -> DailyPartitionsDefinition:
    """The ended days of the zone."""
    return DailyPartitionsDefinition(Project.load().affiliate_start_date.isoformat(), timezone=zone.key)


def keys_to_days(keys: Iterable[str]) -> list[date]:
    return [date.fromisoformat(key) for key in keys]
