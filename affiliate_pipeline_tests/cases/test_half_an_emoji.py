"""Case half-an-emoji: invalid text lands with U+FFFD and is reported; the rest of the day lands unchanged."""

import json
from pathlib import Path

import pytest

from affiliate_pipeline.http import retry
from affiliate_pipeline.http.bodies import as_utf8, repaired
from affiliate_pipeline_tests.cases.sandbox_responses import PATH, moved, replace_bodies, rows_of, send, with_fields
from affiliate_pipeline_tests.defs import affiliates
from affiliate_pipeline_tests.defs.direct_runs import DirectRun, land
from affiliate_pipeline_tests.defs.rebates import DAYS, KEY, at

CASE = (Path(__file__).parent / "half-an-emoji" / "answer.json").read_bytes()
DAY = DAYS[0]
# What is sent between the quotes of a JSON text, and what lands.
INVALID = {
    rb"\ud83d": "\ufffd",
    rb"\uDE00": "\ufffd",
    rb"\ude00\ud83d": "\ufffd\ufffd",
    rb"\ud83d\u0041 x": "\ufffdA x",
    rb"\ud83d\ud83d\ude00": "\ufffd😀",
    rb"\\\ud83d": "\\\ufffd",
    b"a\xffb": "a\ufffdb",
    b"\xed\xa0\xbd": "\ufffd\ufffd\ufffd",
    b"a\tb\nc\x1f": "a\tb\nc\x1f",
    rb"C:\x \ud8": r"C:\x \ud8",
}
VALID = {rb"\ud83d\ude00": "😀", rb"\\ud83d": r"\ud83d", "é😀".encode(): "é😀", rb"\u0041": "A"}


def check_descriptions(run: DirectRun) -> str:
    """The descriptions of the asset checks of the run's days."""
    return " ".join(check.description or "" for check in run.checks)


def test_the_day_lands_and_a_check_names_the_field(sandbox, query, monkeypatch):
    send(sandbox, monkeypatch, [moved(row, DAY) for row in rows_of(CASE)])

    run = land(KEY, [DAY])

    assert run.success, run.message
    assert query("select customer_id, income::text from binance.rebate_recent_record order by trade_id") == [
        ("c", "0.1"),
        ("joe \ufffd", "0.2"),
    ]
    assert "customer_id has U+FFFD in 1 row" in check_descriptions(run)
    assert len(sandbox.requests) <= 3


def row_of(number: int, email: bytes = b"a***@x", more: bytes = b"") -> bytes:
    """A row of the day whose trade_id is the number, with this text as email and these additional fields."""
    row = with_fields(more).replace(b'"tradeId":3', b'"tradeId":%d' % number).replace(b"a***@x", email)
    return moved(row, DAY)


@pytest.mark.parametrize("texts", [INVALID, VALID], ids=["invalid", "valid"])
def test_each_text_is_read_as_its_valid_part(texts):
    read = {text: json.loads(repaired(as_utf8(b'["%s"]' % text))) for text in texts}
    assert read == {text: [expected] for text, expected in texts.items()}


def test_text_that_is_not_valid_json_lands_with_its_valid_part(sandbox, query, monkeypatch):
    emails = {number: row_of(number, email=text) for number, text in enumerate(INVALID)}
    notes = {100 + number: row_of(100 + number, more=b'"note":"%s"' % text) for number, text in enumerate(INVALID)}
    send(sandbox, monkeypatch, [*emails.values(), *notes.values()])

    run = land(KEY, [DAY])

    assert run.success, run.message
    found = dict(query("select trade_id::int, coalesce(extra->>'note', email) from binance.rebate_recent_record"))
    assert {text: found[number] for number, text in zip(emails, INVALID, strict=True)} == INVALID
    assert {text: found[number] for number, text in zip(notes, INVALID, strict=True)} == INVALID
    damaged = sum("\ufffd" in text for text in INVALID.values())
    assert f"email has U+FFFD in {damaged} rows" in check_descriptions(run)
    assert f"extra has U+FFFD in {damaged} rows" in check_descriptions(run)
    assert len(sandbox.requests) <= 3


def test_valid_text_lands_unchanged(sandbox, query, monkeypatch):
    send(sandbox, monkeypatch, [row_of(number, email=text) for number, text in enumerate(VALID)])

    run = land(KEY, [DAY])

    assert run.success, run.message
    found = [email for (email,) in query("select email from binance.rebate_recent_record order by trade_id")]
    assert dict(zip(VALID, found, strict=True)) == VALID
    assert "U+FFFD" not in check_descriptions(run)


