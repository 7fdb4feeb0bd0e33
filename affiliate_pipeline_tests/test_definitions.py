"""Every asset in Dagster's catalog: its description, owner, group, columns and dependencies."""

import dagster as dg
import pytest

from affiliate_pipeline.exchanges.registry import DEFAULT, ENDPOINTS
from affiliate_pipeline_tests.code_location import loaded_definitions


@pytest.fixture
def specs() -> dict[str, dg.AssetSpec]:
    return {spec.key.to_user_string(): spec for spec in loaded_definitions().resolve_all_asset_specs()}


def test_every_asset_has_a_description_an_owner_and_the_group_of_its_exchange(specs):
    for key, spec in specs.items():
        assert len(spec.description or "") > 20, key
        assert spec.group_name == key.split("/")[0]
        assert spec.owners and all(owner.startswith("team:") for owner in spec.owners), key
        assert spec.kinds, key


def test_every_column_of_every_table_has_a_description(specs):
    for key in [*(endpoint.key for endpoint in ENDPOINTS), "affiliate/daily_commission"]:
        columns = specs[key].metadata["dagster/column_schema"].columns
        assert [column.name for column in columns if not column.description] == [], key
        assert specs[key].metadata["dagster/table_name"] == key.replace("/", ".")


def test_daily_commission_is_downstream_of_every_earning_endpoint(specs):
    upstream = {dep.asset_key.to_user_string() for dep in specs["affiliate/daily_commission"].deps}
    assert upstream == {endpoint.key for endpoint in DEFAULT.earning}
    (derived,) = specs["affiliate/daily_report"].deps
    assert derived.asset_key.to_user_string() == "affiliate/daily_commission"
