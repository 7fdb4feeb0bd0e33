"""Shared fixtures: a database, the sandbox, and runs of an asset."""

import gc
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import dagster as dg
import hypothesis
import psycopg
import pytest

from affiliate_pipeline import environment
from affiliate_pipeline.app.embedded_server import cluster, server
from affiliate_pipeline.exchanges.identity import TABLE as KEY_TABLE
from affiliate_pipeline.exchanges.registry import configured_catalog
from affiliate_pipeline.exchanges.shared_state import SharedState
from affiliate_pipeline.http import retry
from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline_tests import isolation
from affiliate_pipeline_tests.e2e.project import Project
from affiliate_pipeline_tests.webhook import Webhook

# Before the definitions are imported.
isolation.isolate()

from affiliate_pipeline.definitions import pipeline_of_instance  # noqa: E402
from affiliate_pipeline_tests.code_location import loaded_definitions  # noqa: E402
from affiliate_pipeline_tests.database import Database  # noqa: E402

# A slow machine must not fail a test. 25 examples suffice, because each run draws other ones.
hypothesis.settings.register_profile(
    "any_machine", max_examples=25, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any_machine")

# For sensors and schedules that a test evaluates without a code location.
RESOURCES = {"pipeline": pipeline_of_instance}


def pytest_sessionstart(session: pytest.Session) -> None:
    # Test modules are imported next. Some build definitions on import, which must not read the `.env` of this checkout.
    # With pytest-xdist, only the workers import them (in a worker, `dist` is "no"). The controller stays in its folder:
    # it starts the workers there, and they resolve the paths of the tests there.
    if session.config.getoption("dist", "no") == "no":
        os.chdir(isolation.EMPTY_FOLDER)


def pytest_collection_finish() -> None:
    # The garbage collector skips what exists by now: Dagster, pandas and the tests themselves are never freed.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def no_schema_version_in_memory() -> Iterator[None]:
    """Dagster need not record a schema version in an in-memory storage: that takes half as long as a run of an asset."""
    with pytest.MonkeyPatch.context() as patch:
        for storage in ("runs", "event_log"):
            patch.setattr(f"dagster._core.storage.{storage}.in_memory.stamp_alembic_rev", lambda *_: None)
        yield


@pytest.fixture(autouse=True)
def no_waiting_between_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "MAX_WAIT_S", 0.0)


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Start each test in its own empty project folder, without variables of an earlier test."""
    for name in os.environ.keys() - isolation.inherited(os.environ).keys():
        monkeypatch.delenv(name)
    monkeypatch.setattr(environment, "_on_embedded_storage", {})
    # `environment.root` finds the project folder by this file. Without it, that would be this checkout.
    (tmp_path / "workspace.yaml").touch()
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def postgres_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("postgres")
    with psycopg.connect(server.ensure_database(home, "test"), autocommit=True) as connection:
        # fsync and full_page_writes protect data from a crash of the machine, and tests kill only processes. fsync
        # takes a quarter of the time of an empty test.
        connection.execute("alter system set fsync = off")
        connection.execute("alter system set full_page_writes = off")
        connection.execute("alter system set autovacuum = off")
        connection.execute("select pg_reload_conf()")
    yield home
    server.stop(home)
    if found := cluster.read(home.resolve()):
        shutil.rmtree(found.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def session_database(postgres_home: Path) -> Iterator[Database]:
    with closing(Database(server.ensure_database(postgres_home, "test"))) as database:
        yield database


@pytest.fixture
def database_url(session_database: Database, request: pytest.FixtureRequest) -> str:
    """A database with all tables, without rows. It has no tables in a test that is marked with `empty_database`."""
    if request.node.get_closest_marker("empty_database"):
        session_database.clear()
    else:
        session_database.reset()
    return session_database.url


@pytest.fixture
def query(session_database: Database, database_url: str) -> Callable[..., list[tuple]]:
    """Runs SQL in the test's database and returns the rows."""
    return session_database.query


