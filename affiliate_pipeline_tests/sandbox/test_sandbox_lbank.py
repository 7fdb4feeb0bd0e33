"""What the sandbox's LBank has, and what of it an answer holds."""

import subprocess
import sys
from collections import Counter
from datetime import date, timedelta
from decimal import Decimal

import pytest

from affiliate_pipeline.sandbox import Number, Sandbox
from affiliate_pipeline.sandbox.days import DAY_MS, HOUR_MS, MINUTE_MS
from affiliate_pipeline.sandbox.lbank.days import start_of
from affiliate_pipeline.sandbox.lbank.money import MONEY

TODAY = date(2025, 6, 3)
YESTERDAY = TODAY - timedelta(1)
WEEK = [TODAY - timedelta(back) for back in range(8, 1, -1)]
LISTS = ("invite/user/list", "invite/user/team/list")
AMOUNTS = ("currencyTotalFeeAmt", "currencyTotalFeeAmtUsdt", "contractTotalFeeAmt", "reserveAmt")


def window(*days):
    """From the first millisecond of the first to the last of the last UTC+8 day."""
    return {"startTime": start_of(days[0]), "endTime": start_of(days[-1]) + DAY_MS - 1}


def paged(lbank_caller, path, **params):
    return [row for page in lbank_caller.pages(path, **params) for row in page]


def as_set(rows):
    return Counter(tuple(sorted(row.items())) for row in rows)


def total(rows, name):
    return sum(Decimal(row[name]) for row in rows)


def open_ids(lbank, wanted):
    return [lbank.own_open_id, *(user["openId"] for user in lbank.users if wanted(user))]


def is_agent(user):
    return 1 <= user["userLevel"] <= 21


@pytest.fixture
def many(clock):
    """LBank with 500 users, not served."""
    return Sandbox(now=clock, users=500).lbank


# Parameters

NEEDED = {
    "invite/user/list": {"startTime": 0, "endTime": 1, "start": 0, "pageSize": 1},
    "invite/user/team/list": {"startTime": 0, "endTime": 1, "start": 0, "pageSize": 1},
    "invite/user/info": {"openId": "LBA0SANDBOX"},
    "commission/stats/symbol/list": {
        "openId": "LBA0SANDBOX", "tradeType": 10, "startTime": 0, "endTime": 1, "coin": "", "start": 0, "pageSize": 1,
    },
    "trade/user": {"openId": "LBA0SANDBOX", "tradeType": 0, "startTime": 0, "endTime": 1},
    "trade/user/team": {"openId": "LBA0SANDBOX", "tradeType": 1, "startTime": 0, "endTime": 1},
    "trade/future": {"openId": "LBA0SANDBOX", "userType": "ALL", "startTime": 0, "endTime": 1},
    "money/detail/list": {
        "openId": "LBA0SANDBOX", "userType": "ALL", "startTime": 0, "endTime": 1, "subInOutType": "IN_DEPOSIT",
        "start": 0, "pageSize": 1,
    },
}  # fmt: skip


@pytest.mark.parametrize("path", NEEDED)
def test_every_parameter_is_needed_but_start(lbank, lbank_caller, path):
    for name in NEEDED[path]:
        reply = lbank_caller.get(path, **NEEDED[path] | {name: None})
        if name == "start":
            assert reply.data == lbank_caller.get(path, **NEEDED[path]).data
        else:
            assert reply.error_code == 10001 and name in reply.json["msg"]
        if name not in ("start", "coin"):
            assert lbank_caller.get(path, **NEEDED[path] | {name: ""}).error_code == 10001


@pytest.mark.parametrize("path", NEEDED)
def test_senseless_and_unknown_parameters_are_refused(lbank, lbank_caller, path):
    wrong = {
        "startTime": ("-1", "1.5", "2"), "endTime": ("x",), "start": ("-1", "a"), "pageSize": ("1.0",),
        "tradeType": ("2", "spot", "00"), "userType": ("all", "SUBS"), "subInOutType": ("On-chain Deposit",),
        "coin": ("null",), "page": ("1",),
    }  # fmt: skip
    for name in [*NEEDED[path].keys() & wrong.keys(), "page"]:
        for value in wrong[name]:
            reply = lbank_caller.get(path, **NEEDED[path] | {name: value})
            assert reply.error_code == 10003, (name, value)


