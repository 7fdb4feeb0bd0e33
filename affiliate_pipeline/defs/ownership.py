"""What is this package's own in a Dagster instance that others may share: its runs, sensors and schedules."""

from collections.abc import Collection
from datetime import date

import dagster as dg
from dagster._core.definitions.assets.job.asset_job import IMPLICIT_ASSET_JOB_NAME
from dagster._core.remote_origin import RemoteRepositoryOrigin
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARTITION_NAME_TAG,
)

from affiliate_pipeline.domain.days import days_from

# The name of the code location unless a workspace gives it another one. Only a context made by hand does not know it.
LOCATION = "affiliate_pipeline.definitions"


def is_own_repository(context: dg.SensorEvaluationContext, origin: RemoteRepositoryOrigin) -> bool:
    """Whether this is the code location and the repository that the sensor itself is in."""
    own = context.code_location_origin
    if origin.code_location_origin.location_name != (own.location_name if own else LOCATION):
        return False
    return context.repository_name in (None, origin.repository_name)


def selected(
    context: dg.SensorEvaluationContext, run: dg.DagsterRun, keys: Collection[dg.AssetKey]
) -> set[dg.AssetKey]:
    """Those of this package's assets that the run may materialize.

    A run of another code location has none, whatever its assets are called. One without a selection has all, if it is of
    the job that Dagster makes of all assets; without an origin it was started from the command line.
    """
    if run.remote_job_origin and not is_own_repository(context, run.remote_job_origin.repository_origin):
        return set()
    if run.asset_selection is None:
        return {*keys} if run.job_name == IMPLICIT_ASSET_JOB_NAME else set()
    return {*keys} & run.asset_selection


def days_of(run: dg.DagsterRun) -> list[date]:
    """The days that a run of this package's assets is over."""
    first = run.tags.get(ASSET_PARTITION_RANGE_START_TAG) or run.tags.get(PARTITION_NAME_TAG)
    last = run.tags.get(ASSET_PARTITION_RANGE_END_TAG) or first
    return days_from(date.fromisoformat(first), date.fromisoformat(last)) if first and last else []
