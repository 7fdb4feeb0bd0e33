"""The users of the sandbox's LBank, its user lists and user infos."""

import hashlib
import json
from collections import Counter
from datetime import date, timedelta

import pytest

from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline.sandbox.days import DAY_MS, HOUR_MS, MINUTE_MS
from affiliate_pipeline.sandbox.lbank.days import start_of
from affiliate_pipeline_tests.sandbox.lbank.lbank_requests import (
    AMOUNTS,
    LISTS,
    TODAY,
    YESTERDAY,
    is_agent,
    paged,
    window,
)


def test_500_users_are_of_all_kinds(large_lbank):
    users = large_lbank.users
    levels = Counter(user["userLevel"] for user in users)
    assert len(users) == len({user["openId"] for user in users}) == len({user["id"] for user in users}) == 500
    assert sum(map(is_agent, users)) == 40
    assert 0.36 < sum(user["transaction"] for user in users) / 500 < 0.42
    assert min(levels[0], levels[99], levels[100]) > 20
    assert 100 < sum(user["directInvitation"] for user in users) < 300
    assert all((user["currencyFeeAmt"] is not None) == is_agent(user) for user in users)


@pytest.mark.parametrize("now", ["2025-06-03", "2029-03-01"])
def test_the_number_of_users_does_not_depend_on_the_date(clock, now):
    clock.ms = start_of(date.fromisoformat(now))
    for size in (0, 1, 60, 500):
        users = Sandbox(now=clock, users=size).lbank.users
        assert len(users) == size
        assert [user["createTime"] for user in users] == sorted(user["createTime"] for user in users)
        if size == 500:
            assert sum(map(is_agent, users)) == 40
            assert any(user["createTime"] < start_of(date(2025, 1, 1)) for user in users)


def test_2_to_4_users_register_every_day(large_lbank):
    assert all(2 <= len(large_lbank.invite_users(YESTERDAY - timedelta(back))) <= 4 for back in range(35))


@pytest.mark.parametrize("days_after", [5, 45])
def test_a_past_day_is_the_same_in_every_process_and_at_every_time(clock, days_after):
    # Python's `hash()` of a text differs between processes: this test fails if the rows depend on it.
    day = date(2025, 5, 22)
    clock.ms = start_of(day) + days_after * DAY_MS
    lbank = Sandbox(now=clock).lbank
    stable = ("openId", "createTime", "userLevel")
    users = [{name: value for name, value in row.items() if name in stable} for row in lbank.invite_users(day)]
    rows = [
        lbank.commissions(day),
        lbank.trades(day),
        lbank.team_trades(day),
        lbank.future(day, "ALL"),
        lbank.money(day, "IN_DEPOSIT"),
        users,
    ]
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]
    assert ([len(each) for each in rows], digest) == ([14, 17, 5, 2, 17, 1], "4e2d1072d9e50978")


def test_the_user_list_is_paged_by_the_largest_id(lbank, lbank_caller, clock):
    ids, last = [], 0
    while page := lbank_caller.get(LISTS[0], startTime=0, endTime=clock.ms, start=last, pageSize=7).data:
        ids += [row["id"] for row in page]
        last = page[-1]["id"]
    assert ids == sorted(user["id"] for user in lbank.users) and len(ids) == 60


def test_the_team_list_is_paged_by_offset(lbank, lbank_caller, clock):
    rows = paged(lbank_caller, LISTS[1], size=7, startTime=0, endTime=clock.ms)
    assert rows == [{k: v for k, v in user.items() if k != "id"} for user in lbank.users]
    lbank.newest_first = True
    assert paged(lbank_caller, LISTS[1], size=7, startTime=0, endTime=clock.ms) == rows[::-1]


def test_the_lists_of_a_day_have_the_users_who_registered_on_it(lbank, lbank_caller):
    start, end = window(YESTERDAY).values()
    for at in (start - 1, start, end, end + 1):
        lbank.add_user(f"at {at}", registered_ms=at)
    expected = {f"at {start}", f"at {end}"} | {
        user["openId"] for user in lbank.users if start < user["createTime"] < end
    }
    for path, rows in zip(LISTS, (lbank.invite_users(YESTERDAY), lbank.invite_team(YESTERDAY)), strict=True):
        response = lbank_caller.get(path, **window(YESTERDAY), start=0, pageSize=100)
        assert response.data == rows and {row["openId"] for row in rows} == expected


