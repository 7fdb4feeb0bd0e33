"""`docs/adding_an_endpoint.md`, followed to the letter in a copy of the project: its blocks, `make docs`, one landed day."""

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from affiliate_pipeline_tests.e2e.project import ROOT, Project
from affiliate_pipeline_tests.walkthrough import check_style, follow, run

KEY, TABLE = "binance/rebate_withheld_record", "binance.rebate_withheld_record"
# Serves the copy's sandbox, lands a day from it and prints the sandbox's rows of that day.
LAND = """
import json, os, subprocess, sys
from datetime import date
from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline.sandbox.rows import decode

key, day = sys.argv[1:]
command = [sys.executable, "-m", "dagster", "asset", "materialize", "-m", "affiliate_pipeline.definitions"]
with Sandbox(rows_per_day=1500) as exchange:
    done = subprocess.run(
        [*command, "--select", f'key:"{key}"', "--partition", day],
        env={**os.environ, **exchange.variables},
        stdout=sys.stderr,
    )
    print(json.dumps([decode(row) for row in exchange.binance.withheld.day(date.fromisoformat(day)).rows]))
sys.exit(done.returncode)
"""
# Those with a case for each endpoint or a list of all, apart from the slow ones.
TESTS = ("test_documents.py", "test_definitions.py", "test_characterization.py", "landing/test_endpoint_tables.py")


@pytest.fixture
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    project = Project(tmp_path_factory.mktemp("adding"))
    yield project
    project.remove()


def as_sent(value: Any) -> Any:
    """The column's value as Binance spells it."""
    match value:
        case datetime():
            return round(value.timestamp() * 1000)
        case Decimal():
            return f"{value:f}"
        case _:
            return value


def snake(name: str) -> str:
    return re.sub("[A-Z]", lambda upper: f"_{upper[0].lower()}", name)


def test_the_document_leads_to_a_landed_endpoint(
    project: Project, database_url: str, query: Callable[..., list[tuple]]
) -> None:
    check_style(project, follow("adding_an_endpoint.md", project))
    before, after = ((folder / "docs" / "data_dictionary.md").read_text() for folder in (ROOT, project.folder))
    assert f"## `{TABLE}`" in after and f"## `{TABLE}`" not in before

    day = datetime.now(UTC).date() - timedelta(days=2)
    start = f"{day - timedelta(days=3)}"
    landing = [sys.executable, "-c", LAND, KEY, f"{day}"]
    sent = json.loads(run(project, landing, AFFILIATE_DATABASE_URL=database_url, AFFILIATE_START_DATE=start))

    # More than two responses have room for.
    assert len(sent) > 1000
    landed = query(f"select {', '.join(map(snake, sent[0]))} from {TABLE} where partition_date = %s", day)
    assert Counter(tuple(map(as_sent, row)) for row in landed) == Counter(tuple(row.values()) for row in sent)
    assert query(f"select count(*) from {TABLE} where extra is not null") == [(0,)]
    assert query("select asset, partition, rows from affiliate.landing") == [(KEY, day, len(sent))]


@pytest.mark.e2e
def test_the_tests_over_all_endpoints_accept_it(project: Project) -> None:
    follow("adding_an_endpoint.md", project)
    paths = [str(project.folder / "affiliate_pipeline_tests" / name) for name in TESTS]
    run(project, [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *paths])