def test_an_unpaired_surrogate_in_a_name_and_literals_that_are_not_json_land_in_unknown_fields(
    sandbox, query, monkeypatch
):
    literals = [b"NaN", b"-Infinity", b"01", b"1.", b"undefined"]
    rows = [row_of(number, more=b'"note":' + literal) for number, literal in enumerate(literals)]
    send(sandbox, monkeypatch, [*rows, row_of(100, more=rb'"no\ud83d":1')])

    run = land(KEY, [DAY])

    assert run.success, run.message
    *notes, (name,) = query(
        "select coalesce(extra->>'note', extra->>%s) from binance.rebate_recent_record order by trade_id", "no\ufffd"
    )
    assert notes == [(literal.decode(),) for literal in literals]
    assert name == "1"


def test_an_amount_that_is_not_a_number_is_stored_as_received(sandbox, query, monkeypatch):
    send(sandbox, monkeypatch, [moved(with_fields(b"").replace(b'"0.3"', b"NaN"), DAY)])

    run = land(KEY, [DAY])

    assert "income: not a decimal number in 1 row, such as 'NaN'" in run.failed[DAY]
    assert query("select payload->>'income', complete from affiliate.rejected_row") == [("NaN", True)]


def test_a_body_in_another_encoding_is_read(sandbox, query, monkeypatch):
    assert as_utf8(b"\xef\xbb\xbf[]").decode("utf-8") == as_utf8("[]".encode("utf-16")).decode("utf-8") == "[]"
    bodies = {DAYS[0]: lambda body: b"\xef\xbb\xbf" + body, DAYS[1]: lambda body: body.decode().encode("utf-16")}
    for day, encode in bodies.items():
        send(sandbox, monkeypatch, [moved(rows_of(CASE)[0], day)])
        replace_bodies(sandbox.binance, monkeypatch, lambda _, body, encode=encode: encode(body))

        run = land(KEY, [day])

        assert run.success, run.message
    assert query("select partition_date from binance.rebate_recent_record order by 1") == [(day,) for day in bodies]


def test_a_truncated_body_is_requested_again_and_then_stored_as_received(sandbox, verified_keys, query, monkeypatch):
    rows = [moved(rows_of(CASE)[0], DAY), moved(with_fields(b"").replace(b"a***@x", b"a\xff@x"), DAY)]
    send(sandbox, monkeypatch, rows)
    replace_bodies(sandbox.binance, monkeypatch, lambda _, body: body[:-30])

    run = land(KEY, [DAY])

    assert "a body that cannot be read" in run.failed[DAY] and "affiliate.rejected_row" in run.failed[DAY]
    assert len(sandbox.requests) == retry.MAX_ATTEMPTS
    [(stored, complete)] = query(
        "select convert_from(decode(payload->>'$base64', 'base64'), 'LATIN1'), complete from affiliate.rejected_row"
    )
    assert stored.encode("latin-1") == (b"[" + b",".join(rows) + b"]")[:-30] and not complete
    assert "only a part of the day" in land(KEY, [DAY], from_rejected=True).failed[DAY]


def test_a_body_without_rows_is_not_stored(sandbox, query, monkeypatch):
    bodies = dict(zip(DAYS, [b"<html>{</html>", b"", b"[]]", b"{}x"], strict=False))
    by_start = {at(day, "00:00:00.000"): body for day, body in bodies.items()}
    # The request for all days begins with the first one.
    replace_bodies(
        sandbox.binance,
        monkeypatch,
        lambda call, body: by_start[int(call.params["startTime"])] if call.path == PATH else body,
    )

    assert sorted(land(KEY, list(bodies)).failed) == list(bodies)
    assert query("select count(*) from affiliate.rejected_row") == [(0,)]


def test_an_unpaired_surrogate_from_lbank_lands(both_exchanges, query, monkeypatch):
    day = affiliates.DAYS[1]
    both_exchanges.lbank.add_user(registered_ms=affiliates.at(day))
    replace_bodies(both_exchanges.lbank, monkeypatch, lambda _, body: body.replace(b'"code":"', rb'"code":"\ud83d'))

    run = land("lbank/invite_user_team_list", [day])

    assert run.success, run.message
    codes = query("select distinct left(code, 1) from lbank.invite_user_team_list where code is not null")
    assert codes == [("\ufffd",)]
