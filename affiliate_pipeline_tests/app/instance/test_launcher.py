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
from affiliate_pipeline.app.instance.celery_launcher import CeleryLauncher
from affiliate_pipeline.app.instance.docker_launcher import DockerLauncher
from affiliate_pipeline.app.instance.k8s_launcher import K8sLauncher
from affiliate_pipeline.app.instance.launcher import Launcher, RunHealth
from affiliate_pipeline.landing import store
from affiliate_pipeline.landing.store import Store, is_run_live, live_run
from affiliate_pipeline.postgres.connection import connect
from affiliate_pipeline_tests.e2e.project import wait_for


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
        run_launcher.check_run_worker_health(self.run)
        later = launcher.time.monotonic() + seconds
        with self.monkeypatch.context() as patch:
            patch.setattr(launcher.time, "monotonic", lambda: later)
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
    with Store(database_url) as process:
        process.mark_run_live(run.run.run_id)
        assert run.status_after(3600) == WorkerStatus.RUNNING
    assert run.status_after(3600) == WorkerStatus.NOT_FOUND


def test_a_run_whose_steps_wait_on_other_machines_is_alive(run, database_url):
    with live_run(database_url, run.run.run_id):
        wait_for(lambda: is_run_live(database_url, run.run.run_id))
        assert run.status_after(3600) == WorkerStatus.RUNNING
    assert run.status_after(3600) == WorkerStatus.NOT_FOUND


def test_a_waiting_run_is_alive_again_after_its_database_session_has_ended(run, database_url, monkeypatch):
    monkeypatch.setattr(store, "LIVE_CHECK_S", 0.05)
    with live_run(database_url, run.run.run_id), connect(database_url, autocommit=True) as connection:
        wait_for(lambda: is_run_live(database_url, run.run.run_id))
        end = "select pid, pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and pid <> pg_backend_pid()"
        [(pid, _)] = connection.execute(end).fetchall()
        holders = "select pid from pg_locks where locktype = 'advisory' and pid <> %s"
        wait_for(lambda: connection.execute(holders, (pid,)).fetchall())
        assert run.status_after(3600) == WorkerStatus.RUNNING


@pytest.mark.parametrize("launcher", [CeleryLauncher, DockerLauncher, K8sLauncher])
def test_every_launcher_checks_whether_a_process_of_the_run_is_alive(launcher):
    assert launcher.check_run_worker_health is RunHealth.check_run_worker_health
    assert launcher.supports_check_run_worker_health is RunHealth.supports_check_run_worker_health


def test_a_run_whose_machine_has_a_slow_clock_has_time_to_start(run, monkeypatch):
    monkeypatch.setattr(launcher.time, "time", lambda: 1e12)
    assert run.status_after(launcher.SILENCE_S - 1) == WorkerStatus.RUNNING


def test_an_event_ends_the_silence(run):
    run_launcher = Launcher()
    run_launcher.register_instance(run.instance)
    now = launcher.time.monotonic()
    with run.monkeypatch.context() as patch:
        for seconds in (0, launcher.SILENCE_S - 1, 2 * launcher.SILENCE_S - 2):
            patch.setattr(launcher.time, "monotonic", lambda seconds=seconds: now + seconds)
            run.instance.report_engine_event(f"after {seconds} s", run.run)
            assert run_launcher.check_run_worker_health(run.run).status == WorkerStatus.RUNNING


def test_a_process_of_another_run_does_not_count(run, database_url):
    with Store(database_url) as process:
        process.mark_run_live("another")
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
