"""Invalid rows fail their day, are stored as received, and land once they or the schema are corrected."""

import json
from collections import Counter

import pytest

from affiliate_pipeline.exchanges.binance.schemas import RebateRecentRecord
from affiliate_pipeline.sandbox import Number
from affiliate_pipeline.schema.columns import BigInt, bigint
from affiliate_pipeline_tests.conftest import materialize
from affiliate_pipeline_tests.defs.rebates import (
    DAYS,
    EMAIL,
    KEY,
    SETTLED,
    YESTERDAY,
    at,
    landed,
    rebate,
    rebates,
    sent,
    use_another_account,
)

GOOD, BAD = DAYS[0], DAYS[1]


def rejected(query, day) -> Counter:
    """The day's rejected rows, each as sorted JSON with its decimals as text."""
    stored = query("select payload::text from affiliate.rejected_row where asset = %s and partition = %s", KEY, day)
    rows = [json.loads(payload, parse_float=str) for (payload,) in stored]
    # If jsonb cannot represent one of the rows, all of them are stored as JSON strings.
    return received(json.loads(row, parse_float=str) if isinstance(row, str) else row for row in rows)


def received(rows) -> Counter:
    """These rows in the form of `rejected`."""
    return Counter(json.dumps(row, sort_keys=True) for row in rows)


def without(row, name):
    return {key: value for key, value in row.items() if key != name}


INVALID = {
    "missing": (lambda row: without(row, "tradeId"), "trade_id: the field is missing in 3 rows"),
    "null": (lambda row: row | {"income": None}, "income: null in 3 rows"),
    "not a number": (
        lambda row: row | {"income": "lots"},
        "income: not a decimal number in 3 rows, such as 'lots'",
    ),
    "empty": (lambda row: row | {"income": ""}, "income: not a decimal number in 3 rows"),
    "NaN": (lambda row: row | {"income": "NaN"}, "income: not a decimal number in 3 rows, such as 'NaN'"),
    "a huge exponent": (
        lambda row: row | {"income": Number("1e200000")},
        "income: not a decimal number in 3 rows, such as '1e200000'",
    ),
    "an object": (lambda row: row | {"income": {"of": EMAIL}}, "income: not a decimal number in 3 rows"),
    "a flag": (lambda row: row | {"income": True}, "income: not a decimal number in 3 rows"),
    "an email": (lambda row: row | {"income": EMAIL}, "income: not a decimal number in 3 rows, such as 'so***@"),
    "not whole": (
        lambda row: row | {"orderId": Number("1.5")},
        "order_id: not a whole number of 64 bits in 3 rows, such as '1.5'",
    ),
    "too large": (lambda row: row | {"orderId": 2**63}, "order_id: not a whole number of 64 bits in 3 rows"),
    "NUL": (lambda row: row | {"symbol": "A\0B"}, "symbol: not a text that can be stored in 3 rows"),
}


@pytest.mark.parametrize(("invalidate", "problem"), INVALID.values(), ids=INVALID)
def test_invalid_rows_fail_their_day_alone(sandbox, query, invalidate, problem):
    had_landed = {day: rebates(day, 5) for day in (GOOD, BAD)}
    sandbox.binance.set_rebates(row for day in had_landed for row in had_landed[day])
    materialize(KEY, [GOOD, BAD])
    good = rebates(GOOD, 40)
    bad = [invalidate(row) if number in (0, 7, 39) else row for number, row in enumerate(rebates(BAD, 40))]
    sandbox.binance.set_rebates([*good, *bad])

    run = materialize(KEY, [GOOD, BAD])

    assert not run.success
    assert list(run.failed) == [BAD]
    assert problem in run.failed[BAD]
    assert run.failed[BAD] in run.message
    assert "affiliate.rejected_row" in run.failed[BAD] and "from_rejected" in run.failed[BAD]
    assert "The 5 rows landed at" in run.failed[BAD] and "are unchanged" in run.failed[BAD]
    assert landed(query, BAD) == sent(had_landed[BAD])
    assert list(run.materialized) == [GOOD]
    assert landed(query, GOOD) == sent(good)
    assert rejected(query, BAD) == received(bad)
    [(reason,)] = query("select distinct reason from affiliate.rejected_row")
    assert problem in reason and EMAIL not in reason


