"""`who` finds a user in everything that has landed, by id or email, and prints no email that the exchange has not masked."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest

from affiliate_pipeline.app.__main__ import app
from affiliate_pipeline.app.cli import CommandError
from affiliate_pipeline_tests.app.totals import add_up
from affiliate_pipeline_tests.defs import affiliates, kickbacks
from affiliate_pipeline_tests.defs.direct_runs import land
from affiliate_pipeline_tests.defs.rebates import DAYS, EMAIL, KEY, YESTERDAY, ago, at, rebate

MASKED = "so***@example.com"
LBANK = "lbank/{}commission_stats_symbol_list"
Who = Callable[[str], str]


@pytest.fixture
def who(capsys) -> Iterator[Who]:
    """Runs the command, asserts its exit code and returns its output."""
    printed: list[str] = []

    def run(user: str, exit_code: int = 0) -> str:
        capsys.readouterr()
        assert app(["who", user], standalone_mode=False) == exit_code
        printed.append(capsys.readouterr().out)
        return printed[-1]

    yield run
    assert not any(EMAIL in text for text in printed)


def earn(sandbox, *rows: dict) -> None:
    """Land and add up these rebates."""
    sandbox.binance.set_rebates(rows)
    assert land(KEY, DAYS).success
    add_up(DAYS)


def facts(text: str) -> dict[str, str]:
    """The last fact of each label."""
    return {line[2:20].strip(): line[20:] for line in text.splitlines() if line.startswith("  ")}


def test_a_customers_earnings_are_those_of_7_30_and_all_days(sandbox, query, who):
    earn(
        sandbox,
        rebate(at(DAYS[0]), 1, income="1.5", customerId="c1", email=MASKED),
        rebate(at(DAYS[1]), 2, income="2", customerId="c1", email=MASKED),
        rebate(at(DAYS[1]), 3, income="3", asset="NIX", customerId="c1", email=MASKED),
        rebate(at(DAYS[1]), 4, income="100", customerId="c2"),
    )
    for days_ago in (8, 31):
        query(
            "insert into affiliate.daily_customer_commission select partition_date - %s::int, exchange, account, zone, customer, "
            "identified_by, coin, kind, count, amount, usdt_value, unvalued, market_value_usdt, settled, asset, computed_at, run_id "
            "from affiliate.daily_customer_commission where partition_date = %s and customer = 'c1'",
            (DAYS[0] - ago(days_ago)).days,
            DAYS[0],
        )

    found = who("c1")

    assert found.startswith("c1 is ours.")
    assert f"binance, customer_id c1 ({MASKED})" in found
    assert facts(found)["earning"] == f"since {DAYS[0] - timedelta(days=26)}, last on {DAYS[1]}"
    assert facts(found)["7 days"] == "3.5 USDT, 3 records, of which 1 have no value in USDT"
    assert facts(found)["30 days"] == "5 USDT, 4 records, of which 1 have no value in USDT"
    assert facts(found)["all days"] == "6.5 USDT, 5 records, of which 1 have no value in USDT"
    assert "c2" not in found


def test_an_email_finds_every_customer_whose_masked_email_fits(sandbox, who):
    earn(
        sandbox,
        rebate(at(DAYS[0]), 1, income="1", customerId="c1", email=MASKED),
        rebate(at(DAYS[0]), 2, income="2", customerId="", email="som*****@EXAMPLE.com"),
        rebate(at(DAYS[0]), 3, income="4", customerId="", email="differ***@example.com"),
        rebate(at(DAYS[0]), 4, income="8", customerId="", email="so_***@example.com"),
        rebate(at(DAYS[0]), 5, income="16", customerId="***", email=""),
    )

    found = who(EMAIL)

    assert found.startswith("so***@example.com may be ours: 2 customers have an email that fits.")
    assert "binance, customer_id c1" in found and "1 USDT" in found
    assert "binance, email som*****@EXAMPLE.com" in found and "2 USDT" in found
    assert "differ" not in found and "so_" not in found and "16 USDT" not in found
    assert who("differ***@example.com").startswith("differ***@example.com may be ours: 1 customer has an email that")
    assert who(MASKED).startswith(f"{MASKED} may be ours: 3 customers have an email that fits.")
    # As a report displays it, with more masked.
    assert "4 USDT" in who("di***@example.com")


def test_an_email_finds_the_earnings_of_the_id_that_the_partner_assigned_to_it(sandbox, who):
    sandbox.binance.customers.by_id["c1"] = EMAIL
    assert land("binance/customization", [datetime.now(UTC).date()]).success
    rebates = (
        rebate(at(DAYS[0]), 1, income="1", customerId="c1", email=""),
        rebate(at(DAYS[0]), 2, income="2", customerId="z2", email=MASKED),
    )
    earn(sandbox, *rebates)

    found, other = who(EMAIL).split("binance, customer_id z2")

    assert found.startswith("so***@example.com is ours.")
    assert "binance, customer_id c1 (so***@example.com)\n" in found
    assert other.startswith(" (so***@example.com), perhaps another user\n")
    assert facts(found)["all days"] == "1 USDT, 1 record"


def test_the_user_of_the_clients_api_key_has_its_state_and_kickbacks(sandbox, query, who):
    sandbox.binance.customers.own_id = "me"
    for name in ("user_customization", "if_new_user"):
        assert land(f"binance/{name}", [datetime.now(UTC).date()]).success
    sandbox.binance.kickbacks.set([kickbacks.kickback(at(YESTERDAY), income="2.25")])
    assert land(kickbacks.RECENT, [YESTERDAY]).success
    # Both endpoints of kickbacks have landed the day.
    query("insert into affiliate.landing (select (jsonb_populate_record(l, %s::jsonb)).* from affiliate.landing l "
          "where asset = %s)", f'{{"asset": "{kickbacks.HISTORY}"}}', kickbacks.RECENT)  # fmt: skip
    add_up([YESTERDAY])

    text = who("me")
    found = facts(text)
    assert text.count("all days") == 1

    assert found["client of agent"] == sandbox.binance.api_agent_code
    assert (found["new to the agent"], found["agent's code works"]) == ("yes", "yes")
    assert found["all days"] == "2.25 USDT, 1 record"
    assert land("binance/customization", [datetime.now(UTC).date()]).success
    other = facts(who(next(iter(sandbox.binance.customers.by_id))))
    assert "new to the agent" not in other and "all days" not in other


def test_a_user_of_lbank_has_its_level_volume_and_commission(both_exchanges, query, who):
    lbank = both_exchanges.lbank
    day = affiliates.today() - timedelta(days=2)
    traded = {row["openId"] for row in lbank.trades(day)}
    open_id = next(each for each in affiliates.agents(both_exchanges)[1:] if each in traded)
    user = next(each for each in lbank.users if each["openId"] == open_id)
    lbank.set_commissions([affiliates.commission(open_id, day, "12.5")])
    assert land("lbank/invite_user_info", [affiliates.today()]).success
    assert land("lbank/trade_user", [day]).success
    assert land(LBANK.format(""), [day]).success
    add_up([day])
    volume = sum(
        float(row["tradeAmt"]) for kind in (0, 1) for row in lbank.trades(day, kind) if row["openId"] == open_id
    )

    found = who(open_id)

    assert found.startswith(f"{open_id} is ours.") and f"lbank, open_id {open_id}\n" in found
    known = facts(found)
    assert known["under us"] == known["has traded"] == "yes" and known["level"] == f"{user['userLevel']}"
    registered = datetime.fromtimestamp(user["createTime"] / 1000, UTC) + timedelta(hours=8)
    assert known["registered"] == f"{registered:%Y-%m-%d}"
    assert [float(each.split(" ")[0]) for each in known["volume"].split(", ")] == [pytest.approx(volume)] * 2
    assert known["7 days"] == "12.5 USDT, 1 record"

    query("update lbank.invite_user_info set invite_result = false, user_level = null where open_id = %s", open_id)
    found = who(open_id)
    assert found.startswith(f"{open_id} is no longer under us.")
    # A user who is no longer under us has no level, so the last known one is printed.
    assert facts(found)["level"] == known["level"]


def test_a_user_in_the_roster_only_is_ours(both_exchanges, query, who):
    assert land("lbank/trade_user", [affiliates.today() - timedelta(days=1)]).success
    [(open_id,)] = query("select open_id from lbank.roster where transaction is false order by 1 limit 1")

    assert who(open_id).startswith(f"{open_id} is ours.")


def test_the_same_id_in_two_accounts_is_reported_for_each(two_accounts, who):
    for alias, income in (("", "1"), ("acme", "2")):
        two_accounts.accounts[alias].binance.set_rebates([rebate(at(DAYS[0]), 1, income=income, customerId="c1")])
        assert land(KEY.replace("/", f"/{alias}/" if alias else "/"), [DAYS[0]]).success
    add_up(DAYS[:1])

    default, acme = who("c1").split("binance/acme, customer_id c1")

    assert facts(default)["all days"] == "1 USDT, 1 record"
    assert facts(acme)["all days"] == "2 USDT, 1 record"


def test_an_unknown_user_is_reported_with_the_days_that_were_searched(sandbox, who):
    assert land(KEY, [DAYS[0]]).success and land(KEY, [DAYS[3]]).success

    for user, shown in (("unknown", "unknown"), (f"x{EMAIL}", "xs***@example.com")):
        found = who(user, exit_code=1)
        assert found.startswith(f"{shown} is not known: no row that has landed names this user.")
        missing = f"missing {DAYS[1]}, {DAYS[2]:%d}" if DAYS[1].month == DAYS[2].month else "missing"
        assert f"  {KEY}: {DAYS[0]} to {DAYS[3]}, {missing}" in found
        assert "some landed rows or prices have not been added up yet" in found


def test_without_landed_days_the_command_reports_that(sandbox, who):
    with pytest.raises(CommandError, match="nothing about users has landed yet. Land some days first"):
        who("c1")


def test_an_empty_text_is_refused(sandbox, who):
    with pytest.raises(CommandError, match="no user was given. Give an id or an email"):
        who(" ")
