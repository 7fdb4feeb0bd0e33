"""Which runs, sensors and schedules of a shared Dagster instance belong to this package."""

from collections.abc import Collection

import dagster as dg

from affiliate_pipeline.defs.dagster_internals import IMPLICIT_ASSET_JOB_NAME, RemoteRepositoryOrigin

# The code location's name unless a workspace sets another one. Needed only for contexts built by hand, which have none.
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

    A run of another code location has none, whatever its assets are called. A run without a selection has all of them if
    it is of Dagster's implicit job of all assets. A run without an origin was started from the command line.
    """
    if run.remote_job_origin and not is_own_repository(context, run.remote_job_origin.repository_origin):
        return set()
    if run.asset_selection is None:
        return {*keys} if run.job_name == IMPLICIT_ASSET_JOB_NAME else set()
    return {*keys} & run.asset_selection
