"""The components in a project that declares its definitions in YAML, loaded by Dagster from a folder."""

import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import dagster as dg
import pytest
from dagster.components.core.package_entry import get_package_objects_in_module
from dagster.components.testing.utils import create_defs_folder_sandbox

import affiliate_pipeline
from affiliate_pipeline import (
    Alerts,
    ApiKey,
    BinanceAccount,
    BinanceLinkComponent,
    LBankAccount,
    LBankAffiliateComponent,
    build_definitions,
)
from affiliate_pipeline.defs.arguments import InvalidArgument
from affiliate_pipeline_tests.conftest import instance_of_all_runs
from affiliate_pipeline_tests.defs.rebates import SETTLED

# Dagster's own use of Pydantic.
pytestmark = pytest.mark.filterwarnings("ignore:.parse_obj_as. is deprecated")
BINANCE = {
    "alias": "acme",
    "partner_key_variable": "ACME_KEY",
    "partner_secret_variable": "ACME_SECRET",
    "database_url_variable": "WAREHOUSE_URL",
}
LBANK = {
    "api_key_variable": "LB_KEY",
    "api_secret_variable": "LB_SECRET",
    "open_id_variable": "LB_OPEN_ID",
    "database_url_variable": "WAREHOUSE_URL",
}


@contextmanager
def loaded(*documents: tuple[type, Mapping[str, Any] | None]) -> Iterator[dg.Definitions]:
    """The definitions of a project with these components; those without attributes are as scaffolded."""
    with create_defs_folder_sandbox() as project:
        for component, attributes in documents:
            contents = {"type": f"affiliate_pipeline.{component.__name__}", "attributes": dict(attributes or {})}
            project.scaffold_component(component, defs_yaml_contents=contents if attributes else None)
        with project.build_all_defs() as definitions:
            yield definitions


def keys(definitions: dg.Definitions) -> set[str]:
    return {spec.key.to_user_string() for spec in definitions.resolve_all_asset_specs()}


def test_dagster_finds_the_components_by_the_names_that_yaml_files_use():
    found = dict(get_package_objects_in_module(affiliate_pipeline))

    assert found == {
        "BinanceLinkComponent": BinanceLinkComponent,
        "LBankAffiliateComponent": LBankAffiliateComponent,
    }


def test_scaffolded_components_load_together():
    with loaded((BinanceLinkComponent, None), (LBankAffiliateComponent, None)) as definitions:
        assert {"binance/rebate_recent_record", "lbank/trade_user"} <= keys(definitions)
        assert "binance/if_new_user" not in keys(definitions)


def test_attributes_are_the_arguments_of_build_definitions():
    attributes = BINANCE | {
        "client_key_variable": "CLIENT_KEY",
        "client_secret_variable": "CLIENT_SECRET",
        "agent_code_variable": "CLIENT_AGENT",
        "endpoints": ["rebate_recent_record", "if_new_user"],
        "start_date": "2026-06-01",
        "key_prefix": ["desk"],
        "group_name": "affiliates",
        "owners": ["team:quant"],
        "op_tags": {"cost": "low"},
        "schedules": "running",
        "monitoring": None,
        "alert_urls_variable": "ALERTS",
        "ui_url": "https://dagster.example.com",
        "commission": True,
        "prices": True,
    }
    account = BinanceAccount(
        alias="acme",
        partner=ApiKey(key=dg.EnvVar("ACME_KEY"), secret=dg.EnvVar("ACME_SECRET")),
        client=ApiKey(key=dg.EnvVar("CLIENT_KEY"), secret=dg.EnvVar("CLIENT_SECRET")),
        agent_code=dg.EnvVar("CLIENT_AGENT"),
    )
    built = build_definitions(
        [account],
        database=affiliate_pipeline.AffiliateDatabase(url=dg.EnvVar("WAREHOUSE_URL")),
        endpoints=["rebate_recent_record", "if_new_user"],
        start_date="2026-06-01",
        key_prefix=["desk"],
        group_name="affiliates",
        owners=["team:quant"],
        op_tags={"cost": "low"},
        schedules="running",
        monitoring=None,
        alerts=Alerts(urls=dg.EnvVar("ALERTS"), ui_url="https://dagster.example.com"),
        commission=True,
        prices=True,
    )

    with loaded((BinanceLinkComponent, attributes)) as definitions:
        assert described(definitions) == described(built)


def described(definitions: dg.Definitions) -> dict[str, object]:
    """What a project sees of these definitions."""
    specs = definitions.resolve_all_asset_specs()
    return {
        "assets": {spec.key: (spec.group_name, spec.owners, spec.partitions_def) for spec in specs},
        "tags": {spec.key: definitions.get_assets_def(spec.key).op.tags for spec in specs},
        "schedules": {each.name: each.default_status for each in definitions.schedules or ()},
        "sensors": {each.name: each.default_status for each in definitions.sensors or ()},
        "resources": {
            name: each.config_schema.default_value
            for name, each in (definitions.resources or {}).items()
            if isinstance(each, dg.ResourceDefinition) and each.config_schema.default_provided
        },
    }


