"""Case read-only-database: a read-only database is reported once, before any request, and by `check`."""

import psycopg
import pytest

from affiliate_pipeline_tests.conftest import materialize
from affiliate_pipeline_tests.defs.direct_runs import land
from affiliate_pipeline_tests.defs.rebates import DAYS as ALL_DAYS
from affiliate_pipeline_tests.defs.rebates import KEY, landed, rebates, sent

# The first one has landed when the database becomes read-only.
DAYS = ALL_DAYS[:2]


def make_writable(database_url: str) -> None:
    options = "-c default_transaction_read_only=off"
    with psycopg.connect(database_url, autocommit=True, options=options) as connection:
        connection.execute("alter database test reset default_transaction_read_only")


@pytest.fixture
def read_only(sandbox, query, database_url):
    """A database with a landed day that has become read-only."""
    sandbox.binance.set_rebates(row for day in DAYS for row in rebates(day, 20))
    assert land(KEY, DAYS[:1]).success
    sandbox.requests.clear()
    query("alter database test set default_transaction_read_only = on")
    yield
    make_writable(database_url)


def test_each_day_fails_with_one_sentence_before_any_request_and_lands_later(sandbox, query, database_url, read_only):
    run = materialize(KEY, DAYS)

    assert sorted(run.failed) == DAYS
    assert run.message.count("the database is read-only") == 1
    assert "disk is nearly full" in run.message and "standby" in run.message and "Make it writable" in run.message
    assert "ReadOnlySqlTransaction" not in run.message
    assert sandbox.requests == []
    assert landed(query, DAYS[0]) == sent(rebates(DAYS[0], 20))

    make_writable(database_url)
    assert land(KEY, DAYS).success
    assert landed(query, DAYS[1]) == sent(rebates(DAYS[1], 20))


def test_check_reports_a_read_only_database(sandbox, read_only, run_failing_command):
    (line,) = [line for line in run_failing_command("check").splitlines() if "read-only" in line]
    assert "wrong" in line and "Make it writable" in line
