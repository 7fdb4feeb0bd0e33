"""The commissions of the sandbox's LBank."""

from datetime import timedelta

from affiliate_pipeline.sandbox import Number
from affiliate_pipeline.sandbox.days import HOUR_MS
from affiliate_pipeline.sandbox.lbank.days import start_of
from affiliate_pipeline_tests.sandbox.lbank.lbank_requests import (
    TODAY,
    WEEK,
    YESTERDAY,
    as_set,
    is_agent,
    open_ids,
    paged,
    window,
)


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