@pytest.mark.parametrize(
    ("component", "account"), [(BinanceLinkComponent, BinanceAccount), (LBankAffiliateComponent, LBankAccount)]
)
def test_every_argument_has_an_attribute(component, account):
    given = [field.name for field in [*fields(account), *fields(Alerts)]]
    given += inspect.signature(build_definitions).parameters
    # `rate_scale` is for tests only. The others have no attribute of the same name: the component is the account, each
    # `ApiKey` is two attributes of the component (its key and its secret), and the URLs of `Alerts` are
    # `alert_urls_variable`.
    exempt = {"rate_scale", "accounts", "alerts", "partner", "client", "api", "urls"}

    # The attribute of `database` is `database_url_variable`, so `_url` is ignored on both sides.
    attributes = {name.removesuffix("_variable").removesuffix("_url") for name in component.model_fields}
    missing = {name for name in given if name.removesuffix("_url") not in attributes}

    assert missing <= exempt


def test_the_snapshot_of_the_project_contains_names_and_no_value(monkeypatch):
    names = [value for values in (BINANCE, LBANK) for name, value in values.items() if name != "alias"]
    for name in names:
        monkeypatch.setenv(name, f"the value of {name}")
    from dagster._core.remote_representation.external_data import RepositorySnap

    # Without schedules: Dagster's snapshot of one warns about Dagster's own deprecated property.
    without_schedules = {"schedules": None}
    with loaded(
        (BinanceLinkComponent, BINANCE | without_schedules), (LBankAffiliateComponent, LBANK | without_schedules)
    ) as definitions:
        text = json.dumps(dg.serialize_value(RepositorySnap.from_def(definitions.get_repository_def())))

    assert [name for name in names if name not in text] == []
    assert "the value of" not in text


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("partner_secret_variable", "{{ env.ACME_SECRET }}"),
        ("partner_key_variable", "NhqPtmdSJYdKjVHjA7PZj4Mge3R5YNiP1e3UZjInClVN65XAbvqqM6A7H5fATj0j"),
        ("partner_secret_variable", "C1E2A5D0B7F94C6E8A3D1B2C4E5F6A7B"),
        ("partner_secret_variable", "-----BEGIN PRIVATE KEY-----"),
        ("partner_secret_variable", "/run/secrets/acme"),
        ("partner_secret_variable", "hunter2"),
        ("database_url_variable", "postgresql://me:hunter2@db/x"),
        ("alert_urls_variable", "mailto://me:hunter2@example.com"),
        ("agent_code_variable", "12AB"),
        ("partner_key_variable", ""),
    ],
)
def test_a_value_instead_of_a_name_is_refused_and_not_quoted(attribute, value, monkeypatch):
    monkeypatch.setenv("ACME_SECRET", "hunter2")

    with (
        pytest.raises(Exception, match="Error while building definitions") as raised,
        loaded((BinanceLinkComponent, BINANCE | {attribute: value})),
    ):
        pass

    assert isinstance(raised.value.__cause__, InvalidArgument)
    assert f"{attribute} is not the name of an environment variable" in f"{raised.value.__cause__}"
    # Only the messages: the traceback shows this test's source, which contains the value.
    text = "".join(f"{error}" for error in (raised.value, raised.value.__cause__))
    assert "hunter2" not in text and (not value or value not in text)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"partner_secret_variable": None}, "partner_secret_variable is missing"),
        ({"partner_key_variable": None, "partner_secret_variable": None}, "BinanceAccount acme has no key"),
        ({"ui_url": "https://dagster.example.com"}, "require alert_urls_variable"),
        ({"digest": "daily", "commission": True}, "require alert_urls_variable"),
        ({"digest": "daily", "alert_urls_variable": "ALERTS"}, "a digest requires commission=True"),
        ({"endpoints": ["trade_user"]}, "no account has what trade_user requires"),
    ],
)
def test_what_cannot_work_is_refused(attributes, reason):
    with pytest.raises(InvalidArgument, match=reason):
        build(BINANCE | attributes)


def build(attributes: Mapping[str, Any]) -> dg.Definitions:
    component = BinanceLinkComponent(**attributes)
    return component.build_defs(dg.ComponentTree.for_test().load_context)


def test_a_day_lands_with_the_variables_that_are_named(sandbox, database_url, query, monkeypatch):
    monkeypatch.setenv("ACME_KEY", sandbox.binance.partner_key)
    monkeypatch.setenv("ACME_SECRET", sandbox.binance.partner_secret)
    monkeypatch.setenv("WAREHOUSE_URL", database_url)
    monkeypatch.delenv("AFFILIATE_DATABASE_URL")
    attributes = BINANCE | {"base_url": sandbox.url, "start_date": "2020-01-01"}

    with loaded((BinanceLinkComponent, attributes)) as definitions:
        asset = definitions.get_assets_def(dg.AssetKey(["binance", "acme", "rebate_recent_record"]))
        result = dg.materialize(
            [asset], instance=instance_of_all_runs(), resources=definitions.resources, partition_key=f"{SETTLED}"
        )

    assert result.success
    assert query("select asset, partition from affiliate.landing") == [("binance/acme/rebate_recent_record", SETTLED)]
