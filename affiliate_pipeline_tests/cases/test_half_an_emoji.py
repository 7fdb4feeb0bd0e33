"""Case half-an-emoji: invalid text lands with U+FFFD and is reported; the rest of the day lands unchanged."""

from pathlib import Path

import pytest
from dagster import DagsterEventType

from affiliate_pipeline_tests.cases.sandbox_responses import moved, replace_bodies, rows_of, send, with_fields
from affiliate_pipeline_tests.conftest import Run, materialize
from affiliate_pipeline_tests.defs import affiliates
from affiliate_pipeline_tests.defs.rebates import DAYS, KEY

CASE = (Path(__file__).parent / "half-an-emoji" / "answer.json").read_bytes()
DAY = DAYS[0]


def check_descriptions(run: Run) -> str:
    """The descriptions of the asset checks of the run's days."""
    return " ".join(
        event.asset_check_evaluation_data.description or ""
        for event in run.events
        if event.event_type is DagsterEventType.ASSET_CHECK_EVALUATION
    )


def test_the_day_lands_and_a_check_names_the_field(sandbox, query, monkeypatch):
    send(sandbox, monkeypatch, [moved(row, DAY) for row in rows_of(CASE)])

    run = materialize(KEY, [DAY])

    assert run.success, run.message
    assert query("select customer_id, income::text from binance.rebate_recent_record order by trade_id") == [
        ("c", "0.1"),
        ("joe \ufffd", "0.2"),
    ]
    assert "customer_id has U+FFFD in 1 row" in check_descriptions(run)
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
def test_text_that_is_not_valid_json_lands_with_its_valid_part(sandbox, query, monkeypatch, name, sent, landed):
    row = with_fields(b'"note":"%s"' % sent) if name == "note" else with_fields(b"").replace(b"a***@x", sent)
    send(sandbox, monkeypatch, [moved(row, DAY), moved(rows_of(CASE)[0], DAY)])

    run = materialize(KEY, [DAY])

    assert run.success, run.message
    column = "extra->>'note'" if name == "note" else "email"
    assert query(f"select {column} from binance.rebate_recent_record where trade_id = 3") == [(landed,)]
    assert ("has U+FFFD" in check_descriptions(run)) == ("\ufffd" in landed)
    assert len(sandbox.requests) <= 3


@pytest.mark.parametrize(
    ("sent", "landed"),
    [(rb"\ud83d\ude00", "😀"), (rb"\\ud83d", r"\ud83d"), ("é😀".encode(), "é😀"), (rb"\u0041", "A")],
)
def test_valid_text_lands_unchanged(sandbox, query, monkeypatch, sent, landed):
    send(sandbox, monkeypatch, [moved(with_fields(b"").replace(b"a***@x", sent), DAY)])

    run = materialize(KEY, [DAY])

    assert run.success, run.message
    assert query("select email from binance.rebate_recent_record") == [(landed,)]
    assert "U+FFFD" not in check_descriptions(run)


def test_an_unpaired_surrogate_in_the_name_of_an_unknown_field_lands(sandbox, query, monkeypatch):
    send(sandbox, monkeypatch, [moved(with_fields(rb'"no\ud83d":1'), DAY)])

    run = materialize(KEY, [DAY])

    assert run.success, run.message
    assert query("select extra->>%s from binance.rebate_recent_record", "no\ufffd") == [("1",)]


@pytest.mark.parametrize("literal", [b"NaN", b"-Infinity", b"01", b"1.", b"undefined"])
def test_a_literal_that_is_not_json_lands_as_text_in_an_unknown_field(sandbox, query, monkeypatch, literal):
    send(sandbox, monkeypatch, [moved(with_fields(b'"note":' + literal), DAY)])
    run = materialize(KEY, [DAY])
    assert run.success, run.message
    assert query("select extra->>'note' from binance.rebate_recent_record") == [(literal.decode(),)]


def test_an_amount_that_is_not_a_number_is_stored_as_received(sandbox, query, monkeypatch):
    send(sandbox, monkeypatch, [moved(with_fields(b"").replace(b'"0.3"', b"NaN"), DAY)])

    run = materialize(KEY, [DAY])

    assert "income: not a decimal number in 1 row, such as 'NaN'" in run.failed[DAY]
    assert query("select payload->>'income', complete from affiliate.rejected_row") == [("NaN", True)]


@pytest.mark.parametrize("encode", [lambda body: b"\xef\xbb\xbf" + body, lambda body: body.decode().encode("utf-16")])
def test_a_body_in_another_encoding_is_read(sandbox, query, monkeypatch, encode):
    send(sandbox, monkeypatch, [moved(rows_of(CASE)[0], DAY)])
    replace_bodies(sandbox.binance, monkeypatch, lambda _, body: encode(body))

    run = materialize(KEY, [DAY])

    assert run.success, run.message
    assert query("select count(*) from binance.rebate_recent_record") == [(1,)]


def test_a_truncated_body_is_requested_again_and_then_stored_as_received(sandbox, query, monkeypatch):
    rows = [moved(rows_of(CASE)[0], DAY), moved(with_fields(b"").replace(b"a***@x", b"a\xff@x"), DAY)]
    send(sandbox, monkeypatch, rows)
    replace_bodies(sandbox.binance, monkeypatch, lambda _, body: body[:-30])

    run = materialize(KEY, [DAY])

    assert "a body that cannot be read" in run.failed[DAY] and "affiliate.rejected_row" in run.failed[DAY]
    assert len(sandbox.requests) == 10
    [(stored, complete)] = query(
        "select convert_from(decode(payload->>'$base64', 'base64'), 'LATIN1'), complete from affiliate.rejected_row"
    )
    assert stored.encode("latin-1") == (b"[" + b",".join(rows) + b"]")[:-30] and not complete
    assert "only a part of the day" in materialize(KEY, [DAY], from_rejected=True).failed[DAY]


@pytest.mark.parametrize("body", [b"<html>{</html>", b"", b"[]]", b"{}x"])
def test_a_body_without_rows_is_not_stored(sandbox, query, monkeypatch, body):
    replace_bodies(sandbox.binance, monkeypatch, lambda *_: body)

    assert DAY in materialize(KEY, [DAY]).failed
    assert query("select count(*) from affiliate.rejected_row") == [(0,)]


def test_an_unpaired_surrogate_from_lbank_lands(both_exchanges, query, monkeypatch):
    day = affiliates.DAYS[1]
    both_exchanges.lbank.add_user(registered_ms=affiliates.at(day))
    replace_bodies(both_exchanges.lbank, monkeypatch, lambda _, body: body.replace(b'"code":"', rb'"code":"\ud83d'))

    run = materialize("lbank/invite_user_team_list", [day])

    assert run.success, run.message
    codes = query("select distinct left(code, 1) from lbank.invite_user_team_list where code is not null")
    assert codes == [("\ufffd",)]
