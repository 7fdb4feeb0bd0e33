"""The partitions: days in each exchange's own zone, from AFFILIATE_START_DATE on."""

from collections.abc import Iterable
from datetime import date
from functools import cache
from zoneinfo import ZoneInfo

from dagster import DailyPartitionsDefinition

from affiliate_pipeline.defs.environment import environment_of_process
from affiliate_pipeline.environment import Project


@cache
def daily(zone: ZoneInfo, today: bool) -> DailyPartitionsDefinition:
    """The ended days of the zone, and today if it is asked for."""
    start = Project.load(variables=environment_of_process().variables).affiliate_start_date.isoformat()
    return DailyPartitionsDefinition(start, timezone=zone.key, end_offset=int(today))


def keys_to_days(keys: Iterable[str]) -> list[date]:
    return [date.fromisoformat(key) for key in keys]
