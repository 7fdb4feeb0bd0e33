"""Case null-for-an-empty-list: null sent twice is an empty list, but never replaces rows that have landed."""

from collections.abc import Mapping
from datetime import date, timedelta
from pathlib import Path

import pytest

from affiliate_pipeline.exchanges.lbank.pagination import PAGE_SIZE
from affiliate_pipeline.exchanges.lbank.responses import read
from affiliate_pipeline.exchanges.lists import read_list
from affiliate_pipeline.http.client import Response
from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline.sandbox.exchange import Call
from affiliate_pipeline_tests.cases.sandbox_responses import PATH as REBATE_PATH
from affiliate_pipeline_tests.cases.sandbox_responses import replace_bodies
from affiliate_pipeline_tests.defs.affiliates import (
    DAYS,
    PATH,
    at,
    commission,
    deposit,
    landed,
    requests_to,
    rows_of,
    sent,
    today,
)
from affiliate_pipeline_tests.defs.direct_runs import land
from affiliate_pipeline_tests.defs.rebates import DAYS as REBATE_DAYS
from affiliate_pipeline_tests.defs.rebates import KEY as REBATES
from affiliate_pipeline_tests.defs.rebates import at as rebates_at
from affiliate_pipeline_tests.defs.rebates import rebates

CASE = (Path(__file__).parent / "null-for-an-empty-list" / "answer.json").read_bytes()
USERS, TEAM, MONEY, COMMISSION = (
    "invite_user_list",
    "invite_user_team_list",
    "money_detail_list",
    "commission_stats_symbol_list",
)
DAY = DAYS[1]
SPELLINGS = [CASE, CASE.replace(b'"data":null,', b""), CASE.replace(b"null", b'""'), CASE.replace(b"null", b"{}")]


def send(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, path: str, body: bytes, open_id: str | None = None) -> None:
    """Make LBank send this body for the path; with `open_id`, only for that user."""

    def body_of(call: Call, sent: bytes) -> bytes:
        applies = call.path == path and open_id in (None, call.params.get("openId"))
        return body if applies else sent

    replace_bodies(sandbox.lbank, monkeypatch, body_of)


def send_by_day(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, path: str, bodies: Mapping[date, bytes]) -> None:
    """Make LBank send these bodies for the path: each in requests that begin with its day."""

    def body_of(call: Call, sent: bytes) -> bytes:
        return (
            {at(day, 0): body for day, body in bodies.items()}[int(call.params["startTime"])]
            if call.path == path
            else sent
        )

    replace_bodies(sandbox.lbank, monkeypatch, body_of)


def test_each_spelling_of_null_is_read_as_no_list():
    responses = [Response(200, {}, body) for body in SPELLINGS]
    assert [read_list(read(response)) for response in responses] == [([], True)] * len(SPELLINGS)


@pytest.mark.parametrize(
    ("name", "bodies", "requests_per_month"),
    [(USERS, SPELLINGS[:2], 2), (TEAM, SPELLINGS[2:], 2), (MONEY, SPELLINGS[1:3], 12)],
    ids=[USERS, TEAM, MONEY],
)
def test_null_sent_twice_lands_no_rows_and_is_reported(
    both_exchanges, query, monkeypatch, name, bodies, requests_per_month
):
    # In two months, so that each day has its own requests.
    days = DAYS[2:4]
    send_by_day(both_exchanges, monkeypatch, PATH[name], dict(zip(days, bodies, strict=True)))

    run = land(f"lbank/{name}", days)

    assert run.success, run.message
    assert {day: outcome.stats.rows for day, outcome in run.landed.items()} == {day: 0 for day in days}
    assert all("had no list (null)" in outcome.note for outcome in run.landed.values())
    assert len(requests_to(both_exchanges, name)) == 2 * requests_per_month


