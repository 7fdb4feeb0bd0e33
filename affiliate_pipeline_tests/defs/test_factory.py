"""`build_definitions` in another Dagster project: keys, resources, what it refuses, and a run of its assets."""

import json
import os
from collections.abc import Callable

import dagster as dg
import pytest

from affiliate_pipeline import (
    AffiliateDatabase,
    Alerts,
    ApiKey,
    BinanceAccount,
    LBankAccount,
    build_definitions,
    load_days,
)
from affiliate_pipeline.defs.arguments import InvalidArgument
from affiliate_pipeline.landing.frames import NotLanded
from affiliate_pipeline_tests.conftest import instance_of_all_runs
from affiliate_pipeline_tests.defs.rebates import DAYS, SETTLED, at, rebate

DATABASE = AffiliateDatabase(url=dg.EnvVar("WAREHOUSE_URL"))
PARTNER = ApiKey(key=dg.EnvVar("ACME_KEY"), secret=dg.EnvVar("ACME_SECRET"))
ACME = BinanceAccount(alias="acme", partner=PARTNER)
LBANK = LBankAccount(
    api=ApiKey(key=dg.EnvVar("LB_KEY"), secret=dg.EnvVar("LB_SECRET")), open_id=dg.EnvVar("LB_OPEN_ID")
)
REBATES = ["desk", "binance", "acme", "rebate_recent_record"]


class Vault(ApiKey):
    """A secret manager that fails with an error that quotes a secret."""

    def credentials(self) -> tuple[str, str]:
        raise KeyError("the-secret-path")


def host() -> dg.Definitions:
    """The definitions of a project that has its own executor and resources."""

    @dg.asset(key=["host", "orders"])
    def orders() -> None: ...

    return dg.Definitions(
        assets=[orders], resources={"postgres": "own", "pipeline": "own"}, executor=dg.in_process_executor
    )


@pytest.fixture
def acme(sandbox, monkeypatch) -> BinanceAccount:
    """An account with the sandbox's partner credentials, read from the project's own variables.

    The application's credentials and database URL are not set.
    """
    variables = sandbox.binance.variables(sandbox.url)
    for name, value in variables.items():
        monkeypatch.delenv(name)
        own = {"BINANCE_PARTNER_API_KEY": "ACME_KEY", "BINANCE_PARTNER_API_SECRET": "ACME_SECRET"}.get(name)
        if own:
            monkeypatch.setenv(own, value)
    monkeypatch.delenv("AFFILIATE_DATABASE_URL")
    return BinanceAccount(alias="acme", partner=PARTNER, base_url=variables["BINANCE_BASE_URL"], rate_scale=1000)


@pytest.fixture
def run(database_url, monkeypatch) -> Callable[..., dg.ExecuteInProcessResult]:
    """Materializes the days of the account's rebates as an asset of the project."""
    monkeypatch.setenv("WAREHOUSE_URL", database_url)

    def run(account: BinanceAccount, days) -> dg.ExecuteInProcessResult:
        built = build_definitions([account], database=DATABASE, key_prefix=["desk"], start_date="2020-01-01")
        tags = {"dagster/asset_partition_range_start": f"{days[0]}", "dagster/asset_partition_range_end": f"{days[-1]}"}
        return dg.materialize(
            [built.get_assets_def(dg.AssetKey(REBATES))],
            instance=instance_of_all_runs(),
            resources=built.resources,
            tags=tags,
            raise_on_error=False,
        )

    return run


