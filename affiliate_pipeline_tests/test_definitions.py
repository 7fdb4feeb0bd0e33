"""Every asset in Dagster's catalog: its description, owner, group, columns and dependencies; what the modules import."""

import json
import subprocess
import sys

import dagster as dg
import pytest

from affiliate_pipeline.definitions import build_definitions
from affiliate_pipeline.defs.executor import PRELOADED
from affiliate_pipeline.exchanges.registry import DEFAULT, ENDPOINTS
from affiliate_pipeline_tests.code_location import loaded_definitions

# What the commands, Dagster's daemon, web server and code server, and a run import when they start.
IMPORTED_AT_START = (
    "environment",
    "app.__main__",
    "app.instance.storage",
    "app.instance.launcher",
    "definitions",
)
# Imports modules, then begins to land a day; prints which libraries that process rows are loaded after each of them.
IMPORT = """
import json, sys
from importlib import import_module

def loaded():
    return [each for each in ("numpy", "pandas", "pandera", "pyarrow") if each in sys.modules]

class Store:
    def require_ready(self, endpoint):
        found["land_days"] = loaded()
        raise SettingsError("no store", "none")

found = {}
for module in sys.argv[1:]:
    import_module(module)
    found[module] = loaded()
from datetime import date
from affiliate_pipeline.domain.problem import SettingsError
from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline.landing.pipeline import land_days
list(land_days(ENDPOINTS[0], [date(2026, 11, 3)], session=None, store=Store(), run_id="run"))
print(json.dumps(found))
"""


@pytest.fixture
def specs() -> dict[str, dg.AssetSpec]:
    return {spec.key.to_user_string(): spec for spec in loaded_definitions().resolve_all_asset_specs()}


@pytest.mark.filterwarnings("error::dagster.BetaWarning")
def test_building_the_definitions_warns_of_nothing():
    assert build_definitions().assets


def test_every_asset_has_a_description_an_owner_and_the_group_of_its_exchange(specs):
    for key, spec in specs.items():
        assert len(spec.description or "") > 20, key
        assert spec.group_name == key.split("/")[0]
        assert spec.owners and all(owner.startswith("team:") for owner in spec.owners), key


def test_every_column_of_every_table_has_a_description(specs):
    for key in [*(endpoint.key for endpoint in ENDPOINTS), "lbank/roster", "affiliate/daily_commission"]:
        columns = specs[key].metadata["dagster/column_schema"].columns
        assert [column.name for column in columns if not column.description] == [], key
        assert specs[key].metadata["dagster/table_name"] == key.replace("/", ".")


def test_daily_commission_is_downstream_of_every_earning_endpoint(specs):
    upstream = {dep.asset_key.to_user_string() for dep in specs["affiliate/daily_commission"].deps}
    assert upstream == {endpoint.key for endpoint in DEFAULT.earning}
    (derived,) = specs["affiliate/daily_report"].deps
    assert derived.asset_key.to_user_string() == "affiliate/daily_commission"


def libraries_after_importing(*modules: str) -> dict[str, list[str]]:
    command = [sys.executable, "-W", "ignore", "-c", IMPORT, *modules]
    return json.loads(subprocess.check_output(command, text=True))


def test_libraries_that_process_rows_are_imported_when_landing_begins():
    modules = [f"affiliate_pipeline.{name}" for name in IMPORTED_AT_START]

    found = libraries_after_importing(*modules)

    # Before the store is used, so that neither a lock nor a transaction waits for the import.
    assert found == {name: [] for name in modules} | {"land_days": ["numpy", "pandas", "pandera", "pyarrow"]}


def test_a_forked_step_imports_no_library_that_processes_rows():
    found = libraries_after_importing(*PRELOADED)

    assert found[PRELOADED[-1]] == found["land_days"] != []