@pytest.fixture
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A copy of the project in which no command has run."""
    project = Project(tmp_path_factory.mktemp("fresh"))
    yield project
    project.remove()


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    with Webhook() as webhook:
        yield webhook


@dataclass
class Run:
    """The outcome of a run of one asset."""

    success: bool
    materialized: dict[date, Mapping[str, Any]]
    failed: dict[date, str]
    message: str
    events: list[dg.DagsterEvent] = field(repr=False, default_factory=list)


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch, database_url: str) -> Iterator[Sandbox]:
    """The sandbox. Binance is configured with its default account, and the database is that of the test."""
    with Sandbox(accounts=["acme"], rows_per_day=300) as exchange:
        monkeypatch.setenv("AFFILIATE_DATABASE_URL", database_url)
        for name, value in exchange.binance.variables(exchange.url).items():
            monkeypatch.setenv(name, value)
        yield exchange


@pytest.fixture
def both_exchanges(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    """The sandbox, configured as Binance and as LBank.

    The windows of LBank's rate limit, and of all rate limits of the client, are a thousand times shorter.
    """
    requests, window_ms = sandbox.lbank.rate_limit
    for account in sandbox.accounts.values():
        account.lbank.rate_limit = requests, window_ms // 1000
    monkeypatch.setenv("AFFILIATE_RATE_SCALE", "1000")
    for name, value in sandbox.lbank.variables(sandbox.url).items():
        monkeypatch.setenv(name, value)
    return sandbox


@pytest.fixture
def two_accounts(both_exchanges: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    """The sandbox, with a second account at both exchanges, whose alias is acme."""
    for name, value in both_exchanges.variables.items():
        monkeypatch.setenv(name, value)
    return both_exchanges


@pytest.fixture
def verified_keys(sandbox: Sandbox, query: Callable[..., list[tuple]]) -> None:
    """Records the configured keys as verified, as a first run does, so that no run of the test has to verify them."""
    if query("select to_regclass(%s)", KEY_TABLE) == [(None,)]:  # a test of an empty database
        return
    variables = environment.configured().variables
    of_each_key = {each.credentials: each for each in configured_catalog(variables).endpoints if each.probe}
    for endpoint in of_each_key.values():
        if variables.get(endpoint.credentials[0]):
            account = sandbox.accounts[endpoint.alias]
            uids = account.binance.uids
            identity = f"{uids[endpoint.role]}" if endpoint.role in uids else account.lbank.own_open_id
            session = endpoint.exchange.connect(endpoint, SharedState(), variables)
            session.client.close()
            key = session.identity.key
            query(
                f"insert into {KEY_TABLE} (exchange, role, alias, identity, fingerprint, first_seen, last_seen) "
                "values (%s, %s, %s, %s, %s, now(), now())",
                *(key.exchange, key.role, key.alias, identity, key.fingerprint),
            )


@cache
def instance_of_all_runs() -> dg.DagsterInstance:
    """One instance for the session, because creating one takes as long as a run."""
    return dg.DagsterInstance.ephemeral()


def materialize(key: str, days: Sequence[date], **config: bool) -> Run:
    """Run the asset over the (consecutive) days, as `dagster asset materialize` does."""
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
    # From the instance: the result lacks the events that a failing step has logged.
    events = [entry.dagster_event for entry in instance.all_logs(result.run_id) if entry.dagster_event]
    materialized = dict(
        _materialization(event) for event in events if event.is_step_materialization and event.asset_key == asset_key
    )
    failures = [event for event in events if event.is_step_failure]
    failed = {day: reason for failure in failures for day, reason in _reasons(failure).items()}
    errors = [failure.step_failure_data.error for failure in failures]
    message = "\n".join(error.message if error else "" for error in errors)
    return Run(result.success, materialized, failed, message, events)


def _materialization(event: dg.DagsterEvent) -> tuple[date, Mapping[str, Any]]:
    """The day and its metadata."""
    assert event.partition
    metadata = event.step_materialization_data.materialization.metadata
    return date.fromisoformat(event.partition), {name: value.value for name, value in metadata.items()}


def _reasons(failure: dg.DagsterEvent) -> dict[date, str]:
    """The reason for each failed day; empty after an unexpected error."""
    data = failure.step_failure_data.user_failure_data
    if data is None:
        return {}
    reasons = data.metadata["failed_partitions"].value
    assert isinstance(reasons, Mapping)
    return {date.fromisoformat(day): str(reason) for day, reason in reasons.items()}
