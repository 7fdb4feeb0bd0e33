"""`dg` in a project with the components, and in this repository."""

import json
import sys
from pathlib import Path

import psycopg
import pytest

from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline_tests.e2e.project import KEY, Project, last_days

pytestmark = pytest.mark.e2e
pytest.importorskip("dagster_dg_cli", reason="`make e2e` installs dg")
ENVIRONMENT = {"DAGSTER_DG_UPDATE_CHECK_ENABLED": "0"}
DEFINITIONS = '''"""All definitions."""
from pathlib import Path
import dagster as dg


@dg.definitions
def defs():
    return dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
'''


class Host(Project):
    """A project of another team, which has this package installed."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.defs = folder / "host" / "defs"
        self.defs.mkdir(parents=True)
        for name in ("host/__init__.py", "host/defs/__init__.py"):
            (folder / name).touch()
        (folder / "host" / "definitions.py").write_text(DEFINITIONS)
        (folder / "dg.toml").write_text(
            'directory_type = "project"\n[project]\nroot_module = "host"\n[cli.telemetry]\nenabled = false\n'
        )


def dg(project: Project, *arguments: str, **environment: str) -> str:
    """Run `dg`, and return what it printed."""
    command = [sys.executable, "-m", "dagster_dg_cli.cli", *arguments]
    done = project.execute(command, ENVIRONMENT | environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def listed(project: Project) -> set[str]:
    return {asset["asset_key"] for asset in json.loads(dg(project, "list", "defs", "--json"))["assets"]}


def test_a_project_scaffolds_checks_lists_and_launches(tmp_path: Path, exchange: Sandbox, database_url: str):
    host, day = Host(tmp_path), last_days()[-1]
    home = tmp_path / "home"
    home.mkdir()

    dg(host, "scaffold", "defs", "affiliate_pipeline.BinanceLinkComponent", "acme")
    with (host.defs / "acme" / "defs.yaml").open("a") as file:
        file.write(f"  base_url: {exchange.url}\n  alias: acme\n")
    dg(host, "check", "defs")
    assert "binance/acme/rebate_recent_record" in listed(host)
    variables = {
        "BINANCE_PARTNER_API_KEY": exchange.binance.partner_key,
        "BINANCE_PARTNER_API_SECRET": exchange.binance.partner_secret,
        "AFFILIATE_DATABASE_URL": database_url,
        "DAGSTER_HOME": str(home),
    }
    dg(host, "launch", "--assets", "key:binance/acme/rebate_recent_record", "--partition", f"{day}", **variables)

    with psycopg.connect(database_url) as connection:
        landed = connection.execute("select asset, partition from affiliate.landing").fetchall()
    assert landed == [("binance/acme/rebate_recent_record", day)]


def test_the_repository_checks_and_lists_its_definitions(tmp_path: Path):
    project = Project(tmp_path)

    dg(project, "check", "defs")

    assert {KEY, "lbank/trade_user", "affiliate/daily_report"} <= listed(project)
