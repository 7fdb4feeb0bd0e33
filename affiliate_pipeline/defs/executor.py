"""How this package's own code location executes the steps of a run."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

# Dagster does not export the types of its configuration and plans.
_multiprocess: Any = dg.multiprocess_executor
_in_process: Any = dg.in_process_executor


class StepExecutor(dg.Executor):
    """Executes a run's only step in the process of the run, and several steps in a process each."""

    def __init__(self, alone: dg.Executor, several: dg.Executor):
        self._alone, self._several = alone, several

    @property
    def retries(self) -> Any:
        """When steps are retried."""
        return self._several.retries

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[dg.DagsterEvent]:
        """Execute the steps, and yield their events."""
        executor = self._alone if len(execution_plan.step_keys_to_execute) == 1 else self._several
        return executor.execute(plan_context, execution_plan)


@dg.executor(
    # Dagster's own name, so that its run config applies.
    name="multiprocess",
    config_schema=_multiprocess.config_schema,
    requirements=dg.multiple_process_executor_requirements(),
)
def _steps(context: dg.InitExecutorContext) -> StepExecutor:
    return StepExecutor(_in_process.executor_creation_fn(context), _multiprocess.executor_creation_fn(context))


# A forked process need not import Dagster, the package and what landing uses again, which takes longer than most steps.
# `definitions` is not among the modules, because it reads the environment, which depends on the Dagster instance that a
# step loads first.
PRELOADED = ["affiliate_pipeline.defs.factory", "affiliate_pipeline.landing.blocks", "dagster_postgres"]
# LBank has eight endpoints whose steps mostly wait, each for its own rate limit: all of them run concurrently.
step_executor = _steps.configured(
    {
        "max_concurrent": 8,
        "start_method": {"forkserver": {"preload_modules": PRELOADED}},
    },
    name="multiprocess",
)
