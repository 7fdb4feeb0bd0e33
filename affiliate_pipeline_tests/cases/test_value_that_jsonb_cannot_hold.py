"""Case value-that-jsonb-cannot-hold: a value of an unknown field that jsonb rejects or changes lands as JSON text."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

from affiliate_pipeline.schema.decode import parse
from affiliate_pipeline_tests.cases.sandbox_responses import moved, rows_of, send, with_fields
from affiliate_pipeline_tests.defs.direct_runs import land
from affiliate_pipeline_tests.defs.rebates import DAYS, ENDPOINT, KEY

CASE = (Path(__file__).parent / "value-that-jsonb-cannot-hold" / "answer.json").read_bytes()
DAY = DAYS[0]
DEEP = b"[" * 5000 + b"]" * 5000


def test_both_rows_land_and_the_value_can_be_read_back(sandbox, query, monkeypatch):
    send(sandbox, monkeypatch, [moved(row, DAY) for row in rows_of(CASE)])

    run = land(KEY, [DAY])

    assert run.success, run.message
    assert query("select trade_id, income::text from binance.rebate_recent_record order by 1") == [
        (1, "0.1"),
        (2, "0.2"),
    ]
    [(text,)] = query("select extra->'note'->>'$json' from binance.rebate_recent_record where trade_id = 2")
    assert json.loads(text) == "a\0b"
    assert land(KEY, [DAY]).landed[DAY].changed is False


# The unknown field, its name in the table, and its value as received.
REJECTED_OR_CHANGED = [
    (rb'"note":"\u0000"', "note", rb'"\u0000"'),
    (rb'"note":["a",{"b":"\\\u0000"}]', "note", rb'["a",{"b":"\\\u0000"}]'),
    (rb'"no\u0000te":1', r"no\u0000te", b"1"),
    (rb'"note":{"no\u0000te":1}', "note", rb'{"no\u0000te":1}'),
    (b'"note":1e400000', "note", b"1e400000"),
    (b'"note":[-1E-400000]', "note", b"[-1E-400000]"),
    (b'"note":1e99999999999999999999', "note", b"1e99999999999999999999"),
    (b'"note":' + b"9" * 140_000, "note", b"9" * 140_000),
    (b'"note":0.' + b"1" * 17_000, "note", b"0." + b"1" * 17_000),
    (b'"note":0.' + b"1" * 15_900 + b"e-999", "note", b"0." + b"1" * 15_900 + b"e-999"),
    (b'"note":1,"note":2', "note", b"1,2"),
    (b'"note":{"a":1,"a":1.0}', "note", b'{"a":1,"a":1.0}'),
    (rb'"note":{"$json":"1"}', "note", rb'{"$json":"1"}'),
]
STORED_EXACTLY = [
    rb'"a\\u0000b"',
    rb'"\ud83d\ude00"',
    b'{"a":[1.10,"x",null]}',
    b"1e300",
    rb'"Phase1234"',
    b'"$json"',
    b"[[[]]]",
    b"[" * 700 + b"]" * 700,
    b"-0.0",
]


def row_of(number: int, fields: bytes) -> bytes:
    """A row of the day whose trade_id is the number, with these additional fields."""
    return moved(with_fields(fields).replace(b'"tradeId":3', b'"tradeId":%d' % number), DAY)


def extra_of(row: bytes) -> Any:
    """The decoded `extra` of the row, parsed together with a row that has no unknown fields."""
    [extra, _] = parse(ENDPOINT.schema, [row, moved(with_fields(b""), DAY)]).table["extra"].to_pylist()
    return json.loads(extra, parse_float=Decimal)


def test_a_value_that_jsonb_rejects_or_changes_lands_as_its_json_text(sandbox, query, monkeypatch):
    rows = [row_of(number, field + b',"rank":1.10') for number, (field, _, _) in enumerate(REJECTED_OR_CHANGED)]
    for row, (field, key, as_received) in zip(rows, REJECTED_OR_CHANGED, strict=True):
        assert extra_of(row) == {key: {"$json": as_received.decode()}, "rank": Decimal("1.10")}, field
    send(sandbox, monkeypatch, rows)

    run = land(KEY, [DAY])

    assert run.success, run.message
    found = query("select trade_id, extra from binance.rebate_recent_record order by 1")
    for (number, extra), (field, key, as_received) in zip(found, REJECTED_OR_CHANGED, strict=True):
        assert extra == {key: {"$json": as_received.decode()}, "rank": 1.1}, (number, field)
    assert query("select distinct extra->>'rank' from binance.rebate_recent_record") == [("1.10",)]


def test_a_value_that_jsonb_stores_exactly_lands_unchanged(sandbox, query, monkeypatch):
    rows = [row_of(number, b'"note":' + value) for number, value in enumerate(STORED_EXACTLY)]
    for row, value in zip(rows, STORED_EXACTLY, strict=True):
        assert extra_of(row) == {"note": json.loads(value, parse_float=Decimal)}, value
    send(sandbox, monkeypatch, rows)

    run = land(KEY, [DAY])

    assert run.success, run.message
    found = query("select (extra->'note')::text from binance.rebate_recent_record order by trade_id")
    for (note,), value in zip(found, STORED_EXACTLY, strict=True):
        assert json.loads(note, parse_float=Decimal) == json.loads(value, parse_float=Decimal), value


def test_a_deeply_nested_value_lands_with_its_inner_part_as_text(sandbox, query, monkeypatch):
    send(sandbox, monkeypatch, [moved(with_fields(b'"note":' + DEEP), DAY)])

    run = land(KEY, [DAY])

    assert run.success, run.message
    [(note,)] = query("select (extra->'note')::text from binance.rebate_recent_record")
    inside = json.loads(note)
    while isinstance(inside, list):
        [inside] = inside
    assert set(inside) == {"[", "]"} and note.count("[") == note.count("]") == 5000
    assert len(sandbox.requests) < 5


def test_a_field_that_occurs_twice_with_different_values_is_reported_and_the_rows_are_stored(
    sandbox, query, monkeypatch
):
    row = moved(with_fields(b'"income":"0.4"'), DAY)
    send(sandbox, monkeypatch, [moved(with_fields(b""), DAY), row])

    run = land(KEY, [DAY])

    assert "income: the field occurs twice in 1 row" in run.failed[DAY] and "row 2 of 2" in run.failed[DAY]
    stored = query(
        "select case jsonb_typeof(payload) when 'string' then payload#>>'{}' end from affiliate.rejected_row"
    )
    assert (row.decode(),) in stored and len(stored) == 2


def test_u0000_in_a_known_field_is_reported_with_its_row_and_all_rows_are_stored(sandbox, query, monkeypatch):
    rows = [moved(row, DAY) for row in [*rows_of(CASE)[:1], with_fields(b"").replace(b'"BTC"', rb'"B\u0000"')]]
    send(sandbox, monkeypatch, rows)

    run = land(KEY, [DAY])

    assert "asset: not a text that can be stored in 1 row" in run.failed[DAY] and "row 2 of 2" in run.failed[DAY]
    assert query("select complete, count(*) from affiliate.rejected_row group by 1") == [(True, 2)]
    assert query("select payload#>>'{}' from affiliate.rejected_row where jsonb_typeof(payload) = 'string'") == [
        (rows[1].decode(),)
    ]
    assert "asset" in land(KEY, [DAY], from_rejected=True).failed[DAY]


def test_a_very_long_name_of_an_unknown_field_lands(sandbox, query, monkeypatch):
    send(sandbox, monkeypatch, [moved(with_fields(b'"%s":1' % (b"n" * 5000)), DAY)])

    run = land(KEY, [DAY])

    assert run.success, run.message
    assert query("select length(key) from binance.rebate_recent_record, jsonb_each(extra)") == [(5000,)]