@pytest.mark.parametrize("path", [path for path in NEEDED if "pageSize" in NEEDED[path]])
@pytest.mark.parametrize(("size", "code"), [(0, 20026), (101, 20026), (1, 0), (100, 0)])
def test_a_page_has_1_to_100_rows(lbank, lbank_caller, path, size, code):
    assert lbank_caller.get(path, **NEEDED[path] | {"pageSize": size}).json["error_code"] == code


@pytest.mark.parametrize("path", [path for path in NEEDED if "openId" in NEEDED[path] and "info" not in path])
def test_a_foreign_or_refused_open_id_is_refused(lbank, lbank_caller, path):
    assert lbank_caller.get(path, **NEEDED[path] | {"openId": "LBA0H1XXXX"}).error_code == 10022
    lbank.refused_open_ids = {lbank.own_open_id: 10006}
    assert lbank_caller.get(path, **NEEDED[path]).error_code == 10006
    lbank.refused_open_ids.clear()
    assert lbank_caller.get(path, **NEEDED[path]).json["error_code"] == 0


def test_the_envelope_tells_the_time(lbank, lbank_caller, clock):
    body = lbank_caller.get("trade/future", **NEEDED["trade/future"]).body
    assert body == (
        b'{"result":"true","error_code":0,"msg":"Success","data":{"turnover":"0","fee":"0"},"ts":%d}' % clock.ms
    )
    body = lbank_caller.get("trade/future").body
    assert (
        body == b'{"result":"false","error_code":10001,"msg":"Parameter can not be null: endTime","ts":%d}' % clock.ms
    )


# Users


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


# Commissions


def commission(lbank, **fields):
    return {
        "openId": lbank.own_open_id, "coinSymbol": "usdt", "amount": "71.489088", "tradeType": 1,
        "statsDate": start_of(YESTERDAY), "usdtAmount": "0",
    } | fields  # fmt: skip


def test_commissions_of_a_week_are_those_of_its_days(lbank, lbank_caller):
    expected = [row for day in WEEK for row in lbank.commissions(day)]
    asked = {"tradeType": 10, "coin": "", **window(WEEK[0], WEEK[-1])}
    rows = []
    for open_id in open_ids(lbank, is_agent):
        rows += paged(lbank_caller, "commission/stats/symbol/list", size=3, openId=open_id, **asked)
    assert as_set(rows) == as_set(expected) and len(rows) > 50
    assert {row["tradeType"] for row in rows} == {0, 1}
    assert {row["statsDate"] for row in rows} == {start_of(day) for day in WEEK}


def test_commissions_can_be_asked_for_by_type_and_coin(lbank, lbank_caller):
    asked = {"openId": lbank.own_open_id, "pageSize": 100, **window(*WEEK)}
    path = "commission/stats/symbol/list"
    both = lbank_caller.get(path, tradeType=10, coin="", **asked).data
    by_type = [lbank_caller.get(path, tradeType=kind, coin="", **asked).data for kind in (0, 1)]
    assert by_type == [[row for row in both if row["tradeType"] == kind] for kind in (0, 1)] and all(by_type)
    coins = {row["coinSymbol"] for row in both}
    for coin in coins:
        one = lbank_caller.get(path, tradeType=10, coin=coin.upper(), **asked).data
        assert one == [row for row in both if row["coinSymbol"] == coin]
    assert len(coins) > 3


def test_only_agents_receive_commissions(lbank, lbank_caller):
    other = next(user["openId"] for user in lbank.users if not is_agent(user))
    assert (
        lbank_caller.get(
            "commission/stats/symbol/list", openId=other, tradeType=10, coin="", pageSize=100, **window(*WEEK)
        ).data
        == []
    )
    assert {row["openId"] for row in lbank.commissions(YESTERDAY - timedelta(1))} <= set(open_ids(lbank, is_agent))


