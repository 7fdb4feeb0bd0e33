"""Dagster's own commands, run in the project."""

import shutil
import sys

import pytest
from dotenv import dotenv_values

from affiliate_pipeline_tests.e2e.project import (
    UI,
    Project,
    free_port,
    last_days,
    reachable,
    wait_for,
)

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("home", ["unset", "the project's folder", "a folder with a copy of dagster.yaml"])
def test_dagster_materializes_without_a_configured_account_while_the_sandbox_runs(landed: Project, tmp_path, home: str):
    shutil.copy(landed.folder / "dagster.yaml", tmp_path)
    homes = {"the project's folder": landed.folder, "a folder with a copy of dagster.yaml": tmp_path}
    environment = {"DAGSTER_HOME": str(homes[home])} if home in homes else {}
    (before,) = landed.query("select max(checked_at) from affiliate.landing")

    refused = landed.materialize(*last_days()[:2], **environment)
    url = dotenv_values(landed.home / "settings.env")["BINANCE_BASE_URL"]
    assert url
    with landed.started(landed.command("sandbox", "--port", url.rpartition(":")[2])) as sandbox:
        sandbox.wait_for_output(url)
        done = landed.materialize(*last_days()[:2], **environment)

    assert refused.returncode != 0
    assert f"the sandbox is not running at {url}" in refused.stderr and "up`, and leave that running" in refused.stderr
    assert done.returncode == 0, done.stderr
    (after,) = landed.query("select max(checked_at) from affiliate.landing")
    assert after > before
    (newest,) = landed.query("select status from runs order by id desc limit 1")
    assert newest == ("SUCCESS",)


def test_dagster_dev_with_nothing_set_shows_what_up_has_landed(landed: Project):
    port = free_port()
    with landed.started([sys.executable, "-m", "dagster", "dev", "-p", str(port)]):
        wait_for(lambda: reachable(port))
        assert UI(port).days() == {"MATERIALIZED": last_days()}


def test_without_any_setting_definitions_load_and_a_run_names_what_is_missing(fresh: Project):
    validated = fresh.dagster("definitions", "validate")
    assert validated.returncode == 0, validated.stderr

    run = fresh.materialize(last_days()[-1])

    assert run.returncode != 0
    assert "BINANCE_PARTNER_API_KEY is not set; BINANCE_PARTNER_API_SECRET is not set" in run.stderr
