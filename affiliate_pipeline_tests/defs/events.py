"""Typed access to what a run recorded in Dagster's event log. Contains no tests."""

from collections.abc import Iterable

import dagster as dg
from dagster._core.execution.plan.objects import StepFailureData

from affiliate_pipeline_tests.conftest import Run


def recorded_events(instance: dg.DagsterInstance, run_id: str) -> list[dg.DagsterEvent]:
    return [entry.dagster_event for entry in instance.all_logs(run_id) if entry.dagster_event]


def check_evaluations(run: Run) -> list[dg.AssetCheckEvaluation]:
    """The evaluations of landed days."""
    return [evaluation for evaluation in all_check_evaluations(run) if evaluation.partition]


def all_check_evaluations(run: Run) -> list[dg.AssetCheckEvaluation]:
    """The evaluations of landed days, and those of the run."""
    return [
        event.asset_check_evaluation_data
        for event in run.events
        if event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION
    ]


def only_check(run: Run) -> dg.AssetCheckEvaluation:
    """The run's only evaluation of a landed day."""
    [evaluation] = check_evaluations(run)
    return evaluation


def description_of(evaluation: dg.AssetCheckEvaluation) -> str:
    assert evaluation.description is not None
    return evaluation.description


def only_step_failure(events: Iterable[dg.DagsterEvent]) -> StepFailureData:
    """The failure of a run in which exactly one step failed."""
    [failure] = [event.step_failure_data for event in events if event.is_step_failure]
    return failure


def failure_message(failure: StepFailureData) -> str:
    assert failure.error is not None
    return failure.error.message


def failed_partitions(failure: StepFailureData) -> set[str]:
    return {*failed_reasons(failure)}


def failed_reasons(failure: StepFailureData) -> dict[str, str]:
    """The reason for each failed partition."""
    assert failure.user_failure_data is not None
    failed = failure.user_failure_data.metadata["failed_partitions"].value
    assert isinstance(failed, dict)
    return {str(partition): str(reason) for partition, reason in failed.items()}
