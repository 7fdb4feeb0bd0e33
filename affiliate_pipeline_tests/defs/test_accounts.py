"""A second account of each exchange: its rows, its exports, its commission, its monitoring, and its removal."""

from collections.abc import Callable
from datetime import timedelta

import dagster as dg
import pytest

from affiliate_pipeline.app.__main__ import app
from affiliate_pipeline.app.cli import CommandError
from affiliate_pipeline.domain.problem import SettingsError
from affiliate_pipeline.environment import configured
from affiliate_pipeline.exchanges.registry import configured_catalog
from affiliate_pipeline.landing import ledger
from affiliate_pipeline.landing.store import Store
from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline_tests.app.test_export import export
from affiliate_pipeline_tests.code_location import loaded_definitions
from affiliate_pipeline_tests.conftest import RESOURCES, instance_of_all_runs, materialize
from affiliate_pipeline_tests.defs.direct_runs import land
from affiliate_pipeline_tests.defs.rebates import DAYS, SETTLED, YESTERDAY, ago, refusals
from affiliate_pipeline_tests.defs.test_commission_assets import add_up
from affiliate_pipeline_tests.defs.test_schedules import tick, tick_time

REBATES, KICKBACKS = "rebate_recent_record", "kickback_recent_record"
ALIASES = ("", "acme")
COMMISSION_OF_RAW_TABLES = """
select account, 'binance', asset, 'rebate', count(*), sum(income) from binance.rebate_recent_record
    where partition_date = %(day)s group by 1, 3
union all select account, 'binance', asset, 'kickback', count(*), sum(income) from binance.kickback_recent_record
    where partition_date = %(day)s group by 1, 3
union all select account, 'lbank', coin_symbol, 'commission ' || (array['spot', 'futures'])[trade_type + 1], count(*), sum(amount)
    from lbank.commission_stats_symbol_list where partition_date = %(day)s group by 1, 3, 4
order by 1, 2, 3, 4"""
COMMISSION = """
select account, exchange, coin, kind, count, amount from affiliate.daily_commission where partition_date = %s
order by 1, 2, 3, 4"""


def key(pattern: str, alias: str) -> str:
    """The asset key of the account: `{}` is the place of its alias."""
    return pattern.format(f"{alias}/" if alias else "")


@pytest.fixture
def without_acme(monkeypatch: pytest.MonkeyPatch, two_accounts: Sandbox) -> Callable[[], None]:
    """Removes the second account's variables."""

    def remove() -> None:
        for name in two_accounts.variables:
            if name.endswith("__ACME"):
                monkeypatch.delenv(name)

    return remove


def land_both(*patterns: str) -> None:
    """Land a day of the assets for both accounts."""
    for alias in ALIASES:
        for pattern in patterns:
            run = land(key(pattern, alias), [SETTLED])
            assert run.success, run.message


def test_two_accounts_of_both_exchanges_land_side_by_side(two_accounts, query):
    land_both(f"binance/{{}}{REBATES}", "lbank/{}trade_user", "lbank/{}invite_user_list")

    for alias, account in two_accounts.accounts.items():
        of_day = "partition_date = %s and account = %s"
        sent = sorted((row["tradeId"], row["income"]) for row in account.binance.rebates(SETTLED))
        assert sent == sorted(
            query(f"select trade_id, income::text from binance.rebate_recent_record where {of_day}", SETTLED, alias)
        )
        users = sorted(row["openId"] for row in account.lbank.invite_users(SETTLED))
        found = query(f"select open_id from lbank.invite_user_list where {of_day}", SETTLED, alias)
        assert sorted(open_id for (open_id,) in found) == users
        (traded,) = query(f"select count(*) from lbank.trade_user where {of_day}", SETTLED, alias)
        assert traded == (sum(len(account.lbank.trades(SETTLED, kind)) for kind in (0, 1)),) and traded != (0,)
        roster = {open_id for (open_id,) in query("select open_id from lbank.roster where account = %s", alias)}
        assert roster == {user["openId"] for user in account.lbank.users}
    assert not refusals(two_accounts)
    # LBank's limits are per key, Binance's per address.
    scopes = [scope for (scope,) in query("select distinct scope from affiliate.lease")]
    paths = {scope.rpartition(" ")[2] for scope in scopes if scope.startswith("lbank ")}
    assert sum(scope.startswith("lbank ") for scope in scopes) == 2 * len(paths) > 0
    assert sum(scope.startswith("binance ") for scope in scopes) == 1


