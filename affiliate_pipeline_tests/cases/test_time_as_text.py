"""Case time-as-text: a field lands with the same value whether it is sent as a number or as text."""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from affiliate_pipeline.schema.decode import parse
from affiliate_pipeline.schema.invalid import Invalid
from affiliate_pipeline_tests.cases.sandbox_responses import moved, rows_of, send, with_fields
from affiliate_pipeline_tests.defs import affiliates
from affiliate_pipeline_tests.defs.direct_runs import land
from affiliate_pipeline_tests.defs.rebates import DAYS, ENDPOINT, KEY, at

CASE = (Path(__file__).parent / "time-as-text" / "answer.json").read_bytes()
DAY = DAYS[0]
ROWS = """select partition_date, (time - partition_date)::text, (distribute_time - partition_date)::text, order_id, trade_id,
income::text, commission::text from binance.rebate_recent_record"""


def test_the_day_lands_with_a_time_as_text(sandbox, query, monkeypatch):
    send(sandbox, monkeypatch, [moved(row, DAY) for row in rows_of(CASE)])

    run = land(KEY, [DAY])

    assert run.success, run.message
    found = query("select (extract(epoch from time) * 1000)::bigint, income::text from binance.rebate_recent_record")
    assert Counter(found) == Counter([(at(DAY, "00:00:00.001"), "0.1"), (at(DAY, "00:00:00.002"), "0.2")])


def test_a_number_and_its_text_land_with_the_same_value(sandbox, query, monkeypatch):
    row = with_fields(b'"distributeTime":1795737700000,"commission":"0.10"')
    respelled = {
        DAYS[1]: re.sub(rb':"?([\d.]+)"?', rb':"\1"', moved(row, DAYS[1])),
        DAYS[2]: re.sub(rb':"?([\d.]+)"?', rb":\1", moved(row, DAYS[2])),
    }
    assert all(spelled != moved(row, day) for day, spelled in respelled.items())
    # In a run of its own: all rows of that run then have the declared types.
    send(sandbox, monkeypatch, [moved(row, DAY)])
    assert land(KEY, [DAY]).success
    send(sandbox, monkeypatch, [*respelled.values()])
    run = land(KEY, [*respelled])

    assert run.success, run.message
    landed = {day: values for day, *values in query(ROWS)}
    assert landed == dict.fromkeys([DAY, *respelled], landed[DAY])
    assert None not in landed[DAY]


NO_TIME = [b"null", b'""', b'" "', b"0", b'"0"', b'"-"', b'"null"', b"-1"]
NO_AMOUNT = [b'""', b'"-"', b"null"]


def numbered(rows: Iterable[bytes]) -> list[bytes]:
    """The rows, each with its number as trade_id."""
    return [row.replace(b'"tradeId":3', b'"tradeId":%d' % number) for number, row in enumerate(rows)]


def test_each_spelling_of_a_missing_time_lands_as_null(sandbox, query, monkeypatch):
    rows = numbered(moved(with_fields(b'"distributeTime":' + spelled), DAY) for spelled in NO_TIME)
    tables = {spelled: parse(ENDPOINT.schema, [row]).table for spelled, row in zip(NO_TIME, rows, strict=True)}
    read = {spelled: table.select(["distribute_time", "extra"]).to_pylist() for spelled, table in tables.items()}
    assert read == {spelled: [{"distribute_time": None, "extra": None}] for spelled in NO_TIME}

    send(sandbox, monkeypatch, rows)
    run = land(KEY, [DAY])

    assert run.success, run.message
    landed = query("select distribute_time, extra from binance.rebate_recent_record order by trade_id")
    assert dict(zip(NO_TIME, landed, strict=True)) == dict.fromkeys(NO_TIME, (None, None))


def test_a_missing_amount_lands_as_null_only_in_a_nullable_column(sandbox, query, monkeypatch):
    with_null = numbered(moved(with_fields(b'"commission":' + spelled), DAY) for spelled in NO_AMOUNT)
    invalid = [moved(with_fields(b"").replace(b'"0.3"', spelled), DAYS[1]) for spelled in NO_AMOUNT]
    for row in invalid:
        with pytest.raises(Invalid, match="^income: "):
            parse(ENDPOINT.schema, [row])
    send(sandbox, monkeypatch, [*with_null, *invalid])

    run = land(KEY, DAYS[:2])

    assert [*run.landed] == [DAY]
    landed = query("select commission from binance.rebate_recent_record order by trade_id")
    assert dict(zip(NO_AMOUNT, landed, strict=True)) == dict.fromkeys(NO_AMOUNT, (None,))
    assert "income: " in run.failed[DAYS[1]]


def texts(row):
    return {name: str(value).lower() if isinstance(value, bool | int) else value for name, value in row.items()}


def numbers(row):
    return {
        name: int(value) if isinstance(value, bool) or (isinstance(value, str) and value.isdecimal()) else value
        for name, value in row.items()
    }


@pytest.mark.parametrize("name", ["invite_user_list", "invite_user_team_list", "trade_user", "money_detail_list"])
def test_a_number_and_its_text_land_with_the_same_value_from_lbank(both_exchanges, query, name):
    of_texts, of_numbers = affiliates.DAYS[:2]
    for day in (of_texts, of_numbers):
        both_exchanges.lbank.add_user(registered_ms=affiliates.at(day))
    both_exchanges.lbank.set_money(
        [affiliates.deposit(day, number) for day in (of_texts, of_numbers) for number in range(60)]
    )

    def respell(row):
        time_ms = row.get("statsDate", row.get("createTime"))
        return numbers(row) if time_ms >= affiliates.at(of_numbers, 0) else texts(row)

    both_exchanges.faults.transform_row = respell
    run = land(f"lbank/{name}", [of_texts, of_numbers])

    assert run.success, run.message
    sent = {day: affiliates.sent(affiliates.rows_of(both_exchanges, name, day)) for day in (of_texts, of_numbers)}
    assert {day: affiliates.landed(query, name, day) for day in sent} == sent
    assert all(sent.values())


def test_a_page_with_an_unreadable_id_is_stored_as_received(both_exchanges, query):
    day = affiliates.DAYS[1]
    both_exchanges.lbank.add_user(registered_ms=affiliates.at(day))
    both_exchanges.faults.transform_row = lambda row: row | {"id": "x"}

    run = land("lbank/invite_user_list", [day])

    assert "a row's `id` is 'x'" in run.failed[day].replace('"', "")
    assert query("select distinct complete, payload->>'id' from affiliate.rejected_row") == [(False, "x")]
    assert all("What was received of the day is stored unchanged" in reason for reason in run.failed.values())


def test_fewer_rows_of_an_unreadable_page_do_not_replace_those_of_an_earlier_run(both_exchanges, query):
    day = affiliates.DAYS[1]
    both_exchanges.lbank.add_user(registered_ms=affiliates.at(day))
    both_exchanges.faults.transform_row = lambda row: row | {"createTime": "x"}
    both_exchanges.lbank.set_money([affiliates.deposit(day, number) for number in range(3)])
    land("lbank/money_detail_list", [day])
    both_exchanges.lbank.set_money([affiliates.deposit(day, 0)])

    run = land("lbank/money_detail_list", [day])

    assert "affiliate.rejected_row still has the rows that an earlier run received" in run.failed[day]
    assert query("select count(*) from affiliate.rejected_row") == [(3,)]