def failure(result: dg.ExecuteInProcessResult) -> str:
    entries = instance_of_all_runs().all_logs(result.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
    failures = [entry.dagster_event.step_failure_data for entry in entries if entry.dagster_event]
    return "\n".join(f"{each.user_failure_data}" for each in failures)


def test_two_calls_merge_into_a_project_with_its_own_executor_and_resources():
    other = BinanceAccount(alias="beta", client=ApiKey(key=dg.EnvVar("BETA_KEY"), secret=dg.EnvVar("BETA_SECRET")))
    first = build_definitions(
        [ACME, LBANK], database=DATABASE, key_prefix=["desk"], alerts=Alerts(urls=dg.EnvVar("URLS")), commission=True
    )

    merged = dg.Definitions.merge(host(), first, build_definitions([other], database=DATABASE))

    repository = merged.get_repository_def()
    keys = {key.to_user_string() for key in repository.asset_graph.get_all_asset_keys()}
    assert {"/".join(REBATES), "desk/lbank/roster", "desk/affiliate/daily_report", "host/orders"} <= keys
    assert "binance/beta/kickback_historical_record" in keys
    assert not any("binance/acme" in key and "kickback" in key for key in keys)
    statuses = {each.default_status.value for each in [*repository.schedule_defs, *repository.sensor_defs]}
    assert statuses == {"STOPPED"}
    assert repository.get_top_level_resources()["postgres"] is not None


def test_without_schedules_and_monitoring_there_are_only_assets():
    alerts = Alerts(urls=dg.EnvVar("URLS"))

    built = build_definitions([ACME], database=DATABASE, schedules=None, monitoring=None, alerts=alerts)

    assert [*(built.schedules or ()), *(built.sensors or ())] == []


@pytest.mark.parametrize("monitoring", ["stopped", None])
def test_alerts_are_raised_only_if_a_sensor_delivers_them(monitoring):
    built = build_definitions(
        [ACME], database=DATABASE, schedules="stopped", monitoring=monitoring, alerts=Alerts(urls=dg.EnvVar("URLS"))
    )
    delivers = any(sensor.name.endswith("alert_delivery") for sensor in built.sensors or ())
    key = next(key for key in built.resources or {} if key.endswith("pipeline"))
    with dg.build_resources(built.resources or {}) as resources:
        assert getattr(resources, key).has_alerts is delivers is (monitoring is not None)


@pytest.mark.parametrize(
    ("digest", "commission", "reason"),
    [("daily", False, "a digest requires commission=True"), ("hourly", True, "neither daily, weekly nor off")],
)
def test_a_digest_that_could_not_be_sent_is_refused(digest, commission, reason):
    with pytest.raises(InvalidArgument, match=reason):
        build_definitions(
            [ACME], database=DATABASE, commission=commission, alerts=Alerts(urls=dg.EnvVar("URLS"), digest=digest)
        )


def test_the_project_decides_names_owners_and_group():
    built = build_definitions(
        [ACME],
        database=DATABASE,
        endpoints=["rebate_recent_record"],
        key_prefix=["desk"],
        group_name="affiliates",
        owners=["team:quant"],
        op_tags={"cost": "low"},
        schedules="running",
    )

    [asset] = [*(built.assets or ())]
    assert isinstance(asset, dg.AssetsDefinition)
    assert asset.op.name == "__".join(REBATES) and asset.op.tags["cost"] == "low"
    assert {*asset.group_names_by_key.values()} == {"affiliates"}
    assert [each.default_status for each in built.schedules or ()] == [dg.DefaultScheduleStatus.RUNNING]


def test_resources_are_shown_by_type_and_variable_and_never_by_value(monkeypatch):
    for name in ("ACME_KEY", "ACME_SECRET", "WAREHOUSE_URL"):
        monkeypatch.setenv(name, f"the value of {name}")
    from dagster._core.remote_representation.external_data import RepositorySnap

    # Without schedules: Dagster's snapshot of one warns about Dagster's own deprecated property.
    built = build_definitions([ACME], database=DATABASE, schedules=None)
    snap = RepositorySnap.from_def(built.get_repository_def())

    types = {each.name: each.resource_type.rpartition(".")[2] for each in snap.resources or ()}
    assert {"AffiliateDatabase", "BinanceAccount"} <= {*types.values()}
    text = json.dumps(dg.serialize_value(snap))
    assert "ACME_KEY, ACME_SECRET" in text and "WAREHOUSE_URL" in text
    assert "the value of" not in text


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"accounts": []}, "no account"),
        ({"accounts": [BinanceAccount()]}, "has no key"),
        ({"accounts": [BinanceAccount(partner=ApiKey(key="k-1", secret="s-1"))]}, "is a literal"),  # pyright: ignore[reportArgumentType]
        ({"accounts": [BinanceAccount(partner=ApiKey(key=dg.EnvVar("K")))]}, "secret is missing"),
        ({"accounts": [ACME, ACME]}, "the same exchange and alias"),
        ({"accounts": [BinanceAccount(alias="Acme", partner=PARTNER)]}, "alias"),
        ({"database": AffiliateDatabase(url="postgresql://me:s-1@db/x")}, "literal with a password"),
        ({"database": AffiliateDatabase(url="postgresql://me@db/x?password=s-1")}, "literal with a password"),
        ({"accounts": [BinanceAccount(partner=PARTNER, rate_scale=2)]}, "only where base_url has a private address"),
        ({"accounts": [ACME, BinanceAccount(partner=PARTNER, weight_per_minute=1)]}, "share a rate limit"),
        ({"endpoints": ["rebates"]}, "unknown endpoints: rebates"),
        ({"endpoints": ["trade_user"]}, "no account has what trade_user requires"),
    ],
)
def test_what_cannot_work_is_refused_when_definitions_are_built(arguments, reason):
    with pytest.raises(InvalidArgument, match=reason) as raised:
        build_definitions(**({"accounts": [ACME], "database": DATABASE} | arguments))

    assert "k-1" not in f"{raised.value}" and "s-1" not in f"{raised.value}"


def test_an_endpoint_that_one_account_cannot_reach_is_left_out_for_it():
    built = build_definitions([ACME, LBANK], database=DATABASE, endpoints=["rebate_recent_record", "trade_user"])

    keys = {spec.key.to_user_string() for spec in built.resolve_all_asset_specs()}
    assert keys == {"binance/acme/rebate_recent_record", "lbank/trade_user", "lbank/roster"}