def test_a_commission_is_seen_at_ten_the_next_day(lbank, clock):
    clock.ms = start_of(TODAY) + 10 * HOUR_MS - 1
    assert lbank.commissions(YESTERDAY) == [] and lbank.commissions(YESTERDAY - timedelta(1))
    clock.ms += 1
    assert lbank.commissions(YESTERDAY) and lbank.commissions(TODAY) == []


def test_given_commissions_are_sent_as_they_are(lbank, lbank_caller):
    odd = commission(lbank, amount=Number("0.10"), new=None)
    lbank.set_commissions([odd, odd, commission(lbank, tradeType=0), commission(lbank, openId="other")])
    reply = lbank_caller.get(
        "commission/stats/symbol/list",
        openId=lbank.own_open_id, tradeType=1, coin="USDT", pageSize=100, **window(YESTERDAY),
    )  # fmt: skip
    assert reply.data == [odd | {"amount": 0.1}] * 2 and reply.body.count(b'"amount":0.10,') == 2


# Trades


@pytest.mark.parametrize(("path", "wanted"), [("trade/user", None), ("trade/user/team", is_agent)])
def test_trades_of_a_week_are_those_of_its_days(lbank, lbank_caller, path, wanted):
    accessor = lbank.trades if path == "trade/user" else lbank.team_trades
    asked = open_ids(lbank, wanted or (lambda user: user["transaction"]))
    for kind in (0, 1, 10):
        expected = [row for day in WEEK for row in accessor(day, kind)]
        rows = [
            row
            for open_id in asked
            for row in lbank_caller.get(path, openId=open_id, tradeType=kind, **window(*WEEK)).data
        ]
        assert as_set(rows) == as_set(expected) and len(rows) > 10
        assert {row["statsDate"] for row in rows} == {start_of(day) for day in WEEK}
        assert all(Decimal(row["tradeAmt"]) >= Decimal(row["feeAmt"]) >= 0 for row in rows)
    assert as_set(expected) == as_set(row for day in WEEK for kind in (0, 1) for row in accessor(day, kind))


def test_our_own_trades_are_there_every_day(lbank):
    assert all(lbank.trades(day, kind)[0]["openId"] == lbank.own_open_id for day in WEEK for kind in (0, 1))


def test_only_traders_have_trades(lbank, lbank_caller):
    others = [user["openId"] for user in lbank.users if not user["transaction"]]
    for open_id in others[::5]:
        assert lbank_caller.get("trade/user", openId=open_id, tradeType=10, **window(*WEEK)).data == []


@pytest.mark.parametrize(("start", "end", "days"), [(0, 0, 1), (1, DAY_MS - 1, 0), (1, DAY_MS, 1), (0, DAY_MS, 2)])
def test_a_row_belongs_where_its_day_begins(lbank, lbank_caller, start, end, days):
    at = start_of(WEEK[0])
    asked = {"openId": lbank.own_open_id, "startTime": at + start, "endTime": at + end}
    for path in ("trade/user", "trade/user/team"):
        assert len(lbank_caller.get(path, tradeType=1, **asked).data) == days
    assert (lbank_caller.get("trade/future", userType="ALL", **asked).data["turnover"] == "0") == (days == 0)
    stats = lbank_caller.get("commission/stats/symbol/list", tradeType=10, coin="", pageSize=100, **asked).data
    assert len({row["statsDate"] for row in stats}) == days


def test_today_grows_and_tomorrow_is_empty(lbank, clock):
    seen = []
    for _ in range(4):
        seen.append(total(lbank.trades(TODAY), "tradeAmt"))
        clock.ms += HOUR_MS + 1
    assert seen == sorted(seen) and seen[0] < seen[-1]
    assert lbank.trades(TODAY + timedelta(1)) == []


