"""Exports hold every digit, and say what of the days asked for is not in them or may change."""

import csv
import io
from collections import Counter
from decimal import Decimal

import pyarrow as arrow
import pytest
from pyarrow import parquet

from affiliate_pipeline.app.__main__ import app
from affiliate_pipeline.app.cli import Stop
from affiliate_pipeline.domain.days import format_days
from affiliate_pipeline_tests.conftest import materialize
from affiliate_pipeline_tests.defs.rebates import COLUMNS, DAYS, KEY, SETTLED, YESTERDAY, at, landed, rebate
from affiliate_pipeline_tests.defs.test_commission_assets import LBANK, add_up

TABLE = "binance.rebate_recent_record"
# A number that no float holds, sent without quotes.
EXACT = Decimal("0.123456789012345678901")
AMOUNTS = ["0.0000", "12345678901234567890.10", "-0.30", "0.000000000000000001", "1E-7", "1.50"]


@pytest.fixture
def amounts(sandbox) -> None:
    """These incomes landed on the settled day."""
    rows = [rebate(at(SETTLED), number, income=income) for number, income in enumerate(AMOUNTS)]
    sandbox.binance.set_rebates(rows)
    assert materialize(KEY, [SETTLED]).success


def export(*arguments: str) -> None:
    app(["export", *arguments], standalone_mode=False)


def test_csv_is_what_the_database_holds(amounts, query, capfdbinary):
    export(TABLE, f"{SETTLED}")

    text = capfdbinary.readouterr().out.decode()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert Counter(row["income"] for row in rows) == Counter(
        amount for (amount,) in query(f"select income::text from {TABLE}")
    )
    assert {"0.0000", "-0.30", "12345678901234567890.10"} < {row["income"] for row in rows}
    assert set(COLUMNS) < set(rows[0])


def test_parquet_rounds_nothing_and_says_how_wide_its_decimals_are(amounts, query, tmp_path, capfd):
    export(TABLE.replace(".", "/"), f"{SETTLED}", "--format", "parquet", "--output", str(tmp_path / "x"))

    table = parquet.read_table(tmp_path / "x")
    assert table.schema.field("income").type == arrow.decimal128(38, 18)
    assert sorted(table["income"].to_pylist()) == sorted(map(Decimal, AMOUNTS))
    assert table.num_rows == sum(landed(query, SETTLED).values())
    assert "income decimal128(38, 18)" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("x")] == ["x"]


def test_parquet_does_not_round_a_field_that_the_schema_does_not_know(sandbox, query, tmp_path):
    sandbox.binance.set_rebates([rebate(at(SETTLED), 1, bonus=EXACT, tier="ä"), rebate(at(SETTLED), 2)])
    assert materialize(KEY, [SETTLED]).success

    export(TABLE, f"{SETTLED}", "--format", "parquet", "--output", str(tmp_path / "x"))

    held = [text for (text,) in query(f"select extra::text from {TABLE}")]
    assert sorted(parquet.read_table(tmp_path / "x")["extra"].to_pylist(), key=str) == sorted(held, key=str)
    assert any(f"{EXACT}" in (text or "") for text in held)


def test_a_table_without_amounts_becomes_parquet(both, tmp_path):
    assert materialize("lbank/invite_user_team_list", DAYS[:1]).success

    export("lbank.invite_user_team_list", f"{DAYS[0]}", "--format", "parquet", "--output", str(tmp_path / "x"))

    assert {"open_id", "create_time", "extra"} < {*parquet.read_table(tmp_path / "x").column_names}


@pytest.mark.parametrize(
    ("income", "kind"),
    [
        (f"1{'0' * 40}.{'0' * 17}1", "decimal256(76, 18)"),
        (f"1{'0' * 90}.{'0' * 17}1", "string"),
    ],
)
def test_what_is_too_wide_for_parquet_gets_wider_decimals_or_stays_text(sandbox, tmp_path, capfd, income, kind):
    sandbox.binance.set_rebates([rebate(at(SETTLED), 1, income=income)])
    assert materialize(KEY, [SETTLED]).success

    export(TABLE, f"{SETTLED}", "--format", "parquet", "--output", str(tmp_path / "x"))

    table = parquet.read_table(tmp_path / "x")
    assert str(table.schema.field("income").type) == kind
    assert [f"{value:f}" if kind != "string" else value for value in table["income"].to_pylist()] == [income]
    assert f"income {kind}" in capfd.readouterr().err


def test_what_is_not_in_an_export_or_may_change_is_said(sandbox, capfd):
    materialize(KEY, [DAYS[0], *DAYS[1:2]])
    materialize(KEY, [YESTERDAY])

    export(TABLE, f"{DAYS[0]}...{YESTERDAY}")

    told = capfd.readouterr().err
    assert "not landed, so not in this export" in told and f"{DAYS[2]:%d}" in told
    assert f"{YESTERDAY} landed, but may still change" in told


def test_an_exchange_that_is_missing_from_what_was_added_up_is_said(both, query, capfd):
    materialize(LBANK, DAYS[:3])
    materialize(KEY, [DAYS[1]])
    query("update affiliate.landing set settled = asset = %s", LBANK)
    assert add_up(DAYS[:3]).success
    capfd.readouterr()

    export("affiliate.daily_commission", f"{DAYS[0]}...{DAYS[2]}")

    told = capfd.readouterr().err
    assert f"{KEY}: {format_days([DAYS[0], DAYS[2]])} not landed, so not in this export" in told
    assert f"{KEY}: {DAYS[1]} landed, but may still change" in told
    assert LBANK not in told


def test_only_known_tables_can_be_exported(sandbox, capfd):
    for table in ("affiliate.landing", "pg_authid", "binance.rebate_recent_record; drop table x"):
        with pytest.raises(Stop, match="there is no table"):
            export(table, f"{SETTLED}")


def test_a_table_in_which_nothing_has_landed_is_no_empty_export(sandbox, tmp_path):
    with pytest.raises(Stop, match="nothing has ever landed"):
        export(TABLE, f"{SETTLED}", "--output", str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()
