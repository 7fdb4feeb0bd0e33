"""Case time-as-text: a field lands with the same value whether it is sent as a number or as text."""

import re
from collections import Counter
from pathlib import Path

import pytest

from affiliate_pipeline_tests.cases.sandbox_responses import moved, rows_of, send, with_fields
from affiliate_pipeline_tests.conftest import materialize
from affiliate_pipeline_tests.defs import affiliates
from affiliate_pipeline_tests.defs.rebates import DAYS, KEY, at

CASE = (Path(__file__).parent / "time-as-text" / "answer.json").read_bytes()
DAY = DAYS[0]
ROWS = "select distinct on (trade_id) time, distribute_time, order_id, trade_id, income::text from binance.rebate_recent_record"


def test_the_day_lands_with_a_time_as_text(sandbox, query, monkeypatch):
    send(sandbox, monkeypatch, [moved(row, DAY) for row in rows_of(CASE)])

    run = materialize(KEY, [DAY])

    assert run.success, run.message
    found = query("select (extract(epoch from time) * 1000)::bigint, income::text from binance.rebate_recent_record")
    assert Counter(found) == Counter([(at(DAY, "00:00:00.001"), "0.1"), (at(DAY, "00:00:00.002"), "0.2")])


@pytest.mark.parametrize(
    "respell",
    [lambda row: re.sub(rb':"?([\d.]+)"?', rb':"\1"', row), lambda row: re.sub(rb':"?([\d.]+)"?', rb":\1", row)],
)
def test_a_number_and_its_text_land_with_the_same_value(sandbox, query, monkeypatch, respell):
    row = moved(with_fields(b'"distributeTime":1795737700000,"commission":"0.10"'), DAY)
    send(sandbox, monkeypatch, [row])
    assert materialize(KEY, [DAY]).success
    before = query(ROWS)

    send(sandbox, monkeypatch, [respell(row)])
    run = materialize(KEY, [DAY])

    assert run.success, run.message
    assert query(ROWS) == before and len(before) == 1
    assert respell(row) != row


@pytest.mark.parametrize("spelled", [b"null", b'""', b'" "', b"0", b'"0"', b'"-"', b'"null"', b"-1"])
def test_each_spelling_of_a_missing_time_lands_as_null(sandbox, query, monkeypatch, spelled):
    send(sandbox, monkeypatch, [moved(with_fields(b'"distributeTime":' + spelled), DAY)])

    run = materialize(KEY, [DAY])

    assert run.success, run.message
    assert query("select distribute_time, extra from binance.rebate_recent_record") == [(None, None)]


@pytest.mark.parametrize("spelled", [b'""', b'"-"', b"null"])
def test_a_missing_amount_lands_as_null_only_in_a_nullable_column(sandbox, query, monkeypatch, spelled):
    send(sandbox, monkeypatch, [moved(with_fields(b'"commission":' + spelled), DAY)])
    assert materialize(KEY, [DAY]).success
    assert query("select commission from binance.rebate_recent_record") == [(None,)]

    send(sandbox, monkeypatch, [moved(with_fields(b"").replace(b'"0.3"', spelled), DAYS[1])])
    assert "income: " in materialize(KEY, [DAYS[1]]).failed[DAYS[1]]


def texts(row):
    return {name: str(value).lower() if isinstance(value, bool | int) else value for name, value in row.items()}


def numbers(row):
    return {
        name: int(value) if isinstance(value, bool) or (isinstance(value, str) and value.isdecimal()) else value
        for name, value in row.items()
    }


@pytest.mark.parametrize("respell", [texts, numbers])
@pytest.mark.parametrize("name", ["invite_user_list", "invite_user_team_list", "trade_user", "money_detail_list"])
def test_a_number_and_its_text_land_with_the_same_value_from_lbank(both_exchanges, query, name, respell):
    day = affiliates.DAYS[1]
    both_exchanges.lbank.set_money([affiliates.deposit(day, number) for number in range(130)])
    both_exchanges.faults.transform_row = respell

    run = materialize(f"lbank/{name}", [day])

    assert run.success, run.message
    assert (
        affiliates.landed(query, name, day)
        == affiliates.sent(affiliates.rows_of(both_exchanges, name, day))
        != Counter()
    )


def test_a_page_with_an_unreadable_id_is_stored_as_received(both_exchanges, query):
    day = affiliates.DAYS[1]
    both_exchanges.lbank.add_user(registered_ms=affiliates.at(day))
    both_exchanges.faults.transform_row = lambda row: row | {"id": "x"}

    run = materialize("lbank/invite_user_list", [day])

    assert "a row's `id` is 'x'" in run.failed[day].replace('"', "")
    assert query("select distinct complete, payload->>'id' from affiliate.rejected_row") == [(False, "x")]
    assert all("What was received of the day is stored unchanged" in reason for reason in run.failed.values())
