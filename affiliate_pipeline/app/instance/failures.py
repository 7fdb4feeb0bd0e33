"""Why runs failed, read from the Dagster instance."""

from collections.abc import Iterator, Sequence
from datetime import date, datetime
from pathlib import Path

import dagster as dg

from affiliate_pipeline.defs.dagster_internals import range_tags


def failures(dagster_home: Path, days: Sequence[date], since: datetime) -> Iterator[str]:
    """The reasons of the steps that failed in runs over these days."""
    failed = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], tags=range_tags(days), created_after=since)
    with dg.DagsterInstance.from_config(str(dagster_home)) as instance:
        for run in instance.get_runs(failed):
            for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE):
                data = entry.dagster_event.step_failure_data if entry.dagster_event else None
                if data and data.user_failure_data and data.user_failure_data.description:
                    yield data.user_failure_data.description
                elif data and data.error:
                    yield data.error.message
