"""The commissions of the sandbox's LBank."""

from datetime import timedelta

from affiliate_pipeline.sandbox import Number
from affiliate_pipeline.sandbox.days import HOUR_MS
from affiliate_pipeline.sandbox.lbank.days import start_of
from affiliate_pipeline_tests.sandbox.lbank.lbank_requests import (
    TODAY,
    WEEK,
    YESTERDAY,
    is_agent,
    multiset,
    open_ids,
    paged,
    window,
)

PATH = "commission/stats/symbol/list"


def commission(lbank, **fields):
    return {
        "openId": lbank.own_open_id, "coinSymbol": "usdt", "amount": "71.489088", "tradeType": 1,
        "statsDate": start_of(YESTERDAY), "usdtAmount": "0",
    } | fields  # fmt: skip


def test_the_commissions_of_a_week_are_those_of_its_days(lbank, lbank_caller):
    expected = [row for day in WEEK for row in lbank.commissions(day)]
    params = {"tradeType": 10, "coin": "", **window(*WEEK)}
    rows = []
    for open_id in open_ids(lbank, is_agent):
        rows += paged(lbank_caller, PATH, size=3, openId=open_id, **params)
    assert multiset(rows) == multiset(expected) and len(rows) > 50
    assert {row["tradeType"] for row in rows} == {0, 1}
    assert {row["statsDate"] for row in rows} == {start_of(day) for day in WEEK}


def test_commissions_are_filtered_by_type_and_coin(lbank, lbank_caller):
    params = {"openId": lbank.own_open_id, "pageSize": 100, **window(*WEEK)}
    both = lbank_caller.get(PATH, tradeType=10, coin="", **params).data
    by_type = [lbank_caller.get(PATH, tradeType=kind, coin="", **params).data for kind in (0, 1)]
    assert by_type == [[row for row in both if row["tradeType"] == kind] for kind in (0, 1)] and all(by_type)
    coins = {row["coinSymbol"] for row in both}
    for coin in coins:
        filtered = lbank_caller.get(PATH, tradeType=10, coin=coin.upper(), **params).data
        assert filtered == [row for row in both if row["coinSymbol"] == coin]
    assert len(coins) > 3


def test_only_agents_receive_commissions(lbank, lbank_caller):
    other = next(user["openId"] for user in lbank.users if not is_agent(user))
    params = {"openId": other, "tradeType": 10, "coin": "", "pageSize": 100, **window(*WEEK)}
    assert lbank_caller.get(PATH, **params).data == []
    assert {row["openId"] for row in lbank.commissions(YESTERDAY - timedelta(1))} <= set(open_ids(lbank, is_agent))


def test_a_days_commissions_appear_at_10_00_the_next_day(lbank, clock):
    clock.ms = start_of(TODAY) + 10 * HOUR_MS - 1
    assert lbank.commissions(YESTERDAY) == [] and lbank.commissions(YESTERDAY - timedelta(1))
    clock.ms += 1
    assert lbank.commissions(YESTERDAY) and lbank.commissions(TODAY) == []


def test_commissions_set_by_a_test_are_sent_unchanged(lbank, lbank_caller):
    odd = commission(lbank, amount=Number("0.10"), new=None)
    lbank.set_commissions([odd, odd, commission(lbank, tradeType=0), commission(lbank, openId="other")])
    params = {"openId": lbank.own_open_id, "tradeType": 1, "coin": "USDT", "pageSize": 100, **window(YESTERDAY)}
    response = lbank_caller.get(PATH, **params)
    assert response.data == [odd | {"amount": 0.1}] * 2 and response.body.count(b'"amount":0.10,') == 2
