"""LBank's assets land exactly the exchange's rows, with the number of requests that the plan states."""

import json
import logging
import math
import random
import threading
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from affiliate_pipeline.domain.problem import SettingsError
from affiliate_pipeline.domain.wording import duration
from affiliate_pipeline.environment import configured
from affiliate_pipeline.exchanges.lbank.exchange import LBankSession
from affiliate_pipeline.exchanges.lbank.pagination import WALKS
from affiliate_pipeline.exchanges.registry import DEFAULT, Catalog
from affiliate_pipeline.landing.pipeline import Landed, connected, land_days
from affiliate_pipeline.landing.store import Store
from affiliate_pipeline.sandbox import Number, Sandbox
from affiliate_pipeline.sandbox.exchange import Call
from affiliate_pipeline.sandbox.lbank.users import OWN_OPEN_ID
from affiliate_pipeline_tests import conftest
from affiliate_pipeline_tests.cases.sandbox_responses import replace_bodies
from affiliate_pipeline_tests.code_location import loaded_definitions
from affiliate_pipeline_tests.conftest import instance_of_all_runs
from affiliate_pipeline_tests.defs import direct_runs
from affiliate_pipeline_tests.defs.affiliates import (
    DATED,
    DAY,
    DAYS,
    ENDPOINT,
    KINDS,
    MONTHS,
    PATH,
    SCOPES,
    SNAPSHOT,
    agents,
    at,
    commission,
    deposit,
    expected_requests,
    landed,
    last_ms,
    plan,
    requests_to,
    rows_of,
    sent,
    today,
    traders,
)
from affiliate_pipeline_tests.defs.direct_runs import DirectRun
from affiliate_pipeline_tests.defs.events import (
    failure_message,
    only_step_failure,
    recorded_events,
)

pytestmark = pytest.mark.usefixtures("verified_keys")

COMMISSION, LIST, TEAM = "commission_stats_symbol_list", "invite_user_list", "invite_user_team_list"
MONEY, TRADES, TEAM_TRADES, FUTURES = "money_detail_list", "trade_user", "trade_user_team", "trade_future"
SETTLED = DAYS[1]
STRANGER = "LBA0H1XXXX"
# A user whom the exchange no longer lists.
ADD_STRANGER = (
    f"insert into lbank.roster select '{STRANGER}', 0, true, true, true, 'X', now(), now(), now(), false, source "
    "from lbank.roster limit 1"
)
HTML = (200, {"Content-Type": "text/html"}, b"<html><body>blocked</body></html>")


@pytest.fixture
def sandbox(monkeypatch, database_url):
    """The sandbox as LBank, with users registered in the first and the last millisecond of each day.

    After the test, assert that no request exceeded the rate limit.
    """
    with Sandbox(users=8, rate_scale=1000) as sandbox:
        lbank = sandbox.lbank
        monkeypatch.setenv("AFFILIATE_DATABASE_URL", database_url)
        monkeypatch.setenv("AFFILIATE_RATE_SCALE", "1000")
        monkeypatch.setenv("LBANK_BASE_URL", sandbox.url)
        monkeypatch.setenv("LBANK_API_KEY", lbank.api_key)
        monkeypatch.setenv("LBANK_API_SECRET", lbank.api_secret)
        monkeypatch.setenv("LBANK_OPEN_ID", lbank.own_open_id)
        # An agent who does not trade; of the other users, each agent trades.
        lbank.add_user(registered_ms=at(DAYS[0]), level=5)
        for day in DAYS:
            lbank.add_user(registered_ms=at(day, 0))
            lbank.add_user(registered_ms=last_ms(day), level=100)
        yield sandbox
    assert [request for request in sandbox.requests if request.code == 10004 and not request.fault] == []


@pytest.fixture
def many_agents(sandbox) -> list[str]:
    """Enough agents that the refusal of one is tolerated (up to 5 % are); none of them trades or has a team."""
    return [sandbox.lbank.add_user(registered_ms=at(DAYS[0]), level=5) for _ in range(20)]


def use_another_host(sandbox, monkeypatch) -> None:
    """Reach the sandbox under another name, which is another source."""
    monkeypatch.setenv("LBANK_BASE_URL", sandbox.url.replace("127.0.0.1", "localhost"))


def materialize(name, days, **config) -> conftest.Run:
    return conftest.materialize(f"lbank/{name}", days, **config)


def materialize_roster() -> dg.ExecuteInProcessResult:
    definitions = loaded_definitions()
    return dg.materialize(
        [definitions.get_assets_def(dg.AssetKey(["lbank", "roster"]))],
        instance=instance_of_all_runs(),
        resources=definitions.resources,
        raise_on_error=False,
    )


def land(name, days, **options) -> DirectRun:
    return direct_runs.land(f"lbank/{name}", days, **options)


def refresh_roster() -> None:
    """Refresh the roster without Dagster."""
    [roster] = DEFAULT.reference_tables
    variables = configured().variables
    with Store(configured().database_url()) as store, connected(roster.endpoint, store, variables) as session:
        roster.refresh(session)


def set_three_pages_of_deposits(sandbox, day) -> list[dict]:
    rows = [deposit(day, number) for number in range(230)]
    sandbox.lbank.set_money(rows)
    return rows


def money_rows(rows, kind="IN_DEPOSIT") -> Counter:
    return sent({**row, "userType": "ALL", "requestedSubInOutType": kind} for row in rows)


# Exact rows


