"""Everything used from Dagster's private modules, which no other module imports.

Also which runs, sensors and schedules of a shared instance belong to this package.
"""

from collections.abc import Callable, Collection, Sequence
from datetime import date
from functools import wraps
from typing import Any

import dagster as dg
from dagster._core.definitions.assets.job.asset_job import IMPLICIT_ASSET_JOB_NAME
from dagster._core.definitions.data_version import DATA_VERSION_IS_USER_PROVIDED_TAG, DATA_VERSION_TAG
from dagster._core.events import EngineEventData as EngineEventData
from dagster._core.execution.retries import RetryMode
from dagster._core.executor.step_delegating import CheckStepHealthResult as CheckStepHealthResult
from dagster._core.executor.step_delegating import StepDelegatingExecutor as StepDelegatingExecutor
from dagster._core.executor.step_delegating import StepHandler as StepHandler
from dagster._core.executor.step_delegating import StepHandlerContext as StepHandlerContext
from dagster._core.launcher import CheckRunHealthResult as CheckRunHealthResult
from dagster._core.launcher import RunLauncher as RunLauncher
from dagster._core.launcher import WorkerStatus as WorkerStatus
from dagster._core.remote_origin import RemoteRepositoryOrigin
from dagster._core.scheduler.instigation import InstigatorState as InstigatorState
from dagster._core.scheduler.instigation import InstigatorStatus as InstigatorStatus
from dagster._core.scheduler.instigation import InstigatorType as InstigatorType
from dagster._core.scheduler.instigation import TickStatus as TickStatus
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES as NOT_FINISHED_STATUSES
from dagster._core.storage.partition_status_cache import AssetPartitionStatus
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARTITION_NAME_TAG,
)
from dagster._core.storage.tags import AUTO_RETRY_RUN_ID_TAG as AUTO_RETRY_RUN_ID_TAG
from dagster._core.storage.tags import WILL_RETRY_TAG as WILL_RETRY_TAG
from dagster._serdes import ConfigurableClass as ConfigurableClass
from dagster._serdes import ConfigurableClassData as ConfigurableClassData
from dagster._serdes import pack_value as pack_value
from dagster_shared.error import SerializableErrorInfo

from affiliate_pipeline.domain.days import days_from

CheckStatus = AssetCheckExecutionRecordStatus
NO_RETRIES = RetryMode.DISABLED
# The code location's name unless a workspace sets another one. Used only for contexts that tests build, which have no origin.
LOCATION = "affiliate_pipeline.definitions"
# The types of Dagster's decorators name a bare `PathLike`, which strict checking rejects wherever they are used.
_untyped: Any = dg


def schedule(**options: Any) -> Callable[[Callable[[Any], Any]], dg.ScheduleDefinition]:
    """Dagster's decorator, for a function of the context."""
    return lambda function: _untyped.schedule(**options)(_ignoring_resources(function))


def sensor(**options: Any) -> Callable[[Callable[[Any], Any]], dg.SensorDefinition]:
    """Dagster's decorator, for a function of the context."""
    return lambda function: _untyped.sensor(**options)(_ignoring_resources(function))


def _ignoring_resources(function: Callable[[Any], Any]) -> Callable[..., Any]:
    # If a test calls the sensor itself, Dagster adds `required_resource_keys` as arguments, which it does not in a tick.
    @wraps(function)
    def evaluate(context: Any, **_resources: object) -> Any:
        return function(context)

    return evaluate


def range_tags(days: Sequence[date]) -> dict[str, str]:
    """The tags of a run over consecutive days."""
    return {ASSET_PARTITION_RANGE_START_TAG: f"{days[0]}", ASSET_PARTITION_RANGE_END_TAG: f"{days[-1]}"}


def days_of(run: dg.DagsterRun) -> list[date]:
    """The days of a run of this package's assets; empty if the run has no partitions."""
    first = run.tags.get(ASSET_PARTITION_RANGE_START_TAG) or run.tags.get(PARTITION_NAME_TAG)
    last = run.tags.get(ASSET_PARTITION_RANGE_END_TAG) or first
    return days_from(date.fromisoformat(first), date.fromisoformat(last)) if first and last else []


def failed_days(
    instance: dg.DagsterInstance, key: dg.AssetKey, days: Sequence[date], partitions: dg.PartitionsDefinition[Any]
) -> list[date]:
    """The `days` whose last run failed to materialize them."""
    statuses = instance.get_status_by_partition(key, [f"{day}" for day in days], partitions) or {}
    return [day for day in days if statuses.get(f"{day}") is AssetPartitionStatus.FAILED]


def version_tags(version: str) -> dict[str, str]:
    """The tags of a materialization that has this data version."""
    return {DATA_VERSION_TAG: version, DATA_VERSION_IS_USER_PROVIDED_TAG: "true"}


def innermost_message(error: SerializableErrorInfo | None) -> str | None:
    """The message of the root cause in a chain of errors."""
    while error and error.cause:
        error = error.cause
    return error.message if error else None


def is_own_repository(context: dg.SensorEvaluationContext, origin: RemoteRepositoryOrigin) -> bool:
    """Whether the origin is the sensor's own code location and repository."""
    own = context.code_location_origin
    own_name = own.location_name if own else LOCATION
    if origin.code_location_origin.location_name != own_name:
        return False
    # None only in contexts that tests build.
    return context.repository_name in (None, origin.repository_name)


def selected(
    context: dg.SensorEvaluationContext, run: dg.DagsterRun, keys: Collection[dg.AssetKey]
) -> set[dg.AssetKey]:
    """The assets among `keys` that the run may materialize.

    A run of another code location has none, whatever its assets are called. A run without a selection may
    materialize all of them if its job is Dagster's implicit asset job. A run without an origin was started from the
    command line and counts as this code location's.
    """
    if run.remote_job_origin and not is_own_repository(context, run.remote_job_origin.repository_origin):
        return set()
    if run.asset_selection is None:
        return {*keys} if run.job_name == IMPLICIT_ASSET_JOB_NAME else set()
    return {*keys} & run.asset_selection