def test_futures_are_the_sum_of_the_users_futures(lbank, lbank_caller):
    for day in (*WEEK, TODAY):
        rows = lbank.trades(day, 1)
        direct = {user["openId"] for user in lbank.users if user["directInvitation"]}
        own = [row for row in rows if row["openId"] == lbank.own_open_id]
        below = [row for row in rows if row["openId"] in direct]
        for scope, summed in {"SELF": own, "SUB": below, "SELF_SUB": own + below, "ALL": rows}.items():
            answer = lbank_caller.get("trade/future", openId=lbank.own_open_id, userType=scope, **window(day)).data
            assert answer == lbank.future(day, scope)
            assert Decimal(answer["turnover"]) == total(summed, "tradeAmt")
            assert Decimal(answer["fee"]) == total(summed, "feeAmt")
        team = next(row for row in lbank.team_trades(day, 1) if row["openId"] == lbank.own_open_id)
        assert Decimal(team["tradeAmt"]) == total(rows, "tradeAmt") - total(own, "tradeAmt")


def test_futures_can_be_asked_for_by_range_and_symbol(lbank, lbank_caller):
    def ask(days, **params):
        return lbank_caller.get("trade/future", openId=lbank.own_open_id, userType="ALL", **window(*days), **params)

    week = Decimal(ask(WEEK).data["turnover"])
    assert week == sum(Decimal(ask([day]).data["turnover"]) for day in WEEK)
    symbols = ("BTCUSDT", "ETHUSDT", "SOLUSDT", "DOGEUSDT")
    assert week == sum(Decimal(ask(WEEK, symbol=symbol).data["turnover"]) for symbol in symbols)
    assert ask(WEEK, symbol="NOSUCH").error_code == 10003


def test_amounts_are_of_all_kinds(many):
    rows = [row for day in WEEK for row in many.trades(day)]
    scales = Counter(len(row["tradeAmt"].partition(".")[2]) for row in rows)
    assert scales.keys() >= {2, 4, 8, 18}
    assert any(row["tradeAmt"].endswith(".00") for row in rows)
    assert any(Decimal(row["feeAmt"]) == 0 for row in rows)
    assert max(Decimal(row["tradeAmt"]) for row in rows) > 10**6 > 1 > min(Decimal(row["tradeAmt"]) for row in rows)


# Deposits and withdrawals


def deposit(lbank, **fields):
    return {
        "openId": lbank.own_open_id, "userLevel": 21, "subInOutType": "On-chain Deposit", "assetCode": "USDT",
        "assetNum": "102.581", "status": "Completed", "subStatus": "Deposit Successful",
        "createTime": start_of(YESTERDAY), "updateTime": start_of(YESTERDAY), "withdrawOrderId": None,
    } | fields  # fmt: skip


def money_of(lbank, lbank_caller, **asked):
    asked = {"openId": lbank.own_open_id, "userType": "ALL", "subInOutType": "IN_DEPOSIT", **asked}
    return paged(lbank_caller, "money/detail/list", **asked)


@pytest.mark.parametrize("kind", MONEY)
def test_money_of_a_week_is_that_of_its_days(lbank, lbank_caller, kind):
    expected = [row for day in WEEK for row in lbank.money(day, kind)]
    assert money_of(lbank, lbank_caller, subInOutType=kind, size=5, **window(*WEEK)) == expected
    assert {row["subInOutType"] for row in expected} == {MONEY[kind][0]}
    assert all((row["withdrawOrderId"] is not None) == (kind == "OUT_WITHDRAW") for row in expected)
    times = [row["createTime"] for row in expected]
    assert times == sorted(times) and len(times) > 5
    lbank.newest_first = True
    assert money_of(lbank, lbank_caller, subInOutType=kind, size=5, **window(*WEEK)) == expected[::-1]


def test_a_day_of_money_reaches_from_its_first_to_its_last_millisecond(lbank):
    times = [row["createTime"] for kind in MONEY for row in lbank.money(YESTERDAY, kind)]
    assert (min(times), max(times)) == tuple(window(YESTERDAY).values())


