"""How Dagster launches runs, and how its run monitoring learns that one has died; `dagster.yaml` names this class."""

import time

from dagster import DagsterRun, DefaultRunLauncher

from affiliate_pipeline.defs.dagster_internals import CheckRunHealthResult, WorkerStatus
from affiliate_pipeline.domain.problem import AffiliateError
from affiliate_pipeline.environment import of_instance
from affiliate_pipeline.landing.store import is_worked_for

# Longer than a busy machine takes from one event to the next process that says it works for the run.
SILENCE_S = 75


class Launcher(DefaultRunLauncher):
    """Dagster's own, which alone would show a run as started for ever if its processes died together with what had
    launched it, or if it was started from the command line and killed."""

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        if time.time() - self._last_told_at(run.run_id) < SILENCE_S:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        try:
            alive = is_worked_for(of_instance(self._instance).database_url(), run.run_id)
        except AffiliateError as error:
            return CheckRunHealthResult(WorkerStatus.RUNNING, f"unknown without the database: {error}")
        if alive:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(
            WorkerStatus.NOT_FOUND,
            "no process works for this run any more: it was killed, or its machine went down. What had landed is safe; "
            "materialize the days that are shown as failed again",
        )

    def _last_told_at(self, run_id: str) -> float:
        last = self._instance.event_log_storage.get_logs_for_run(run_id, limit=1, ascending=False)
        return last[0].timestamp if last else 0.0
