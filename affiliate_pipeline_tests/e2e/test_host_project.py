"""Another Dagster project with `build_definitions` merged into it: daemon, web server, code server, SQLite instance."""

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest

from affiliate_pipeline.sandbox import Account, Sandbox
from affiliate_pipeline_tests.e2e.project import UI, Project, free_port, reachable, wait_for
from affiliate_pipeline_tests.webhook import Webhook

pytestmark = pytest.mark.e2e
DEFINITIONS = """
import os
import dagster as dg
from affiliate_pipeline import AffiliateDatabase, Alerts, ApiKey, BinanceAccount, LBankAccount, build_definitions


def key(name):
    return ApiKey(key=dg.EnvVar(f"{name}_KEY"), secret=dg.EnvVar(f"{name}_SECRET"))


server = {"base_url": os.environ["EXCHANGE_URL"], "rate_scale": 1000}


@dg.asset(key=["host", "orders"])
def orders():
    raise ValueError("a failure of the host")


@dg.asset(key=["host", "prices"], required_resource_keys={"postgres"})
def prices(context):
    assert context.resources.postgres == "the host's own"


every_minute = dg.ScheduleDefinition(
    name="every_minute", target=[prices], cron_schedule="* * * * *", default_status=dg.DefaultScheduleStatus.RUNNING
)


@dg.sensor(target=[prices], default_status=dg.DefaultSensorStatus.RUNNING)
def new_prices(context):
    return dg.SkipReason("no new prices")


defs = dg.Definitions.merge(
    dg.Definitions(
        assets=[orders, prices],
        schedules=[every_minute],
        sensors=[new_prices],
        resources={"postgres": dg.ResourceDefinition.hardcoded_resource("the host's own")},
        executor=dg.in_process_executor,
    ),
    build_definitions(
        [
            BinanceAccount(partner=key("MAIN"), **server),
            BinanceAccount(alias="acme", partner=key("ACME"), **server),
            BinanceAccount(alias="unset", partner=key("UNSET"), **server),
            LBankAccount(api=key("LB"), open_id=dg.EnvVar("LB_OPEN_ID"), **server),
            LBankAccount(alias="acme", api=key("LB_ACME"), open_id=dg.EnvVar("LB_ACME_OPEN_ID"), **server),
        ],
        database=AffiliateDatabase(url=dg.EnvVar("WAREHOUSE_URL")),
        endpoints=["rebate_recent_record", "trade_user"],
        key_prefix=["desk"],
        group_name="affiliates",
        schedules="running",
        monitoring="running",
        alerts=Alerts(urls=dg.EnvVar("HOST_ALERT_URLS"), heartbeat_url=dg.EnvVar("HOST_HEARTBEAT_URL")),
        commission=True,
    ),
)
"""
# Variables that this package's own code location reads, and that a host's code location must ignore.
ENV_FILE = """
AFFILIATE_DATABASE_URL=postgresql://user@127.0.0.1:1/nothing
BINANCE_PARTNER_API_KEY=another-key
BINANCE_PARTNER_API_SECRET=another-secret
ALERT_URLS=json://127.0.0.1:1/nothing
AFFILIATE_START_DATE=2099-01-01
"""
REBATES, TRADES = "desk/binance/{}rebate_recent_record", "desk/lbank/{}trade_user"
RESOURCES = """
query Resources($selector: RepositorySelector!) {
  allTopLevelResourceDetailsOrError(repositorySelector: $selector) {
    ... on ResourceDetailsList { results { name description resourceType configuredValues { key value } } }
  }
}"""
SCHEDULE_TICK = """
mutation Tick($selector: ScheduleSelector!, $at: Float) {
  scheduleDryRun(selectorData: $selector, timestamp: $at) {
    __typename ... on DryRunInstigationTick {
      evaluationResult { skipReason error { message } runRequests { assetSelection { path } } }
    }
  }
}"""
LOCATION = "host_definitions"


