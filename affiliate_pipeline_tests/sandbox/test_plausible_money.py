"""The sandbox's amounts in USDT, at its own prices: earnings per day and per user, and their share of the fees."""

from collections import defaultdict
from datetime import date, timedelta
from decimal import ROUND_DOWN, Decimal
from itertools import pairwise

import pytest

from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline.sandbox.lbank.money import MONEY
from affiliate_pipeline.sandbox.prices import MARKETS, close, price_in
from affiliate_pipeline_tests.sandbox.conftest import Clock
from affiliate_pipeline_tests.sandbox.lbank.lbank_requests import is_agent, total

# Two weeks, of which the last day ended more than a day before the clock's time.
DAYS = [date(2025, 6, 1) - timedelta(number) for number in range(14, 0, -1)]


@pytest.fixture(scope="module", params=["", "acme"], ids=["default", "acme"])
def account(request):
    """An account of a sandbox that retains everything."""
    account = Sandbox(accounts=["acme"], now=Clock(), rows_per_day=500).accounts[request.param]
    account.binance.retention_ms = None
    return account


@pytest.fixture(scope="module")
def rebates(account):
    return {day: account.binance.rebates(day) for day in DAYS}


@pytest.fixture(scope="module")
def commissions(account):
    return {day: account.lbank.commissions(day) for day in DAYS}


def usdt(amount, coin, day):
    return Decimal(amount) * price_in(coin.upper(), "USDT", day) / 10**18


def rebates_in_usdt(rows, day):
    return sum((usdt(row["income"], row["asset"], day) for row in rows), Decimal())


def commissions_in_usdt(rows, day):
    return sum((usdt(row["amount"], row["coinSymbol"], day) for row in rows), Decimal())


def test_a_few_thousand_usdt_are_earned_per_day(account, rebates, commissions):
    for day in DAYS:
        kickbacks = rebates_in_usdt(account.binance.kickbacks.of(day), day)
        earned = [rebates_in_usdt(rebates[day], day), commissions_in_usdt(commissions[day], day), kickbacks]
        assert 1000 < sum(earned) < 10_000 and all(20 < part < 6000 for part in earned), (day, earned)


@pytest.mark.parametrize("rows_per_day", [30, 3000])
def test_the_value_of_a_day_does_not_depend_on_its_number_of_rows(rows_per_day):
    binance = Sandbox(now=Clock(), rows_per_day=rows_per_day).binance
    binance.retention_ms = None
    # A Wednesday and a Thursday: less is earned at weekends, and the last of `DAYS` is a Saturday.
    assert all(1000 < rebates_in_usdt(binance.rebates(day), day) < 4000 for day in DAYS[-4:-2])


def test_less_is_earned_at_weekends(rebates, commissions):
    for by_day, in_usdt in ((rebates, rebates_in_usdt), (commissions, commissions_in_usdt)):
        values = {day: in_usdt(rows, day) for day, rows in by_day.items()}
        weekend = [value for day, value in values.items() if day.weekday() >= 5]
        others = [value for day, value in values.items() if day.weekday() < 5]
        assert sum(weekend) / len(weekend) < Decimal("0.85") * sum(others) / len(others)


