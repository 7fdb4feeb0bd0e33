"""Fixtures for tests of assets, and an assertion after each test that no secret was recorded or logged."""

import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from affiliate_pipeline.exchanges.registry import Catalog
from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline_tests.code_location import loaded_definitions
from affiliate_pipeline_tests.defs.rebates import EMAIL, ENDPOINT, KEY


@pytest.fixture
def sandbox(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, database_url: str) -> Iterator[Sandbox]:
    """Like `sandbox` of other folders, with fewer rows and users; a second account only in tests of two accounts."""
    aliases = ["acme"] if "two_accounts" in request.fixturenames else []
    with Sandbox(accounts=aliases, rows_per_day=40, users=12) as exchange:
        monkeypatch.setenv("AFFILIATE_DATABASE_URL", database_url)
        for name, value in exchange.binance.variables(exchange.url).items():
            monkeypatch.setenv(name, value)
        yield exchange


@pytest.fixture(autouse=True)
def no_secret_is_recorded(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Assert that no run event and no log record of any level contains a key, secret, signature or full email.

    In a test with a sandbox, all tables are searched for keys, secrets and signatures. Some of the tables that contain
    no received rows are searched for full emails.
    """
    sandbox = request.getfixturevalue("sandbox") if "sandbox" in request.fixturenames else None
    query = request.getfixturevalue("query") if sandbox else None
    texts: list[str] = []
    materialize = dg.materialize

    def recording(*args: Any, instance: dg.DagsterInstance, **kwargs: Any) -> dg.ExecuteInProcessResult:
        result = materialize(*args, instance=instance, **kwargs)
        texts.extend(dg.serialize_value(entry) for entry in instance.all_logs(result.run_id))
        return result

    monkeypatch.setattr(dg, "materialize", recording)
    caplog.set_level(logging.DEBUG)
    yield
    for record in caplog.get_records("call"):
        texts += [record.getMessage(), record.exc_text or ""]
    secrets: set[str] = set()
    if sandbox and query:
        secrets |= sandbox.secrets
        secrets |= {
            value
            for received in sandbox.requests
            for name in ("sign", "signature")
            if (value := received.params.get(name))
        }
        [(select_all_rows,)] = query(
            "select string_agg(format('select %%L, t::text from %%I.%%I t', relname, nspname, relname), ' union all ')"
            " from pg_class c join pg_namespace n on n.oid = relnamespace"
            " where relkind = 'r' and nspname !~ '^pg_|^information_schema$' and pg_relation_size(c.oid) > 0"
        )
        if select_all_rows:
            stored = query(select_all_rows)
            everything_stored = "\n".join(row for _, row in stored)
            assert [secret for secret in secrets if secret in everything_stored] == []
            # Tables of received rows contain full emails, so only tables without received rows are searched for them.
            texts += [row for table, row in stored if table in ("alert", "landing", "lease", "watch", "unknown_field")]
    everything = "\n".join(texts)
    assert [secret for secret in secrets | {EMAIL} if secret in everything] == []


@pytest.fixture
def declare(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replace fields of the rebate endpoint's declaration."""
    return lambda **fields: monkeypatch.setattr(
        "affiliate_pipeline.definitions.configured_catalog", lambda _: Catalog((replace(ENDPOINT, **fields),))
    )


@pytest.fixture
def instance(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[dg.DagsterInstance]:
    """An ephemeral instance; with the parameter "dagster.yaml", the slower one on the test's database."""
    monkeypatch.setenv("AFFILIATE_DATABASE_URL", database_url)
    if getattr(request, "param", None) == "dagster.yaml":
        shutil.copyfile(Path(__file__).parents[2] / "dagster.yaml", tmp_path / "dagster.yaml")
        created = dg.DagsterInstance.from_config(str(tmp_path))
    else:
        created = dg.DagsterInstance.ephemeral()
    with created as instance:
        yield instance


def run_rebates(instance: dg.DagsterInstance, days: list[date], *more: dg.AssetsDefinition) -> str:
    """Run the rebate asset over the days, and return the run's id."""
    definitions = loaded_definitions()
    result = dg.materialize(
        [definitions.get_assets_def(dg.AssetKey(KEY.split("/"))), *more],
        instance=instance,
        resources=definitions.resources,
        tags={
            "dagster/asset_partition_range_start": f"{days[0]}",
            "dagster/asset_partition_range_end": f"{days[-1]}",
        },
        raise_on_error=False,
    )
    return result.run_id