def test_money_can_be_asked_for_by_scope(lbank, lbank_caller):
    rows = money_of(lbank, lbank_caller, **window(*WEEK))
    direct = {user["openId"] for user in lbank.users if user["directInvitation"]}
    own = [row for row in rows if row["openId"] == lbank.own_open_id]
    assert money_of(lbank, lbank_caller, userType="SELF", **window(*WEEK)) == own
    assert money_of(lbank, lbank_caller, userType="SUB", **window(*WEEK)) == [
        row for row in rows if row["openId"] in direct
    ]
    both = money_of(lbank, lbank_caller, userType="SELF_SUB", **window(*WEEK))
    assert both == [row for row in rows if row["openId"] in direct | {lbank.own_open_id}]
    of_one = [row for row in rows if row["openId"] == rows[0]["openId"]]
    assert money_of(lbank, lbank_caller, userType="SELF", openId=rows[0]["openId"], **window(*WEEK)) == of_one


def test_money_can_be_asked_for_by_asset_and_change(lbank, lbank_caller):
    rows = money_of(lbank, lbank_caller, **window(*WEEK))
    btc = money_of(lbank, lbank_caller, assetCode="BTC", **window(*WEEK))
    assert btc == [row for row in rows if row["assetCode"] == "BTC"] and btc
    changed = [row for row in rows if row["updateTime"] > row["createTime"]]
    since = min(row["updateTime"] for row in changed)
    asked = {"updateStartTime": since, "updateEndTime": since, **window(*WEEK)}
    assert money_of(lbank, lbank_caller, **asked) == [row for row in rows if row["updateTime"] == since]


def test_what_is_pending_ends_within_72_hours(many, clock):
    def rows():
        return {row["createTime"]: row for kind in MONEY for row in many.money(YESTERDAY, kind)}

    early = rows()
    pending = [row for row in early.values() if row["status"] == "Processing"]
    assert 0 < len(pending) < len(early) and all(row["updateTime"] == row["createTime"] for row in pending)
    clock.ms = start_of(YESTERDAY) + 4 * DAY_MS
    late = rows()
    assert late.keys() == early.keys() and {row["status"] for row in late.values()} <= {"Completed", "Failed"}
    assert all(late[row["createTime"]]["updateTime"] > row["createTime"] for row in pending)
    assert all(row["updateTime"] < row["createTime"] + 3 * DAY_MS for row in late.values())
    clock.ms += 90 * DAY_MS
    assert rows() == late


def test_no_money_comes_from_the_future(lbank, clock):
    clock.ms = start_of(YESTERDAY) + 12 * HOUR_MS
    half = sum(len(lbank.money(YESTERDAY, kind)) for kind in MONEY)
    assert all(row["createTime"] <= clock.ms for kind in MONEY for row in lbank.money(YESTERDAY, kind))
    clock.ms += DAY_MS
    assert 0 < half < sum(len(lbank.money(YESTERDAY, kind)) for kind in MONEY)


def test_given_money_is_sent_as_it_is(lbank, lbank_caller):
    odd = deposit(lbank, assetNum=Number("0.10"), openId="unknown", new=1)
    other = deposit(lbank, subInOutType="On-chain Withdrawal")
    lbank.set_money([odd, odd, other])
    rows = money_of(lbank, lbank_caller, **window(YESTERDAY))
    assert rows == [odd | {"assetNum": 0.1}] * 2
    assert lbank.money(YESTERDAY, "OUT_WITHDRAW") == [other] and lbank.money(WEEK[0], "IN_DEPOSIT") == []
    assert money_of(lbank, lbank_caller, userType="SELF", **window(YESTERDAY)) == []


# Rows that move, and faults


def test_rows_shift_when_somebody_is_added_while_pages_are_read(lbank, lbank_caller, clock):
    asked = []

    def insert(path, params):
        asked.append((path, params["start"]))
        if len(asked) == 1:
            lbank.add_user(registered_ms=lbank.users[0]["createTime"])

    lbank.after_page = insert
    rows = paged(lbank_caller, LISTS[1], size=25, startTime=0, endTime=clock.ms)
    ids = [row["openId"] for row in rows]
    assert len(ids) == 61 and len(set(ids)) == 60 and ids[24] == ids[25]
    assert asked == [(f"/affiliate-api/v2/{LISTS[1]}", start) for start in ("0", "25", "50")]