class Host(Project):
    """A folder with the host's definitions, and folders for its instance, home and temporary files."""

    def __init__(self, folder: Path, variables: dict[str, str]):
        self.folder = folder / "host"
        self.instance = folder / "dagster_home"
        self.variables = variables | {"DAGSTER_HOME": str(self.instance), "PYTHONDONTWRITEBYTECODE": "1"}
        for name in ("HOME", "TMPDIR"):
            (folder / name).mkdir()
            self.variables[name] = str(folder / name)
        self.folder.mkdir()
        self.instance.mkdir()
        (self.instance / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
        (self.folder / f"{LOCATION}.py").write_text(DEFINITIONS)
        (self.folder / ".env").write_text(ENV_FILE)

    def environment(self, **more: str) -> dict[str, str]:
        return super().environment(**self.variables, **more) | {"PYTHONPATH": os.pathsep.join(sys.path)}

    def files(self) -> set[str]:
        """All files and folders outside the instance's folder."""
        folders = (self.folder, Path(self.variables["HOME"]), Path(self.variables["TMPDIR"]))
        return {f"{path}" for folder in folders for path in folder.rglob("*")}

    @contextmanager
    def served(self) -> Iterator[UI]:
        port = free_port()
        command = [sys.executable, "-m", "dagster", "dev", "-p", str(port), "-m", LOCATION]
        with self.started(command):
            wait_for(lambda: reachable(port))
            yield UI(port, LOCATION)


def variables_of(account: Account, prefix: str) -> dict[str, str]:
    """The credentials of the account under the host's names.

    Binance's names begin with the prefix; LBank's with `LB_` and the prefix, or with `LB` alone for MAIN.
    """
    lbank = "LB" if prefix == "MAIN" else f"LB_{prefix}"
    return {
        f"{prefix}_KEY": account.binance.partner_key,
        f"{prefix}_SECRET": account.binance.partner_secret,
        f"{lbank}_KEY": account.lbank.api_key,
        f"{lbank}_SECRET": account.lbank.api_secret,
        f"{lbank}_OPEN_ID": account.lbank.own_open_id,
    }


@pytest.fixture
def exchange() -> Iterator[Sandbox]:
    with Sandbox(accounts=["acme"], rows_per_day=100, users=3, rate_scale=1000) as exchange:
        yield exchange


@pytest.fixture
def host(tmp_path: Path, exchange: Sandbox, database_url: str, webhook: Webhook) -> Iterator[Host]:
    host = Host(
        tmp_path,
        {
            **variables_of(exchange.accounts[""], "MAIN"),
            **variables_of(exchange.accounts["acme"], "ACME"),
            "EXCHANGE_URL": exchange.url,
            "WAREHOUSE_URL": database_url,
            "HOST_ALERT_URLS": webhook.url,
            "HOST_HEARTBEAT_URL": webhook.heartbeat_url,
        },
    )
    yield host
    for process in host.processes():
        process.kill()


def databases(url: str) -> set[str]:
    with psycopg.connect(url) as connection:
        return {name for (name,) in connection.execute("select datname from pg_database")}


def test_a_host_project_lands_days_is_alerted_and_finds_nothing_else_changed(
    host: Host, exchange: Sandbox, database_url: str, webhook: Webhook, query: Callable[..., list[tuple]]
) -> None:
    today = datetime.now(UTC).date()
    days = [today - timedelta(days=n) for n in (4, 3, 2)]
    faults = exchange.accounts["acme"].faults
    # Only requests for rebates fail. LBank's list of all users is requested over all days, so the failing day would
    # fail that request too.
    faults.path = "rebate"
    faults.fail_day(days[1])
    files, existing = host.files(), databases(database_url)

    with host.served() as ui:
        check_resources(ui, host)
        check_schedules(ui)

        failing = ui.launch_range(["host/orders"], [])
        rebates = ui.launch_range([REBATES.format(""), REBATES.format("acme/")], days)
        unset = ui.launch_range([REBATES.format("unset/")], days[:1])
        trades = ui.launch_range([TRADES.format(""), TRADES.format("acme/")], days[:1])
        ended = {run: ui.run_end(run) for run in (failing, rebates, unset, trades)}
        with dg.DagsterInstance.from_config(str(host.instance)) as instance:
            assert [*ended.values()] == ["FAILURE", "FAILURE", "FAILURE", "SUCCESS"], failures(instance, trades)
            check_rows(exchange, days, query)
            check_failures(instance, rebates, unset, days)
            wait_for(lambda: len(alerts_in(webhook)) >= 2)
            check_alerts(webhook, days)
            check_sensors(instance)
            check_requests(instance)
        # Like Ctrl-C on a terminal, which signals every process.
        for process in host.processes():
            process.send_signal(signal.SIGINT)
        wait_for(lambda: not host.processes())

    assert host.files() == files
    assert databases(database_url) == existing
    schemas = query("select nspname from pg_namespace where nspname !~ '^(pg_|information_schema)' order by 1")
    assert schemas == [("affiliate",), ("binance",), ("lbank",), ("public",)]


def check_resources(ui: UI, host: Host) -> None:
    """The resources list shows type, description and the names of variables, and no value except the exchange's URL."""
    found = ui.execute(RESOURCES, selector=ui.repository)["allTopLevelResourceDetailsOrError"]["results"]
    own = {each["name"]: each for each in found if each["name"] != "postgres"}
    types = {each["resourceType"].rpartition(".")[2] for each in own.values()}
    assert {"AffiliateDatabase", "BinanceAccount", "LBankAccount"} <= types
    assert all(each["description"] for each in own.values())
    shown = {pair["key"]: pair["value"] for pair in own["affiliate_desk_lbank_acme"]["configuredValues"]}
    assert "LB_ACME_KEY, LB_ACME_SECRET" in json.dumps(shown)
    secrets = [value for name, value in host.variables.items() if re.search("KEY|SECRET|URL|OPEN_ID", name)]
    assert [value for value in secrets if value in json.dumps(found) and value != host.variables["EXCHANGE_URL"]] == []


def check_schedules(ui: UI) -> None:
    """Each schedule's tick requests runs of this package's assets only, even for the account without variables."""
    for name in ("binance_records_0015_utc", "binance_unset_records_0015_utc", "lbank_records_0035_asia_shanghai"):
        selector = ui.repository | {"scheduleName": f"affiliate_desk_{name}"}
        at = datetime.now(UTC).timestamp()
        tick = ui.execute(SCHEDULE_TICK, selector=selector, at=at)["scheduleDryRun"]
        result = tick["evaluationResult"]
        assert result["error"] is None
        requested = {"/".join(key["path"]) for each in result["runRequests"] for key in each["assetSelection"]}
        assert len(requested) == 1 and all(key.startswith("desk/") for key in requested)


def check_rows(exchange: Sandbox, days: list, query: Callable[..., list[tuple]]) -> None:
    """Each account has exactly the rebates of its landed days, and some of LBank's rows."""
    for alias, account in exchange.accounts.items():
        landed = [day for day in days if (alias, day) != ("acme", days[1])]
        for day in days:
            rows = query(
                "select income::text from binance.rebate_recent_record where account = %s and partition_date = %s",
                alias,
                day,
            )
            sent = [row["income"] for row in account.binance.rebates(day)] if day in landed else []
            assert sorted(income for (income,) in rows) == sorted(sent)
        prefix = f"binance/{alias}/" if alias else "binance/"
        ledger = query(
            "select partition from affiliate.landing where asset = %s and partition = any(%s) order by 1",
            f"{prefix}rebate_recent_record",
            days,
        )
        assert ledger == [(day,) for day in landed]
    assert query("select account, count(*) > 0 from lbank.trade_user group by 1 order by 1") == [
        ("", True),
        ("acme", True),
    ]


def failures(instance: dg.DagsterInstance, run: str) -> list[Any]:
    """The failed days of each failed step, with their reasons; for an internal error, its text."""
    entries = instance.all_logs(run, of_type=dg.DagsterEventType.STEP_FAILURE)
    steps = [entry.dagster_event.step_failure_data for entry in entries if entry.dagster_event]
    return [
        each.user_failure_data.metadata["failed_partitions"].value if each.user_failure_data else f"{each.error}"
        for each in steps
    ]


def check_failures(instance: dg.DagsterInstance, rebates: str, unset: str, days: list) -> None:
    """Each failed day is reported with its reason: HTTP 500, or the names of the variables that are not set."""

    [reasons] = failures(instance, rebates)
    assert list(reasons) == [f"{days[1]}"] and "Binance returned HTTP 500" in reasons[f"{days[1]}"]
    [reasons] = failures(instance, unset)
    assert list(reasons) == [f"{days[0]}"] and "UNSET_KEY is not set; UNSET_SECRET is not set" in reasons[f"{days[0]}"]
    landed = instance.get_materialized_partitions(dg.AssetKey(REBATES.format("acme/").split("/")))
    assert {f"{day}" for day in days} - landed == {f"{days[1]}"}


def alerts_in(webhook: Webhook) -> list[str]:
    text = json.dumps(webhook.messages)
    return re.findall(r"binance/\w+/rebate_recent_record failed for [-0-9]+", text)


def check_alerts(webhook: Webhook, days: list) -> None:
    text = json.dumps(webhook.messages)
    assert {*alerts_in(webhook)} >= {
        f"binance/acme/rebate_recent_record failed for {days[1]}",
        f"binance/unset/rebate_recent_record failed for {days[0]}",
    }
    assert "UNSET_KEY is not set" in text
    assert "host/" not in text and "orders" not in text


def check_sensors(instance: dg.DagsterInstance) -> None:
    """Every sensor has ticked, none has failed, and the monitor has evaluated its check."""
    own = {
        f"affiliate_desk_binance_{name}"
        for name in ("watch", "failed_run_alert", "failing_tick_alert", "alert_delivery", "heartbeat", "stale_days")
    }

    def ticked() -> bool:
        states = {state.instigator_name: state for state in instance.all_instigator_state()}
        ticks = {
            name: instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=50)
            for name, state in states.items()
            if name in own
        }
        failed = [f"{name}: {tick.error}" for name, each in ticks.items() for tick in each if tick.error]
        assert failed == []
        return {name for name, each in ticks.items() if any(tick.is_completed for tick in each)} == own

    wait_for(ticked)
    check = dg.AssetCheckKey(dg.AssetKey(REBATES.format("").split("/")), "no_day_missing")
    wait_for(lambda: instance.event_log_storage.get_asset_check_execution_history(check, limit=1))


def check_requests(instance: dg.DagsterInstance) -> None:
    """Sensors and schedules of this package have requested no run of the host's assets."""
    for run in instance.get_runs():
        by = run.tags.get("dagster/sensor_name") or run.tags.get("dagster/schedule_name") or ""
        if by.startswith("affiliate_"):
            assert run.asset_selection
            assert {key.path[0] for key in run.asset_selection} == {"desk"}
