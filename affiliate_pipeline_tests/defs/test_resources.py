"""The resource of a step whose run has ended, as when the step has waited in a queue on another machine."""

import dagster as dg
import pytest
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import create_execution_plan, execute_plan
from dagster._core.test_utils import create_run_for_test

from affiliate_pipeline.definitions import pipeline_of_instance

S = dg.DagsterRunStatus


@pytest.mark.parametrize("status", [S.FAILURE, S.CANCELED, S.CANCELING])
def test_a_step_whose_run_has_ended_does_not_start(status):
    started = []

    @dg.op(required_resource_keys={"pipeline"})
    def step() -> None:
        started.append(step)

    @dg.job(resource_defs={"pipeline": pipeline_of_instance})
    def job() -> None:
        step()

    def execute_as_a_worker(status: dg.DagsterRunStatus) -> None:
        run = create_run_for_test(instance, "job", status=status)
        execute_plan(create_execution_plan(job), InMemoryJob(job), instance, run)

    with dg.DagsterInstance.ephemeral() as instance:
        execute_as_a_worker(S.STARTED)
        assert len(started) == 1
        with pytest.raises(dg.DagsterError) as refused:
            execute_as_a_worker(status)

    assert "has ended" in f"{refused.value.__cause__}"
    assert len(started) == 1