@pytest.mark.parametrize("name", DATED)
def test_days_across_a_months_end_land_exactly_with_the_planned_number_of_requests(sandbox, query, database_url, name):
    run = land(name, DAYS)

    assert run.success, run.message
    assert sorted(run.landed) == DAYS
    for day in DAYS:
        assert landed(query, name, day) == sent(rows_of(sandbox, name, day)) != Counter()
        assert run.landed[day].settled is True
    assert [request for request in sandbox.requests if request.code] == []
    received = Counter(request.path for request in sandbox.requests)
    # The users to query come from the roster, which fits on one page.
    by_user = name in (COMMISSION, TRADES, TEAM_TRADES)
    assert received == {PATH[name]: expected_requests(sandbox, name)} | ({PATH[TEAM]: 1} if by_user else {})
    planned = plan(database_url, name, DAYS)
    assert planned.min_requests == expected_requests(sandbox, name)
    assert planned.max_requests == (planned.min_requests if name in (TRADES, TEAM_TRADES, FUTURES) else None)
    # 5 requests per 10 s, at this rate scale per 0.01 s; the first 5 are sent at once.
    assert planned.seconds == pytest.approx(math.ceil(max(0, planned.min_requests - 5) / 5) * 0.01)
    assert Counter(request.path for request in sandbox.requests) == received


def test_each_requested_page_counts_as_a_request_of_the_day(sandbox):
    set_three_pages_of_deposits(sandbox, SETTLED)
    run = land(MONEY, [SETTLED])
    assert run.landed[SETTLED].requests == len(requests_to(sandbox, MONEY))


def test_todays_state_of_agents_and_traders_lands(sandbox, query):
    run = land(SNAPSHOT, [day := today()])

    assert run.success, run.message
    assert landed(query, SNAPSHOT, day) == sent(rows_of(sandbox, SNAPSHOT, day))
    found = {open_id for (open_id,) in query("select open_id from lbank.invite_user_info")}
    assert found == {*agents(sandbox), *traders(sandbox)} - {sandbox.lbank.own_open_id}
    assert len(requests_to(sandbox, SNAPSHOT)) == len(found) < len(sandbox.lbank.users)


def test_an_rsa_key_signs_requests(sandbox, query, monkeypatch):
    key = rsa.generate_private_key(65537, 2048)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    sandbox.lbank.keys.clear()
    sandbox.lbank.add_key("key-of-rsa", public)
    monkeypatch.setenv("LBANK_API_KEY", "key-of-rsa")
    monkeypatch.setenv("LBANK_SIGNATURE_METHOD", "RSA")
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    monkeypatch.setenv("LBANK_API_SECRET", private)

    run = land(FUTURES, [SETTLED])

    assert run.success, run.message
    assert landed(query, FUTURES, SETTLED) == sent(rows_of(sandbox, FUTURES, SETTLED))
    assert {request.params["signature_method"] for request in sandbox.requests} == {"RSA"}


def test_a_landed_day_that_has_not_changed_is_not_written_again(sandbox, query):
    land(MONEY, [SETTLED])

    run = land(MONEY, [SETTLED])

    assert run.landed[SETTLED].changed is False
    assert landed(query, MONEY, SETTLED) == sent(rows_of(sandbox, MONEY, SETTLED))


# Which users are queried


def test_yesterdays_trades_include_the_affiliates_own_and_those_of_users_who_started_trading_that_day(sandbox, query):
    yesterday = today() - DAY
    newcomer = sandbox.lbank.add_user(registered_ms=at(DAYS[0]), first_trade_ms=at(yesterday))
    refresh_roster()
    # The roster's state of the day before.
    query("update lbank.roster set last_seen = last_seen - interval '2 days'")
    query("update lbank.roster set transaction = false where open_id = %s", newcomer)

    run = land(TRADES, [yesterday])

    assert run.success, run.message
    assert landed(query, TRADES, yesterday) == sent(rows_of(sandbox, TRADES, yesterday))
    found = {open_id for (open_id,) in query("select open_id from lbank.trade_user")}
    assert {newcomer, OWN_OPEN_ID} <= found


def test_null_after_the_last_page_of_the_users_is_the_end_of_the_list(sandbox, query, monkeypatch):
    """The server rounds `start` down to whole pages, and its last page is full."""
    users: list[dict[str, object]] = []

    def body_of(call: Call, sent: bytes) -> bytes:
        if call.path != PATH[TEAM]:
            return sent
        if not users:
            [user, *_] = json.loads(sent)["data"]
            users.extend(user | {"openId": f"LBA{number}"} for number in range(2 * WALKS[1]))
        size = int(call.params["pageSize"])
        start = int(call.params["start"]) // size * size
        return json.dumps({"result": "true", "error_code": 0, "data": users[start : start + size] or None}).encode()

    replace_bodies(sandbox.lbank, monkeypatch, body_of)
    for _ in range(2):  # the second time, the roster has users
        refresh_roster()
    assert query("select count(*) from lbank.roster") == [(len(users),)]


def test_the_roster_contains_every_user_ever_listed(sandbox, query):
    result = materialize_roster()

    assert result.success
    users = {
        (user["openId"], user["userLevel"], user["transaction"], user["deposit"], user["code"])
        for user in sandbox.lbank.users
    }
    assert set(query("select open_id, user_level, transaction, deposit, code from lbank.roster")) == users
    [materialization] = result.asset_materializations_for_node("lbank__roster")
    check_roster_metadata(materialization, sandbox, query)

    query(ADD_STRANGER)
    newcomer = sandbox.lbank.add_user()
    refresh_roster()

    found = {open_id for (open_id,) in query("select open_id from lbank.roster")}
    assert found == {open_id for open_id, *_ in users} | {STRANGER, newcomer}


def check_roster_metadata(materialization, sandbox, query) -> None:
    metadata = {name: value.value for name, value in materialization.metadata.items()}
    schema = metadata.pop("dagster/column_schema")
    columns = "select column_name, data_type, is_nullable = 'YES' from information_schema.columns"
    expected = query(f"{columns} where table_schema = 'lbank' and table_name = 'roster'")
    names = {"timestamp with time zone": "timestamptz"}
    assert {(column.name, column.type, column.constraints.nullable) for column in schema.columns} == {
        (name, names.get(kind, kind), nullable) for name, kind, nullable in expected
    }
    assert all(column.description for column in schema.columns)
    assert metadata == {
        "dagster/row_count": len(sandbox.lbank.users),
        "agents": len(agents(sandbox)) - 1,
        "traders": len(traders(sandbox)) - 1,
    }


