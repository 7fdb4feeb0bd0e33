"""Every asset in Dagster's catalog: its description, owner, group, columns and dependencies; what the modules import."""

import json
import subprocess
import sys

import dagster as dg
import pytest

from affiliate_pipeline.definitions import build_definitions
from affiliate_pipeline.defs.executor import PRELOADED
from affiliate_pipeline.exchanges.registry import DEFAULT, ENDPOINTS
from affiliate_pipeline_tests import isolation
from affiliate_pipeline_tests.code_location import loaded_definitions

LIBRARIES = ["numpy", "pandas", "pandera", "pyarrow"]
# The assets of the group `affiliate` that have a table.
DERIVED = ("affiliate/price", "affiliate/daily_commission", "affiliate/daily_customer_commission")
# Two processes begin to land a day, the first one after it has imported the modules given as arguments. Each prints the
# modules that were loaded before it began to land and when the store is used.
BEGIN_TO_LAND = """
import json, os, sys
from datetime import date
from importlib import import_module
from affiliate_pipeline.domain.problem import SettingsError
from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline.landing.pipeline import land_days

class Store:
    def require_ready(self, endpoint):
        print(json.dumps([before, [*sys.modules]]), flush=True)
        raise SettingsError("no store", "none")

child = os.fork()
if child == 0:
    for module in sys.argv[1:]:
        import_module(module)
else:
    os.waitpid(child, 0)
before = [*sys.modules]
list(land_days(ENDPOINTS[0], [date(2026, 11, 3)], session=None, store=Store(), run_id="run"))
"""


@pytest.fixture
def specs() -> dict[str, dg.AssetSpec]:
    return {spec.key.to_user_string(): spec for spec in loaded_definitions().resolve_all_asset_specs()}


@pytest.mark.filterwarnings("error::dagster.BetaWarning")
def test_building_the_definitions_uses_no_beta_feature_of_dagster():
    assert build_definitions().assets


def test_every_asset_has_a_description_an_owner_and_the_group_of_its_exchange(specs):
    for key, spec in specs.items():
        assert len(spec.description or "") > 20, key
        assert spec.group_name == key.split("/")[0]
        assert spec.owners and all(owner.startswith("team:") for owner in spec.owners), key


def test_every_column_of_every_table_has_a_description(specs):
    for key in [*(endpoint.key for endpoint in ENDPOINTS), "lbank/roster", *DERIVED]:
        columns = specs[key].metadata["dagster/column_schema"].columns
        assert [column.name for column in columns if not column.description] == [], key
        assert specs[key].metadata["dagster/table_name"] == key.replace("/", ".")


def test_the_sums_are_downstream_of_every_earning_endpoint(specs):
    price, *sums = DERIVED
    for key in sums:
        upstream = {dep.asset_key.to_user_string() for dep in specs[key].deps}
        assert upstream == {endpoint.key for endpoint in DEFAULT.earning} | {price}
    (derived,) = specs["affiliate/daily_report"].deps
    assert derived.asset_key.to_user_string() == "affiliate/daily_commission"


def test_libraries_that_process_rows_are_imported_when_landing_begins():
    # Without the modules that import Dagster, which takes seconds.
    preloaded = [module for module in PRELOADED if module.startswith("affiliate_pipeline.landing.")]
    command = [sys.executable, "-W", "ignore", "-c", BEGIN_TO_LAND, *preloaded]
    forked, unforked = (
        [[library for library in LIBRARIES if library in modules] for modules in json.loads(line)]
        for line in subprocess.check_output(command, text=True).splitlines()
    )

    # `isolate` has imported them, so `LOADED_AT_START` includes what they load.
    assert {f"affiliate_pipeline.{name}" for name in isolation.ENTRY_MODULES} <= isolation.LOADED_AT_START
    # pytest-randomly imports numpy, which this package imports only in the folder `schema` (see `test_architecture`).
    assert isolation.LOADED_AT_START.isdisjoint({*LIBRARIES} - {"numpy"})
    # Before the store is used, so that neither a lock nor a transaction waits for the import.
    assert unforked == [[], LIBRARIES]
    # A forked step imports none.
    assert forked == [LIBRARIES, LIBRARIES]
