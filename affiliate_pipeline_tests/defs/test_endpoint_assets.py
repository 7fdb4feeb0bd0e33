"""What Dagster, the ledger and the table contain after a day has landed."""

import logging
import re
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal
from functools import reduce

import dagster as dg
import pytest

from affiliate_pipeline.definitions import build_definitions
from affiliate_pipeline.sandbox import Number
from affiliate_pipeline_tests.conftest import materialize
from affiliate_pipeline_tests.defs.conftest import run_rebates
from affiliate_pipeline_tests.defs.direct_runs import land
from affiliate_pipeline_tests.defs.rebates import (
    DAYS,
    KEY,
    SETTLED,
    YESTERDAY,
    at,
    landed,
    rebate,
    rebates,
    refusals,
    sent,
)

pytestmark = pytest.mark.usefixtures("verified_keys")

ASSET = dg.AssetKey(KEY.split("/"))


def test_a_day_lands_exactly(sandbox, query):
    run = materialize(KEY, [SETTLED])

    assert run.success
    assert list(run.materialized) == [SETTLED]
    assert landed(query, SETTLED) == sent(sandbox.binance.rebates(SETTLED))
    assert len(sandbox.binance.rebates(SETTLED)) > 30


def test_the_metadata_describes_the_rows_of_the_day(sandbox, query):
    rows = [
        rebate(at(SETTLED, "00:00:00.001"), 1, income="0.000000000000000001"),
        rebate(at(SETTLED, "07:00:00.000"), 2, income=Number("12345678901234567890.10")),
        rebate(at(SETTLED, "08:00:00.000"), 3, income="-0.30"),
        rebate(at(SETTLED, "23:59:59.999"), 4, income="1.50", asset="BNB"),
    ]
    sandbox.binance.set_rebates(rows)

    metadata = materialize(KEY, [SETTLED]).materialized[SETTLED]

    [(rows_in_ledger, content_hash, settled, source)] = query(
        "select rows, content_hash, settled, source from affiliate.landing"
    )
    assert metadata["dagster/partition_row_count"] == rows_in_ledger == 4
    assert list(metadata["sums"]) == ["income by asset"]
    sums = metadata["sums"]["income by asset"]
    assert all(isinstance(total, str) for total in sums.values())
    assert {asset: Decimal(total) for asset, total in sums.items()} == {
        "USDT": reduce(Context(prec=99).add, (Decimal(row["income"]) for row in rows[:3])),
        "BNB": Decimal("1.50"),
    }
    assert metadata["first"] == f"{SETTLED} 00:00:00.001000 UTC"
    assert metadata["last"] == f"{SETTLED} 23:59:59.999000 UTC"
    assert metadata["requests"] >= 1
    assert metadata["content_hash"] == content_hash
    assert metadata["settled"] is settled is True
    assert metadata["source"] == source
    assert metadata["changed"] is True
    assert metadata["kept"] is False


def test_the_description_explains_the_metadata_of_a_day():
    description = dict(build_definitions().get_assets_def(ASSET).descriptions_by_key)[ASSET]

    explained = {
        name for line in description.splitlines() if line.startswith("- ") for name in re.findall("`(.*?)`", line)
    }
    assert explained >= {"sums", "first", "last", "kept", "changed"}
    assert "the exact sum of `income` for each `asset`" in description


def test_each_event_of_a_run_has_a_millisecond_of_its_own(sandbox, instance, monkeypatch):
    # Dagster's UI shows only one of several events of an asset in the same millisecond.
    record_factory = logging.getLogRecordFactory()

    def at_a_fixed_time(*args, **kwargs):
        record = record_factory(*args, **kwargs)
        record.created = 1_700_000_000.0
        return record

    logging.setLogRecordFactory(at_a_fixed_time)
    try:
        run_id = run_rebates(instance, DAYS[:3])
    finally:
        logging.setLogRecordFactory(record_factory)

    entries = instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
    times = [int(entry.timestamp * 1000) for entry in entries]
    assert len(times) == 3
    assert times == sorted({*times})


def test_a_day_that_may_still_change_is_not_reported_as_settled(sandbox):
    run = land(KEY, DAYS)

    assert {day: outcome.settled for day, outcome in run.landed.items()} == {
        day: day <= datetime.now(UTC).date() - timedelta(days=3) for day in DAYS
    }


