"""The run launcher that `dagster.yaml` names."""

import time

import dagster as dg

from affiliate_pipeline.defs.dagster_internals import CheckRunHealthResult, WorkerStatus
from affiliate_pipeline.domain.problem import AffiliateError
from affiliate_pipeline.environment import of_instance
from affiliate_pipeline.landing.store import is_run_live

# Exceeds, even on a busy machine, the time from a run's last event until its next process has called
# `Store.mark_run_live`.
SILENCE_S = 75


class Launcher(dg.DefaultRunLauncher):
    """Dagster's default launcher, which also notices runs whose process has died.

    Such a process was killed together with the one that launched it, or was started from the command line and killed.
    With Dagster's own launcher, its run would stay in the status STARTED forever.
    """

    @property
    def supports_check_run_worker_health(self) -> bool:
        """True: Dagster's run monitoring then calls `check_run_worker_health`."""
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """`NOT_FOUND` for a silent run without a live process, which Dagster then fails."""
        last = self._instance.event_log_storage.get_logs_for_run(run.run_id, limit=1, ascending=False)
        is_silent = not last or time.time() - last[0].timestamp >= SILENCE_S
        try:
            if not is_silent or is_run_live(of_instance(self._instance).database_url(), run.run_id):
                return CheckRunHealthResult(WorkerStatus.RUNNING)
        except AffiliateError as error:
            return CheckRunHealthResult(WorkerStatus.RUNNING, f"unknown without the database: {error}")
        return CheckRunHealthResult(
            WorkerStatus.NOT_FOUND,
            "no process of this run is alive: it was killed, or its machine went down. Rows that had landed are "
            "unchanged; materialize again the days that are shown as failed",
        )