def test_daily_commission_per_account_equals_the_raw_tables_even_after_an_account_is_removed(
    two_accounts, query, without_acme
):
    land_both(f"binance/{{}}{REBATES}", f"binance/{{}}{KICKBACKS}", "lbank/{}commission_stats_symbol_list")
    assert add_up([SETTLED]).success
    raw = query(COMMISSION_OF_RAW_TABLES.replace("%(day)s", f"'{SETTLED}'"))
    assert query(COMMISSION, SETTLED) == raw and {account for account, *_ in raw} == {*ALIASES}

    without_acme()
    assert all("acme" not in spec.key.path for spec in loaded_definitions().resolve_all_asset_specs())
    two_accounts.binance.set_rebates(two_accounts.binance.rebates(SETTLED)[1:])
    assert land(f"binance/{REBATES}", [SETTLED], allow_shrink=True).success
    assert add_up([SETTLED]).success
    changed = query(COMMISSION, SETTLED)
    assert changed != raw and [row for row in changed if row[0] == "acme"] == [row for row in raw if row[0] == "acme"]


def test_a_removed_account_is_not_monitored_and_resumes_once_it_is_set_again(
    two_accounts, query, without_acme, monkeypatch
):
    days = [ago(number) for number in (6, 5, 3, 2, 1)]
    for consecutive in (days[:2], days[2:]):
        assert land(f"binance/acme/{REBATES}", consecutive).success

    def requested() -> list[str]:
        """The assets of the runs that the monitor requests."""
        watch = loaded_definitions().resolve_sensor_def("watch")
        with dg.DagsterInstance.ephemeral() as instance:
            result = watch(dg.build_sensor_context(instance=instance, resources=RESOURCES))
        assert isinstance(result, dg.SensorResult)
        return [
            each.to_user_string() for request in result.run_requests or [] for each in request.asset_selection or ()
        ]

    before = query("select count(*) from binance.rebate_recent_record where account = 'acme'")
    without_acme()
    assert requested() == []
    assert query("select count(*) from binance.rebate_recent_record where account = 'acme'") == before

    for name, value in two_accounts.variables.items():
        monkeypatch.setenv(name, value)
    assert requested() == [f"binance/acme/{REBATES}"]
    assert land(f"binance/acme/{REBATES}", [ago(4)]).success
    assert query("select title from affiliate.alert") == []


def test_only_the_sensor_of_its_account_requests_the_run_that_lands_an_export(two_accounts, query):
    days = [ago(10), ago(9)]
    assert land("binance/acme/kickback_historical_request", days).success
    query("update binance.kickback_historical_collection set polled_at = polled_at - interval '1 day'")

    requests = {}
    for name in ("kickback_history", "kickback_history_acme"):
        definitions = loaded_definitions()
        context = dg.build_sensor_context(
            instance=instance_of_all_runs(), definitions=definitions, resources=definitions.resources
        )
        requests[name] = definitions.resolve_sensor_def(name).evaluate_tick(context).run_requests or []

    assert requests["kickback_history"] == []
    [request] = requests["kickback_history_acme"]
    assert request.asset_selection == [dg.AssetKey(["binance", "acme", "kickback_historical_record"])]
    assert land("binance/acme/kickback_historical_record", days).success
    assert query("select account, state from binance.kickback_historical_collection") == [("acme", "landed")]
    landed = query("select account, count(*)::int from binance.kickback_historical_record group by 1")
    assert landed == [("acme", sum(len(two_accounts.accounts["acme"].binance.kickbacks.of(day)) for day in days))]


def test_a_failing_day_of_one_account_fails_only_there_and_is_named(two_accounts, query):
    two_accounts.accounts["acme"].faults.fail_day(SETTLED, status=400, code=-1127)

    failed = materialize(f"binance/acme/{REBATES}", [SETTLED])
    landed = land(f"binance/{REBATES}", [SETTLED])

    assert list(failed.failed) == [SETTLED] and f"binance/acme/{REBATES}: 1 of 1 day failed" in failed.message
    assert landed.success
    assert query("select distinct account from binance.rebate_recent_record") == [("",)]


def test_an_incomplete_account_fails_only_its_own_assets_and_names_the_variable(two_accounts, monkeypatch):
    monkeypatch.delenv("LBANK_API_SECRET__ACME")
    monkeypatch.setenv("BINANCE_PARTNER_API_SECRET__ACME", "")
    for asset, name in (
        (f"binance/acme/{REBATES}", "BINANCE_PARTNER_API_SECRET__ACME is not set"),
        ("lbank/acme/trade_user", "LBANK_API_SECRET__ACME is not set"),
    ):
        with pytest.raises(SettingsError, match=name):
            land(asset, [SETTLED])
    assert land(f"binance/acme/{KICKBACKS}", [SETTLED]).success
    assert land(f"binance/{REBATES}", [SETTLED]).success


