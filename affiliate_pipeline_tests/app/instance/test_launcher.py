"""How run monitoring learns that nobody works for a run any more."""

import dagster as dg
import pytest
from dagster._core.launcher import WorkerStatus
from dagster._core.test_utils import create_run_for_test

from affiliate_pipeline.app.instance import launcher
from affiliate_pipeline.app.instance.launcher import Launcher
from affiliate_pipeline.landing.store import Store


@pytest.fixture
def status(monkeypatch, database_url):
    """The status of a run whose last event is so many seconds old."""
    monkeypatch.setenv("AFFILIATE_DATABASE_URL", database_url)
    with dg.DagsterInstance.ephemeral() as instance:
        run = create_run_for_test(instance, "job", status=dg.DagsterRunStatus.STARTED)
        instance.report_engine_event("begun", run)
        checking = Launcher()
        checking.register_instance(instance)

        def after(seconds):
            told = instance.event_log_storage.get_logs_for_run(run.run_id)[-1].timestamp
            with monkeypatch.context() as patch:
                patch.setattr(launcher.time, "time", lambda: told + seconds)
                return checking.check_run_worker_health(run).status

        after.run_id = run.run_id
        yield after


def test_a_silent_run_that_no_process_works_for_is_dead(status):
    assert status(launcher.SILENCE_S + 1) == WorkerStatus.NOT_FOUND


def test_a_run_is_given_time_to_begin(status):
    assert status(launcher.SILENCE_S - 1) == WorkerStatus.RUNNING


def test_a_silent_run_that_a_process_works_for_is_alive(status, database_url):
    with Store(database_url) as store:
        store.mark_run_live(status.run_id)
        assert status(3600) == WorkerStatus.RUNNING
    assert status(3600) == WorkerStatus.NOT_FOUND


def test_a_process_that_works_for_another_run_does_not_count(status, database_url):
    with Store(database_url) as store:
        store.mark_run_live("another")
        assert status(3600) == WorkerStatus.NOT_FOUND


def test_no_run_is_called_dead_while_the_database_is_away(status, monkeypatch):
    monkeypatch.setenv("AFFILIATE_DATABASE_URL", "postgresql://postgres@127.0.0.1:1/none")

    assert status(3600) == WorkerStatus.RUNNING


def test_dagster_is_told_to_ask(tmp_path):
    from pathlib import Path

    import yaml

    told = yaml.safe_load((Path(launcher.__file__).parents[3] / "dagster.yaml").read_text())

    assert told["run_launcher"] == {"module": Launcher.__module__, "class": Launcher.__name__}
    assert told["run_monitoring"]["enabled"]
    # Nothing stays stuck for longer than two minutes.
    monitoring = told["run_monitoring"]
    longest_s = max(launcher.SILENCE_S, monitoring["start_timeout_seconds"], monitoring["cancel_timeout_seconds"])
    assert longest_s + monitoring["poll_interval_seconds"] < 120
