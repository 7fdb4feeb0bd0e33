"""What tests share: one embedded PostgreSQL a session with a database empty for each test, the sandbox, and a run of an asset."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import dagster as dg
import hypothesis
import psycopg
import pytest
from psycopg import sql

from affiliate_pipeline import environment
from affiliate_pipeline.app.embedded_server import cluster, server
from affiliate_pipeline.http import retry
from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline_tests import isolation
from affiliate_pipeline_tests.webhook import Webhook

# Before anything imports the definitions. A process that a test has started has its environment from that test.
if "PYTEST_CURRENT_TEST" not in os.environ:
    isolation.isolate()

from affiliate_pipeline.definitions import pipeline_of_instance  # noqa: E402
from affiliate_pipeline_tests.code_location import loaded_definitions  # noqa: E402

# No test depends on the speed of the machine.
hypothesis.settings.register_profile(
    "any_machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any_machine")

# Of a sensor or schedule that a test evaluates without its code location.
RESOURCES = {"pipeline": pipeline_of_instance}


def pytest_sessionstart(session: pytest.Session) -> None:
    # Test modules are imported next, and some build definitions while they are. With pytest-xdist its workers import them,
    # which find them from the folder in which they are started.
    if session.config.getoption("dist", "no") == "no":
        os.chdir(isolation.NOWHERE)


@pytest.fixture(autouse=True)
def no_waiting_between_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "MAX_WAIT_S", 0.0)


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each test starts in a project folder of its own, with nothing that another one has left behind."""
    for name in os.environ.keys() - isolation.kept(os.environ).keys():
        monkeypatch.delenv(name)
    monkeypatch.setattr(environment, "_on_embedded_storage", {})
    (tmp_path / "workspace.yaml").touch()
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def postgres_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("postgres")
    yield home
    server.stop(home)
    shutil.rmtree(cluster.read(home.resolve()).folder, ignore_errors=True)


@pytest.fixture
def database_url(postgres_home: Path) -> str:
    """An empty database: always the same one, since making and deleting one costs more than most tests."""
    url = server.ensure(postgres_home, "test")
    with psycopg.connect(url, autocommit=True) as connection:
        schemas = connection.execute(
            "select nspname from pg_namespace where nspname !~ '^pg_' and nspname <> 'information_schema'"
        ).fetchall()
        for (schema,) in schemas:
            connection.execute(sql.SQL("drop schema {} cascade").format(sql.Identifier(schema)))
        connection.execute("create schema public")
    return url


@pytest.fixture
def query(database_url: str) -> Callable[..., list[tuple]]:
    """Runs SQL in the test's database and gives the rows."""

    def run(statement: str, *values: Any) -> list[tuple]:
        with psycopg.connect(database_url, autocommit=True, options="-c timezone=UTC") as connection:
            cursor = connection.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    return run


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    with Webhook() as webhook:
        yield webhook


@dataclass
class Run:
    """What a run of one asset came to."""

    success: bool
    materialized: dict[date, Mapping[str, Any]]
    failed: dict[date, str]
    message: str
    events: list[dg.DagsterEvent] = field(repr=False, default_factory=list)


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch, database_url: str) -> Iterator[Sandbox]:
    """The sandbox, configured as the exchange, with the test's database."""
    with Sandbox(rows_per_day=300) as exchange:
        monkeypatch.setenv("AFFILIATE_DATABASE_URL", database_url)
        for name, value in exchange.binance.variables(exchange.url).items():
            monkeypatch.setenv(name, value)
        yield exchange


@pytest.fixture
def both(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    """The sandbox, configured as LBank as well, with windows a hundred times shorter."""
    most, window_ms = sandbox.lbank.rate_limit
    sandbox.lbank.rate_limit = most, window_ms // 100
    monkeypatch.setenv("AFFILIATE_RATE_SCALE", "100")
    for name, value in sandbox.lbank.variables(sandbox.url).items():
        monkeypatch.setenv(name, value)
    return sandbox


@cache
def instance_of_all_runs() -> dg.DagsterInstance:
    """One for the session: making one takes as long as a run."""
    return dg.DagsterInstance.ephemeral()


def materialize(key: str, days: Sequence[date], **config: bool) -> Run:
    """A run of the asset over the (consecutive) days, as `dagster asset materialize` would do it."""
    definitions = loaded_definitions()
    asset_key = dg.AssetKey(key.split("/"))
    tags = {"dagster/asset_partition_range_start": f"{days[0]}", "dagster/asset_partition_range_end": f"{days[-1]}"}
    instance = instance_of_all_runs()
    result = dg.materialize(
        [definitions.get_assets_def(asset_key)],
        instance=instance,
        resources=definitions.resources,
        tags=tags,
        run_config={"ops": {key.replace("/", "__"): {"config": config}}},
        raise_on_error=False,
    )
    # What the instance recorded: the result leaves out what a failing step had logged.
    events = [entry.dagster_event for entry in instance.all_logs(result.run_id) if entry.dagster_event]
    materialized = {
        date.fromisoformat(event.partition): {
            name: value.value for name, value in event.step_materialization_data.materialization.metadata.items()
        }
        for event in events
        if event.is_step_materialization
    }
    failures = [event.step_failure_data for event in events if event.is_step_failure]
    failed = {
        date.fromisoformat(day): reason
        for failure in failures
        if failure.user_failure_data
        for day, reason in failure.user_failure_data.metadata["failed_partitions"].value.items()
    }
    message = "\n".join(str(failure.error.message if failure.error else "") for failure in failures)
    return Run(result.success, materialized, failed, message, events)