def test_null_sent_once_is_a_transient_fault(both_exchanges, query):
    both_exchanges.faults.path = PATH[TEAM]
    both_exchanges.lbank.add_user(registered_ms=at(DAY))
    both_exchanges.faults.next_responses.append((200, {}, CASE))

    run = land(f"lbank/{TEAM}", [DAY])

    assert run.success, run.message
    assert landed(query, TEAM, DAY) == sent(rows_of(both_exchanges, TEAM, DAY))


def test_null_does_not_replace_landed_rows(both_exchanges, query, monkeypatch):
    for day in DAYS[:2]:
        both_exchanges.lbank.add_user(registered_ms=at(day))
    assert land(f"lbank/{TEAM}", DAYS[:2]).success
    send(both_exchanges, monkeypatch, PATH[TEAM], CASE)

    run = land(f"lbank/{TEAM}", DAYS[:2])

    assert sorted(run.failed) == DAYS[:2]
    assert "sent no list (null) where rows had landed" in run.failed[DAY] and "is unchanged" in run.failed[DAY]
    for day in DAYS[:2]:
        assert landed(query, TEAM, day) == sent(rows_of(both_exchanges, TEAM, day))


def test_null_does_not_replace_the_deposits_of_settled_or_unsettled_days(both_exchanges, query, monkeypatch):
    settled, unsettled = today() - timedelta(days=5), today() - timedelta(days=1)
    both_exchanges.lbank.set_money([deposit(settled), deposit(unsettled)])
    run = land(f"lbank/{MONEY}", [settled, unsettled])
    assert (run.landed[settled].settled, run.landed[unsettled].settled) == (True, False)
    send(both_exchanges, monkeypatch, PATH[MONEY], CASE)

    run = land(f"lbank/{MONEY}", [settled, unsettled])

    assert sorted(run.failed) == [settled, unsettled]
    for day in (settled, unsettled):
        assert "requested_sub_in_out_type IN_DEPOSIT" in run.failed[day]
        assert "sent no list (null) where rows had landed" in run.failed[day] and "is unchanged" in run.failed[day]
        assert landed(query, MONEY, day) == sent(rows_of(both_exchanges, MONEY, day))


def test_null_does_not_replace_rows_of_one_agent_while_another_gains_rows(both_exchanges, query, monkeypatch):
    agents = [both_exchanges.lbank.add_user(registered_ms=at(DAYS[0]), level=5) for _ in range(2)]
    both_exchanges.lbank.set_commissions([commission(agents[0], DAY, "1.0")])
    assert land(f"lbank/{COMMISSION}", [DAY]).success
    both_exchanges.lbank.set_commissions(
        [commission(agents[1], DAY, f"{n}.0") | {"coinSymbol": f"c{n}"} for n in range(5)]
    )
    send(both_exchanges, monkeypatch, PATH[COMMISSION], CASE, open_id=agents[0])

    run = land(f"lbank/{COMMISSION}", [DAY])

    assert f"of open_id {agents[0]}" in run.failed[DAY]
    # The received rows that cannot land are stored.
    assert query("select complete, count(*) from affiliate.rejected_row group by 1") == [(False, 5)]
    assert query("select open_id, amount::text from lbank.commission_stats_symbol_list") == [(agents[0], "1.0")]


def test_null_for_an_agent_without_rows_does_not_block_other_agents(both_exchanges, query, monkeypatch):
    agents = [both_exchanges.lbank.add_user(registered_ms=at(DAYS[0]), level=5) for _ in range(2)]
    send(both_exchanges, monkeypatch, PATH[COMMISSION], CASE, open_id=agents[0])
    for amount in ("1.0", "2.0"):
        both_exchanges.lbank.set_commissions([commission(agents[1], DAY, amount)])
        run = land(f"lbank/{COMMISSION}", [DAY])
        assert run.success, run.message
        assert query("select amount::text from lbank.commission_stats_symbol_list") == [(amount,)]


