"""Exports contain every digit, and report which requested days are missing from them or may still change."""

import csv
import io
from collections import Counter
from decimal import Decimal

import pyarrow as arrow
import pytest
from pyarrow import parquet

from affiliate_pipeline.app.__main__ import app
from affiliate_pipeline.app.cli import CommandError
from affiliate_pipeline.domain.days import format_days
from affiliate_pipeline.environment import configured
from affiliate_pipeline.exchanges.registry import DEFAULT, ENDPOINTS, configured_catalog
from affiliate_pipeline.landing.pipeline import connected
from affiliate_pipeline.landing.store import Store
from affiliate_pipeline_tests.defs.direct_runs import land
from affiliate_pipeline_tests.defs.rebates import COLUMNS, DAYS, KEY, SETTLED, YESTERDAY, at, landed, rebate
from affiliate_pipeline_tests.defs.test_commission_assets import LBANK, add_up

TABLE = "binance.rebate_recent_record"
# The exchange sends this number without quotes. A float cannot represent it.
EXACT = Decimal("0.123456789012345678901")
AMOUNTS = ["0.0000", "12345678901234567890.10", "-0.30", "0.000000000000000001", "1E-7", "1.50"]


@pytest.fixture
def amounts(sandbox) -> None:
    """Rebates with the incomes `AMOUNTS` have landed for the settled day."""
    rows = [rebate(at(SETTLED), number, income=income) for number, income in enumerate(AMOUNTS)]
    sandbox.binance.set_rebates(rows)
    assert land(KEY, [SETTLED]).success


def export(*arguments: str) -> None:
    app(["export", *arguments], standalone_mode=False)


def test_csv_contains_the_exact_amounts_of_the_database(amounts, query, capfdbinary):
    export(TABLE, f"{SETTLED}")

    text = capfdbinary.readouterr().out.decode()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert Counter(row["income"] for row in rows) == Counter(
        amount for (amount,) in query(f"select income::text from {TABLE}")
    )
    assert {"0.0000", "-0.30", "12345678901234567890.10"} < {row["income"] for row in rows}
    assert set(COLUMNS) < set(rows[0])


def test_parquet_is_exact_and_the_type_of_its_decimals_is_reported(amounts, query, tmp_path, capfd):
    export(TABLE.replace(".", "/"), f"{SETTLED}", "--format", "parquet", "--output", str(tmp_path / "x"))

    table = parquet.read_table(tmp_path / "x")
    assert table.schema.field("income").type == arrow.decimal128(38, 18)
    assert sorted(table["income"].to_pylist()) == sorted(map(Decimal, AMOUNTS))
    assert table.num_rows == sum(landed(query, SETTLED).values())
    assert "income decimal128(38, 18)" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("x")] == ["x"]


def test_parquet_contains_the_exact_text_of_an_unknown_field(sandbox, query, tmp_path):
    sandbox.binance.set_rebates([rebate(at(SETTLED), 1, bonus=EXACT, tier="ä"), rebate(at(SETTLED), 2)])
    assert land(KEY, [SETTLED]).success

    export(TABLE, f"{SETTLED}", "--format", "parquet", "--output", str(tmp_path / "x"))

    stored = [text for (text,) in query(f"select extra::text from {TABLE}")]
    assert sorted(parquet.read_table(tmp_path / "x")["extra"].to_pylist(), key=str) == sorted(stored, key=str)
    assert any(f"{EXACT}" in (text or "") for text in stored)


def test_a_table_without_amounts_can_be_exported_as_parquet(both_exchanges, tmp_path):
    assert land("lbank/invite_user_team_list", DAYS[:1]).success

    export("lbank.invite_user_team_list", f"{DAYS[0]}", "--format", "parquet", "--output", str(tmp_path / "x"))

    assert {"open_id", "create_time", "extra"} < {*parquet.read_table(tmp_path / "x").column_names}


@pytest.mark.parametrize(
    ("income", "arrow_type"),
    [
        (f"1{'0' * 40}.{'0' * 17}1", "decimal256(76, 18)"),
        (f"1{'0' * 90}.{'0' * 17}1", "string"),
    ],
)
def test_wide_amounts_become_wider_decimals_or_text_in_parquet(sandbox, tmp_path, capfd, income, arrow_type):
    sandbox.binance.set_rebates([rebate(at(SETTLED), 1, income=income)])
    assert land(KEY, [SETTLED]).success

    export(TABLE, f"{SETTLED}", "--format", "parquet", "--output", str(tmp_path / "x"))

    table = parquet.read_table(tmp_path / "x")
    assert str(table.schema.field("income").type) == arrow_type
    assert [value if arrow_type == "string" else f"{value:f}" for value in table["income"].to_pylist()] == [income]
    assert f"income {arrow_type}" in capfd.readouterr().err