def test_a_run_of_another_asset_that_refreshes_the_roster_records_its_materialization(sandbox, query):
    def refreshes(run: conftest.Run) -> list[dg.AssetMaterialization]:
        return [
            event.step_materialization_data.materialization
            for event in run.events
            if event.is_step_materialization and event.asset_key == dg.AssetKey(["lbank", "roster"])
        ]

    [refresh] = refreshes(materialize(COMMISSION, [SETTLED]))
    check_roster_metadata(refresh, sandbox, query)
    assert refreshes(materialize(COMMISSION, [SETTLED])) == []

    query("delete from lbank.roster")
    sandbox.faults.transform_row = lambda row: row | {"amount": "much"}
    failed = materialize(COMMISSION, [SETTLED])
    assert list(failed.failed) == [SETTLED]
    assert len(refreshes(failed)) == 1


def test_users_with_unknown_trading_state_or_level_are_queried(sandbox, query):
    unknown = {user["openId"] for user in sandbox.lbank.users}
    sandbox.faults.transform_row = lambda row: row | {"transaction": None, "userLevel": ""}
    refresh_roster()
    sandbox.faults.transform_row = None

    for name in (TRADES, COMMISSION):
        run = land(name, [SETTLED])

        assert run.success, run.message
        assert landed(query, name, SETTLED) == sent(rows_of(sandbox, name, SETTLED))
        assert {request.params["openId"] for request in requests_to(sandbox, name)} == unknown | {OWN_OPEN_ID}


def test_a_user_who_was_ever_an_agent_or_trader_is_always_queried(sandbox, query):
    refresh_roster()
    sandbox.faults.transform_row = lambda row: row | {"transaction": False, "userLevel": 0}
    refresh_roster()
    sandbox.faults.transform_row = None

    for name, expected in ((TRADES, traders), (COMMISSION, agents)):
        assert land(name, [SETTLED]).success
        assert {request.params["openId"] for request in requests_to(sandbox, name)} == {*expected(sandbox)}


def test_a_roster_older_than_the_days_is_refreshed_once(sandbox, query):
    yesterday = today() - DAY
    land(COMMISSION, [SETTLED])
    assert len(requests_to(sandbox, TEAM)) == 1
    land(COMMISSION, [yesterday])
    assert len(requests_to(sandbox, TEAM)) == 1

    # One second before the end of yesterday in UTC+8.
    query("update lbank.roster set last_seen = %s::date - interval '8 hours 1 second'", today())
    land(COMMISSION, [SETTLED])
    assert len(requests_to(sandbox, TEAM)) == 1
    land(COMMISSION, [yesterday])
    land(TEAM_TRADES, [yesterday])
    assert len(requests_to(sandbox, TEAM)) == 2


def test_one_of_several_concurrent_readers_refreshes_the_roster(sandbox, database_url):
    def read():
        endpoint = ENDPOINT[TRADES]
        with Store(database_url) as store, connected(endpoint, store, configured().variables) as session:
            assert isinstance(session, LBankSession)
            found.append(session.roster(at(SETTLED)))

    found = []
    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [len(roster.members) for roster in found] == [len(sandbox.lbank.users)] * 3
    assert len(requests_to(sandbox, TEAM)) == 1


def test_the_roster_of_another_account_is_not_used(sandbox, query, monkeypatch):
    refresh_roster()
    use_another_host(sandbox, monkeypatch)
    sandbox.requests.clear()

    run = land(COMMISSION, [SETTLED])

    assert "the roster in this database is that of" in run.failed[SETTLED]
    assert "configure this account with an alias of its own" in run.failed[SETTLED]
    assert sandbox.requests == []


def test_a_failed_refresh_leaves_the_roster_unchanged(sandbox, query, monkeypatch):
    refresh_roster()
    before = query("select * from lbank.roster order by open_id")
    monkeypatch.setenv("LBANK_API_SECRET", "another-secret")

    result = materialize_roster()

    failure = only_step_failure(recorded_events(instance_of_all_runs(), result.run_id))
    assert "LBANK_API_SECRET" in failure_message(failure)
    assert query("select * from lbank.roster order by open_id") == before


def test_a_user_outside_the_team_lands_with_the_invite_result_alone(sandbox, query):
    refresh_roster()
    query(ADD_STRANGER)

    run = land(SNAPSHOT, [day := today()])

    assert run.success, run.message
    query("delete from lbank.invite_user_info where open_id <> %s", STRANGER)
    assert landed(query, SNAPSHOT, day) == sent([{"openId": STRANGER, "inviteResult": False}])


def test_the_other_fields_of_a_user_outside_the_team_are_ignored(sandbox, query):
    others = [{}, {"newThing": 1}, {"userLevel": 5, "reserveAmt": ""}]
    queried = dict.fromkeys(agents(sandbox) + traders(sandbox))
    strangers = dict(zip([each for each in queried if each != OWN_OPEN_ID], others, strict=False))
    assert len(strangers) == len(others)

    def outside_the_team(row):
        open_id = row["openId"]
        return {"openId": None, "inviteResult": False} | strangers[open_id] if open_id in strangers else row

    refresh_roster()
    sandbox.faults.transform_row = outside_the_team
    run = land(SNAPSHOT, [day := today()])

    assert run.success, run.message
    query("delete from lbank.invite_user_info where open_id <> all(%s)", [*strangers])
    assert landed(query, SNAPSHOT, day) == sent({"openId": each, "inviteResult": False} for each in strangers)


def test_the_invite_result_is_required(sandbox, query):
    refresh_roster()
    cases = {"the field is missing": {}, "null": {"inviteResult": None}, "not true or false": {"inviteResult": "no"}}
    for problem, invalid in cases.items():

        def without_result(row, invalid=invalid):
            return {k: v for k, v in row.items() if k != "inviteResult"} | invalid

        sandbox.faults.transform_row = without_result
        run = land(SNAPSHOT, [day := today()])

        assert f"invite_result: {problem} in " in run.failed[day]
        # The rejected rows are stored as received.
        [(rejected,)] = query("select count(*) from affiliate.rejected_row where payload ->> 'userLevel' is not null")
        assert rejected == len({*agents(sandbox), *traders(sandbox)}) - 1, problem


