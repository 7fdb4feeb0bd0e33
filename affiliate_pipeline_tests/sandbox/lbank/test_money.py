"""The deposits and withdrawals of the sandbox's LBank."""

import pytest

from affiliate_pipeline.sandbox import Number
from affiliate_pipeline.sandbox.days import DAY_MS, HOUR_MS
from affiliate_pipeline.sandbox.lbank.days import start_of
from affiliate_pipeline.sandbox.lbank.money import MONEY
from affiliate_pipeline_tests.sandbox.lbank.lbank_requests import WEEK, YESTERDAY, paged, window


def deposit(lbank, **fields):
    return {
        "openId": lbank.own_open_id, "userLevel": 21, "subInOutType": "On-chain Deposit", "assetCode": "USDT",
        "assetNum": "102.581", "status": "Completed", "subStatus": "Deposit Successful",
        "createTime": start_of(YESTERDAY), "updateTime": start_of(YESTERDAY), "withdrawOrderId": None,
    } | fields  # fmt: skip


def money_of(lbank, lbank_caller, **params):
    """The rows of all pages, by default the deposits of all users."""
    params = {"openId": lbank.own_open_id, "userType": "ALL", "subInOutType": "IN_DEPOSIT", **params}
    return paged(lbank_caller, "money/detail/list", **params)


@pytest.mark.parametrize("kind", MONEY)
def test_the_money_of_a_week_is_that_of_its_days(lbank, lbank_caller, kind):
    expected = [row for day in WEEK for row in lbank.money(day, kind)]
    assert money_of(lbank, lbank_caller, subInOutType=kind, size=5, **window(*WEEK)) == expected
    assert {row["subInOutType"] for row in expected} == {MONEY[kind][0]}
    assert all((row["withdrawOrderId"] is not None) == (kind == "OUT_WITHDRAW") for row in expected)
    times = [row["createTime"] for row in expected]
    assert times == sorted(times) and len(times) > 5
    lbank.newest_first = True
    assert money_of(lbank, lbank_caller, subInOutType=kind, size=5, **window(*WEEK)) == expected[::-1]


def test_a_day_has_money_in_its_first_and_last_millisecond(lbank):
    times = [row["createTime"] for kind in MONEY for row in lbank.money(YESTERDAY, kind)]
    assert (min(times), max(times)) == tuple(window(YESTERDAY).values())


def test_money_is_filtered_by_scope(lbank, lbank_caller):
    rows = money_of(lbank, lbank_caller, **window(*WEEK))
    direct = {user["openId"] for user in lbank.users if user["directInvitation"]}
    own = [row for row in rows if row["openId"] == lbank.own_open_id]
    assert money_of(lbank, lbank_caller, userType="SELF", **window(*WEEK)) == own
    assert money_of(lbank, lbank_caller, userType="SUB", **window(*WEEK)) == [
        row for row in rows if row["openId"] in direct
    ]
    both = money_of(lbank, lbank_caller, userType="SELF_SUB", **window(*WEEK))
    assert both == [row for row in rows if row["openId"] in direct | {lbank.own_open_id}]
    rows_of_first_user = [row for row in rows if row["openId"] == rows[0]["openId"]]
    assert (
        money_of(lbank, lbank_caller, userType="SELF", openId=rows[0]["openId"], **window(*WEEK)) == rows_of_first_user
    )


def test_money_is_filtered_by_asset_and_update_time(lbank, lbank_caller):
    rows = money_of(lbank, lbank_caller, **window(*WEEK))
    btc = money_of(lbank, lbank_caller, assetCode="BTC", **window(*WEEK))
    assert btc == [row for row in rows if row["assetCode"] == "BTC"] and btc
    changed = [row for row in rows if row["updateTime"] > row["createTime"]]
    since = min(row["updateTime"] for row in changed)
    params = {"updateStartTime": since, "updateEndTime": since, **window(*WEEK)}
    assert money_of(lbank, lbank_caller, **params) == [row for row in rows if row["updateTime"] == since]


def test_pending_money_is_completed_or_failed_within_72_hours(large_lbank, clock):
    def rows():
        return {row["createTime"]: row for kind in MONEY for row in large_lbank.money(YESTERDAY, kind)}

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


def test_money_after_the_current_time_is_not_returned(lbank, clock):
    clock.ms = start_of(YESTERDAY) + 12 * HOUR_MS
    half = sum(len(lbank.money(YESTERDAY, kind)) for kind in MONEY)
    assert all(row["createTime"] <= clock.ms for kind in MONEY for row in lbank.money(YESTERDAY, kind))
    clock.ms += DAY_MS
    assert 0 < half < sum(len(lbank.money(YESTERDAY, kind)) for kind in MONEY)


def test_money_set_by_a_test_is_sent_unchanged(lbank, lbank_caller):
    odd = deposit(lbank, assetNum=Number("0.10"), openId="unknown", new=1)
    other = deposit(lbank, subInOutType="On-chain Withdrawal")
    lbank.set_money([odd, odd, other])
    rows = money_of(lbank, lbank_caller, **window(YESTERDAY))
    assert rows == [odd | {"assetNum": 0.1}] * 2
    assert lbank.money(YESTERDAY, "OUT_WITHDRAW") == [other] and lbank.money(WEEK[0], "IN_DEPOSIT") == []
    assert money_of(lbank, lbank_caller, userType="SELF", **window(YESTERDAY)) == []
