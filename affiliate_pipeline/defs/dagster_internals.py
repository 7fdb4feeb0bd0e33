"""What this package takes from Dagster's private modules, which nothing else imports."""

from collections.abc import Sequence
from datetime import date

from dagster import DagsterRun
from dagster._core.definitions.assets.job.asset_job import IMPLICIT_ASSET_JOB_NAME
from dagster._core.remote_origin import RemoteRepositoryOrigin
from dagster._core.scheduler.instigation import InstigatorState, InstigatorStatus, InstigatorType, TickStatus
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    AUTO_RETRY_RUN_ID_TAG,
    PARTITION_NAME_TAG,
    WILL_RETRY_TAG,
)
from dagster._utils.error import SerializableErrorInfo

from affiliate_pipeline.domain.days import days_from

__all__ = [
    "AUTO_RETRY_RUN_ID_TAG",
    "IMPLICIT_ASSET_JOB_NAME",
    "NOT_FINISHED_STATUSES",
    "WILL_RETRY_TAG",
    "AssetCheckExecutionRecordStatus",
    "InstigatorState",
    "InstigatorStatus",
    "InstigatorType",
    "RemoteRepositoryOrigin",
    "TickStatus",
    "days_of",
    "innermost_message",
    "range_tags",
]


def range_tags(days: Sequence[date]) -> dict[str, str]:
    """The tags of a run over consecutive days."""
    return {ASSET_PARTITION_RANGE_START_TAG: f"{days[0]}", ASSET_PARTITION_RANGE_END_TAG: f"{days[-1]}"}


def days_of(run: DagsterRun) -> list[date]:
    """The days of a run of this package's assets."""
    first = run.tags.get(ASSET_PARTITION_RANGE_START_TAG) or run.tags.get(PARTITION_NAME_TAG)
    last = run.tags.get(ASSET_PARTITION_RANGE_END_TAG) or first
    return days_from(date.fromisoformat(first), date.fromisoformat(last)) if first and last else []


def innermost_message(error: SerializableErrorInfo | None) -> str | None:
    """The message of the first error in a chain of causes."""
    while error and error.cause:
        error = error.cause
    return error.message if error else None
