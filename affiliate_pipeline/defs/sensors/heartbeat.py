"""The sensor that calls a dead man's switch as long as no day is at risk and alerts are delivered."""

from collections.abc import Sequence
from datetime import timedelta

import dagster as dg

from affiliate_pipeline.defs.dagster_internals import sensor
from affiliate_pipeline.defs.resources import Installation
from affiliate_pipeline.defs.sensors.overdue import EVERY_S, overdue_by_endpoint
from affiliate_pipeline.domain.days import fold
from affiliate_pipeline.exchanges.endpoint import Endpoint
from affiliate_pipeline.http.download import beat
from affiliate_pipeline.http.network import Network
from affiliate_pipeline.landing.pipeline import now_ms
from affiliate_pipeline.monitoring.delivery import Alerts
from affiliate_pipeline.monitoring.outbox import Outbox
from affiliate_pipeline.monitoring.overdue import WatchStore, at_risk

# Longer than the pauses of the delivery: a channel that is down for a while does not stop the heartbeat.
DELIVERED_WITHIN = timedelta(hours=1)


def build_heartbeat(endpoints: Sequence[Endpoint]) -> dg.SensorDefinition:
    """The sensor over the endpoints whose days can be overdue."""

    @sensor(
        name="heartbeat",
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=EVERY_S,
        description="Calls HEARTBEAT_URL while no day is at risk and alerts are delivered; whoever waits for the call notices "
        "when it stops.",
    )
    def heartbeat(context: dg.SensorEvaluationContext, installation: dg.ResourceParam[Installation]) -> dg.SkipReason:
        variables = installation.environment.variables
        heartbeat_url = Alerts.load(variables).heartbeat_url
        if heartbeat_url is None:
            return dg.SkipReason("HEARTBEAT_URL is not set")
        url = installation.database_url()
        with WatchStore(url) as store:
            risks = [
                f"{endpoint.key}: {fold(risky)}"
                for endpoint, days, states in overdue_by_endpoint(store, endpoints, now_ms(), installation)
                if (risky := at_risk(days, states))
            ]
        if risks:
            return dg.SkipReason(f"not called, since days are at risk: {'; '.join(risks)}")
        with Outbox(url) as outbox:
            overdue = outbox.overdue(DELIVERED_WITHIN)
        if overdue:
            return dg.SkipReason(
                f"not called, since alerts that are more than an hour old have not been delivered: {overdue}. The failed "
                "ticks of alert_delivery say why"
            )
        problem = beat(heartbeat_url.get_secret_value(), Network(variables))
        if problem:
            context.log.error(f"HEARTBEAT_URL could not be called: {problem}")
            return dg.SkipReason(f"HEARTBEAT_URL could not be called: {problem}")
        return dg.SkipReason("HEARTBEAT_URL was called: no day is at risk, and alerts are delivered")

    return heartbeat
