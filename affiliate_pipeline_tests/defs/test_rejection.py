"""Invalid rows fail their day, are stored as received, and land once they or the schema are corrected."""

import json
from collections import Counter

import pytest

from affiliate_pipeline.exchanges.binance.schemas import RebateRecentRecord
from affiliate_pipeline.sandbox import Number
from affiliate_pipeline.schema.columns import bigint
from affiliate_pipeline_tests.conftest import materialize
from affiliate_pipeline_tests.defs.direct_runs import land
from affiliate_pipeline_tests.defs.rebates import (
    DAYS,
    EMAIL,
    KEY,
    SETTLED,
    YESTERDAY,
    ago,
    at,
    landed,
    rebate,
    rebates,
    sent,
    with_row_limit,
)

pytestmark = pytest.mark.usefixtures("verified_keys")

GOOD, BAD = DAYS[0], DAYS[1]


def rejected(query, day) -> Counter:
    """The day's rejected rows, each as sorted JSON with its decimals as text."""
    stored = query("select payload::text from affiliate.rejected_row where asset = %s and partition = %s", KEY, day)
    rows = [json.loads(payload, parse_float=str) for (payload,) in stored]
    # A row that jsonb cannot represent exactly is stored as a JSON string of its text.
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


def test_invalid_rows_fail_their_day_alone(sandbox, query):
    # A day per case: the oldest days are beyond the retention that the exchange promises.
    sandbox.binance.retention_ms = None
    day_of = {name: ago(number) for number, name in enumerate(INVALID, start=2)}
    days = [*sorted(day_of.values()), YESTERDAY]
    had_landed = {day: rebates(day, 5) for day in days}
    sandbox.binance.set_rebates(row for day in days for row in had_landed[day])
    assert land(KEY, days, trust_old=True).success
    good = rebates(YESTERDAY, 40)
    bad = {
        name: [invalidate(row) if number in (0, 7, 39) else row for number, row in enumerate(rebates(day_of[name], 40))]
        for name, (invalidate, _) in INVALID.items()
    }
    sandbox.binance.set_rebates([*good, *(row for rows in bad.values() for row in rows)])

    run = land(KEY, days, trust_old=True)

    assert not run.success
    assert sorted(run.failed) == days[:-1]
    assert list(run.landed) == [YESTERDAY]
    assert landed(query, YESTERDAY) == sent(good)
    texts = ("affiliate.rejected_row", "from_rejected", "What landed at", "(5 rows) is unchanged")
    stored_reasons = dict(query("select partition, min(reason) from affiliate.rejected_row group by 1"))
    for name, (_, problem) in INVALID.items():
        day = day_of[name]
        reason = run.failed[day]
        assert [text for text in (problem, *texts) if text not in reason] == [], name
        assert problem in stored_reasons[day] and EMAIL not in stored_reasons[day], name
        assert landed(query, day) == sent(had_landed[day]), name
        assert rejected(query, day) == received(bad[name]), name
    [(distinct,)] = query("select count(distinct (partition, reason)) from affiliate.rejected_row")
    assert distinct == len(INVALID)


def test_every_invalid_column_is_reported(sandbox):
    first, second, third = rebates(SETTLED, 3)
    sandbox.binance.set_rebates(
        [without(first, "asset"), second | {"income": "x"}, third | {"income": "y", "tradeId": None}]
    )

    reason = land(KEY, [SETTLED]).failed[SETTLED]

    assert "asset: the field is missing in 1 row" in reason
    assert "income: not a decimal number in 2 rows" in reason
    assert "trade_id: null in 1 row" in reason


def test_invalid_rows_are_counted_over_the_whole_day(sandbox, declare, monkeypatch):
    # Two pages, and one block per page.
    declare(strategy=with_row_limit(50))
    monkeypatch.setattr("affiliate_pipeline.landing.blocks.BLOCK_BYTES", 1)
    sandbox.binance.set_rebates(without(row, "asset") for row in rebates(SETTLED, 70))

    assert "asset: the field is missing in 70 rows" in land(KEY, [SETTLED]).failed[SETTLED]


NOT_IN_MILLISECONDS = {
    "missing": lambda row: without(row, "time"),
    "fraction": lambda row: row | {"time": Number(f"{row['time']}.5")},
    "null": lambda row: row | {"time": None},
}


def test_a_time_that_is_not_in_milliseconds_fails_its_day_alone(sandbox, query, declare):
    declare(strategy=with_row_limit(100))
    good, *bad = DAYS[:4]
    rows = {day: rebates(day, 140) for day in DAYS[:4]}
    sandbox.binance.set_rebates(row for day in rows for row in rows[day])
    invalidate = {rows[day][3]["time"]: each for day, each in zip(bad, NOT_IN_MILLISECONDS.values(), strict=True)}

    def transform(row):
        return invalidate[row["time"]](row) if row["time"] in invalidate else row

    sandbox.faults.transform_row = transform
    run = land(KEY, DAYS[:4])
    refused = land(KEY, bad, from_rejected=True)

    assert sorted(run.failed) == bad
    assert list(run.landed) == [good]
    assert landed(query, good) == sent(rows[good])
    for name, day in zip(NOT_IN_MILLISECONDS, bad, strict=True):
        assert "`time` is missing or not in milliseconds" in run.failed[day], name
        # One page is not the whole day: its rows are stored, but cannot land as the day.
        assert rejected(query, day) == received(transform(row) for row in rows[day][:100]), name
        assert "affiliate.rejected_row has only a part of the day" in refused.failed[day], name
        assert landed(query, day) == sent([]), name
    stored = query("select distinct partition, complete from affiliate.rejected_row order by 1")
    assert stored == [(day, False) for day in bad]