def test_every_row_contains_its_partition_and_run(sandbox, query):
    sandbox.binance.set_rebates([rebate(at(YESTERDAY))])

    land(KEY, [YESTERDAY])

    [(partition, run_id, landed_at, extra)] = query(
        "select partition_date, run_id, landed_at, extra from binance.rebate_recent_record"
    )
    assert partition == YESTERDAY
    assert query("select run_id, landed_at from affiliate.landing") == [(run_id, landed_at)]
    assert extra is None


def test_a_landed_day_without_changes_is_not_written_again(sandbox, query):
    sandbox.binance.set_rebates(rebates(SETTLED, 40) * 2)
    versions = "select xmin::text, ctid::text, landed_at, run_id from binance.rebate_recent_record order by ctid"
    ledger = "select rows, content_hash, landed_at, run_id from affiliate.landing"
    checked_at = "select checked_at from affiliate.landing"
    land(KEY, [SETTLED])
    before = query(versions), query(ledger), query(checked_at)

    sandbox.binance.newest_first = True
    run = land(KEY, [SETTLED])

    assert run.success
    assert run.landed[SETTLED].changed is False
    assert (query(versions), query(ledger)) == before[:2]
    assert query(checked_at) > before[2]


def test_a_day_without_rows_lands_with_none(sandbox, query):
    sandbox.binance.set_rebates([*rebates(DAYS[0], 3), *rebates(DAYS[2], 5)])

    run = land(KEY, DAYS[:3])

    assert run.success
    assert {day: outcome.stats.rows for day, outcome in run.landed.items()} == {DAYS[0]: 3, DAYS[1]: 0, DAYS[2]: 5}
    assert query("select rows, settled from affiliate.landing where partition = %s", DAYS[1]) == [(0, True)]


def test_an_empty_day_clears_the_day_and_no_other(sandbox, query):
    others = rebates(DAYS[-2], 4)
    sandbox.binance.set_rebates([*others, *rebates(YESTERDAY, 6)])
    land(KEY, DAYS[-2:])

    sandbox.binance.set_rebates(others)
    run = land(KEY, [YESTERDAY])

    assert run.success
    assert landed(query, YESTERDAY) == sent([])
    assert landed(query, DAYS[-2]) == sent(others)


def test_fields_filled_in_later_replace_their_nulls(sandbox, query):
    rows = rebates(YESTERDAY, 30)
    sandbox.binance.set_rebates(rows)
    land(KEY, [YESTERDAY])
    paid = {"distributeTime": at(YESTERDAY), "commissionAsset": "BNB", "commission": "0.10", "convertPrice": "611.950"}

    sandbox.binance.set_rebates([row | paid for row in rows])
    run = land(KEY, [YESTERDAY])

    assert run.landed[YESTERDAY].changed is True
    assert landed(query, YESTERDAY) == sent(row | paid for row in rows)


def test_an_unknown_field_lands_in_extra_and_is_reported(sandbox, query, caplog):
    first, second, third = rebates(YESTERDAY, 3)
    first |= {"tier": "gold", "bonus": Number("0.10")}
    second |= {"tier": None}
    sandbox.binance.set_rebates([first, second, third])

    with caplog.at_level(logging.WARNING):
        run = materialize(KEY, [YESTERDAY])

    assert run.success
    assert run.materialized[YESTERDAY]["unknown_fields"] == {"tier": 2, "bonus": 1}
    assert query("select extra->>'tier', extra->>'bonus' from binance.rebate_recent_record order by time") == [
        ("gold", "0.10"),
        (None, None),
        (None, None),
    ]
    assert landed(query, YESTERDAY) == sent([first, second, third])
    assert any(
        f"{KEY} {YESTERDAY}" in record.getMessage() and "tier (2 rows)" in record.getMessage()
        for record in caplog.records
        if record.levelno == logging.WARNING
    )


@pytest.mark.parametrize("offset_ms", [90_000, -90_000])
def test_a_clock_offset_is_corrected_after_one_refusal(sandbox, query, offset_ms):
    rows = rebates(SETTLED, 10)
    sandbox.binance.set_rebates(rows)
    sandbox.faults.clock_offset_ms = offset_ms

    run = land(KEY, [SETTLED])

    assert run.success
    assert landed(query, SETTLED) == sent(rows)
    assert [request.code for request in refusals(sandbox)] == [-1021]
