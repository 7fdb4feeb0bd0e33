"""The trades of the sandbox's LBank, and the sums of futures."""

from collections import Counter
from datetime import timedelta
from decimal import Decimal

import pytest

from affiliate_pipeline.sandbox.days import DAY_MS, HOUR_MS
from affiliate_pipeline.sandbox.lbank.days import start_of
from affiliate_pipeline_tests.sandbox.lbank.lbank_requests import TODAY, WEEK, as_set, is_agent, open_ids, total, window


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