def test_the_rejected_rows_of_several_pages_are_stored_once(sandbox, query, declare):
    declare(strategy=with_row_limit(50))
    rows = rebates(BAD, 70)
    sandbox.binance.set_rebates(rows)
    bad_time = rows[65]["time"]

    def transform(row):
        return row | {"time": "soon"} if row["time"] == bad_time else row

    sandbox.faults.transform_row = transform
    run = land(KEY, [BAD])

    assert "`time` is missing or not in milliseconds" in run.failed[BAD]
    assert rejected(query, BAD) == received(map(transform, rows))
    # A later run that receives no rows leaves them unchanged.
    sandbox.faults.fail_day(BAD, status=400, code=-1102)
    assert BAD in land(KEY, [BAD]).failed
    assert rejected(query, BAD) == received(map(transform, rows))


# Landing what was rejected


def test_corrected_rejected_rows_land(sandbox, query):
    rows = [*rebates(BAD, 20), rebate(at(BAD), 1, income=Number("0.10"))]
    sandbox.binance.set_rebates([rows[0] | {"income": "lots"}, *rows[1:]])
    land(KEY, [BAD])
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
    land(KEY, [BAD])

    run = land(KEY, [BAD], from_rejected=True)

    assert "income: not a decimal number in 4 rows" in run.failed[BAD]
    assert rejected(query, BAD) == received(rows)


class TradeIdMayBeMissing(RebateRecentRecord):
    trade_id = bigint("The trade's id.", optional=True)


def test_rejected_rows_land_once_the_missing_field_is_declared_optional(sandbox, query, declare):
    cases = {"missing": without(rebate(at(DAYS[0]), 1), "tradeId"), "null": rebate(at(DAYS[1]), 1, tradeId=None)}
    rows = {day: [row, rebate(at(day), 2)] for day, row in zip(DAYS[:2], cases.values(), strict=True)}
    sandbox.binance.set_rebates(row for day in rows for row in rows[day])
    rejected_run = land(KEY, DAYS[:2])
    assert all("trade_id" in rejected_run.failed[day] for day in rows)

    declare(schema=TradeIdMayBeMissing)
    run = land(KEY, DAYS[:2], from_rejected=True)

    assert run.success, run.message
    found = {name: landed(query, day) for name, day in zip(cases, rows, strict=True)}
    assert found == {name: sent(rows[day]) for name, day in zip(cases, rows, strict=True)}
    assert query("select count(*) from affiliate.rejected_row") == [(0,)]


def test_a_day_without_rejected_rows_fails_with_from_rejected(sandbox, verified_keys, query):
    run = land(KEY, [GOOD], from_rejected=True)

    assert "has no rows of it" in run.failed[GOOD]
    assert query("select * from affiliate.landing") == []
    assert sandbox.requests == []


def test_a_day_that_lands_later_has_no_rejected_rows(sandbox, query):
    sandbox.binance.set_rebates([rebate(at(YESTERDAY), income="lots")])
    land(KEY, [YESTERDAY])

    sandbox.binance.set_rebates([rebate(at(YESTERDAY))])
    land(KEY, [YESTERDAY])

    assert query("select count(*) from affiliate.rejected_row") == [(0,)]


def test_rows_rejected_before_their_day_settled_do_not_settle_it(sandbox, query):
    sandbox.binance.set_rebates([rebate(at(SETTLED), income="lots")])
    land(KEY, [SETTLED])
    query("""update affiliate.rejected_row set payload = jsonb_set(payload, '{income}', '"1.0"'),
          rejected_at = (partition + 1)::timestamptz + interval '1 hour'""")

    run = land(KEY, [SETTLED], from_rejected=True)

    assert run.landed[SETTLED].settled is False


def test_rejected_rows_of_another_source_do_not_land(sandbox, query):
    sandbox.binance.set_rebates([rebate(at(BAD), income="lots")])
    land(KEY, [BAD])
    query(
        """update affiliate.rejected_row set payload = jsonb_set(payload, '{income}', '"1.0"'), source = 'another host'"""
    )

    run = land(KEY, [BAD], from_rejected=True)

    assert "the source of its rejected rows is" in run.failed[BAD]
    assert query("select * from affiliate.landing") == []


# Texts that COPY or jsonb cannot represent without an escape


def test_texts_with_delimiters_of_copy_land_unchanged(sandbox, query):
    texts = ["a\n\\.\nb@example.com", "\\.", '"', ",", "\r"]
    rows = {day: [rebate(at(day), 1, email=text), *rebates(day, 3)] for day, text in zip(DAYS, texts, strict=True)}
    sandbox.binance.set_rebates(row for day in DAYS for row in rows[day])

    run = land(KEY, DAYS)

    assert run.success, run.message
    found = {text: landed(query, day) for text, day in zip(texts, DAYS, strict=True)}
    assert found == {text: sent(rows[day]) for text, day in zip(texts, DAYS, strict=True)}


def test_an_unknown_field_that_jsonb_cannot_represent_lands_as_its_json_text(sandbox, query):
    sandbox.binance.set_rebates([*rebates(GOOD, 5), rebate(at(BAD), 1, note="A\0B", rank=7)])

    run = land(KEY, [GOOD, BAD])

    assert run.success, run.message
    [(note, rank)] = query(
        "select extra->'note'->>'$json', extra->>'rank' from binance.rebate_recent_record where partition_date = %s",
        BAD,
    )
    assert (json.loads(note), rank) == ("A\0B", "7")
