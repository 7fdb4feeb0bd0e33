"""A written day has exactly the rows that were sent, or it fails, even if the database changes or loses rows."""

import pytest

from affiliate_pipeline.landing.day_writer import DayWriter
from affiliate_pipeline_tests.defs.direct_runs import land
from affiliate_pipeline_tests.defs.rebates import DAYS, KEY, SETTLED, landed, rebate, rebates, sent

TABLE = "binance.rebate_recent_record"
DOUBLING = "begin if pg_trigger_depth() = 1 then insert into binance.rebate_recent_record select (new).*; end if; return new; end"


# The body of each trigger, and when it runs.
TRIGGERS = {
    "drops all": ("begin return null; end", "before insert"),
    "drops some": ("begin if mod(new.trade_id, 2) = 0 then return null; end if; return new; end", "before insert"),
    "rounds": ("begin new.income = round(new.income, 4); return new; end", "before insert"),
    "changes a text": (
        "begin new.income = new.income + 0.00; new.symbol = lower(new.symbol); return new; end",
        "before insert",
    ),
    "moves the day": ("begin new.partition_date = new.partition_date - 1; return new; end", "before insert"),
    "doubles": (DOUBLING, "after insert"),
    "changes at the commit": (
        f"begin update {TABLE} set income = 0 where trade_id = new.trade_id; return null; end",
        "at commit",
    ),
}


@pytest.fixture
def rows(sandbox):
    """The rows of each day at the sandbox."""
    rows = {day: rebates(day, 60) for day in DAYS}
    sandbox.binance.set_rebates(row for day in DAYS for row in rows[day])
    return rows


def create_trigger(query, body: str, when: str = "before insert") -> None:
    """Create a trigger on the table; with `when="at commit"`, it runs at the end of the transaction."""
    query(f"create or replace function change() returns trigger language plpgsql as $$ {body} $$")
    if when == "at commit":
        query(
            f"create constraint trigger change after insert on {TABLE} deferrable initially deferred "
            "for each row execute function change()"
        )
    else:
        query(f"create trigger change {when} on {TABLE} for each row execute function change()")


def test_a_trigger_that_changes_rows_fails_the_day_and_the_rows_are_quarantined(query, rows):
    land(KEY, [DAYS[1]])
    before = landed(query, DAYS[1])
    assert before == sent(rows[DAYS[1]])

    for name, (body, when) in TRIGGERS.items():
        create_trigger(query, body, when)
        run = land(KEY, [SETTLED])
        reason = run.failed.get(SETTLED, "")
        assert "rebate_recent_record" in reason or "rows were sent to PostgreSQL" in reason, name
        assert "affiliate.rejected_row" in reason, name
        assert landed(query, SETTLED) == sent([]), name
        assert landed(query, DAYS[1]) == before, name
        stored = query("delete from affiliate.rejected_row where partition = %s returning run_id", SETTLED)
        assert len(stored) == 60, name
        query(f"drop trigger change on {TABLE}")

    create_trigger(query, *TRIGGERS["drops some"])
    assert not land(KEY, [SETTLED]).success
    query(f"drop trigger change on {TABLE}")
    assert land(KEY, [SETTLED], from_rejected=True).success
    assert landed(query, SETTLED) == sent(rows[SETTLED])


def test_a_column_type_that_changes_amounts_fails_the_day(sandbox, query):
    sandbox.binance.set_rebates(
        [rebate(1 + i, i, income="0.1234567890123456789", time=rebates(SETTLED, 3)[i]["time"]) for i in range(3)]
    )
    kinds = ["numeric(20, 2)", "numeric(20, 7)", "numeric(40, 20)", "double precision", "real", "numeric(3, 0)"]
    for kind in kinds:
        query(f"alter table {TABLE} alter column income type {kind}")

        run = land(KEY, [SETTLED])

        reason = run.failed.get(SETTLED, "")
        assert "would have different values" in reason or "PostgreSQL rejected" in reason, kind
        assert query(f"select count(*) from {TABLE}") == [(0,)], kind
        assert len(query("delete from affiliate.rejected_row returning run_id")) == 3, kind