# Snapshots


def test_a_snapshot_of_yesterday_is_refused(sandbox, query):
    yesterday = today() - DAY

    run = land(SNAPSHOT, [yesterday])

    assert "has no past days, so only today can be materialized" in run.failed[yesterday]
    assert sandbox.requests == []


def test_a_landed_snapshot_of_yesterday_is_retained_without_a_request(sandbox, query, database_url):
    day = today()
    land(SNAPSHOT, [day])
    rows = landed(query, SNAPSHOT, day)
    for table, column in (("lbank.invite_user_info", "partition_date"), ("affiliate.landing", "partition")):
        query(f"update {table} set {column} = {column} - 1")
    sandbox.requests.clear()

    planned = plan(database_url, SNAPSHOT, [day - DAY])
    run = land(SNAPSHOT, [day - DAY])

    assert (planned.min_requests, planned.max_requests, planned.seconds) == (0, 0, 0)
    assert run.success and list(run.retained) == [day - DAY]
    assert landed(query, SNAPSHOT, day - DAY) == rows
    assert sandbox.requests == []


# Pages


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("name", [LIST, TEAM])
def test_users_who_register_during_pagination_land_exactly_once(sandbox, query, name, newest_first):
    sandbox.lbank.newest_first = newest_first
    for number in range(110):
        sandbox.lbank.add_user(registered_ms=at(SETTLED) + number)
    registered = False

    def register(path, params):
        nonlocal registered
        if path == PATH[name] and not registered:
            registered = True
            sandbox.lbank.add_user(registered_ms=at(SETTLED, 13 if newest_first else 11))

    sandbox.lbank.after_page = register
    run = land(name, [SETTLED])

    assert run.success, run.message
    assert landed(query, name, SETTLED) == sent(rows_of(sandbox, name, SETTLED))
    assert registered and landed(query, name, SETTLED).total() >= 113


def test_rows_that_move_during_pagination_land_exactly_once(sandbox, query):
    rows = set_three_pages_of_deposits(sandbox, SETTLED)
    more = [deposit(SETTLED, number, createTime=at(SETTLED, 1) + number) for number in range(3)]
    pending = list(more)

    def add(path, params):
        if pending and params.get("subInOutType") == "IN_DEPOSIT":
            pending.pop()
            sandbox.lbank.set_money([*more[len(pending) :], *rows])

    sandbox.lbank.after_page = add
    run = land(MONEY, [SETTLED])

    assert run.success, run.message
    assert pending == []
    assert landed(query, MONEY, SETTLED) == money_rows([*more, *rows])


def test_a_row_removed_during_pagination_hides_no_other_row(sandbox, query):
    rows = set_three_pages_of_deposits(sandbox, SETTLED)

    def remove(path, params):
        if params.get("subInOutType") == "IN_DEPOSIT":
            sandbox.lbank.set_money(rows[1:])

    sandbox.lbank.after_page = remove
    run = land(MONEY, [SETTLED])

    assert run.success, run.message
    # The removed row lands if its page was fetched before the removal.
    assert money_rows(rows[1:]) <= landed(query, MONEY, SETTLED)


def test_pages_that_never_stop_moving_fail_their_day(sandbox, query):
    rows = set_three_pages_of_deposits(sandbox, SETTLED)

    def add(path, params):
        if params.get("subInOutType") == "IN_DEPOSIT":
            rows.insert(0, deposit(SETTLED, len(rows), createTime=at(SETTLED, 1)))
            sandbox.lbank.set_money(rows)

    sandbox.lbank.after_page = add
    run = land(MONEY, [SETTLED])

    assert "changed during each of 4 walks" in run.failed[SETTLED]


