"""The sensor that raises an alert when a sensor or schedule of this package fails."""

import time
from collections.abc import Sequence

import dagster as dg

from affiliate_pipeline.defs.dagster_internals import (
    InstigatorState,
    InstigatorStatus,
    InstigatorType,
    TickStatus,
    innermost_message,
    sensor,
)
from affiliate_pipeline.defs.ownership import is_own_repository
from affiliate_pipeline.defs.resources import Installation
from affiliate_pipeline.monitoring import alerts
from affiliate_pipeline.monitoring.delivery import Alerts
from affiliate_pipeline.monitoring.outbox import Outbox

DAY_S = 86_400
# The next tick of a sensor makes up for a failed one; a failed tick of a schedule is a run that did not start.
FAILED_TICKS = {InstigatorType.SENSOR: 2, InstigatorType.SCHEDULE: 1}
FINISHED = [TickStatus.SUCCESS, TickStatus.SKIPPED, TickStatus.FAILURE]


def build_failing_tick_alert(others: Sequence[dg.SensorDefinition | dg.ScheduleDefinition]) -> dg.SensorDefinition:
    """The sensor over these sensors and schedules, and itself."""

    @sensor(
        name="failing_tick_alert",
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=30,
        description="Raises an alert when a sensor or schedule fails, once until it ticks well again.",
    )
    def failing_tick_alert(
        context: dg.SensorEvaluationContext, installation: dg.ResourceParam[Installation]
    ) -> dg.SkipReason:
        own = {failing_tick_alert.name, *(each.name for each in others)}
        ui = Alerts.load(installation.environment.variables).dagster_ui_url
        states = context.instance.all_instigator_state(
            instigator_statuses={InstigatorStatus.RUNNING, InstigatorStatus.DECLARED_IN_CODE}
        )
        # Include the alert delivery: usually only one of several targets fails. If all do, the heartbeat stops.
        failing = [
            alert
            for state in states
            if state.instigator_name in own and is_own_repository(context, state.origin.repository_origin)
            if (alert := _failing(context.instance, state, ui))
        ]
        with Outbox(installation.database_url()) as outbox:
            raised = sum(map(outbox.add, failing))
        return dg.SkipReason(f"{raised} alerts raised")

    return failing_tick_alert


def _failing(instance: dg.DagsterInstance, state: InstigatorState, ui: str) -> alerts.Alert | None:
    which = state.instigator_origin_id, state.selector_id
    number = FAILED_TICKS.get(state.instigator_type, 1)
    # One that was taken out of the code keeps its last ticks.
    last = instance.get_ticks(*which, after=time.time() - DAY_S, limit=number, statuses=FINISHED)
    if len(last) < number or any(tick.status != TickStatus.FAILURE for tick in last):
        return None
    well = instance.get_ticks(*which, limit=1, statuses=[TickStatus.SUCCESS, TickStatus.SKIPPED])
    kind = state.instigator_type.value.lower()
    return alerts.failing_ticks(
        f"{kind} {state.instigator_name} since tick {well[0].tick_id if well else 0}",
        kind,
        state.instigator_name,
        innermost_message(last[0].error) or "It failed without a message",
        f"{ui}/automation",
    )
