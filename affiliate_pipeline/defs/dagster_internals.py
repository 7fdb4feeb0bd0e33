"""What is taken from Dagster's private modules, which nothing else imports, and its decorators with types of their own."""

from collections.abc import Callable, Sequence
from datetime import date
from typing import Any

import dagster as dg
from dagster._core.definitions.assets.job.asset_job import IMPLICIT_ASSET_JOB_NAME as IMPLICIT_ASSET_JOB_NAME
from dagster._core.launcher import CheckRunHealthResult as CheckRunHealthResult
from dagster._core.launcher import DefaultRunLauncher as DefaultRunLauncher
from dagster._core.launcher import WorkerStatus as WorkerStatus
from dagster._core.remote_origin import RemoteRepositoryOrigin as RemoteRepositoryOrigin
from dagster._core.scheduler.instigation import InstigatorState as InstigatorState
from dagster._core.scheduler.instigation import InstigatorStatus as InstigatorStatus
from dagster._core.scheduler.instigation import InstigatorType as InstigatorType
from dagster._core.scheduler.instigation import TickStatus as TickStatus
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES as NOT_FINISHED_STATUSES
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARTITION_NAME_TAG,
)
from dagster._core.storage.tags import AUTO_RETRY_RUN_ID_TAG as AUTO_RETRY_RUN_ID_TAG
from dagster._core.storage.tags import WILL_RETRY_TAG as WILL_RETRY_TAG
from dagster._serdes import ConfigurableClass as ConfigurableClass
from dagster._serdes import ConfigurableClassData as ConfigurableClassData
from dagster_shared.error import SerializableErrorInfo

from affiliate_pipeline.domain.days import days_from

CheckStatus = AssetCheckExecutionRecordStatus
# The types of Dagster's decorators name a bare `PathLike`, which strict checking rejects wherever they are used.
_untyped: Any = dg
sensor: Callable[..., Callable[[Callable[..., Any]], dg.SensorDefinition]] = _untyped.sensor
schedule: Callable[..., Callable[[Callable[..., Any]], dg.ScheduleDefinition]] = _untyped.schedule


def range_tags(days: Sequence[date]) -> dict[str, str]:
    """The tags of a run over consecutive days."""
    return {ASSET_PARTITION_RANGE_START_TAG: f"{days[0]}", ASSET_PARTITION_RANGE_END_TAG: f"{days[-1]}"}


def days_of(run: dg.DagsterRun) -> list[date]:
    """The days of a run of this package's assets."""
    first = run.tags.get(ASSET_PARTITION_RANGE_START_TAG) or run.tags.get(PARTITION_NAME_TAG)
    last = run.tags.get(ASSET_PARTITION_RANGE_END_TAG) or first
    return days_from(date.fromisoformat(first), date.fromisoformat(last)) if first and last else []


def innermost_message(error: SerializableErrorInfo | None) -> str | None:
    """The message of the first error in a chain of causes."""
    while error and error.cause:
        error = error.cause
    return error.message if error else None
