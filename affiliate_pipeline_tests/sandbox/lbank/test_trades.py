"""The trades of the sandbox's LBank, and its totals of futures."""

from collections import Counter
from datetime import timedelta
from decimal import Decimal

import pytest

from affiliate_pipeline.sandbox.days import DAY_MS, HOUR_MS
from affiliate_pipeline.sandbox.lbank.days import start_of
from affiliate_pipeline_tests.sandbox.lbank.lbank_requests import (
    TODAY,
    WEEK,
    is_agent,
    multiset,
    open_ids,
    total,
    window,
)


@pytest.mark.parametrize("path", ["trade/user", "trade/user/team"])
def test_the_trades_of_a_week_are_those_of_its_days(lbank, lbank_caller, path):
    is_team = path == "trade/user/team"
    trades = lbank.team_trades if is_team else lbank.trades
    ids = open_ids(lbank, is_agent if is_team else lambda user: user["transaction"])
    by_kind = {kind: [row for day in WEEK for row in trades(day, kind)] for kind in (0, 1, 10)}
    for kind, expected in by_kind.items():
        rows = [
            row
            for open_id in ids
            for row in lbank_caller.get(path, openId=open_id, tradeType=kind, **window(*WEEK)).data
        ]
        assert multiset(rows) == multiset(expected) and len(rows) > 10
        assert {row["statsDate"] for row in rows} == {start_of(day) for day in WEEK}
        assert all(Decimal(row["tradeAmt"]) >= Decimal(row["feeAmt"]) >= 0 for row in rows)
    assert multiset(by_kind[10]) == multiset(by_kind[0] + by_kind[1])


def test_the_affiliate_trades_every_day(lbank):
    assert all(lbank.trades(day, kind)[0]["openId"] == lbank.own_open_id for day in WEEK for kind in (0, 1))


def test_only_traders_have_trades(lbank, lbank_caller):
    others = [user["openId"] for user in lbank.users if not user["transaction"]]
    for open_id in others[::5]:
        assert lbank_caller.get("trade/user", openId=open_id, tradeType=10, **window(*WEEK)).data == []


@pytest.mark.parametrize(("start", "end", "days"), [(0, 0, 1), (1, DAY_MS - 1, 0), (1, DAY_MS, 1), (0, DAY_MS, 2)])
def test_a_window_contains_the_days_whose_start_is_in_it(lbank, lbank_caller, start, end, days):
    at = start_of(WEEK[0])
    params = {"openId": lbank.own_open_id, "startTime": at + start, "endTime": at + end}
    for path in ("trade/user", "trade/user/team"):
        assert len(lbank_caller.get(path, tradeType=1, **params).data) == days
    assert (lbank_caller.get("trade/future", userType="ALL", **params).data["turnover"] == "0") == (days == 0)
    stats = lbank_caller.get("commission/stats/symbol/list", tradeType=10, coin="", pageSize=100, **params).data
    assert len({row["statsDate"] for row in stats}) == days


def test_todays_trades_grow_and_tomorrow_has_none(lbank, clock):
    totals = []
    for _ in range(4):
        totals.append(total(lbank.trades(TODAY), "tradeAmt"))
        clock.ms += HOUR_MS + 1
    assert totals == sorted(totals) and totals[0] < totals[-1]
    assert lbank.trades(TODAY + timedelta(1)) == []


def test_the_futures_of_a_scope_are_the_total_of_its_users(lbank, lbank_caller):
    for day in (*WEEK, TODAY):
        rows = lbank.trades(day, 1)
        direct = {user["openId"] for user in lbank.users if user["directInvitation"]}
        own = [row for row in rows if row["openId"] == lbank.own_open_id]
        below = [row for row in rows if row["openId"] in direct]
        for scope, scoped in {"SELF": own, "SUB": below, "SELF_SUB": own + below, "ALL": rows}.items():
            data = lbank_caller.get("trade/future", openId=lbank.own_open_id, userType=scope, **window(day)).data
            assert data == lbank.future(day, scope)
            assert Decimal(data["turnover"]) == total(scoped, "tradeAmt")
            assert Decimal(data["fee"]) == total(scoped, "feeAmt")
        team = next(row for row in lbank.team_trades(day, 1) if row["openId"] == lbank.own_open_id)
        assert Decimal(team["tradeAmt"]) == total(rows, "tradeAmt") - total(own, "tradeAmt")


def test_futures_are_filtered_by_range_and_symbol(lbank, lbank_caller):
    def futures(days, **params):
        return lbank_caller.get("trade/future", openId=lbank.own_open_id, userType="ALL", **window(*days), **params)

    def turnover(days, **params):
        return Decimal(futures(days, **params).data["turnover"])

    week = turnover(WEEK)
    assert week == sum(turnover([day]) for day in WEEK)
    assert week == sum(turnover(WEEK, symbol=symbol) for symbol in ("BTCUSDT", "ETHUSDT", "SOLUSDT", "DOGEUSDT"))
    assert futures(WEEK, symbol="NOSUCH").error_code == 10003


def test_trade_amounts_have_varied_scales_and_sizes(large_lbank):
    rows = [row for day in WEEK for row in large_lbank.trades(day)]
    scales = Counter(len(row["tradeAmt"].partition(".")[2]) for row in rows)
    assert scales.keys() >= {2, 4, 8, 18}
    assert any(row["tradeAmt"].endswith(".00") for row in rows)
    assert any(Decimal(row["feeAmt"]) == 0 for row in rows)
    assert max(Decimal(row["tradeAmt"]) for row in rows) > 10**6 > 1 > min(Decimal(row["tradeAmt"]) for row in rows)