def test_missing_and_unsettled_days_of_an_export_are_reported(sandbox, capfd):
    land(KEY, DAYS[:2])
    land(KEY, [YESTERDAY])

    export(TABLE, f"{DAYS[0]}...{YESTERDAY}")

    reported = capfd.readouterr().err
    assert "not landed, so not in this export" in reported and f"{DAYS[2]:%d}" in reported
    assert f"{YESTERDAY} landed, but may still change" in reported


def test_an_export_of_totals_reports_the_missing_and_unsettled_days_of_each_asset(both_exchanges, query, capfd):
    land(LBANK, DAYS[:3])
    land(KEY, [DAYS[1]])
    query("update affiliate.landing set settled = asset = %s", LBANK)
    assert add_up(DAYS[:3]).success
    capfd.readouterr()

    export("affiliate.daily_commission", f"{DAYS[0]}...{DAYS[2]}")

    reported = capfd.readouterr().err
    assert f"{KEY}: {format_days([DAYS[0], DAYS[2]])} not landed, so not in this export" in reported
    assert f"{KEY}: {DAYS[1]} landed, but may still change" in reported
    assert LBANK not in reported


def test_only_known_tables_can_be_exported(sandbox, capfd):
    for table in ("affiliate.landing", "pg_authid", "binance.rebate_recent_record; drop table x"):
        with pytest.raises(CommandError, match="there is no table"):
            export(table, f"{SETTLED}")


def test_every_table_and_every_asset_with_rows_can_be_exported(sandbox, capfd):
    days = [f"{DAYS[0]}"]
    names = [(name, days) for each in ENDPOINTS for name in (each.table, each.key)]
    names += [(name, []) for each in DEFAULT.reference_tables for name in (each.table, each.key)]
    for name, args in [*names, ("affiliate.daily_commission", days), ("affiliate/daily_commission", days)]:
        export(name, *args)
        assert ",account" in capfd.readouterr().out.splitlines()[0], name


def test_a_table_without_days_is_exported_completely_or_for_one_account(two_accounts, query, capfd):
    export("lbank/roster")
    capfd.readouterr()
    for table in configured_catalog(configured().variables).reference_tables:
        with Store(configured().database_url()) as store:
            with connected(table.endpoint, store, configured().variables) as session:
                table.refresh(session)

    def exported(name: str) -> list[tuple[str, str]]:
        export(name)
        rows = csv.DictReader(io.StringIO(capfd.readouterr().out, newline=""))
        return [(row["account"], row["open_id"]) for row in rows]

    stored = sorted(query("select account, open_id from lbank.roster"))
    assert exported("lbank.roster") == stored
    for alias in ("", "acme"):
        assert exported(f"lbank/{alias}/roster".replace("//", "/")) == [row for row in stored if row[0] == alias]
    with pytest.raises(CommandError, match="Leave the days out"):
        export("lbank.roster", f"{SETTLED}")


def test_a_name_that_cannot_be_exported_is_reported_with_what_can(sandbox):
    with pytest.raises(CommandError, match="is a page and not a table. Write it with `.*affiliate-pipeline report`"):
        export("affiliate/daily_report", f"{SETTLED}")
    with pytest.raises(CommandError, match="there is no table binance/nothing. There are .*lbank/roster"):
        export("binance/nothing", f"{SETTLED}")
    with pytest.raises(CommandError, match="no days of binance.rebate_recent_record were given. Add a day"):
        export(TABLE)


def test_a_file_that_cannot_be_written_is_named_as_given(amounts, tmp_path):
    with pytest.raises(IsADirectoryError) as raised:
        export(TABLE, f"{SETTLED}", "--output", str(tmp_path))
    assert raised.value.filename == str(tmp_path)


@pytest.mark.empty_database
def test_a_table_without_landed_days_is_not_exported(sandbox, tmp_path):
    with pytest.raises(CommandError, match="nothing has ever landed"):
        export(TABLE, f"{SETTLED}", "--output", str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()
