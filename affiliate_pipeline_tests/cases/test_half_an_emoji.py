"""Case half-an-emoji: text that is no text costs itself only: the day's money lands, and the field is reported."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from dagster import DagsterEventType

from affiliate_pipeline_tests.cases.rebates_as_sent import moved, rows_of, send, with_fields
from affiliate_pipeline_tests.conftest import materialize
from affiliate_pipeline_tests.defs.rebates import DAYS, KEY

CASE = (Path(__file__).parent / "half-an-emoji" / "answer.json").read_bytes()
DAY = DAYS[0]


def doubts(run) -> str:
    """What the checks of the run's days say."""
    return " ".join(
        event.event_specific_data.description or ""
        for event in run.events
        if event.event_type is DagsterEventType.ASSET_CHECK_EVALUATION
    )


def test_the_days_money_lands_and_the_field_is_named(sandbox, query, monkeypatch):
    send(sandbox, monkeypatch, [moved(row, DAY) for row in rows_of(CASE)])

    run = materialize(KEY, [DAY])

    assert run.success, run.message
    assert query("select customer_id, income::text from binance.rebate_recent_record order by trade_id") == [
        ("c", "0.1"),
        ("joe \ufffd", "0.2"),
    ]
    assert "customer_id has U+FFFD in 1 row" in doubts(run)
    assert len(sandbox.requests) <= 3


@pytest.mark.parametrize(
    ("sent", "landed"),
    [
        (rb"\ud83d", "\ufffd"),
        (rb"\uDE00", "\ufffd"),
        (rb"\ude00\ud83d", "\ufffd\ufffd"),
        (rb"\ud83d\u0041 x", "\ufffdA x"),
        (rb"\ud83d\ud83d\ude00", "\ufffd😀"),
        (rb"\\\ud83d", "\\\ufffd"),
        (b"a\xffb", "a\ufffdb"),
        (b"\xed\xa0\xbd", "\ufffd\ufffd\ufffd"),
        (b"a\tb\nc\x1f", "a\tb\nc\x1f"),
        (rb"C:\x \ud8", r"C:\x \ud8"),
    ],
)
@pytest.mark.parametrize("name", ["email", "note"])
def test_text_that_is_none_lands_as_far_as_it_is(sandbox, query, monkeypatch, name, sent, landed):
    row = with_fields(b'"note":"%s"' % sent) if name == "note" else with_fields(b"").replace(b"a***@x", sent)
    send(sandbox, monkeypatch, [moved(row, DAY), moved(rows_of(CASE)[0], DAY)])

    run = materialize(KEY, [DAY])

    assert run.success, run.message
    column = "extra->>'note'" if name == "note" else "email"
    assert query(f"select {column} from binance.rebate_recent_record where trade_id = 3") == [(landed,)]
    assert ("has U+FFFD" in doubts(run)) == ("\ufffd" in landed)
    assert len(sandbox.requests) <= 3


@pytest.mark.parametrize(
    ("sent", "landed"),
    [(rb"\ud83d\ude00", "😀"), (rb"\\ud83d", r"\ud83d"), ("é😀".encode(), "é😀"), (rb"\u0041", "A")],
)
def test_text_that_is_whole_lands_as_it_is(sandbox, query, monkeypatch, sent, landed):
    send(sandbox, monkeypatch, [moved(with_fields(b"").replace(b"a***@x", sent), DAY)])

    run = materialize(KEY, [DAY])

    assert run.success, run.message
    assert query("select email from binance.rebate_recent_record") == [(landed,)]
    assert "U+FFFD" not in doubts(run)


def test_half_a_pair_in_the_name_of_an_unknown_field_lands(sandbox, query, monkeypatch):
    send(sandbox, monkeypatch, [moved(with_fields(rb'"no\ud83d":1'), DAY)])

    run = materialize(KEY, [DAY])

    assert run.success, run.message
    assert query("select extra->>%s from binance.rebate_recent_record", "no\ufffd") == [("1",)]