def test_a_change_of_the_table_that_fits_all_rows_has_no_effect(query, rows):
    land(KEY, [DAYS[1]])
    create_trigger(query, "begin return new; end")
    query(f"alter table {TABLE} alter column trade_id type smallint")
    assert land(KEY, DAYS).success
    for day in DAYS:
        assert landed(query, day) == sent(rows[day])


def test_a_day_whose_rows_were_changed_in_the_table_is_landed_again(query, rows):
    changes = {
        "delete from {} where trade_id = 7": "59 rows instead of 60",
        "insert into {0} select * from {0}": "120 rows instead of 60",
        "update {} set income = income + 1 where trade_id = 7": "different values",
        # The same amount with another scale.
        "update {} set income = income * 1.0 where trade_id = 7": "different values",
        "delete from {}": "0 rows instead of 60",
    }
    land(KEY, [SETTLED])
    for change, difference in changes.items():
        query(change.format(TABLE))

        run = land(KEY, [SETTLED])

        assert run.success and run.landed[SETTLED].changed, change
        assert landed(query, SETTLED) == sent(rows[SETTLED]), change
        (sound,) = [check for check in run.checks if check.check_name == "day_is_sound"]
        warning = f"the table had {difference}, although the source has not changed the day"
        assert not sound.passed and warning in (sound.description or ""), change
    assert land(KEY, [SETTLED]).landed[SETTLED].changed is False


def test_amounts_that_postgresql_formats_differently_are_no_change(sandbox, query):
    amounts = ["1E-7", "1e3", "007.10", "-0.0", "0.0000", "100"]
    times = [row["time"] for row in rebates(SETTLED, len(amounts))]
    sandbox.binance.set_rebates(
        [rebate(time, i, income=amount) for i, (time, amount) in enumerate(zip(times, amounts, strict=True))]
    )
    assert land(KEY, [SETTLED]).landed[SETTLED].changed
    assert not land(KEY, [SETTLED]).landed[SETTLED].changed


def test_rows_that_another_session_inserts_meanwhile_fail_the_day(query, rows, monkeypatch):
    land(KEY, [DAYS[1]])
    replace = DayWriter._replace

    def replace_and_insert(*args, **kwargs):
        replace(*args, **kwargs)
        query(f"insert into {TABLE} (time, partition_date, run_id) values (now(), %s, 'by hand')", SETTLED)

    monkeypatch.setattr(DayWriter, "_replace", replace_and_insert)
    run = land(KEY, [SETTLED])
    assert "would have 61 rows instead of 60" in run.failed[SETTLED]
    assert query(f"select run_id from {TABLE} where partition_date = %s", SETTLED) == [("by hand",)]


def test_rows_that_postgresql_rejects_are_quarantined_and_land_later(query, rows):
    # Each change of the table with its inverse, and the reason that is reported.
    changes = [
        ("add constraint small check (trade_id < 59)", "drop constraint small", "small"),
        ("add constraint once unique (symbol)", "drop constraint once", "once"),
        (
            "alter column asset type varchar(3)",
            "alter column asset type text",
            "value too long for type character varying(3) (row 1, column asset)",
        ),
        ("alter column convert_price set not null", "alter column convert_price drop not null", "convert_price"),
    ]
    for change, inverse, reason in changes:
        query(f"alter table {TABLE} {change}")

        run = land(KEY, [SETTLED])

        failure = run.failed.get(SETTLED, "")
        assert "PostgreSQL rejected the rows" in failure and reason in failure, change
        assert "someone.private" not in run.message, change
        assert query("select count(*) from affiliate.rejected_row") == [(60,)], change
        query(f"alter table {TABLE} {inverse}")

    query(f"drop table {TABLE}")
    assert land(KEY, [SETTLED], from_rejected=True).success
    assert landed(query, SETTLED) == sent(rows[SETTLED])
