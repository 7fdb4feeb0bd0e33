"""What tests of assets share: an endpoint declared otherwise, and that nothing secret is told, which all of them assert
of every event, log record and table."""

import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from affiliate_pipeline_tests.code_location import loaded_definitions
from affiliate_pipeline_tests.defs.rebates import EMAIL, ENDPOINT, KEY


@pytest.fixture(autouse=True)
def nothing_secret_is_told(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """No key, secret, signature or full email stands in any event of a run or in any log record, at any level."""
    sandbox = request.getfixturevalue("sandbox") if "sandbox" in request.fixturenames else None
    tables = request.getfixturevalue("query") if sandbox else None
    told: list[str] = []
    run = dg.materialize

    def overheard(*args: Any, instance: dg.DagsterInstance, **kwargs: Any) -> dg.ExecuteInProcessResult:
        result = run(*args, instance=instance, **kwargs)
        told.extend(dg.serialize_value(entry) for entry in instance.all_logs(result.run_id))
        return result

    monkeypatch.setattr(dg, "materialize", overheard)
    caplog.set_level(logging.DEBUG)
    yield
    for record in caplog.get_records("call"):
        told += [record.getMessage(), record.exc_text or ""]
    secrets: set[str] = set()
    if sandbox and tables:
        secrets |= {*sandbox.binance.accounts, *sandbox.binance.accounts.values()}
        secrets |= {*sandbox.lbank.accounts, *sandbox.lbank.accounts.values()}
        secrets |= {
            value for sent in sandbox.requests for name in ("sign", "signature") if (value := sent.params.get(name))
        }
        rows = (
            "select string_agg(format('select %%L, t::text from %%I.%%I t', relname, nspname, relname), ' union all ')"
        )
        rows += " from pg_class c join pg_namespace n on n.oid = relnamespace"
        rows += " where relkind = 'r' and nspname !~ '^pg_' and nspname <> 'information_schema'"
        [(every_row,)] = tables(rows)
        if every_row:
            found = tables(every_row)
            assert [row for row in found if any(secret in row[1] for secret in secrets)] == []
            # Rows as received hold what the exchange sent; nothing else may.
            told += [row for table, row in found if table in ("alert", "landing", "lease", "watch", "unknown_field")]
    everything = "\n".join(told)
    assert [secret for secret in secrets | {EMAIL} if secret in everything] == []


@pytest.fixture
def declare(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Declares the endpoint of the rebates with these fields in place of its own."""
    return lambda **fields: monkeypatch.setattr(
        "affiliate_pipeline.definitions.ENDPOINTS", (replace(ENDPOINT, **fields),)
    )


@pytest.fixture
def instance(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[dg.DagsterInstance]:
    """One in memory; with the parameter "dagster.yaml" the real one, in the test's database, which takes long."""
    monkeypatch.setenv("AFFILIATE_DATABASE_URL", database_url)
    if getattr(request, "param", None) == "dagster.yaml":
        shutil.copyfile(Path(__file__).parents[2] / "dagster.yaml", tmp_path / "dagster.yaml")
        made = dg.DagsterInstance.from_config(str(tmp_path))
    else:
        made = dg.DagsterInstance.ephemeral()
    with made as instance:
        yield instance


def materialized(instance: dg.DagsterInstance, days: list[date], *more: dg.AssetsDefinition) -> str:
    """The id of a run over the days."""
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
