"""Which process executes a step."""

from types import SimpleNamespace

import pytest

from affiliate_pipeline.defs.executor import StepExecutor


class Recording:
    """An executor that only returns its name."""

    def __init__(self, name: str):
        self.execute = lambda *_: name


@pytest.mark.parametrize(("steps", "executor"), [(["a"], "in process"), (["a", "b"], "processes"), ([], "processes")])
def test_only_a_single_step_is_executed_in_the_process_of_the_run(steps, executor):
    step_executor = StepExecutor(Recording("in process"), Recording("processes"))  # pyright: ignore[reportArgumentType]

    assert step_executor.execute(None, SimpleNamespace(step_keys_to_execute=steps)) == executor
