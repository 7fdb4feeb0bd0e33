"""A table that its owner has partitioned by month, with the statements of docs/scaling.md."""

import re
from datetime import date
from pathlib import Path

import psycopg
import pytest

from affiliate_pipeline_tests.defs.direct_runs import land
from affiliate_pipeline_tests.defs.rebates import DAYS, KEY, SETTLED, landed, rebates, sent

TABLE = "binance.rebate_recent_record"
DOCUMENT = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8")
[STATEMENTS] = [
    block for block in re.findall(r"```sql\n(.*?)```", DOCUMENT, re.DOTALL) if "partition by range" in block
]


@pytest.fixture
def rows(sandbox):
    """The rows of each day at the sandbox."""
    rows = {day: rebates(day, 60) for day in DAYS}
    sandbox.binance.set_rebates(row for day in DAYS for row in rows[day])
    return rows


@pytest.fixture
def partition(database_url):
    """Partitions the table as documented, with months that begin on the given day; earlier rows are one partition."""

    def partition(first: date, months: int) -> None:
        statements = STATEMENTS.replace("2027-01-01", f"{first}").replace("0..119", f"0..{months - 1}")
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute(statements.encode())

    return partition


def test_days_land_in_a_partitioned_table_as_in_an_ordinary_one(query, rows, partition):
    land(KEY, [DAYS[0]])
    partition(DAYS[1], 2)
    assert query("select count(*) from pg_inherits where inhparent = %s::regclass", TABLE) == [(3,)]

    run = land(KEY, DAYS)

    assert run.success and [run.landed[day].changed for day in DAYS] == [False, *(True for _ in DAYS[1:])]
    for day in DAYS:
        assert landed(query, day) == sent(rows[day])

    # A missing column of the schema is added to the partitioned table.
    query(f"alter table {TABLE} drop column convert_price")
    assert land(KEY, [SETTLED]).landed[SETTLED].changed is False
    assert landed(query, SETTLED) == sent(rows[SETTLED])
    # One index per table, the partitioned one included: none was created twice.
    assert query(
        "select count(*) from pg_index where indrelid in (select relid from pg_partition_tree(%s))", TABLE
    ) == [(4,)]


def test_rows_that_partitions_reject_or_change_are_quarantined_and_land_later(query, rows, partition):
    day = DAYS[1]
    land(KEY, [DAYS[0]])
    partition(day, 0)

    run = land(KEY, [day])

    assert 'no partition of relation "rebate_recent_record" found for row' in run.failed[day]
    assert query("select count(*) from affiliate.rejected_row") == [(60,)]

    query(f"create table {TABLE}_new partition of {TABLE} for values from ('{day}') to (maxvalue)")
    query("create function change() returns trigger language plpgsql as 'begin new.income = 0; return new; end'")
    query(f"create trigger change before insert on {TABLE}_new for each row execute function change()")

    run = land(KEY, [day])

    assert "different values" in run.failed[day] and "a partitioned table, a foreign table or a view" in run.failed[day]
    assert landed(query, day) == sent([])

    query(f"drop trigger change on {TABLE}_new")
    assert land(KEY, [day], from_rejected=True).success
    assert landed(query, day) == sent(rows[day])
