"""`docs/adding_an_exchange.md`, followed to the letter in a copy of the project: an exchange with its own table."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from affiliate_pipeline_tests.e2e.project import Project
from affiliate_pipeline_tests.walkthrough import check_style, follow, run_script, run_tests

pytestmark = pytest.mark.e2e
KEY = "nova/payout"
# Lands a day from the copy's sandbox twice; the second time the exchange sends an older revision.
LAND = """
import json, os, sys
from datetime import date
from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline_tests.conftest import materialize

key, day = sys.argv[1], date.fromisoformat(sys.argv[2])
with Sandbox() as exchange:
    nova = exchange.accounts[""].nova
    os.environ |= nova.variables(exchange.url)
    nova.revision = 3
    current = materialize(key, [day])
    assert current.success, current.message
    nova.revision = 2
    older = materialize(key, [day])
print(json.dumps({"rows": nova.payouts(day), "failure": older.failed[day]}))
"""
TESTS = ("test_documents.py", "test_definitions.py", "test_architecture.py", "landing/test_endpoint_tables.py")


def test_the_document_leads_to_a_landed_exchange(
    fresh: Project, database_url: str, query: Callable[..., list[tuple]]
) -> None:
    check_style(fresh, follow("adding_an_exchange.md", fresh))
    day = datetime.now(UTC).date() - timedelta(days=2)
    start = f"{day}"
    done = run_script(fresh, LAND, KEY, f"{day}", AFFILIATE_DATABASE_URL=database_url, AFFILIATE_START_DATE=start)

    ms = "(extract(epoch from paid_at) * 1000)::bigint"
    landed = query(
        f"select payout_id, amount::text, coin, {ms} from nova.payout where partition_date = %s order by 1", day
    )
    assert landed == [tuple(row.values()) for row in done["rows"]] != []
    assert query("select asset, partition, rows from affiliate.landing") == [(KEY, day, len(landed))]
    assert f"Nova sent revision 2 of {day}, and revision 3 before" in done["failure"]
    assert query("select day, revision from nova.day_revision") == [(day, 3)]


def test_the_tests_over_all_exchanges_accept_the_new_exchange(fresh: Project) -> None:
    follow("adding_an_exchange.md", fresh)
    run_tests(fresh, *TESTS)