def test_a_refused_key_of_an_account_is_named_by_its_own_variable(two_accounts, monkeypatch):
    monkeypatch.setenv("BINANCE_PARTNER_API_KEY__ACME", "x" * 64)
    monkeypatch.setenv("LBANK_OPEN_ID__ACME", two_accounts.lbank.own_open_id)
    assert "API key (BINANCE_PARTNER_API_KEY__ACME) is wrong" in land(f"binance/acme/{REBATES}", [SETTLED]).message
    assert "LBANK_OPEN_ID__ACME" in land("lbank/acme/trade_future", [SETTLED]).message


def test_each_account_has_schedules_of_its_own(two_accounts):
    schedules = {each.name: each for each in loaded_definitions().schedules or ()}
    own = {name for name in schedules if "_acme_" in name}
    assert {name.replace("_acme", "") for name in own} == schedules.keys() - own
    schedule = schedules["lbank_acme_records_1035_asia_shanghai"]
    assert isinstance(schedule, dg.ScheduleDefinition) and "(account acme)" in (schedule.description or "")
    requested, _ = tick(schedule, tick_time(schedule, YESTERDAY + timedelta(days=1)))
    assert [*requested] == ["lbank/acme/commission_stats_symbol_list"]


def test_the_assets_of_an_account_have_their_own_op_group_and_owner_and_share_the_table(two_accounts):
    definitions = loaded_definitions()
    assets = definitions.get_assets_def(dg.AssetKey(["lbank", "acme", "trade_user"]))
    [spec] = assets.specs
    assert (assets.op.name, spec.group_name) == ("lbank__acme__trade_user", "lbank_acme")
    assert spec.metadata["dagster/table_name"] == "lbank.trade_user"
    assert spec.owners == ["team:lbank_acme_affiliate"]
    keys = {spec.key.to_user_string() for spec in definitions.resolve_all_asset_specs()}
    default = {each for each in keys if each.count("/") == 1 and not each.startswith("affiliate/")}
    assert {each.replace("/acme/", "/") for each in keys if "/acme/" in each} == default


def test_an_export_of_an_asset_has_the_rows_of_its_account_and_an_export_of_a_table_has_all_rows(
    two_accounts, query, capfd, without_acme
):
    assert land(f"binance/{REBATES}", [SETTLED]).success
    assert land(f"binance/acme/{REBATES}", [SETTLED]).success
    counts = dict(query("select account, count(*)::int from binance.rebate_recent_record group by 1"))

    def lines(name: str) -> int:
        export(name, f"{SETTLED}")
        return len(capfd.readouterr().out.splitlines()) - 1

    assert lines(f"binance/{REBATES}") == counts[""]
    assert lines(f"binance/acme/{REBATES}") == counts["acme"]
    assert lines(f"binance.{REBATES}") == counts[""] + counts["acme"]
    without_acme()
    assert lines(f"binance/acme/{REBATES}") == counts["acme"]
    export(f"binance.{REBATES}", f"{SETTLED}...{DAYS[1]}")
    reported = capfd.readouterr().err
    assert all(f"binance/{part}{REBATES}: {DAYS[1]} not landed" in reported for part in ("", "acme/"))


def test_plan_accepts_the_asset_key_of_an_account(two_accounts, capsys):
    app(["plan", "lbank/acme/invite_user_list", f"{SETTLED}"], standalone_mode=False)
    assert capsys.readouterr().out.startswith(f"lbank/acme/invite_user_list {SETTLED}: ")
    with pytest.raises(
        CommandError, match="there is no asset lbank/other/trade_user. There are .*lbank/acme/trade_user"
    ):
        app(["plan", "lbank/other/trade_user", f"{SETTLED}"], standalone_mode=False)


def test_the_ledger_names_the_asset_of_the_account(two_accounts, database_url):
    assert land(f"binance/acme/{REBATES}", [SETTLED]).success
    with Store(database_url) as store:
        assert ledger.assets(store.connection) == [f"binance/acme/{REBATES}"]
    aliases = {each.alias for each in configured_catalog(configured().variables).endpoints}
    assert aliases == {*ALIASES}
