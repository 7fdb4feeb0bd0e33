"""The run launcher that `dagster.yaml` names, and the check of a run's processes that all launchers share."""

import time
from functools import cached_property
from typing import Literal

import dagster as dg

from affiliate_pipeline.defs.dagster_internals import CheckRunHealthResult, RunLauncher, WorkerStatus
from affiliate_pipeline.domain.problem import AffiliateError
from affiliate_pipeline.environment import of_instance
from affiliate_pipeline.landing.store import is_run_live

# A run in which no process has died can be without a live process for a while: a process of the run or of one of its
# steps is starting and has not called `Store.mark_run_live` yet. This exceeds, even on a busy machine, the time from
# the run's newest event until that call.
SILENCE_S = 75
DAY_S = 86_400


class RunHealth(RunLauncher):
    """Extends a launcher: it also notices runs whose processes have died, on any machine.

    Such a process was killed together with the one that launched it, or with its machine, or was started from the
    command line and killed. Without this check, its run could stay in the status STARTED forever.
    """

    @property
    def supports_check_run_worker_health(self) -> Literal[True]:
        """True: Dagster's run monitoring then calls `check_run_worker_health`."""
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """`NOT_FOUND` for a silent run without a live process (Dagster then fails the run), otherwise `RUNNING`."""
        try:
            if self._silent_s(run.run_id) < SILENCE_S:
                return CheckRunHealthResult(WorkerStatus.RUNNING)
            if is_run_live(of_instance(self._instance).database_url(), run.run_id):
                return CheckRunHealthResult(WorkerStatus.RUNNING)
        except AffiliateError as error:
            return CheckRunHealthResult(WorkerStatus.RUNNING, f"unknown without the database: {error}")
        return CheckRunHealthResult(
            WorkerStatus.NOT_FOUND,
            "no process of this run is alive: it was killed, or its machine went down. Rows that had landed are "
            "unchanged; materialize again the days that are shown as failed",
        )

    # Not set in `__init__`: the launchers that this class is combined with have constructors with different parameters.
    @cached_property
    def _last_events(self) -> dict[str, tuple[float, float]]:
        """By run, the time of its last event, and when this process first saw that event."""
        return {}

    def _silent_s(self, run_id: str) -> float:
        """For how long (s) this process has seen no new event of the run; 0 when it first sees the run.

        Measured by this process's own clock, because events may be dated by another machine's.
        """
        now = time.monotonic()
        newest_events = self._instance.event_log_storage.get_logs_for_run(run_id, limit=1, ascending=False)
        last = newest_events[0].timestamp if newest_events else 0
        previous, seen_at = self._last_events.get(run_id, (None, now))
        if last == previous:
            return now - seen_at

        # Drop every run whose last event was first seen over a day ago.
        recent = {run: (event, seen) for run, (event, seen) in self._last_events.items() if now - seen < DAY_S}
        self._last_events = {**recent, run_id: (last, now)}
        return 0


class Launcher(RunHealth, dg.DefaultRunLauncher):
    """Dagster's default launcher, which also notices runs whose processes have died."""
