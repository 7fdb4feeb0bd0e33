"""`docs/adding_an_endpoint.md`, followed to the letter in a copy of the project: its edits, `make docs`, one landed day."""

import re
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from affiliate_pipeline_tests.e2e.project import ROOT, Project
from affiliate_pipeline_tests.walkthrough import check_style, follow, run_script, run_tests

pytestmark = pytest.mark.e2e

KEY, TABLE = "binance/rebate_withheld_record", "binance.rebate_withheld_record"
# Lands a day from the copy's sandbox; prints the sandbox's rows of that day and the copy's data dictionary.
LAND = """
import json, os, sys
from datetime import date
from affiliate_pipeline.app import data_dictionary
from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline.sandbox.rows import decode
from affiliate_pipeline_tests.conftest import materialize

key, day = sys.argv[1], date.fromisoformat(sys.argv[2])
with Sandbox(rows_per_day=1500) as exchange:
    os.environ |= exchange.variables
    run = materialize(key, [day])
    assert run.success, run.message
    rows = [decode(row) for row in exchange.binance.withheld.day(day).rows]
print(json.dumps({"rows": rows, "dictionary": data_dictionary.markdown()}))
"""
# Tests with a case for each endpoint or a list of all endpoints, except the slow ones.
TESTS = ("test_documents.py", "test_definitions.py", "test_characterization.py", "landing/test_endpoint_tables.py")


def as_sent(value: Any) -> Any:
    """The column's value as Binance sends it."""
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
    fresh: Project, database_url: str, query: Callable[..., list[tuple]]
) -> None:
    check_style(fresh, follow("adding_an_endpoint.md", fresh))

    day = datetime.now(UTC).date() - timedelta(days=2)
    start = f"{day - timedelta(days=3)}"
    done = run_script(fresh, LAND, KEY, f"{day}", AFFILIATE_DATABASE_URL=database_url, AFFILIATE_START_DATE=start)

    dictionary = (ROOT / "docs" / "data_dictionary.md").read_text(encoding="utf-8")
    assert f"## `{TABLE}`" in done["dictionary"] and f"## `{TABLE}`" not in dictionary
    # More rows than two responses can contain.
    sent = done["rows"]
    assert len(sent) > 1000
    landed = query(f"select {', '.join(map(snake, sent[0]))} from {TABLE} where partition_date = %s", day)
    assert Counter(tuple(map(as_sent, row)) for row in landed) == Counter(tuple(row.values()) for row in sent)
    assert query(f"select count(*) from {TABLE} where extra is not null") == [(0,)]
    assert query("select asset, partition, rows from affiliate.landing") == [(KEY, day, len(sent))]


def test_the_tests_over_all_endpoints_accept_the_new_endpoint(fresh: Project) -> None:
    follow("adding_an_endpoint.md", fresh)
    run_tests(fresh, *TESTS)