def test_rows_of_equal_time_in_a_different_order_on_each_page_land_once(sandbox, query):
    order = random.Random(5)
    rows = [deposit(SETTLED, number, createTime=at(SETTLED) + number // 3) for number in range(400)]

    def shuffle(path, params):
        sandbox.lbank.set_money(order.sample(rows, len(rows)))

    shuffle(None, None)
    sandbox.lbank.after_page = shuffle
    run = land(MONEY, [SETTLED])

    assert run.success, run.message
    assert landed(query, MONEY, SETTLED) == money_rows(rows)
    # Each page boundary costs at most one additional request.
    assert len(requests_to(sandbox, MONEY)) <= len(KINDS) + 2 * 4


def test_equal_rows_across_a_page_boundary_both_land_without_another_walk(sandbox, query):
    rows = [deposit(SETTLED, number) for number in range(130)]
    rows[100] = rows[99]
    sandbox.lbank.set_money(rows)

    run = land(MONEY, [SETTLED])

    assert run.success, run.message
    assert landed(query, MONEY, SETTLED) == money_rows(rows)
    pages = Counter(int(request.params["start"]) for request in requests_to(sandbox, MONEY))
    # The second page begins at 99, with the last row of the first one. The additional page at 0 is the request for the
    # whole second of the equal rows.
    assert pages == {0: len(KINDS) + 1, 99: 1}


def test_commissions_are_fetched_to_the_last_page(sandbox, query):
    agent = agents(sandbox)[1]
    rows = [
        commission(agent, day, f"{number}.50") | {"coinSymbol": f"coin{number}"}
        for day in DAYS[:3]
        for number in range(70)
    ]
    sandbox.lbank.set_commissions(rows)

    run = land(COMMISSION, DAYS[:3])

    assert run.success, run.message
    for day in DAYS[:3]:
        assert landed(query, COMMISSION, day) == sent(rows_of(sandbox, COMMISSION, day))
    assert query("select count(*) from lbank.commission_stats_symbol_list") == [(210,)]
    assert len(requests_to(sandbox, COMMISSION)) == len(agents(sandbox)) + 2


def test_a_full_last_page_is_followed_by_a_page_without_new_rows(sandbox, query):
    rows = [deposit(SETTLED, number) for number in range(100)]
    sandbox.lbank.set_money(rows)

    land(MONEY, [SETTLED])

    assert landed(query, MONEY, SETTLED) == money_rows(rows)
    assert len(requests_to(sandbox, MONEY)) == len(KINDS) + 1


# Spellings of the exchange


def in_lower_case(row):
    return {name.lower(): value for name, value in row.items()}


def in_seconds(row):
    return {name: value // 1000 if name.endswith(("Time", "Date")) and value else value for name, value in row.items()}


def in_seconds_as_ms(row):
    times = in_seconds(row)
    return {name: times[name] * 1000 for name in times if name.endswith(("Time", "Date"))}


def unquoted(row):
    return {
        name: Number(value) if name.endswith(("Amt", "Num", "AmtUsdt", "mount")) and value else value
        for name, value in row.items()
    }


def with_level_100(row):
    return row | {"userLevel": 100} if "userLevel" in row else row


def with_empty_amounts(row):
    """The row with empty strings in place of the amounts that may be null."""
    return row | dict.fromkeys({"currencyFeeAmt", "reserveAmt", "usdtAmount"} & {*row}, "")


def with_null_amounts(row):
    return {name: None if value == "" else value for name, value in with_empty_amounts(row).items()}


@pytest.mark.parametrize("spelling", [in_lower_case, in_seconds, unquoted, with_level_100, with_empty_amounts])
def test_every_known_spelling_of_a_row_lands(sandbox, query, spelling):
    sandbox.faults.transform_row = spelling
    expected = {
        in_seconds: lambda row: row | in_seconds_as_ms(row),
        with_level_100: with_level_100,
        with_empty_amounts: with_null_amounts,
    }
    # Two spellings change rows of only the endpoints listed here. Also, at level 100 no user is an agent, so endpoints
    # queried per agent would query only the affiliate's own openId.
    changed = {with_level_100: [LIST, MONEY], with_empty_amounts: [LIST, COMMISSION]}

    for name in changed.get(spelling, [LIST, TEAM_TRADES, MONEY, COMMISSION]):
        run = land(name, [SETTLED])

        assert run.success, run.message
        rows = rows_of(sandbox, name, SETTLED)
        assert landed(query, name, SETTLED) == sent(map(expected.get(spelling, dict), rows)) != Counter()
        assert run.landed[SETTLED].unknown_fields == {}


def test_a_snapshot_in_lower_case_lands(sandbox, query):
    sandbox.faults.transform_row = in_lower_case

    run = land(SNAPSHOT, [day := today()])

    assert run.success, run.message
    assert landed(query, SNAPSHOT, day) == sent(rows_of(sandbox, SNAPSHOT, day))


def test_the_result_may_be_a_boolean(sandbox, query):
    sandbox.lbank.result_as_boolean = True

    run = land(FUTURES, [SETTLED])
    sandbox.lbank.refused_paths[PATH[FUTURES]] = 10601
    refused = land(FUTURES, [SETTLED])

    assert run.success, run.message
    assert landed(query, FUTURES, SETTLED) == sent(rows_of(sandbox, FUTURES, SETTLED))
    assert "closed this interface" in refused.failed[SETTLED]


def test_a_field_unknown_to_the_schema_lands_in_extra(sandbox, query):
    sandbox.faults.transform_row = lambda row: row | {"newThing": Number("1.50")}

    run = land(MONEY, [SETTLED])

    assert run.success, run.message
    extra = {"extra": '{"newThing": 1.50}'}
    assert landed(query, MONEY, SETTLED) == sent(row | extra for row in rows_of(sandbox, MONEY, SETTLED))
    assert run.landed[SETTLED].unknown_fields == {"newThing": run.landed[SETTLED].stats.rows}


def test_web_pages_and_temporary_errors_are_retried(sandbox, query):
    too_frequent = b'{"result":"false","error_code":10004,"msg":"Request too frequent"}'
    busy = b'{"result":"false","error_code":10017,"msg":"Server exception"}'
    sandbox.faults.next_responses.extend(
        [HTML, (502, {}, HTML[2]), (200, {}, busy), (200, {}, too_frequent), (200, {}, b"")]
    )

    run = land(FUTURES, [SETTLED])

    assert run.success, run.message
    assert landed(query, FUTURES, SETTLED) == sent(rows_of(sandbox, FUTURES, SETTLED))
    assert len(requests_to(sandbox, FUTURES)) == len(SCOPES) + 5


def test_a_successful_response_is_accepted_with_any_other_envelope_fields(sandbox, query):
    envelopes = ('"error_code":null,"msg":7,"ts":"1740563092165"', '"error_code":0.0,"msg":[],"ts":1740563092165.5', "")
    for number, envelope in enumerate(envelopes):
        data = f'"data":{{"turnover":"{number}.50","fee":"0.10"}}'
        body = f'{{"result":"true",{envelope}{envelope and ","}{data}}}'.encode()
        sandbox.faults.next_responses.extend([(200, {}, body)] * len(SCOPES))
        sandbox.requests.clear()

        run = land(FUTURES, [SETTLED])

        assert run.success, run.message
        assert len(requests_to(sandbox, FUTURES)) == len(SCOPES), envelope
        assert query("select distinct turnover::text from lbank.trade_future") == [(f"{number}.50",)], envelope


def test_a_refusal_with_an_unreadable_code_is_retried(sandbox):
    sandbox.faults.next_responses.append((200, {}, b'{"result":"false","error_code":null,"msg":5}'))

    assert land(FUTURES, [SETTLED]).success
    assert len(requests_to(sandbox, FUTURES)) == len(SCOPES) + 1


@pytest.mark.parametrize("status", [418, 429])
def test_a_retry_after_beyond_the_runs_limit_fails_the_day_at_once(sandbox, status):
    sandbox.faults.next_responses.append((status, {"Retry-After": "1000"}, HTML[2]))

    run = land(FUTURES, [SETTLED])

    assert "allows no request for 16 min 40 s" in run.failed[SETTLED] and str(status) in run.failed[SETTLED]
    assert len(requests_to(sandbox, FUTURES)) == 1


def test_a_permanent_web_page_is_reported_as_a_web_page(sandbox):
    sandbox.faults.next_responses.extend([HTML] * 1000)

    run = land(FUTURES, [SETTLED])

    assert "with a web page" in run.failed[SETTLED]


# Bad days


@pytest.mark.parametrize(
    ("name", "code"),
    [(LIST, 20026), (TEAM_TRADES, 20026), (COMMISSION, 20026), (FUTURES, 20026), (MONEY, 10000)],
    ids=lambda value: f"{value}",
)
def test_a_bad_day_fails_alone(sandbox, query, name, code):
    # Code 10000 is a server error, which is retried.
    bad, good = SETTLED, [DAYS[0], DAYS[2], DAYS[3]]
    sandbox.faults.path = PATH[name]
    sandbox.faults.fail_day(bad, code=code)

    run = land(name, DAYS[:4])

    assert list(run.failed) == [bad] and f"{code}" in run.failed[bad]
    assert sorted(run.landed) == good
    for day in good:
        assert landed(query, name, day) == sent(rows_of(sandbox, name, day))
    assert landed(query, name, bad) == Counter()


@pytest.mark.parametrize(
    ("name", "field", "times"),
    [(MONEY, "createTime", ("soon", "missing")), (TEAM_TRADES, "statsDate", (None, 5))],
    ids=[MONEY, TEAM_TRADES],
)
def test_a_row_with_an_unreadable_time_fails_its_day_alone(sandbox, query, name, field, times):
    bad, good = [DAYS[0], DAYS[2]], DAYS[1]

    def with_invalid_time(row):
        for day, invalid in zip(bad, times, strict=True):
            if at(day, 0) <= row.get(field, 0) <= last_ms(day):
                others = {key: value for key, value in row.items() if key != field}
                return others if invalid == "missing" else others | {field: invalid}
        return row

    # Refresh the roster first, so that its rows are not transformed.
    refresh_roster()
    sandbox.faults.transform_row = with_invalid_time
    run = land(name, DAYS[:3])

    assert sorted(run.failed) == bad and all(field in run.failed[day] for day in bad)
    assert landed(query, name, good) == sent(rows_of(sandbox, name, good))


def test_list_items_that_are_not_rows_fail_their_day(sandbox, query):
    for data in (b"[null]", b"[1]", b'["a"]', b"[[1]]"):
        sandbox.faults.next_responses.append((200, {}, b'{"result":"true","error_code":0,"data":%s}' % data))

        run = land(MONEY, [SETTLED])

        assert "neither a row nor a list of rows" in run.failed[SETTLED], data
    assert land(MONEY, [SETTLED]).success
    assert landed(query, MONEY, SETTLED) == sent(rows_of(sandbox, MONEY, SETTLED))


@pytest.mark.parametrize("name", [FUTURES, SNAPSHOT])
def test_no_row_or_two_rows_where_one_is_expected_fail_the_day(sandbox, query, name):
    refresh_roster()
    bad = today() if name == SNAPSHOT else DAYS[0]
    for data in (b"[]", b'[{"turnover":"1","fee":"0"},{"turnover":"2","fee":"0"}]'):
        sandbox.faults.next_responses.append((200, {}, b'{"result":"true","error_code":0,"data":%s}' % data))

        run = land(name, [bad] if name == SNAPSHOT else DAYS[:2])

        assert list(run.failed) == [bad] and "rows instead of one" in run.failed[bad], data
        assert landed(query, name, bad) == Counter(), data


def test_rows_that_contradict_the_request_are_refused(sandbox, query):
    # A server that ignores `tradeType` returns the same rows for both of its values.
    refresh_roster()
    sandbox.faults.transform_row = lambda row: row | {"trade_type": "1"}

    run = land(TRADES, DAYS[:2])

    assert sorted(run.failed) == DAYS[:2] and "its `trade_type` is '1', not 0" in run.failed[SETTLED]


def test_rows_that_repeat_the_requests_parameters_land(sandbox, query):
    sandbox.faults.transform_row = lambda row: row | {"userType": "ALL", "requestedSubInOutType": None}

    run = land(MONEY, [SETTLED])

    assert run.success, run.message
    assert landed(query, MONEY, SETTLED) == sent(rows_of(sandbox, MONEY, SETTLED))


def test_rows_of_days_outside_the_request_are_refused(sandbox, query):
    sandbox.faults.transform_row = lambda row: row | {"createTime": at(DAYS[4])}

    run = land(MONEY, [SETTLED])

    assert f"requested {SETTLED}, and LBank returned rows of {DAYS[4]}" in run.failed[SETTLED]


def test_an_invalid_row_is_stored_as_received(sandbox, query):
    sandbox.lbank.set_money([deposit(SETTLED), deposit(SETTLED, 1, assetNum="many"), deposit(DAYS[0])])

    run = land(MONEY, DAYS[:2])

    assert list(run.failed) == [SETTLED] and "asset_num: not a decimal number in 1 row" in run.failed[SETTLED]
    assert query("select partition, count(*) from affiliate.rejected_row group by 1") == [(SETTLED, 2)]
    assert landed(query, MONEY, DAYS[0]) == money_rows([deposit(DAYS[0])])


def test_today_is_refused_because_it_has_not_ended(sandbox):
    run = land(MONEY, [day := today()])

    assert "the day has not ended yet" in run.failed[day]
    assert sandbox.requests == []


# Refused openIds


@pytest.mark.parametrize("code", [10006, 10022])
def test_a_refused_open_id_is_skipped(sandbox, query, caplog, many_agents, code):
    refused = many_agents[0]
    sandbox.lbank.refused_open_ids[refused] = code

    run = land(COMMISSION, [DAYS[2], DAYS[3]])

    assert run.success, run.message
    for day in (DAYS[2], DAYS[3]):
        rows = [row for row in rows_of(sandbox, COMMISSION, day) if row["openId"] != refused]
        assert landed(query, COMMISSION, day) == sent(rows)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert all(refused in warning for warning in warnings)
    # The days are in two months, and an openId is queried once per month.
    assert sum(f"error_code {code}" in warning for warning in warnings) == MONTHS
    assert {(check.passed, check.description) for check in run.checks} == {
        (False, f"rows of these openIds are missing, since LBank refuses them: {refused}")
    }


def test_a_refused_open_id_whose_rows_had_landed_fails_the_day(sandbox, query, many_agents):
    refused, other = many_agents[:2]
    before = [commission(refused, SETTLED, "1.00"), commission(other, SETTLED, "2.00")]
    sandbox.lbank.set_commissions(before)
    land(COMMISSION, [SETTLED])
    # The same number of rows as before, so that the count does not reveal the loss.
    after = [commission(other, SETTLED, "2.00"), commission(other, SETTLED, "3.00")]
    sandbox.lbank.set_commissions(after)
    sandbox.lbank.refused_open_ids[refused] = 10022

    run = land(COMMISSION, [SETTLED, DAYS[2]])

    assert list(run.failed) == [SETTLED] and list(run.landed) == [DAYS[2]]
    assert f"the exchange now refuses {refused}, whose rows had landed" in run.failed[SETTLED]
    assert "allow_shrink: true" in run.failed[SETTLED]
    assert landed(query, COMMISSION, SETTLED) == sent(before)

    run = land(COMMISSION, [SETTLED], allow_shrink=True)

    assert run.success, run.message
    assert landed(query, COMMISSION, SETTLED) == sent(after)
    [(lost,)] = query("select payload ->> 'open_id' from affiliate.superseded_row")
    assert lost == refused


def test_refusals_of_more_than_5_percent_fail_the_range(sandbox, query, many_agents):
    for open_id in many_agents[:2]:
        sandbox.lbank.refused_open_ids[open_id] = 10022

    run = land(COMMISSION, [SETTLED, DAYS[2]])

    assert sorted(run.failed) == [SETTLED, DAYS[2]]
    assert f"LBank refused 2 of {len(agents(sandbox))} openIds" in run.failed[SETTLED]


def test_a_refusal_of_the_affiliates_own_open_id_fails_at_the_first_response(sandbox):
    sandbox.lbank.refused_open_ids[OWN_OPEN_ID] = 10022

    run = land(TRADES, DAYS)

    assert sorted(run.failed) == DAYS and "LBANK_OPEN_ID" in run.failed[SETTLED]
    assert len(requests_to(sandbox, TRADES)) == 1


# Access


@pytest.mark.parametrize(
    ("name", "variable", "value", "code", "expected"),
    [
        (MONEY, "LBANK_API_KEY", "another-key", 10005, ["LBANK_API_KEY"]),
        (MONEY, "LBANK_API_SECRET", "another-secret", 10007, ["LBANK_API_SECRET", "LBANK_SIGNATURE_METHOD"]),
        (MONEY, "LBANK_OPEN_ID", STRANGER, 10022, ["LBANK_OPEN_ID", "permission"]),
        (TEAM_TRADES, "LBANK_OPEN_ID", STRANGER, 10022, ["LBANK_OPEN_ID", "permission"]),
    ],
)
def test_a_wrong_variable_is_reported_at_the_first_response(
    sandbox, monkeypatch, name, variable, value, code, expected
):
    monkeypatch.setenv(variable, value)

    run = land(name, DAYS)

    assert sorted(run.failed) == DAYS and len(set(run.failed.values())) == 1
    assert all(text in run.failed[SETTLED] for text in [str(code), *expected])
    assert value not in run.message
    assert [request.code for request in sandbox.requests if request.path != PATH[TEAM] or request.code] == [code]


def test_a_refusal_of_the_endpoint_fails_at_the_first_response(sandbox):
    for code, expected in ((10022, "permission"), (10601, "closed this interface"), (10600, "set it by NTP")):
        sandbox.lbank.refused_paths[PATH[TEAM_TRADES]] = code
        sandbox.requests.clear()

        run = land(TEAM_TRADES, DAYS)

        assert sorted(run.failed) == DAYS and len(set(run.failed.values())) == 1, code
        assert str(code) in run.failed[SETTLED] and expected in run.failed[SETTLED]
        assert len(requests_to(sandbox, TEAM_TRADES)) == 1, code


def test_a_clock_offset_is_corrected_with_the_exchanges_time(sandbox, query, caplog):
    sandbox.faults.clock_offset_ms = 300_000

    run = land(FUTURES, [SETTLED])

    assert run.success, run.message
    assert landed(query, FUTURES, SETTLED) == sent(rows_of(sandbox, FUTURES, SETTLED))
    assert [request.code for request in sandbox.requests] == [10600, *[None] * len(SCOPES)]
    assert any("clock" in record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)


def test_a_clock_that_cannot_be_corrected_fails_after_at_most_two_requests(sandbox):
    now = time.time_ns() // 1_000_000
    off = b'{"result":"false","error_code":10600,"msg":"replay","ts":%d}' % now
    sandbox.faults.next_responses.extend([(200, {}, off)] * 1000)

    run = land(FUTURES, [SETTLED])

    assert "The clock of this machine is off" in run.failed[SETTLED]
    assert len(sandbox.requests) <= 2


def test_all_missing_variables_are_reported(sandbox, monkeypatch):
    names = ["LBANK_API_KEY", "LBANK_API_SECRET", "LBANK_OPEN_ID"]
    for name in names:
        monkeypatch.delenv(name)

    with pytest.raises(SettingsError) as raised:
        land(MONEY, [SETTLED])

    assert all(f"{name} is not set" in f"{raised.value}" for name in names)
    assert sandbox.requests == []


def test_a_secret_that_is_not_an_rsa_key_is_reported_by_its_variable(sandbox, monkeypatch):
    monkeypatch.setenv("LBANK_SIGNATURE_METHOD", "RSA")

    with pytest.raises(SettingsError) as raised:
        land(MONEY, [SETTLED])

    failure = f"{raised.value} {raised.value.problem}"
    assert "LBANK_API_SECRET or LBANK_SIGNATURE_METHOD" in failure
    assert sandbox.lbank.api_secret not in failure
    assert sandbox.requests == []


# Plans


def test_the_plan_of_days_with_a_gap_has_the_number_of_requests_sent(sandbox, query, database_url):
    days = [DAYS[0], DAYS[2]]
    planned = plan(database_url, FUTURES, days), plan(database_url, MONEY, days)

    for name in (FUTURES, MONEY):
        with Store(database_url) as store, connected(ENDPOINT[name], store, configured().variables) as session:
            outcomes = list(land_days(ENDPOINT[name], days, session=session, store=store, run_id="by hand"))
        assert [type(outcome) for outcome in outcomes] == [Landed, Landed]

    assert [each.min_requests for each in planned] == [len(requests_to(sandbox, name)) for name in (FUTURES, MONEY)]


def test_a_plan_reports_requests_and_duration(sandbox, database_url, monkeypatch):
    monkeypatch.setenv("AFFILIATE_RATE_SCALE", "1")
    by_user, paged = plan(database_url, TEAM_TRADES, DAYS), plan(database_url, MONEY, DAYS)
    many = expected_requests(sandbox, TEAM_TRADES)

    assert str(by_user) == f"{many} requests, {duration(math.ceil((many - 5) / 5) * 10)} at the permitted rate"
    assert str(paged) == "at least 12 requests, at least 20 s at the permitted rate"
    assert {request.path for request in sandbox.requests} == {PATH[TEAM]}


# Resuming


@pytest.fixture
def interrupted(sandbox) -> int:
    """A run that failed after the first response of the second month; returns how many of its requests succeeded."""

    def close(path, params):
        if path == PATH[COMMISSION]:
            pages.append(params)
            if len(pages) > len(agents(sandbox)):
                sandbox.lbank.refused_paths[path] = 10601

    pages = []
    sandbox.lbank.after_page = close
    run = land(COMMISSION, DAYS)
    assert sorted(run.failed) == DAYS[3:] and sorted(run.landed) == DAYS[:3]
    sandbox.lbank.after_page = None
    sandbox.lbank.refused_paths.clear()
    responses = sum(request.code is None for request in requests_to(sandbox, COMMISSION))
    sandbox.requests.clear()
    return responses


def test_an_interrupted_range_requests_only_what_is_missing(sandbox, query, interrupted, database_url):
    assert query("select count(*) from affiliate.answer") == [(interrupted,)]

    run = land(COMMISSION, DAYS)

    assert run.success, run.message
    assert len(requests_to(sandbox, COMMISSION)) == expected_requests(sandbox, COMMISSION) - interrupted
    for day in DAYS:
        assert landed(query, COMMISSION, day) == sent(rows_of(sandbox, COMMISSION, day))
    # Every day has an outcome, so the cached responses have been deleted.
    assert query("select count(*) from affiliate.answer") == [(0,)]


def test_an_interrupted_list_resumes_with_its_next_page(sandbox, query):
    rows = [deposit(SETTLED, number) for number in range(450)]
    sandbox.lbank.set_money(rows)

    def close(path, params):
        # Each page begins with the last row of the one before, so the third page begins at 198.
        if params["start"] == "198":
            sandbox.lbank.refused_paths[path] = 10601

    sandbox.lbank.after_page = close
    interrupted = land(MONEY, [SETTLED])
    sandbox.lbank.after_page = None
    sandbox.lbank.refused_paths.clear()
    sandbox.requests.clear()

    run = land(MONEY, [SETTLED])

    assert list(interrupted.failed) == [SETTLED] and run.success, run.message
    assert landed(query, MONEY, SETTLED) == money_rows(rows)
    others = [0] * (len(KINDS) - 1)
    assert [int(request.params["start"]) for request in requests_to(sandbox, MONEY)] == [297, 396, *others]


def test_an_invalid_response_is_not_cached(sandbox, query):
    set_three_pages_of_deposits(sandbox, SETTLED)
    sandbox.faults.transform_row = lambda row: row | {"createTime": at(DAYS[4])}
    sandbox.lbank.after_page = lambda path, params: sandbox.lbank.refused_paths.update({path: 10601})

    run = land(MONEY, DAYS[:2])

    assert sorted(run.failed) == DAYS[:2] and "10601" in run.failed[SETTLED]
    assert query("select count(*) from affiliate.answer") == [(0,)]


def test_cached_responses_older_than_6_hours_are_not_used(sandbox, query, interrupted):
    query("update affiliate.answer set asked_at = asked_at - interval '6 hours'")

    run = land(COMMISSION, DAYS)

    assert run.success, run.message
    assert len(requests_to(sandbox, COMMISSION)) == expected_requests(sandbox, COMMISSION)


def test_cached_responses_of_another_source_are_not_used(sandbox, query, monkeypatch, interrupted):
    query("delete from lbank.roster")
    use_another_host(sandbox, monkeypatch)

    run = land(COMMISSION, DAYS[3:])

    assert run.success, run.message
    assert len(requests_to(sandbox, COMMISSION)) == len(agents(sandbox))


def test_a_failed_day_leaves_no_cached_responses(sandbox, query):
    sandbox.faults.fail_day(SETTLED, code=20026)

    run = land(FUTURES, DAYS[:3])

    assert list(run.failed) == [SETTLED]
    assert query("select count(*) from affiliate.answer") == [(0,)]


def test_a_day_settles_by_the_age_of_its_responses(sandbox, monkeypatch, query, interrupted):
    endpoint, day, hour = ENDPOINT[COMMISSION], DAYS[3], timedelta(hours=1)
    # The day settled two hours ago.
    settles_after = datetime.now(UTC) - 2 * hour - datetime.fromtimestamp(at(day + DAY, 0) / 1000, UTC)
    declared = Catalog((replace(endpoint, settles_after=settles_after),))
    monkeypatch.setattr("affiliate_pipeline.definitions.configured_catalog", lambda _: declared)
    query("update affiliate.answer set asked_at = asked_at - interval '5 hours'")

    run = land(COMMISSION, [*DAYS[3:]])
    again = land(COMMISSION, [day])

    assert run.success, run.message
    assert run.landed[day].settled is False
    assert again.landed[day].settled is True