def test_every_invalid_column_is_reported(sandbox):
    first, second, third = rebates(SETTLED, 3)
    sandbox.binance.set_rebates(
        [without(first, "asset"), second | {"income": "x"}, third | {"income": "y", "tradeId": None}]
    )

    reason = materialize(KEY, [SETTLED]).failed[SETTLED]

    assert "asset: the field is missing in 1 row" in reason
    assert "income: not a decimal number in 2 rows" in reason
    assert "trade_id: null in 1 row" in reason


def test_invalid_rows_are_counted_over_the_whole_day(sandbox, monkeypatch):
    # One block per row.
    monkeypatch.setattr("affiliate_pipeline.landing.prepare.BLOCK_BYTES", 1)
    sandbox.binance.set_rebates(without(row, "asset") for row in rebates(SETTLED, 700))

    assert "asset: the field is missing in 700 rows" in materialize(KEY, [SETTLED]).failed[SETTLED]


@pytest.mark.parametrize(
    "spelled", [None, lambda ms: Number(f"{ms}.5"), lambda ms: None], ids=["missing", "fraction", "null"]
)
def test_a_time_that_is_not_in_milliseconds_fails_its_day_alone(sandbox, query, spelled):
    rows = {day: rebates(day, 700) for day in (GOOD, BAD)}
    sandbox.binance.set_rebates(row for day in rows for row in rows[day])
    bad_time = rows[BAD][3]["time"]

    def transform(row):
        if row["time"] != bad_time:
            return row
        return row | {"time": spelled(bad_time)} if spelled else without(row, "time")

    sandbox.faults.transform_row = transform
    run = materialize(KEY, [GOOD, BAD])

    assert list(run.failed) == [BAD]
    assert "`time` is missing or not in milliseconds" in run.failed[BAD]
    assert list(run.materialized) == [GOOD]
    assert landed(query, GOOD) == sent(rows[GOOD])
    # One page is not the whole day: its rows are stored, but cannot land as the day.
    assert rejected(query, BAD) == received(transform(row) for row in rows[BAD][:500])
    assert query("select distinct partition, complete from affiliate.rejected_row") == [(BAD, False)]
    refused = materialize(KEY, [BAD], from_rejected=True)
    assert "affiliate.rejected_row has only a part of the day" in refused.failed[BAD]
    assert landed(query, BAD) == sent([])


def test_the_rejected_rows_of_several_pages_are_stored_once(sandbox, query):
    rows = rebates(BAD, 700)
    sandbox.binance.set_rebates(rows)
    bad_time = rows[650]["time"]

    def transform(row):
        return row | {"time": "soon"} if row["time"] == bad_time else row

    sandbox.faults.transform_row = transform
    run = materialize(KEY, [BAD])

    assert "`time` is missing or not in milliseconds" in run.failed[BAD]
    assert rejected(query, BAD) == received(map(transform, rows))
    # A smaller part of the day does not replace them.
    sandbox.faults.fail_day(BAD, status=400, code=-1102)
    assert BAD in materialize(KEY, [BAD]).failed
    assert rejected(query, BAD) == received(map(transform, rows))


# Landing what was rejected


def test_corrected_rejected_rows_land(sandbox, query):
    rows = [*rebates(BAD, 1_100), rebate(at(BAD), 1, income=Number("0.10"))]
    sandbox.binance.set_rebates([rows[0] | {"income": "lots"}, *rows[1:]])
    materialize(KEY, [BAD])
    query(
        "update affiliate.rejected_row set payload = jsonb_set(payload, '{income}', to_jsonb(%s::text)) "
        "where payload->>'income' = 'lots'",
        rows[0]["income"],
    )
    sandbox.requests.clear()

    run = materialize(KEY, [BAD], from_rejected=True)

    assert run.success, run.message
    assert landed(query, BAD) == sent(rows)
    assert run.materialized[BAD]["dagster/partition_row_count"] == len(rows)
    assert query("select count(*) from affiliate.rejected_row") == [(0,)]
    assert sandbox.requests == []