def test_a_user_is_not_listed_before_registering(lbank, lbank_caller, clock):
    lbank.add_user("later", registered_ms=clock.ms + 1)
    params = {"startTime": clock.ms, "endTime": clock.ms + DAY_MS, "pageSize": 100}
    assert lbank_caller.get(LISTS[1], **params).data == []
    assert lbank_caller.get("invite/user/info", openId="later").data["inviteResult"] is False
    clock.ms += 1
    assert [row["openId"] for row in lbank_caller.get(LISTS[1], **params).data] == ["later"]


def test_a_user_info_equals_the_users_list_row(lbank, lbank_caller):
    for user in lbank.users[::7]:
        data = lbank_caller.get("invite/user/info", openId=user["openId"]).data
        assert data == {k: v for k, v in user.items() if k != "id"} | {"inviteResult": True}
        assert data == lbank.user_info(user["openId"])


def test_the_info_of_an_unknown_user_is_empty(lbank, lbank_caller):
    data = lbank_caller.get("invite/user/info", openId="LBA0H1XXXX").data
    assert data == lbank.user_info("LBA0H1XXXX")
    assert {name for name, value in data.items() if value is False} == {
        "inviteResult", "directInvitation", "deposit", "transaction",
    }  # fmt: skip
    assert all(data[name] == "0.0000" for name in AMOUNTS)
    assert data["openId"] is data["userLevel"] is data["createTime"] is None


def test_a_user_who_left_is_unknown_but_past_trades_remain(lbank, clock, lbank_caller):
    # Users who registered from 2025 on are listed for about 100 days, earlier ones permanently.
    leaver = next(
        user for user in lbank.users if user["createTime"] > start_of(date(2025, 1, 1)) and user["transaction"]
    )
    day = YESTERDAY
    open_id = leaver["openId"]
    while not (before := [row for row in lbank.trades(day) if row["openId"] == open_id]):
        day -= timedelta(1)
    clock.ms += 120 * DAY_MS
    assert lbank_caller.get("invite/user/info", openId=open_id).data["inviteResult"] is False
    later = window(TODAY, TODAY + timedelta(110))
    assert lbank_caller.get("trade/user", openId=open_id, tradeType=10, **window(day)).data == before
    assert lbank_caller.get("trade/user", openId=open_id, tradeType=10, **later).data == []


def test_a_user_becomes_a_trader_with_the_first_trade(lbank, lbank_caller, clock):
    registered = clock.ms
    open_id = lbank.add_user(first_trade_ms=registered + HOUR_MS)
    row = lbank.invite_users(TODAY)[-1]
    assert (row["openId"], row["transaction"], row["deposit"]) == (open_id, False, False)
    assert all(trade["openId"] != open_id for trade in lbank.trades(TODAY))
    clock.ms += HOUR_MS + MINUTE_MS
    assert lbank.user_info(open_id)["transaction"] is True
    assert lbank_caller.get("trade/user", openId=open_id, tradeType=10, **window(TODAY)).data
    assert open_id in {trade["openId"] for trade in lbank.trades(TODAY)}
    assert lbank_caller.get("trade/user", openId=open_id, tradeType=10, **window(YESTERDAY)).data == []


def test_some_users_become_traders_within_a_week(large_lbank, clock):
    now = {user["openId"] for user in large_lbank.users if user["transaction"]}
    clock.ms -= 7 * DAY_MS
    before = {user["openId"]: user["transaction"] for user in large_lbank.users}
    assert sum(before.get(open_id) is False for open_id in now) >= 3


def test_a_user_with_a_duplicate_open_id_or_an_unknown_parent_is_refused(lbank):
    with pytest.raises(ValueError):
        lbank.add_user(lbank.own_open_id)
    with pytest.raises(ValueError):
        lbank.add_user(parent="unknown")
