"""Run monitoring detects that no process executes a run any more."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._core.launcher import WorkerStatus
from dagster._core.test_utils import create_run_for_test

from affiliate_pipeline.app.instance import launcher
from affiliate_pipeline.app.instance.launcher import Launcher
from affiliate_pipeline.landing.store import Store


@dataclass
class StartedRun:
    """A run in progress, whose process the launcher checks."""

    instance: dg.DagsterInstance
    run: dg.DagsterRun
    monkeypatch: pytest.MonkeyPatch

    def status_after(self, seconds: float) -> WorkerStatus:
        """The status of the run's process, as seen this many seconds after the last event of the run."""
        run_launcher = Launcher()
        run_launcher.register_instance(self.instance)
        last_event = self.instance.event_log_storage.get_logs_for_run(self.run.run_id)[-1].timestamp
        with self.monkeypatch.context() as patch:
            patch.setattr(launcher.time, "time", lambda: last_event + seconds)
            return run_launcher.check_run_worker_health(self.run).status


@pytest.fixture
def run(monkeypatch, database_url) -> Iterator[StartedRun]:
    monkeypatch.setenv("AFFILIATE_DATABASE_URL", database_url)
    with dg.DagsterInstance.ephemeral() as instance:
        run = create_run_for_test(instance, "job", status=dg.DagsterRunStatus.STARTED)
        instance.report_engine_event("started", run)
        yield StartedRun(instance, run, monkeypatch)


def test_a_silent_run_without_a_process_is_dead(run):
    assert run.status_after(launcher.SILENCE_S + 1) == WorkerStatus.NOT_FOUND


def test_a_run_has_time_to_start(run):
    assert run.status_after(launcher.SILENCE_S - 1) == WorkerStatus.RUNNING


def test_a_silent_run_with_a_process_is_alive(run, database_url):
    with Store(database_url) as store:
        store.mark_run_live(run.run.run_id)
        assert run.status_after(3600) == WorkerStatus.RUNNING
    assert run.status_after(3600) == WorkerStatus.NOT_FOUND


def test_a_process_of_another_run_does_not_count(run, database_url):
    with Store(database_url) as store:
        store.mark_run_live("another")
        assert run.status_after(3600) == WorkerStatus.NOT_FOUND


def test_no_run_is_dead_while_the_database_is_unreachable(run, monkeypatch):
    monkeypatch.setenv("AFFILIATE_DATABASE_URL", "postgresql://postgres@127.0.0.1:1/none")
    assert run.status_after(3600) == WorkerStatus.RUNNING


def test_dagster_detects_a_stuck_run_within_two_minutes():
    settings = yaml.safe_load((Path(launcher.__file__).parents[3] / "dagster.yaml").read_text())
    assert settings["run_launcher"] == {"module": Launcher.__module__, "class": Launcher.__name__}
    monitoring = settings["run_monitoring"]
    assert monitoring["enabled"]
    longest_s = max(launcher.SILENCE_S, monitoring["start_timeout_seconds"], monitoring["cancel_timeout_seconds"])
    assert longest_s + monitoring["poll_interval_seconds"] < 120