def test_uncorrected_rejected_rows_stay_rejected(sandbox, query):
    rows = [row | {"income": "lots"} for row in rebates(BAD, 4)]
    sandbox.binance.set_rebates(rows)
    materialize(KEY, [BAD])

    run = materialize(KEY, [BAD], from_rejected=True)

    assert "income: not a decimal number in 4 rows" in run.failed[BAD]
    assert rejected(query, BAD) == received(rows)


class TradeIdMayBeMissing(RebateRecentRecord):
    trade_id: BigInt = bigint("The trade's id.", optional=True)


@pytest.mark.parametrize("invalidate", [lambda row: without(row, "tradeId"), lambda row: row | {"tradeId": None}])
def test_rejected_rows_land_once_the_missing_field_is_declared_optional(sandbox, query, declare, invalidate):
    rows = [invalidate(rebate(at(BAD), 1)), rebate(at(BAD), 2)]
    sandbox.binance.set_rebates(rows)
    assert "trade_id" in materialize(KEY, [BAD]).failed[BAD]

    declare(schema=TradeIdMayBeMissing)
    run = materialize(KEY, [BAD], from_rejected=True)

    assert run.success, run.message
    assert landed(query, BAD) == sent(rows)
    assert query("select count(*) from affiliate.rejected_row") == [(0,)]


def test_a_day_without_rejected_rows_fails_with_from_rejected(sandbox, query):
    run = materialize(KEY, [GOOD], from_rejected=True)

    assert "has no rows of it" in run.failed[GOOD]
    assert query("select * from affiliate.landing") == []
    assert sandbox.requests == []


def test_a_day_that_lands_later_has_no_rejected_rows(sandbox, query):
    sandbox.binance.set_rebates([rebate(at(YESTERDAY), income="lots")])
    materialize(KEY, [YESTERDAY])

    sandbox.binance.set_rebates([rebate(at(YESTERDAY))])
    materialize(KEY, [YESTERDAY])

    assert query("select count(*) from affiliate.rejected_row") == [(0,)]


def test_rows_rejected_before_their_day_settled_do_not_settle_it(sandbox, query):
    sandbox.binance.set_rebates([rebate(at(SETTLED), income="lots")])
    materialize(KEY, [SETTLED])
    query("""update affiliate.rejected_row set payload = jsonb_set(payload, '{income}', '"1.0"'),
          rejected_at = (partition + 1)::timestamptz + interval '1 hour'""")

    run = materialize(KEY, [SETTLED], from_rejected=True)

    assert run.materialized[SETTLED]["settled"] is False


def test_rejected_rows_of_another_source_do_not_land(sandbox, query, monkeypatch):
    sandbox.binance.set_rebates([rebate(at(BAD), income="lots")])
    materialize(KEY, [BAD])
    query("""update affiliate.rejected_row set payload = jsonb_set(payload, '{income}', '"1.0"')""")
    use_another_account(sandbox, monkeypatch)

    run = materialize(KEY, [BAD], from_rejected=True)

    assert "the source of its rejected rows is" in run.failed[BAD]
    assert query("select * from affiliate.landing") == []


# Texts that COPY or jsonb cannot represent without an escape


@pytest.mark.parametrize("text", ["a\n\\.\nb@example.com", "\\.", '"', ",", "\r"])
def test_texts_with_delimiters_of_copy_land_unchanged(sandbox, query, text):
    rows = [rebate(at(GOOD), 1, email=text), *rebates(GOOD, 3)]
    sandbox.binance.set_rebates(rows)

    run = materialize(KEY, [GOOD])

    assert run.success, run.message
    assert landed(query, GOOD) == sent(rows)


def test_an_unknown_field_that_jsonb_cannot_represent_lands_as_its_json_text(sandbox, query):
    sandbox.binance.set_rebates([*rebates(GOOD, 5), rebate(at(BAD), 1, note="A\0B", rank=7)])

    run = materialize(KEY, [GOOD, BAD])

    assert run.success, run.message
    [(note, rank)] = query(
        "select extra->'note'->>'$json', extra->>'rank' from binance.rebate_recent_record where partition_date = %s",
        BAD,
    )
    assert (json.loads(note), rank) == ("A\0B", "7")
