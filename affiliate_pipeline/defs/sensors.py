"""Sensors: a failed run is heard, with exactly the days it did not land."""

from collections.abc import Mapping
from datetime import date
from typing import Any

import dagster as dg
from dagster import AssetKey, DagsterEventType, DagsterInstance

from affiliate_pipeline import alerts
from affiliate_pipeline.defs.assets import FAILED_PARTITIONS
from affiliate_pipeline.settings import Alerts

EVENTS_PER_READ = 1000


@dg.run_failure_sensor(
    # Runs started from the command line belong to no code location and have to be heard as well.
    monitor_all_code_locations=True,
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=15,
    description="Sends one message per failed run to ALERT_URLS: the asset, exactly the days that failed, and why.",
)
def failed_run_alert(context: dg.RunFailureSensorContext) -> None:
    settings = Alerts.load()
    title, text = alerts.failed_run(
        failed_assets(context.instance, context.dagster_run.run_id),
        fallback=_cause(context),
        link=f"{settings.dagster_ui_url}/runs/{context.dagster_run.run_id}",
    )
    if not alerts.send(settings.urls(), title, text):
        context.log.error("the alert did not reach every one of ALERT_URLS; its text stands in this sensor's log")


def failed_assets(instance: DagsterInstance, run_id: str) -> list[alerts.FailedAsset]:
    """What the run had planned to materialize and did not."""
    planned = _partitions(instance, run_id, DagsterEventType.ASSET_MATERIALIZATION_PLANNED)
    landed = _partitions(instance, run_id, DagsterEventType.ASSET_MATERIALIZATION)
    reasons = _reasons(instance, run_id)
    assets = []
    for key in sorted({key for key, _ in planned}, key=str):
        missing = [day for asset, day in planned - landed if asset == key]
        if missing:
            days = sorted(date.fromisoformat(day) for day in missing if day)
            assets.append(
                alerts.FailedAsset(
                    key.to_user_string(),
                    days,
                    landed=sum(asset == key for asset, _ in landed),
                    reasons=reasons.get(key, {}),
                )
            )
    return assets


def _records(instance: DagsterInstance, run_id: str, event_type: DagsterEventType) -> list[dg.DagsterEvent]:
    events, cursor, more = [], None, True
    while more:
        page = instance.get_records_for_run(run_id, cursor=cursor, of_type=event_type, limit=EVENTS_PER_READ)
        events += [record.event_log_entry.dagster_event for record in page.records]
        cursor, more = page.cursor, page.has_more
    return [event for event in events if event]


def _partitions(
    instance: DagsterInstance, run_id: str, event_type: DagsterEventType
) -> set[tuple[AssetKey, str | None]]:
    return {(event.asset_key, event.partition) for event in _records(instance, run_id, event_type) if event.asset_key}


def _reasons(instance: DagsterInstance, run_id: str) -> dict[AssetKey, Mapping[date, str]]:
    reasons: dict[AssetKey, Mapping[date, str]] = {}
    for event in _records(instance, run_id, DagsterEventType.STEP_FAILURE):
        failure = event.step_failure_data.user_failure_data
        by_day: Any = failure.metadata.get(FAILED_PARTITIONS) if failure else None
        if by_day is not None and event.step_key:
            reasons[AssetKey(event.step_key.split("__"))] = {
                date.fromisoformat(day): reason for day, reason in by_day.value.items()
            }
    return reasons


def _cause(context: dg.RunFailureSensorContext) -> str:
    """The first line of the innermost error of the first step that failed, else of the run."""
    message = context.failure_event.message
    for event in context.get_step_failure_events():
        error = event.step_failure_data.error
        while error and error.cause:
            error = error.cause
        message = error.message if error else message
        break
    return (message or "The run failed without a message").strip().splitlines()[0]
