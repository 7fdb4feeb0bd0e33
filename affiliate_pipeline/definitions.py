"""The code location: assets, schedules and sensors for the configured environment."""

from functools import partial

import dagster as dg

from affiliate_pipeline import environment
from affiliate_pipeline.defs.executor import step_executor
from affiliate_pipeline.defs.factory import assemble
from affiliate_pipeline.defs.placement import Placement
from affiliate_pipeline.defs.resources import EnvironmentPipeline
from affiliate_pipeline.exchanges.registry import configured_catalog, first_day


@dg.resource(description="The database, the exchanges' accounts and the settings.")
def pipeline_of_instance(context: dg.InitResourceContext) -> EnvironmentPipeline:
    """The resource, with the environment of the Dagster instance of the run or tick."""
    environment.exclude_loopback_from_proxies()
    return EnvironmentPipeline(partial(environment.of_instance, context.instance))


def build_definitions(pipeline: EnvironmentPipeline | None = None) -> dg.Definitions:
    """All definitions; by default, `pipeline` uses the environment of each run's Dagster instance."""
    loaded = pipeline.environment if pipeline else environment.of_process()
    status = dg.DefaultScheduleStatus.RUNNING if loaded.runs_schedules else dg.DefaultScheduleStatus.STOPPED
    placement = Placement(schedules=status)
    return assemble(
        configured_catalog(loaded.variables),
        lambda endpoint: first_day(endpoint, loaded),
        placement,
        {placement.resource: pipeline or pipeline_of_instance},
        executor=step_executor,
    )


defs = build_definitions()
