"""Case read-only-database: a read-only database is reported once, before any request, and by `check`."""

import psycopg
import pytest

from affiliate_pipeline_tests.conftest import materialize
from affiliate_pipeline_tests.defs.rebates import DAYS, KEY, landed, rebates, sent


def make_writable(database_url: str) -> None:
    options = "-c default_transaction_read_only=off"
    with psycopg.connect(database_url, autocommit=True, options=options) as connection:
        connection.execute("alter database test reset default_transaction_read_only")


@pytest.fixture
def read_only(sandbox, query, database_url):
    """A database with landed days that has become read-only."""
    sandbox.binance.set_rebates(row for day in DAYS for row in rebates(day, 20))
    assert materialize(KEY, DAYS[:2]).success
    sandbox.requests.clear()
    query("alter database test set default_transaction_read_only = on")
    yield
    make_writable(database_url)


def test_each_day_fails_with_one_sentence_before_any_request(sandbox, query, read_only):
    run = materialize(KEY, DAYS)

    assert sorted(run.failed) == DAYS
    assert run.message.count("the database is read-only") == 1
    assert "disk is nearly full" in run.message and "standby" in run.message and "Make it writable" in run.message
    assert "ReadOnlySqlTransaction" not in run.message
    assert sandbox.requests == []
    for day in DAYS[:2]:
        assert landed(query, day) == sent(rebates(day, 20))


def test_check_reports_a_read_only_database(sandbox, read_only, run_failing_command):
    (line,) = [line for line in run_failing_command("check").splitlines() if "read-only" in line]
    assert "wrong" in line and "Make it writable" in line


def test_days_land_once_the_database_is_writable_again(sandbox, database_url, read_only):
    assert not materialize(KEY, DAYS).success
    make_writable(database_url)
    assert materialize(KEY, DAYS).success
