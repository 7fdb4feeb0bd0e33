"""What tests of assets share: an endpoint declared otherwise, and that nothing secret is told, which all of them assert."""

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
    secrets = {EMAIL}
    if sandbox:
        secrets |= {*sandbox.binance.accounts, *sandbox.binance.accounts.values()}
        secrets |= {sent.params["signature"] for sent in sandbox.requests if "signature" in sent.params}
    everything = "\n".join(told)
    assert [secret for secret in secrets if secret in everything] == []


@pytest.fixture
def declare(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Declares the endpoint of the rebates with these fields in place of its own."""
    return lambda **fields: monkeypatch.setattr(
        "affiliate_pipeline.definitions.ENDPOINTS", (replace(ENDPOINT, **fields),)
    )
