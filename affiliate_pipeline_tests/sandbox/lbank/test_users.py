"""The users of the sandbox's LBank, and what its lists and infos show of them."""

import subprocess
import sys
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


def test_the_users_are_as_many_and_of_the_kinds_that_were_asked_for(many):
    users = many.users
    levels = Counter(user["userLevel"] for user in users)
    assert len(users) == len({user["openId"] for user in users}) == len({user["id"] for user in users}) == 500
    assert sum(map(is_agent, users)) == 40
    assert 0.36 < sum(user["transaction"] for user in users) / 500 < 0.42
    assert min(levels[0], levels[99], levels[100]) > 20
    assert 100 < sum(user["directInvitation"] for user in users) < 300
    assert all((user["currencyFeeAmt"] is not None) == is_agent(user) for user in users)


@pytest.mark.parametrize("now", ["2025-06-03", "2026-11-20", "2029-03-01"])
def test_there_are_as_many_users_at_any_time(clock, now):
    clock.ms = start_of(date.fromisoformat(now))
    for size in (0, 1, 60, 500):
        users = Sandbox(now=clock, users=size).lbank.users
        assert len(users) == size
        assert [user["createTime"] for user in users] == sorted(user["createTime"] for user in users)
    assert sum(map(is_agent, users)) == 40
    assert any(user["createTime"] < start_of(date(2025, 1, 1)) for user in users)


def test_a_few_users_are_new_every_day(many):
    assert all(2 <= len(many.invite_users(YESTERDAY - timedelta(back))) <= 4 for back in range(35))


def test_everything_is_the_same_in_every_process_and_the_past_at_every_time():
    code = (
        "import datetime, hashlib, json, sys; from affiliate_pipeline.sandbox import Sandbox;"
        "from affiliate_pipeline.sandbox.lbank.days import start_of;"
        "day = datetime.date(2025, 5, 22);"
        "lbank = Sandbox(now=lambda: start_of(day) + int(sys.argv[1]) * 86400000).lbank;"
        "strip = lambda rows: [{k: v for k, v in row.items() if k in ('openId', 'createTime', 'userLevel')} for row in rows];"
        "told = [lbank.commissions(day), lbank.trades(day), lbank.team_trades(day), lbank.future(day, 'ALL'),"
        "    lbank.money(day, 'IN_DEPOSIT'), strip(lbank.invite_users(day))];"
        "print([len(each) for each in told], hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16])"
    )
    seen = {subprocess.check_output([sys.executable, "-c", code, after], text=True) for after in ("5", "45")}
    assert len(seen) == 1 and "[23, 17, 5, 2, 17, 1] 6eb86092e7616d15" in seen.pop()


def test_the_old_list_is_paged_by_the_largest_id(lbank, lbank_caller, clock):
    ids, last = [], 0
    while page := lbank_caller.get(LISTS[0], startTime=0, endTime=clock.ms, start=last, pageSize=7).data:
        ids += [row["id"] for row in page]
        last = page[-1]["id"]
    assert ids == sorted(user["id"] for user in lbank.users) and len(ids) == 60


def test_the_new_list_is_paged_by_offset(lbank, lbank_caller, clock):
    rows = paged(lbank_caller, LISTS[1], size=7, startTime=0, endTime=clock.ms)
    assert rows == [{k: v for k, v in user.items() if k != "id"} for user in lbank.users]
    lbank.newest_first = True
    assert paged(lbank_caller, LISTS[1], size=7, startTime=0, endTime=clock.ms) == rows[::-1]


def test_the_lists_of_a_day_are_those_who_registered_on_it(lbank, lbank_caller):
    start, end = window(YESTERDAY).values()
    for at in (start - 1, start, end, end + 1):
        lbank.add_user(f"at {at}", registered_ms=at)
    expected = {f"at {start}", f"at {end}"} | {
        user["openId"] for user in lbank.users if start < user["createTime"] < end
    }
    for path, rows in zip(LISTS, (lbank.invite_users(YESTERDAY), lbank.invite_team(YESTERDAY)), strict=True):
        answered = lbank_caller.get(path, **window(YESTERDAY), start=0, pageSize=100).data
        assert answered == rows and {row["openId"] for row in rows} == expected


def test_only_the_old_list_has_ids(lbank):
    assert lbank.users[0].keys() - lbank.invite_team(date.fromtimestamp(lbank.users[0]["createTime"] / 1000))[
        0
    ].keys() == {"id"}


def test_nobody_has_registered_in_the_future(lbank, lbank_caller, clock):
    lbank.add_user("later", registered_ms=clock.ms + 1)
    asked = {"startTime": clock.ms, "endTime": clock.ms + DAY_MS, "pageSize": 100}
    assert lbank_caller.get(LISTS[1], **asked).data == []
    assert lbank_caller.get("invite/user/info", openId="later").data["inviteResult"] is False
    clock.ms += 1
    assert [row["openId"] for row in lbank_caller.get(LISTS[1], **asked).data] == ["later"]


def test_info_tells_what_the_lists_tell(lbank, lbank_caller):
    for user in lbank.users[::7]:
        told = lbank_caller.get("invite/user/info", openId=user["openId"]).data
        assert told == {k: v for k, v in user.items() if k != "id"} | {"inviteResult": True}
        assert told == lbank.user_info(user["openId"])


def test_info_about_a_stranger_is_void(lbank, lbank_caller):
    told = lbank_caller.get("invite/user/info", openId="LBA0H1XXXX").data
    assert told == lbank.user_info("LBA0H1XXXX")
    assert {name for name, value in told.items() if value is False} == {
        "inviteResult", "directInvitation", "deposit", "transaction",
    }  # fmt: skip
    assert all(told[name] == "0.0000" for name in AMOUNTS)
    assert told["openId"] is told["userLevel"] is told["createTime"] is None


def test_whoever_left_the_lists_is_a_stranger_with_a_past(lbank, clock, lbank_caller):
    newcomer = next(
        user for user in lbank.users if user["createTime"] > start_of(date(2025, 1, 1)) and user["transaction"]
    )
    day = YESTERDAY
    while not (before := [row for row in lbank.trades(day) if row["openId"] == newcomer["openId"]]):
        day -= timedelta(1)
    clock.ms += 120 * DAY_MS
    open_id = newcomer["openId"]
    assert lbank_caller.get("invite/user/info", openId=open_id).data["inviteResult"] is False
    assert lbank_caller.get("trade/user", openId=open_id, tradeType=10, **window(day)).data == before
    assert (
        lbank_caller.get("trade/user", openId=open_id, tradeType=10, **window(TODAY, TODAY + timedelta(110))).data == []
    )


def test_somebody_becomes_a_trader_with_the_first_trade(lbank, lbank_caller, clock):
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


def test_many_become_traders_within_days(many, clock):
    now = {user["openId"] for user in many.users if user["transaction"]}
    clock.ms -= 7 * DAY_MS
    before = {user["openId"]: user["transaction"] for user in many.users}
    assert sum(before.get(open_id) is False for open_id in now) >= 3


def test_a_taken_open_id_and_an_unknown_parent_are_refused(lbank):
    with pytest.raises(ValueError):
        lbank.add_user(lbank.own_open_id)
    with pytest.raises(ValueError):
        lbank.add_user(parent="nobody")
