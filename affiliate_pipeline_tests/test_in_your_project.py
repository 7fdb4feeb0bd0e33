"""`docs/in_your_project.md`, followed to the letter in an empty folder: its project, downstream assets, SQL and tests."""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import dagster as dg
import jinja2
import pytest

from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline_tests import isolation
from affiliate_pipeline_tests.walkthrough import ROOT, edits

TODAY = datetime.now(UTC).date()
DAYS = [TODAY - timedelta(days=n) for n in (4, 3)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for edit in edits(ROOT / "docs" / "in_your_project.md"):
        edit.apply(tmp_path)
    return tmp_path


@pytest.fixture
def desk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Imports a module of the project."""
    monkeypatch.syspath_prepend(folder)

    def module(name: str) -> ModuleType:
        return importlib.import_module(f"desk.{name}")

    yield module
    for name in [name for name in sys.modules if name.partition(".")[0] == "desk"]:
        del sys.modules[name]


@pytest.fixture
def served(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """The sandbox, whose credentials are in the project's variables."""
    with Sandbox(accounts=["acme"], rows_per_day=30, users=3, rate_scale=1000) as sandbox:
        main, acme = sandbox.accounts[""], sandbox.accounts["acme"]
        for name, value in {
            "WAREHOUSE_URL": database_url,
            "MAIN_KEY": main.binance.partner_key,
            "MAIN_SECRET": main.binance.partner_secret,
            "ACME_KEY": acme.binance.partner_key,
            "ACME_SECRET": acme.binance.partner_secret,
            "LB_KEY": main.lbank.api_key,
            "LB_SECRET": main.lbank.api_secret,
            "LB_OPEN_ID": main.lbank.own_open_id,
        }.items():
            monkeypatch.setenv(name, value)
        yield sandbox


def run(folder: Path, module: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a Python module in the project's folder."""
    environment = isolation.inherited(os.environ) | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"} | variables
    return subprocess.run(
        [sys.executable, "-m", *module], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )


class Host:
    """The project's assets with the sandbox's accounts, run in this process."""

    def __init__(self, desk: Callable[[str], Any], sandbox: Sandbox):
        affiliates = desk("affiliates")
        accounts = [replace(each, base_url=sandbox.url, rate_scale=1000) for each in affiliates.ACCOUNTS]
        self.downstream = desk("downstream")
        own = dg.load_definitions_from_modules([self.downstream])
        self.definitions = dg.Definitions.merge(own, affiliates.affiliates(accounts))
        self.assets: list[Any] = [*(self.definitions.assets or ())]
        self.instance = dg.DagsterInstance.ephemeral()

    def run(self, selection: str, first: date, last: date | None = None) -> dg.ExecuteInProcessResult:
        tags = {"start": first, "end": last} if last else {}
        return dg.materialize(
            self.assets,
            selection=selection,
            partition_key=None if last else f"{first}",
            tags={f"dagster/asset_partition_range_{end}": f"{day}" for end, day in tags.items()},
            resources=self.definitions.resources,
            instance=self.instance,
            raise_on_error=False,
        )


@pytest.fixture
def host(desk: Callable[[str], Any], served: Sandbox) -> Iterator[Host]:
    host = Host(desk, served)
    with host.instance:
        yield host


@pytest.mark.e2e
def test_dagster_loads_the_project(folder):
    done = run(folder, ["dagster", "definitions", "validate", "-m", "desk.definitions"])
    assert done.returncode == 0, done.stderr


def test_the_definitions_need_no_variable(desk):
    repository = desk("definitions").defs.get_repository_def()

    keys = {key.to_user_string() for key in repository.asset_graph.get_all_asset_keys()}
    binance, lbank = ["rebate_recent_record"], ["commission_stats_symbol_list", "trade_user", "roster"]
    expected = {f"desk/binance/{name}" for name in binance} | {f"desk/binance/acme/{name}" for name in binance}
    assert keys == expected | {f"desk/lbank/{name}" for name in lbank} | {"income", "volume"}
    assert {each.name for each in repository.schedule_defs} >= {"affiliate_desk_binance_acme_records_0015_utc"}
    names = {each.name.removeprefix("affiliate_desk_binance_") for each in repository.sensor_defs}
    monitoring = {"watch", "failed_run_alert", "failing_tick_alert", "alert_delivery", "heartbeat"}
    assert names == monitoring | {"changed_days", "failed_affiliate_days", "default_automation_condition_sensor"}


def test_two_accounts_take_twelve_lines_and_choosing_endpoints_and_names_takes_four_more(folder):
    lines = [line for line in (folder / "desk" / "affiliates.py").read_text().splitlines() if line.strip()]
    # Not counted: the line of the page's third account, and those that start schedules, monitoring and alerts.
    more = ("alias=", "schedules=", "monitoring=", "alerts=")
    endpoints = [line for line in lines if line.strip().startswith(("endpoints=", "key_prefix=", "group_name="))]
    accounts = [line for line in lines if line not in endpoints and not any(name in line for name in more)]
    assert len(accounts) <= 12 and len(endpoints) <= 4


@pytest.mark.e2e
def test_the_pages_own_tests_pass(folder, database_url):
    done = run(folder, ["pytest", "-q", "-p", "no:cacheprovider", "tests"], TEST_DATABASE_URL=database_url)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_key_of_a_secret_manager_lands_a_day(desk, served, database_url, query, tmp_path):
    (tmp_path / "key").write_text(f"{served.binance.partner_key}\n")
    (tmp_path / "secret").write_text(f"{served.binance.partner_secret}\n")
    affiliates = desk("affiliates")
    key = desk("mounted_key").MountedKey(folder=tmp_path)
    account = replace(affiliates.ACCOUNTS[0], partner=key, base_url=served.url)

    built = affiliates.affiliates([account, affiliates.ACCOUNTS[1]])
    result = dg.materialize(
        [*built.assets],
        selection="key:desk/binance/rebate_recent_record",
        partition_key=f"{DAYS[0]}",
        resources=built.resources,
    )

    assert result.success
    assert query("select count(*) from binance.rebate_recent_record") == [(len(served.binance.rebates(DAYS[0])),)]


def test_a_day_in_utc_depends_on_lbanks_day_only_with_the_identity_mapping(host):
    @dg.asset(deps=[host.downstream.TRADES], partitions_def=host.downstream.DAYS)
    def without_mapping() -> None: ...

    assert host.run("key:desk/lbank/trade_user", DAYS[0]).success
    assert host.run("volume", DAYS[0]).success
    result = dg.materialize(
        [*host.assets, without_mapping],
        selection=[without_mapping],
        partition_key=f"{DAYS[0]}",
        resources=host.definitions.resources,
        instance=host.instance,
        raise_on_error=False,
    )
    assert "Timezones Asia/Shanghai and UTC don't match" in failures(result)


def test_a_downstream_run_fails_and_names_the_days_that_have_not_landed(host):
    assert f"lbank/trade_user has not landed {DAYS[0]}" in failures(host.run("volume", DAYS[0]))


def failures(result: dg.ExecuteInProcessResult) -> str:
    return "\n".join(f"{event.step_failure_data.error}" for event in result.all_events if event.is_step_failure)


def test_the_automation_condition_runs_every_day_that_lands(host):
    cursor = None

    def requested() -> set[str | None]:
        nonlocal cursor
        ticked = dg.evaluate_automation_conditions(host.definitions, host.instance, cursor=cursor)
        cursor = ticked.cursor
        return {*(ticked.get_requested_partitions(dg.AssetKey("volume")) or ())}

    assert requested() == set()
    assert host.run("key:desk/lbank/trade_user", *DAYS).success
    assert requested() == {f"{day}" for day in DAYS}
    assert requested() == set()


def test_the_sensor_runs_each_change_of_a_day_once(host, served):
    def requested() -> dict[str, str]:
        with dg.build_sensor_context(host.instance) as context:
            return {each.partition_key: each.run_key for each in host.downstream.changed_days(context)}

    assert host.run("key:desk/binance/rebate_recent_record", *DAYS).success
    first = requested()
    assert host.run("key:desk/binance/rebate_recent_record", *DAYS).success
    unchanged = requested()
    served.faults.transform_row = lambda row: row | {"income": "1"}
    assert host.run("key:desk/binance/rebate_recent_record", DAYS[1]).success
    changed = requested()

    assert first == unchanged and first.keys() == {f"{day}" for day in DAYS}
    assert {day for day in changed if changed[day] != first[day]} == {f"{DAYS[1]}"}


def test_with_data_versions_an_unchanged_day_counts_as_changed_after_a_run_of_several_days(host):
    condition = host.downstream.ON_LANDING.replace("newly_updated", dg.AutomationCondition.data_version_changed())

    @dg.asset(deps=[host.downstream.REBATES], partitions_def=host.downstream.DAYS, automation_condition=condition)
    def per_change() -> None: ...

    definitions = dg.Definitions.merge(host.definitions, dg.Definitions(assets=[per_change]))
    cursor = None
    requested = []
    for days in (DAYS[:1], DAYS[:1], DAYS):
        assert host.run("key:desk/binance/rebate_recent_record", *days).success
        ticked = dg.evaluate_automation_conditions(definitions, host.instance, cursor=cursor)
        cursor = ticked.cursor
        requested.append(ticked.get_num_requested(per_change.key))
    # The first tick has no earlier versions to compare with. The last run landed two days, of which one was unchanged.
    assert requested == [0, 0, 2]


def test_the_models_sql_replaces_exactly_the_days_that_have_changed(host, served, folder, query):
    text = (folder / "desk" / "models" / "daily_income.sql").read_text()

    def run_model(*, incremental: bool) -> set[date]:
        """What dbt does for `delete+insert`; returns the days whose rows it replaces."""
        sql = jinja2.Template(text).render(
            config=lambda **_: "",
            source=lambda schema, table: f"{schema}.{table}",
            this="public.daily_income",
            is_incremental=lambda: incremental,
        )
        if not incremental:
            query(f"create table public.daily_income as {sql}")
            return set()
        query(f"create table public.new as {sql}")
        query("delete from public.daily_income where day in (select day from public.new)")
        query("insert into public.daily_income select * from public.new")
        replaced = {day for (day,) in query("select day from public.new")}
        query("drop table public.new")
        return replaced

    def stored() -> list[tuple]:
        return query("select day, asset, income::text from public.daily_income order by 1, 2")

    def expected() -> list[tuple]:
        return query(
            "select partition_date, asset, sum(income)::text from binance.rebate_recent_record group by 1, 2 order by 1, 2"
        )

    assert host.run("key:desk/binance/rebate_recent_record", *DAYS).success
    run_model(incremental=False)
    assert stored() == expected() != []
    # As if the days had landed long before, the first one a day before the second.
    for table, day in ("affiliate.landing", "partition"), ("public.daily_income", "day"):
        query(
            f"update {table} set landed_at = landed_at - interval '1 day' * (%s::date - {day})",
            DAYS[1] + timedelta(days=1),
        )
    served.faults.transform_row = lambda row: row | {"income": "1"}
    assert host.run("key:desk/binance/rebate_recent_record", DAYS[1]).success
    assert run_model(incremental=True) == {DAYS[1]}
    assert stored() == expected()


def test_the_failure_sensor_gets_each_failed_day_with_its_reason(host, served, capfd):
    served.faults.fail_day(DAYS[1])
    result = host.run("key:desk/binance/rebate_recent_record", *DAYS)
    capfd.readouterr()
    assert not result.success
    [failed] = [event for event in result.all_events if event.event_type_value == "PIPELINE_FAILURE"]
    with dg.build_run_status_sensor_context(
        "failed_affiliate_days", failed, host.instance, result.dagster_run
    ).for_run_failure() as context:
        host.downstream.failed_affiliate_days(context)
    logged = capfd.readouterr().err
    assert f"desk__binance__rebate_recent_record {DAYS[1]}: Binance returned HTTP 500" in logged
    assert f"{DAYS[0]}:" not in logged
