"""What tests of assets share: an endpoint declared otherwise, and that nothing secret is told, which all of them assert
of every event, log record and table."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import dagster as dg
import pytest

from affiliate_pipeline_tests.defs.rebates import EMAIL, ENDPOINT


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