@pytest.mark.parametrize("word", [b"NaN", b"-Infinity", b"01", b"1.", b"undefined"])
def test_words_that_json_lacks_land_as_text_in_unknown_fields_and_are_refused_as_money(
    sandbox, query, monkeypatch, word
):
    send(sandbox, monkeypatch, [moved(with_fields(b'"note":' + word), DAY)])
    run = materialize(KEY, [DAY])
    assert run.success, run.message
    assert query("select extra->>'note' from binance.rebate_recent_record") == [(word.decode(),)]


def test_money_that_is_no_number_is_kept_as_received(sandbox, query, monkeypatch):
    send(sandbox, monkeypatch, [moved(with_fields(b"").replace(b'"0.3"', b"NaN"), DAY)])

    run = materialize(KEY, [DAY])

    assert "income: not a decimal number in 1 row, such as 'NaN'" in run.failed[DAY]
    assert query("select payload->>'income', complete from affiliate.rejected_row") == [("NaN", True)]


@pytest.mark.parametrize("encode", [lambda body: b"\xef\xbb\xbf" + body, lambda body: body.decode().encode("utf-16")])
def test_a_body_in_another_encoding_is_read(sandbox, query, monkeypatch, encode):
    send(sandbox, monkeypatch, [moved(rows_of(CASE)[0], DAY)])
    answer = sandbox.binance.respond
    monkeypatch.setattr(
        sandbox.binance, "respond", lambda call: replace(given := answer(call), body=encode(given.body))
    )

    run = materialize(KEY, [DAY])

    assert run.success, run.message
    assert query("select count(*) from binance.rebate_recent_record") == [(1,)]


def test_a_body_cut_short_is_requested_again_and_then_kept_as_received(sandbox, query, monkeypatch):
    rows = [moved(rows_of(CASE)[0], DAY), moved(with_fields(b"").replace(b"a***@x", b"a\xff@x"), DAY)]
    send(sandbox, monkeypatch, rows)
    answer = sandbox.binance.respond
    monkeypatch.setattr(sandbox.binance, "respond", lambda call: replace(given := answer(call), body=given.body[:-30]))

    run = materialize(KEY, [DAY])

    assert "a body that cannot be read" in run.failed[DAY] and "affiliate.rejected_row" in run.failed[DAY]
    assert len(sandbox.requests) == 10
    [(kept, complete)] = query(
        "select convert_from(decode(payload->>'$base64', 'base64'), 'LATIN1'), complete from affiliate.rejected_row"
    )
    assert kept.encode("latin-1") == (b"[" + b",".join(rows) + b"]")[:-30] and not complete
    assert "only a part of the day" in materialize(KEY, [DAY], from_rejected=True).failed[DAY]


@pytest.mark.parametrize("body", [b"<html>{</html>", b"", b"[]]", b"{}x"])
def test_what_holds_no_rows_is_not_kept(sandbox, query, monkeypatch, body):
    answer = sandbox.binance.respond
    monkeypatch.setattr(sandbox.binance, "respond", lambda call: replace(answer(call), body=body))

    assert DAY in materialize(KEY, [DAY]).failed
    assert query("select count(*) from affiliate.rejected_row") == [(0,)]


def test_lbank_lands_half_a_pair_too(both, query, monkeypatch):
    answer = both.lbank.respond

    def spelled(call):
        given = answer(call)
        return replace(given, body=given.body.replace(b'"code":"', rb'"code":"\ud83d'))

    monkeypatch.setattr(both.lbank, "respond", spelled)
    day = DAYS[0]

    run = materialize("lbank/invite_user_team_list", [day])

    assert run.success, run.message
    held = query("select distinct left(code, 1) from lbank.invite_user_team_list where code is not null")
    assert held in ([("\ufffd",)], []) and json.dumps(held)
