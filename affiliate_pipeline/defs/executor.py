"""How this package's own code location executes the steps of a run: in local processes, Celery or Kubernetes."""

from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import dagster as dg

from affiliate_pipeline.domain.settings import CELERY_VARIABLES, Execution, execution_in, malformed
from affiliate_pipeline.domain.wording import command
from affiliate_pipeline.landing.store import is_run_live, live_run

# Dagster does not export the types of its configuration and plans.
_multiprocess: Any = dg.multiprocess_executor
_in_process: Any = dg.in_process_executor
_MODULES = {"celery": "dagster_celery", "k8s": "dagster_k8s"}
_requirements = dg.multiple_process_executor_requirements()

DatabaseOf = Callable[[object], str]


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


class RemoteSteps(dg.Executor):
    """Executes steps on other machines; the run is live while its process runs, even if no step has begun."""

    def __init__(self, executor: dg.Executor, database_of: DatabaseOf):
        self._executor, self._database_of = executor, database_of

    @property
    def retries(self) -> Any:
        """When steps are retried."""
        return self._executor.retries

    @property
    def step_dependency_config(self) -> Any:
        """Whether a step may begin before its upstream steps have ended."""
        return self._executor.step_dependency_config

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[dg.DagsterEvent]:
        """Execute the steps, and yield their events."""
        with live_run(self._database_of(plan_context.instance), plan_context.run_id):
            yield from self._executor.execute(plan_context, execution_plan)


@dg.executor(
    # Dagster's own name, so that its run config applies.
    name="multiprocess",
    config_schema=_multiprocess.config_schema,
    requirements=_requirements,
)
def _local_steps(context: dg.InitExecutorContext) -> StepExecutor:
    return StepExecutor(_in_process.executor_creation_fn(context), _multiprocess.executor_creation_fn(context))


# Forked processes inherit these modules. In each of them, importing Dagster, the package and what landing uses would
# take longer than most steps do. `definitions` is not among the modules: importing it reads the environment, which
# depends on the Dagster instance, and a step loads its instance only after the fork.
PRELOADED = ["affiliate_pipeline.defs.factory", "affiliate_pipeline.landing.blocks", "dagster_postgres"]
# LBank has eight endpoints whose steps mostly wait, each for its own rate limit: all of them run concurrently.
_local_executor = _local_steps.configured(
    {
        "max_concurrent": 8,
        "start_method": {"forkserver": {"preload_modules": PRELOADED}},
    },
    name="multiprocess",
)


def executor_of(variables: Mapping[str, str], database_of: DatabaseOf) -> dg.ExecutorDefinition:
    """The executor that AFFILIATE_EXECUTOR names; raises `SettingsError`.

    Args:
        variables: Those of the environment.
        database_of: Returns the URL of the database that the runs of a Dagster instance land in.
    """
    settings = execution_in(variables)
    name = settings.affiliate_executor
    if name == "multiprocess":
        return _local_executor
    if find_spec(_MODULES[name]) is None:
        install = command(f"install 'affiliate-pipeline[{name}]'", "pip")
        raise malformed(
            "AFFILIATE_EXECUTOR", f"is {name}, whose extra [{name}] is not installed (install it: {install})"
        )
    return _celery(settings, database_of) if name == "celery" else _kubernetes(database_of)


def _celery(settings: Execution, database_of: DatabaseOf) -> dg.ExecutorDefinition:
    from affiliate_pipeline.defs.celery_executor import CeleryExecutor  # an extra

    # Without config, in which the URLs and their passwords would be shown.
    @dg.executor(name="celery", requirements=_requirements)
    def celery(context: dg.InitExecutorContext) -> RemoteSteps:
        def is_step_live(run_id: str, step: str) -> bool:
            return is_run_live(database_of(context.instance), run_id, step)

        broker, backend = map(settings.secret, CELERY_VARIABLES)
        return RemoteSteps(CeleryExecutor(broker, backend, is_step_live), database_of)

    return celery


def _kubernetes(database_of: DatabaseOf) -> dg.ExecutorDefinition:
    import dagster_k8s  # an extra

    kubernetes: Any = dagster_k8s.k8s_job_executor

    @dg.executor(name="k8s", config_schema=kubernetes.config_schema, requirements=_requirements)
    def k8s(context: dg.InitExecutorContext) -> RemoteSteps:
        return RemoteSteps(kubernetes.executor_creation_fn(context), database_of)

    return k8s
