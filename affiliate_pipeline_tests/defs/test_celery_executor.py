"""Steps as Celery tasks: when a step waits, and when it counts as lost. Needs a Redis server."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.events import EngineEventData
from dagster._core.executor.step_delegating import StepHandlerContext
from dagster._grpc.types import ExecuteStepArgs

from affiliate_pipeline.defs import celery_executor
from affiliate_pipeline.defs.celery_executor import LOST_S, CelerySteps, responding_workers
from affiliate_pipeline_tests.broker import Broker, broker_in

pytestmark = pytest.mark.skipif(not shutil.which("redis-server"), reason="needs redis-server")
LONG_S = 1_000_000
_contexts: list[Any] = []


class _Recording(dg.Executor):
    """Only records the context of the run."""

    @property
    def retries(self) -> Any:
        return None

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[dg.DagsterEvent]:
        _contexts.append((plan_context, execution_plan))
        yield from ()


@dg.executor(name="recording")
def _recording(_: dg.InitExecutorContext) -> dg.Executor:
    return _Recording()


@dg.op(tags={"dagster-celery/queue": "reserved"})
def routed() -> None: ...


@dg.op
def step() -> None: ...


@dg.job(executor_def=_recording)
def job() -> None:
    step()
    routed()


@pytest.fixture
def broker(tmp_path: Path) -> Broker:
    return broker_in(tmp_path)


@dataclass
class Submitted:
    """The steps of a run as Celery tasks, and a clock that the test sets."""

    steps: CelerySteps
    contexts: dict[str, StepHandlerContext]
    # Run id and key of the steps whose processes are connected to the database.
    live: set[tuple[str, str]]
    # Whole seconds, whose differences are exact.
    now: float = field(default_factory=lambda: float(int(time.monotonic())))

    def submit(self, step_key: str) -> None:
        list(self.steps.launch_step(self.contexts[step_key]))

    def is_healthy_after(self, seconds: float, step_key: str = "step") -> bool:
        """Assert that the step is healthy now, and return whether it still is this much later."""
        assert self.steps.check_step_health(self.contexts[step_key]).is_healthy
        self.now += seconds
        return self.steps.check_step_health(self.contexts[step_key]).is_healthy


@pytest.fixture
def submitted(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Submitted]:
    monkeypatch.setattr(celery_executor, "RESPONSE_S", 0.1)
    monkeypatch.setattr(celery_executor, "LATE_RESPONSE_S", 0.1)
    with dg.DagsterInstance.ephemeral() as instance:
        dg.execute_job(dg.reconstructable(job), instance)
        plan_context, plan = _contexts.pop()
        contexts = {
            step.key: StepHandlerContext(
                instance,
                plan_context,
                [step],
                ExecuteStepArgs(
                    job_origin=plan_context.reconstructable_job.get_python_origin(),
                    run_id=plan_context.run_id,
                    step_keys_to_execute=[step.key],
                    instance_ref=None,
                ),
            )
            for step in plan.get_steps_to_execute_in_topo_order()
        }
        live: set[tuple[str, str]] = set()
        submitted = Submitted(
            CelerySteps(f"{broker.url}/0", f"{broker.url}/1", lambda *step: step in live), contexts, live
        )
        monkeypatch.setattr(celery_executor.time, "monotonic", lambda: submitted.now)
        yield submitted


@pytest.mark.parametrize("step_key", ["step", "routed"])
def test_a_step_waits_as_long_as_its_task_is_in_the_queue(broker, submitted, step_key):
    with broker.running():
        submitted.submit(step_key)
        assert submitted.is_healthy_after(LONG_S, step_key)


def test_a_step_goes_to_the_queue_that_its_tag_names(broker, submitted):
    with broker.running():
        submitted.submit("routed")
        [key] = broker.client.keys("reserved*")
        assert broker.client.llen(key) == 1


def test_a_step_is_lost_if_the_broker_has_lost_its_task(broker, submitted):
    with broker.running():
        submitted.submit("step")
        broker.client.flushall()
        assert submitted.is_healthy_after(LOST_S - 1)
        submitted.now += 1
        lost = submitted.steps.check_step_health(submitted.contexts["step"])
    assert not lost.is_healthy
    assert "materialize again the days that are shown as failed" in lost.unhealthy_reason


def test_a_step_is_lost_if_a_worker_has_reserved_its_task_and_died(broker, submitted):
    with broker.running():
        submitted.submit("step")
        [key] = broker.client.keys("dagster*")
        # A worker that takes a task moves it from the queue to `unacked`; if the worker dies, it stays there.
        broker.client.rename(key, "unacked")
        assert not submitted.is_healthy_after(LOST_S)


def test_a_lost_step_names_the_worker_that_died_before_it_responded_to_a_query(broker, submitted):
    context = submitted.contexts["step"]
    with broker.running():
        submitted.submit("step")
        broker.client.flushall()
        # As Dagster's task does before it executes the step.
        context.instance.report_engine_event(
            "Executing steps step in celery worker",
            context.instance.get_run_by_id(context.execute_step_args.run_id),
            EngineEventData({"Celery worker": dg.MetadataValue.text("dagster@worker2")}),
            step_key="step",
        )
        assert submitted.steps.check_step_health(context).is_healthy
        submitted.now += LOST_S
        lost = submitted.steps.check_step_health(context)
    assert "worker dagster@worker2 no longer has it" in lost.unhealthy_reason


def test_a_step_is_not_lost_while_its_process_is_connected_to_the_database(broker, submitted):
    with broker.running():
        submitted.submit("step")
        broker.client.flushall()
        submitted.live.add((submitted.contexts["step"].execute_step_args.run_id, "step"))
        assert submitted.is_healthy_after(LONG_S)


def test_a_step_waits_while_the_broker_is_down_and_after_its_restart(broker, submitted):
    with broker.running():
        submitted.submit("step")
    assert submitted.is_healthy_after(LONG_S)
    with broker.running():
        assert submitted.is_healthy_after(LONG_S)


# Celery calls a deprecated method of redis.
@pytest.mark.filterwarnings("ignore:Call to deprecated setex")
def test_a_step_fails_with_the_error_that_its_worker_has_reported(broker, submitted):
    with broker.running():
        submitted.submit("step")
        submitted.steps._results.store_result(submitted.steps._tasks["step"].id, ImportError("no module x"), "FAILURE")
        failed = submitted.steps.check_step_health(submitted.contexts["step"])
    assert not failed.is_healthy
    assert "no module x" in failed.unhealthy_reason


def test_the_workers_that_respond_are_named(broker, monkeypatch):
    monkeypatch.setattr(celery_executor, "LATE_RESPONSE_S", 0.1)
    command = [sys.executable, "-m", "celery", "-b", f"{broker.url}/0", "worker", "-P", "solo", "-n", "celery@worker1"]
    with broker.running():
        assert responding_workers(f"{broker.url}/0") == []
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as worker:
            try:
                while not (found := responding_workers(f"{broker.url}/0")):
                    assert worker.poll() is None
                assert found == ["celery@worker1"]
            finally:
                worker.kill()
