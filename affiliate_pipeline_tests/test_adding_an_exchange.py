"""`docs/adding_an_exchange.md`, followed to the letter in a copy of the project: an exchange with a table of its own."""

import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest

from affiliate_pipeline_tests.e2e.project import Project
from affiliate_pipeline_tests.walkthrough import check_style, follow, run

pytestmark = pytest.mark.e2e
KEY = "nova/payout"
# Serves the copy's sandbox and lands a day from it twice; the second time the exchange sends an older revision.
LAND = """
import json, os, subprocess, sys
from datetime import date
from affiliate_pipeline.sandbox import Sandbox

key, day = sys.argv[1:]
command = [sys.executable, "-m", "dagster", "asset", "materialize", "-m", "affiliate_pipeline.definitions"]
with Sandbox() as exchange:
    exchange.nova.revision = 3
    runs = []
    for exchange.nova.revision in (3, 2):
        runs.append(subprocess.run(
            [*command, "--select", f'key:"{key}"', "--partition", day],
            env={**os.environ, **exchange.nova.variables(exchange.url)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ))
    sys.stderr.write(runs[0].stdout)
    assert runs[0].returncode == 0
    print(json.dumps([exchange.nova.payouts(date.fromisoformat(day)), runs[1].returncode, runs[1].stdout]))
"""
TESTS = ("test_documents.py", "test_definitions.py", "test_architecture.py", "landing/test_endpoint_tables.py")


@pytest.fixture
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    project = Project(tmp_path_factory.mktemp("adding"))
    yield project
    project.remove()


def test_the_document_leads_to_a_landed_exchange(
    project: Project, database_url: str, query: Callable[..., list[tuple]]
) -> None:
    check_style(project, follow("adding_an_exchange.md", project))
    day = datetime.now(UTC).date() - timedelta(days=2)
    landing = [sys.executable, "-c", LAND, KEY, f"{day}"]
    printed = run(project, landing, AFFILIATE_DATABASE_URL=database_url, AFFILIATE_START_DATE=f"{day}")
    sent, code, failure = json.loads(printed)

    ms = "(extract(epoch from paid_at) * 1000)::bigint"
    landed = query(
        f"select payout_id, amount::text, coin, {ms} from nova.payout where partition_date = %s order by 1", day
    )
    assert landed == [tuple(row.values()) for row in sent] != []
    assert query("select asset, partition, rows from affiliate.landing") == [(KEY, day, len(sent))]
    assert code != 0 and f"Nova sent revision 2 of {day}, and revision 3 before" in failure
    assert query("select day, revision from nova.day_revision") == [(day, 3)]


def test_the_tests_over_all_exchanges_accept_it(project: Project) -> None:
    follow("adding_an_exchange.md", project)
    paths = [str(project.folder / "affiliate_pipeline_tests" / name) for name in TESTS]
    run(project, [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *paths])