def test_days_land_and_load_as_exact_rows(acme, sandbox, run, database_url, query):
    result = run(acme, DAYS)

    assert result.success
    days = {event.partition for event in result.get_asset_materialization_events()}
    assert days == {f"{day}" for day in DAYS}
    assert query("select distinct asset from affiliate.landing") == [("binance/acme/rebate_recent_record",)]
    frame = load_days("binance/acme/rebate_recent_record", [f"{SETTLED}"], database=database_url)
    sent = sandbox.binance.rebates(SETTLED)
    assert sorted(f"{income:f}" for income in frame["income"]) == sorted(row["income"] for row in sent)
    assert f"{frame['time'].dtype}" == "datetime64[us, UTC]"
    with pytest.raises(NotLanded, match="2020-01-01"):
        load_days("binance/acme/rebate_recent_record", ["2020-01-01"], database=database_url)


def test_earnings_are_valued_at_prices_from_the_accounts_base_url(acme, sandbox, run, database_url, query):
    sandbox.binance.set_rebates([rebate(at(SETTLED), asset="BTC", income="2")])
    assert run(acme, [SETTLED]).success
    built = build_definitions([acme], database=DATABASE, start_date="2020-01-01", commission=True, prices=True)

    result = dg.materialize(
        [built.get_assets_def(dg.AssetKey(["affiliate", "price"]))],
        instance=instance_of_all_runs(),
        resources=built.resources,
        partition_key=f"{SETTLED}",
    )

    assert result.success
    [(value, price)] = query("select market_value_usdt, usdt from affiliate.daily_commission, affiliate.price")
    assert value == 2 * price


@pytest.mark.parametrize("missing", ["ACME_KEY", "ACME_SECRET", "WAREHOUSE_URL"])
def test_a_missing_variable_of_the_project_fails_the_day_and_is_named(acme, run, monkeypatch, missing):
    monkeypatch.delenv(missing)

    result = run(acme, DAYS[:1])

    assert not result.success
    assert f"{missing} is not set" in failure(result) and "BINANCE_" not in failure(result)


@pytest.mark.parametrize("missing", ["", "ACME_KEY", "ACME_SECRET", "WAREHOUSE_URL"])
def test_the_projects_secrets_may_be_in_files(acme, run, monkeypatch, tmp_path, missing):
    for name in ("ACME_KEY", "ACME_SECRET", "WAREHOUSE_URL"):
        (tmp_path / name).write_text(f"{os.environ[name]}\n")
        monkeypatch.delenv(name)
        monkeypatch.setenv(f"{name}_FILE", str(tmp_path / ("nothing" if name == missing else name)))

    result = run(acme, DAYS[:1])

    assert result.success == (not missing)
    if missing:
        assert f"{missing}_FILE names a file that cannot be read" in failure(result)


def test_an_error_of_a_secret_manager_fails_the_day_without_being_quoted(sandbox, run):
    result = run(BinanceAccount(alias="acme", partner=Vault(), base_url=sandbox.url), DAYS[:1])

    assert "Vault.credentials() failed (KeyError)" in failure(result)
    assert "the-secret-path" not in failure(result)


def test_a_downstream_asset_gets_the_landed_rows_as_its_argument(acme, sandbox, database_url, monkeypatch):
    monkeypatch.setenv("WAREHOUSE_URL", database_url)
    built = build_definitions([acme], database=DATABASE, key_prefix=["desk"], start_date="2020-01-01")
    rebates = built.get_assets_def(dg.AssetKey(REBATES))

    @dg.asset(
        ins={"rows": dg.AssetIn(rebates.key)},
        partitions_def=rebates.partitions_def,
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def incomes(rows):
        return [f"{income:f}" for income in rows["income"]]

    instance, day = instance_of_all_runs(), f"{SETTLED}"
    missing = dg.materialize(
        [rebates, incomes],
        instance=instance,
        partition_key=day,
        selection=[incomes],
        resources=built.resources,
        raise_on_error=False,
    )
    result = dg.materialize([rebates, incomes], instance=instance, partition_key=day, resources=built.resources)

    assert sorted(result.output_for_node("incomes")) == sorted(
        row["income"] for row in sandbox.binance.rebates(SETTLED)
    )
    assert not missing.success
    [error] = [event.step_failure_data.error for event in missing.all_events if event.is_step_failure]
    assert f"binance/acme/rebate_recent_record has not landed {day}" in f"{error}"


def test_a_day_keeps_its_data_version_until_its_rows_change(acme, sandbox, run):
    def version(result) -> str:
        [event] = result.get_asset_materialization_events()
        return event.step_materialization_data.materialization.tags["dagster/data_version"]

    first, again = version(run(acme, [SETTLED])), version(run(acme, [SETTLED]))
    sandbox.faults.transform_row = lambda row: row | {"income": "1"}

    assert first == again != version(run(acme, [SETTLED]))