def send_null_after_the_first_page(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, *, of_users: int) -> None:
    """Let the day have this many users, and make LBank send null for the page that begins after the first full one."""
    while len(rows_of(sandbox, USERS, DAY)) < of_users:
        sandbox.lbank.add_user(registered_ms=at(DAY))
    first_page_ids = sorted(row["id"] for row in rows_of(sandbox, USERS, DAY))[:PAGE_SIZE]

    def body_of(call: Call, sent: bytes) -> bytes:
        return CASE if call.path == PATH[USERS] and int(call.params["start"]) == first_page_ids[-1] else sent

    replace_bodies(sandbox.lbank, monkeypatch, body_of)


def test_null_for_a_later_page_fails_the_days_and_the_next_run_lands_them(both_exchanges, query, monkeypatch):
    with monkeypatch.context() as patch:
        send_null_after_the_first_page(both_exchanges, patch, of_users=PAGE_SIZE + 20)
        run = land(f"lbank/{USERS}", [DAY])
        assert "sent no list (null) for the page after id" in run.failed[DAY]
        assert query("select count(*) from affiliate.landing") == [(0,)]

    run = land(f"lbank/{USERS}", [DAY])

    assert run.success, run.message
    assert landed(query, USERS, DAY) == sent(rows_of(both_exchanges, USERS, DAY))


def test_null_after_a_full_last_page_ends_the_list(both_exchanges, query, monkeypatch):
    send_null_after_the_first_page(both_exchanges, monkeypatch, of_users=PAGE_SIZE)

    run = land(f"lbank/{USERS}", [DAY])

    assert run.success, run.message
    assert landed(query, USERS, DAY) == sent(rows_of(both_exchanges, USERS, DAY))


def test_null_is_an_error_without_a_retry_where_a_row_is_always_expected(both_exchanges, monkeypatch):
    bodies = dict(zip(DAYS, SPELLINGS, strict=False))
    send_by_day(both_exchanges, monkeypatch, PATH["trade_future"], bodies)

    run = land("lbank/trade_future", list(bodies))

    found = {bodies[day]: "LBank returned 0 rows instead of one" in reason for day, reason in run.failed.items()}
    assert found == dict.fromkeys(SPELLINGS, True)
    # At most one for each scope of a day.
    assert len(requests_to(both_exchanges, "trade_future")) <= 4 * len(SPELLINGS)


def test_null_with_an_error_code_is_an_error(both_exchanges, monkeypatch):
    send(both_exchanges, monkeypatch, PATH[TEAM], CASE.replace(b'"error_code":0', b'"error_code":20026'))

    assert "20026" in land(f"lbank/{TEAM}", [DAY]).failed[DAY]


def test_null_does_not_empty_a_roster_that_had_users(both_exchanges, query, monkeypatch):
    assert land("lbank/trade_user", [DAY]).success
    query("update lbank.roster set last_seen = '2020-01-01'")
    send(both_exchanges, monkeypatch, PATH[TEAM], CASE)

    run = land("lbank/trade_user", [DAYS[2]])

    assert "LBank twice sent null instead of the list of users, which was not empty before" in run.failed[DAYS[2]]


def test_binance_records_without_a_list_are_an_error_without_a_retry(sandbox, query, monkeypatch):
    days = REBATE_DAYS[-4:]
    bodies = dict(zip([rebates_at(day, "00:00:00.000") for day in days[1:]], [b"null", b'""', b"{}"], strict=True))
    sandbox.binance.set_rebates(row for day in days[1:] for row in rebates(day, 5))
    assert land(REBATES, days[1:]).success
    # The request for all days begins with the first one.
    replace_bodies(
        sandbox.binance,
        monkeypatch,
        lambda call, sent: bodies.get(int(call.params["startTime"]), b"null") if call.path == REBATE_PATH else sent,
    )
    sandbox.requests.clear()

    run = land(REBATES, days)

    assert {day: "the response is not a list of rows" in reason for day, reason in run.failed.items()} == dict.fromkeys(
        days, True
    )
    assert query("select count(*) from binance.rebate_recent_record") == [(15,)]
    # One for the range, then one for each of its days.
    assert len(sandbox.requests) == 1 + len(days)