def test_most_is_earned_with_a_few_customers(account, rebates, commissions):
    by_customer, by_trader = defaultdict(Decimal), defaultdict(Decimal)
    for day in DAYS:
        for row in rebates[day]:
            by_customer[row["customerId"], row["email"]] += usdt(row["income"], row["asset"], day)
        for row in account.lbank.trades(day):
            by_trader[row["openId"]] += Decimal(row["feeAmt"])
    assert len(by_customer) > 250 and len(by_trader) > 15
    for by_one in (by_customer, by_trader):
        values = sorted(by_one.values(), reverse=True)
        assert sum(values[: len(values) // 5]) > sum(values) / 2
        assert sum(values[len(values) // 2 :]) < sum(values) / 5


def test_an_income_is_the_commission_at_the_price_of_the_day(rebates):
    crossed = 0
    for day, rows in rebates.items():
        for row in rows:
            income, commission, price = (Decimal(row[name]) for name in ("income", "commission", "convertPrice"))
            assert income == (commission * price).quantize(income, ROUND_DOWN), row
            at_close = Decimal(price_in(row["commissionAsset"], row["asset"], day)) / 10**18
            assert at_close - price < Decimal("1e-8") and price <= at_close
            crossed += row["commissionAsset"] != row["asset"]
    assert crossed > 1000


def test_coins_are_valued_at_the_closes_of_the_markets():
    for base, quote in MARKETS.values():
        assert price_in(base, quote, DAYS[0]) // 10**10 == close(base, quote, DAYS[0])
    assert close("USDT", "TRY", DAYS[0]) * price_in("TRY", "USDT", DAYS[0]) // 10**8 == pytest.approx(10**18, rel=1e-9)


def test_fees_are_a_plausible_share_of_the_volume(account):
    for day in DAYS[:5]:
        rows = account.lbank.trades(day)
        assert all(0 <= Decimal(row["feeAmt"]) <= Decimal(row["tradeAmt"]) / 1000 for row in rows)
        share = total(rows, "feeAmt") / total(rows, "tradeAmt")
        assert Decimal("0.0002") < share < Decimal("0.001")


def test_commissions_are_20_to_50_percent_of_the_fees_of_the_team(account, commissions):
    lbank = account.lbank
    agents = {user["openId"]: user for user in lbank.users if is_agent(user)}
    for day in DAYS[:5]:
        # LBank's names of an agent's commission rates, in percent.
        for trade_type, rate_field in ((0, "currencyFeeAmt"), (1, "contractFeeAmt")):
            rows = [row for row in commissions[day] if row["tradeType"] == trade_type]
            teams = {row["openId"]: Decimal(row["feeAmt"]) for row in lbank.team_trades(day, trade_type)}
            [own] = [
                Decimal(row["feeAmt"]) for row in lbank.trades(day, trade_type) if row["openId"] == lbank.own_open_id
            ]
            by_agent = defaultdict(Decimal)
            for row in rows:
                by_agent[row["openId"]] += usdt(row["amount"], row["coinSymbol"], day)
            fees = total(lbank.trades(day, trade_type), "feeAmt") - own
            assert teams[lbank.own_open_id] == fees
            assert commissions_in_usdt(rows, day) == pytest.approx(fees / 2, rel=Decimal("0.01"))
            assert fees / 5 * Decimal("0.99") < by_agent.pop(lbank.own_open_id) < fees / 2 * Decimal("1.01")
            for open_id, amount in by_agent.items():
                assert 20 <= int(agents[open_id][rate_field]) <= 30
                assert amount < teams[open_id] * int(agents[open_id][rate_field]) / 100 * Decimal("1.01")


def test_a_stated_value_of_a_commission_is_that_of_the_close(commissions):
    rows = [(day, row) for day, by_day in commissions.items() for row in by_day]
    stated = [(day, row) for day, row in rows if row["usdtAmount"] != "0"]
    assert 0 < len(stated) < len(rows)
    for day, row in stated:
        value = usdt(row["amount"], row["coinSymbol"], day)
        assert value == pytest.approx(Decimal(row["usdtAmount"]), rel=Decimal("0.03"))


def test_the_parts_of_a_day_at_lbank_add_up(account):
    for day in DAYS[:5]:
        spot, futures, both = (account.lbank.trades(day, kind) for kind in (0, 1, 10))
        for name in ("tradeAmt", "feeAmt"):
            assert total(spot, name) + total(futures, name) == total(both, name)
        whole = account.lbank.future(day, "ALL")
        assert (Decimal(whole["turnover"]), Decimal(whole["fee"])) == (
            total(futures, "tradeAmt"),
            total(futures, "feeAmt"),
        )


def test_deposits_and_balances_are_of_a_plausible_size(account):
    values = [
        usdt(row["assetNum"], row["assetCode"], day)
        for day in DAYS
        for kind in MONEY
        for row in account.lbank.money(day, kind)
    ]
    assert 100 < sum(values) / len(values) < 2000 and max(values) < 100_000
    balances = [Decimal(user["currencyTotalFeeAmt"]) for user in account.lbank.users if user["deposit"]]
    assert 0 < max(balances) < 1_000_000
    # LBank's names of the spot assets in USDT, and of all spot assets.
    assert all(
        Decimal(user["currencyTotalFeeAmtUsdt"]) <= Decimal(user["currencyTotalFeeAmt"]) for user in account.lbank.users
    )


def test_incomes_in_a_coin_follow_its_price(rebates):
    # The price of a coin determines the amounts in it: what a row is worth does not depend on the coin.
    by_asset = defaultdict(list)
    for day, rows in rebates.items():
        for row in rows:
            by_asset[row["asset"]].append(usdt(row["income"], row["asset"], day))
    means = sorted(sum(values) / len(values) for values in by_asset.values())
    assert len(means) > 12 and all(b < 4 * a for a, b in pairwise(means)) and means[-1] < 30
