"""Daily partitions, and how a step ends: metadata of landed days, a failure for the others."""

import logging
from collections.abc import Iterable, Mapping
from datetime import date
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg

from affiliate_pipeline.defs.dagster_internals import version_tags
from affiliate_pipeline.domain.problem import Problem, grouped

# Keys of the failure's metadata: the message for each day, and each distinct problem as fields with its days.
FAILED_PARTITIONS = "failed_partitions"
PROBLEMS = "problems"
Metadata = dict[str, Any]


@cache
def daily(zone: ZoneInfo, start: date, *, today: bool) -> dg.DailyPartitionsDefinition:
    """The ended days of the zone since `start`, and the current one if `today`."""
    return dg.DailyPartitionsDefinition(start.isoformat(), timezone=zone.key, end_offset=int(today))


def keys_to_days(keys: Iterable[str]) -> list[date]:
    """The days of these partition keys."""
    return [date.fromisoformat(key) for key in keys]


class _DistinctTimes(logging.Filter):
    """Gives each record a millisecond of its own, later than the one before."""

    _last_ms = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Move the record's time; always True."""
        self._last_ms = max(int(record.created * 1000), self._last_ms + 1)
        record.created = (self._last_ms + 0.5) / 1000  # half a millisecond, so that a float never rounds down
        return True


def separate_events(context: dg.AssetExecutionContext) -> None:
    """Record each event of the step in a millisecond of its own.

    Dagster's UI identifies an asset's events by the millisecond: it shows only the first of several. Dagster writes the
    materializations of a range in one batch, several in a millisecond.
    """
    context.log.addFilter(_DistinctTimes())


def log_landed(context: dg.AssetExecutionContext, landed: Mapping[dg.AssetKey, Mapping[date, Metadata]]) -> None:
    """Log one materialization per landed day, for a step that fails."""
    for key, days in landed.items():
        for day, metadata in days.items():
            tags = version_tags(metadata["content_hash"]) if "content_hash" in metadata else None
            context.log_event(dg.AssetMaterialization(key, partition=f"{day}", metadata=metadata, tags=tags))


def finish(
    context: dg.AssetExecutionContext,
    landed: Mapping[dg.AssetKey, Mapping[date, Metadata]],
    failed: Mapping[date, Problem],
    description: str,
) -> None:
    """Add the landed days' metadata to the step's result or, if a day failed, log each day and raise `Failure`.

    A day in `failed` may have landed for some of the assets. For each of the other assets, an asset observation has the
    reason: at a failed day, Dagster's UI shows only events of that asset and day, and so not the run's failure.
    """
    if not failed:
        for key, landed_days in landed.items():
            for day, metadata in landed_days.items():
                context.add_asset_metadata(metadata, asset_key=key, partition_key=f"{day}")
        return

    log_landed(context, landed)
    for key, landed_days in landed.items():
        for day in sorted(failed.keys() - landed_days.keys()):
            _log_failed(context, key, day, failed[day])

    texts = {f"{day}": f"{failed[day]}." for day in sorted(failed)}
    problems = [{**problem.to_json(), "days": [f"{day}" for day in days]} for problem, days in grouped(failed).items()]
    raise dg.Failure(
        description,
        metadata={FAILED_PARTITIONS: dg.MetadataValue.json(texts), PROBLEMS: dg.MetadataValue.json(problems)},
        allow_retries=False,
    )


def _log_failed(context: dg.AssetExecutionContext, key: dg.AssetKey, day: date, problem: Problem) -> None:
    """Log an asset observation with the reason why the day failed."""
    parts = {"failure": problem.what, "impact": problem.impact, "action": problem.action}
    metadata = {name: f"{text}." for name, text in parts.items() if text}
    context.log_event(
        dg.AssetObservation(key, description=f"Failed: {problem}.", metadata=metadata, partition=f"{day}")
    )


def problems_in(metadata: Mapping[str, Any]) -> dict[date, Problem]:
    """The problem of each failed day, from the metadata of a failure that `finish` raised."""
    recorded = metadata.get(PROBLEMS)
    if not recorded:
        return {}
    problems: dict[date, Problem] = {}
    for fields in recorded.value:
        problem = Problem.from_json(fields)
        problems |= {date.fromisoformat(day): problem for day in fields["days"]}
    return problems
