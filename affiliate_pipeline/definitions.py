"""The code location: assets, schedules and sensors for the configured environment."""

from functools import partial

import dagster as dg

from affiliate_pipeline import environment
from affiliate_pipeline.defs.commission_assets import build_earnings, build_stale_days
from affiliate_pipeline.defs.endpoint_assets import build_asset, build_reference_table
from affiliate_pipeline.defs.resources import PipelineResource
from affiliate_pipeline.defs.schedules import build_schedules
from affiliate_pipeline.defs.sensors.alert_delivery import build_alert_delivery
from affiliate_pipeline.defs.sensors.failures import build_failed_run_alert, build_failing_tick_alert
from affiliate_pipeline.defs.sensors.kickback_history import (
    build_kickback_history,
    build_missed_days_schedule,
    export_endpoints,
)
from affiliate_pipeline.defs.sensors.overdue import build_heartbeat, build_watch
from affiliate_pipeline.exchanges.registry import configured_catalog


@dg.resource(description="The database, the exchanges' accounts and the settings.")
def pipeline_of_instance(context: dg.InitResourceContext) -> PipelineResource:
    """The resource, with the environment of the Dagster instance of the run or tick."""
    environment.exclude_loopback_from_proxies()
    return PipelineResource(partial(environment.of_instance, context.instance))


def build_definitions(pipeline: PipelineResource | None = None) -> dg.Definitions:
    """All definitions; by default, `pipeline` uses the environment of each run's Dagster instance."""
    loaded = pipeline.environment if pipeline else environment.of_process()
    catalog, start = configured_catalog(loaded.variables), loaded.start_date
    status = dg.DefaultScheduleStatus.RUNNING if loaded.runs_schedules else dg.DefaultScheduleStatus.STOPPED
    with_exports = list(export_endpoints(catalog.endpoints))
    schedules = [
        *build_schedules(catalog.endpoints, status),
        *(build_missed_days_schedule(account, status) for account in with_exports),
    ]
    sensors = [
        build_failed_run_alert(catalog),
        build_alert_delivery(catalog.endpoints),
        build_stale_days(catalog.earning),
        build_watch(catalog.endpoints),
        build_heartbeat(catalog.endpoints),
        *map(build_kickback_history, with_exports),
    ]
    return dg.Definitions(
        assets=[
            *(build_asset(endpoint, start) for endpoint in catalog.endpoints),
            *map(build_reference_table, catalog.reference_tables),
            build_earnings(catalog.earning, start),
        ],
        resources={"pipeline": pipeline or pipeline_of_instance},
        schedules=schedules,
        sensors=[*sensors, build_failing_tick_alert([*schedules, *sensors])],
        # LBank has eight endpoints whose steps mostly wait, each for its own rate limit: run all of them concurrently.
        executor=dg.multiprocess_executor.configured({"max_concurrent": 8}),
    )


defs = build_definitions()