def test_adding_somebody_changes_nobody_elses_past(lbank, clock):
    def told():
        return [[lbank.trades(day), lbank.commissions(day), [lbank.money(day, kind) for kind in MONEY]] for day in WEEK]

    before = told()
    lbank.add_user(registered_ms=start_of(WEEK[0]), level=3)
    after = told()
    assert [each[::2] for each in after] == [each[::2] for each in before]
    lbank.add_user(registered_ms=start_of(WEEK[0]), first_trade_ms=start_of(WEEK[0]))
    later = told()
    assert all(set(map(str, old[0])) < set(map(str, new[0])) for old, new in zip(after[:1], later, strict=False))


def test_a_failing_day_fails_every_range_that_touches_it(sandbox, lbank, lbank_caller):
    bad = WEEK[3]
    sandbox.faults.fail_day(bad)
    start = start_of(bad)
    asked = {"openId": lbank.own_open_id, "tradeType": 0}
    for ends in ((start - DAY_MS, start), (start + 5, start + 5), (start + DAY_MS - 1, start + 2 * DAY_MS)):
        reply = lbank_caller.get("trade/user", startTime=ends[0], endTime=ends[1], **asked)
        assert reply.error_code == 10000 and sandbox.requests[-1].fault == "fail_day"
    for ends in ((start - DAY_MS, start - 1), (start + DAY_MS, start + 2 * DAY_MS)):
        assert lbank_caller.get("trade/user", startTime=ends[0], endTime=ends[1], **asked).data
    assert lbank_caller.get("invite/user/info", openId=lbank.own_open_id).data
    sandbox.faults.fail_day(bad, code=10003)
    assert lbank_caller.get("trade/user", startTime=start, endTime=start, **asked).error_code == 10003


def test_a_failing_day_can_be_that_of_one_endpoint(sandbox, lbank, lbank_caller):
    sandbox.faults.path = "trade/user/team"
    sandbox.faults.fail_day(WEEK[3])
    asked = {"openId": lbank.own_open_id, "tradeType": 0, **window(*WEEK)}
    assert lbank_caller.get("trade/user", **asked).data
    assert lbank_caller.get("trade/user/team", **asked).error_code == 10000


@pytest.mark.parametrize(("kind", "code"), [("http_500", 10000), ("rate_limited", 10004)])
def test_troubles_of_the_exchange_come_in_its_envelope(sandbox, lbank, lbank_caller, kind, code):
    sandbox.faults.mix(**{kind: 1})
    assert lbank_caller.get("trade/future", **NEEDED["trade/future"]).error_code == code
    assert (sandbox.requests[-1].code, sandbox.requests[-1].fault) == (code, kind)


def test_the_firewall_answers_with_a_page(sandbox, lbank, lbank_caller):
    sandbox.faults.mix(html=1)
    reply = lbank_caller.get("trade/future", **NEEDED["trade/future"])
    assert reply.status == 200 and b"<html>" in reply.body


def test_rows_can_be_altered_on_their_way(sandbox, lbank, lbank_caller):
    def transform(row):
        return {name.lower(): value // 1000 if name == "statsDate" else value for name, value in row.items()} | {
            "new": 1
        }

    sandbox.faults.transform_row = transform
    row = lbank_caller.get("trade/user", openId=lbank.own_open_id, tradeType=0, **window(YESTERDAY)).data[0]
    assert row.keys() == {"openid", "statsdate", "tradeamt", "feeamt", "new"}
    assert row["statsdate"] == start_of(YESTERDAY) // 1000
    futures = lbank_caller.get("trade/future", **NEEDED["trade/future"]).data
    assert futures == {"turnover": "0", "fee": "0", "new": 1}
    assert "statsDate" in lbank.trades(YESTERDAY)[0]


def test_refusals_are_in_the_log_and_not_spoiled(sandbox, lbank, lbank_caller):
    sandbox.faults.next_answers.append((503, {}, b""))
    assert lbank_caller.get("trade/future").error_code == 10001
    assert lbank_caller.get("trade/future", **NEEDED["trade/future"]).status == 503
    seen = [(each.path, each.status, each.code, each.fault) for each in sandbox.requests]
    path = "/affiliate-api/v2/trade/future"
    assert seen == [(path, 200, 10001, None), (path, 503, None, "next_answers")]
