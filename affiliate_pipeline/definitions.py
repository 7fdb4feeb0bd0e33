"""The code location: assets, schedules and sensors for the configured environment."""

from functools import partial

import dagster as dg

from affiliate_pipeline import environment
from affiliate_pipeline.defs.executor import executor_of
from affiliate_pipeline.defs.factory import assemble
from affiliate_pipeline.defs.placement import Placement
from affiliate_pipeline.defs.resources import EnvironmentPipeline, require_running
from affiliate_pipeline.exchanges.registry import configured_catalog, first_day


@dg.resource(description="The database, the exchanges' accounts and the settings.")
def pipeline_of_instance(context: dg.InitResourceContext) -> EnvironmentPipeline:
    """The resource, with the environment of the Dagster instance of the run or tick."""
    require_running(context.run)
    environment.exclude_loopback_from_proxies()
    return EnvironmentPipeline(partial(environment.of_instance, context.instance))


def _database_of(instance: object) -> str:
    return environment.of_instance(instance).database_url()


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
        has_prices=loaded.has_prices,
        digest=loaded.digest,
        executor=executor_of(loaded.variables, _database_of),
    )


defs = build_definitions()
