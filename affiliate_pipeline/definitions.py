"""The code location: the assets, schedules and sensors, composed with what the environment configures."""

from functools import partial

import dagster as dg

from affiliate_pipeline import environment
from affiliate_pipeline.defs.commission_assets import build_earnings
from affiliate_pipeline.defs.endpoint_assets import build_asset
from affiliate_pipeline.defs.reference_tables import build_reference_table
from affiliate_pipeline.defs.resources import Installation
from affiliate_pipeline.defs.schedules import build_schedules
from affiliate_pipeline.defs.sensors.alert_delivery import alert_delivery
from affiliate_pipeline.defs.sensors.failed_runs import failed_run_alert
from affiliate_pipeline.defs.sensors.failing_ticks import build_failing_tick_alert
from affiliate_pipeline.defs.sensors.heartbeat import build_heartbeat
from affiliate_pipeline.defs.sensors.kickback_history import build_missed_days_schedule, kickback_history
from affiliate_pipeline.defs.sensors.overdue import build_watch
from affiliate_pipeline.defs.sensors.stale_days import build_stale_days
from affiliate_pipeline.exchanges.endpoint import Records
from affiliate_pipeline.exchanges.registry import ENDPOINTS, REFERENCE_TABLES


@dg.resource(description="The database, the exchanges' accounts and the settings.")
def installation_of_instance(context: dg.InitResourceContext) -> Installation:
    """What applies in the Dagster instance of the run or tick."""
    environment.keep_loopback_off_proxies()
    return Installation(partial(environment.of_instance, context.instance))


def build_definitions(installation: Installation | None = None) -> dg.Definitions:
    """The whole assembly, on this installation; by default on that of each Dagster instance."""
    loaded = installation.environment if installation else environment.of_process()
    start = loaded.start_date
    status = dg.DefaultScheduleStatus.RUNNING if loaded.runs_schedules else dg.DefaultScheduleStatus.STOPPED
    earning = [endpoint for endpoint in ENDPOINTS if isinstance(endpoint, Records) and endpoint.money]
    schedules = [*build_schedules(ENDPOINTS, status), build_missed_days_schedule(status)]
    monitored = [endpoint for endpoint in ENDPOINTS if endpoint.timetable.is_monitored]
    sensors = [
        failed_run_alert,
        alert_delivery,
        build_stale_days(earning),
        build_watch(monitored),
        build_heartbeat(monitored),
        kickback_history,
    ]
    return dg.Definitions(
        assets=[
            *(build_asset(endpoint, start) for endpoint in ENDPOINTS),
            *map(build_reference_table, REFERENCE_TABLES),
            build_earnings(earning, start),
        ],
        resources={"installation": installation or installation_of_instance},
        schedules=schedules,
        sensors=[*sensors, build_failing_tick_alert([*schedules, *sensors])],
        # LBank's endpoints mostly wait, each for a budget of its own: as many steps at once as it has endpoints.
        executor=dg.multiprocess_executor.configured({"max_concurrent": 8}),
    )


defs = build_definitions()
