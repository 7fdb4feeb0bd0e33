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
from affiliate_pipeline.commission.export import Extract, snapshot
from affiliate_pipeline.domain.days import format_days
from affiliate_pipeline.domain.problem import AffiliateError
from affiliate_pipeline.environment import configured
from affiliate_pipeline.exchanges.registry import DEFAULT, ENDPOINTS, configured_catalog
from affiliate_pipeline.landing.pipeline import connected
from affiliate_pipeline.landing.store import Store
from affiliate_pipeline.postgres import connection
from affiliate_pipeline_tests.app.totals import add_up
from affiliate_pipeline_tests.commission.workbooks import Text, read_workbook
from affiliate_pipeline_tests.defs.direct_runs import land
from affiliate_pipeline_tests.defs.rebates import COLUMNS, DAYS, KEY, SETTLED, YESTERDAY, at, landed, rebate
from affiliate_pipeline_tests.defs.test_commission_assets import LBANK

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


@pytest.fixture
def formulas(sandbox) -> list[str]:
    """Texts that a spreadsheet would execute, of rebates that have landed for the settled day."""
    texts = ["=1+1", "+1", "-1", "@SUM(1)", "\t=1", "\r=1", "\n=1", "\uff1d1"]
    harmless = ["BTCUSDT", "'=1", " =1", "1-1", ""]
    rows = [rebate(at(SETTLED), number, symbol=text, income="-1.50") for number, text in enumerate([*texts, *harmless])]
    sandbox.binance.set_rebates(rows)
    assert land(KEY, [SETTLED]).success
    return texts


def exported_rows(capfdbinary) -> list[dict[str, str]]:
    return [*csv.DictReader(io.StringIO(capfdbinary.readouterr().out.decode(), newline=""))]


def test_an_apostrophe_precedes_only_texts_that_a_spreadsheet_would_execute(formulas, query, capfdbinary):
    stored = Counter(text for (text,) in query(f"select symbol from {TABLE}"))
    export(TABLE, f"{SETTLED}")
    output = capfdbinary.readouterr()

    rows = [*csv.DictReader(io.StringIO(output.out.decode(), newline=""))]
    assert Counter(row["symbol"] for row in rows) == Counter(
        f"'{text}" if text in formulas else text for text in stored.elements()
    )
    assert {row["income"] for row in rows} == {"-1.50"}
    assert b"8 texts in symbol would be executed by a spreadsheet, so an apostrophe was added" in output.err

    export(TABLE, f"{SETTLED}", "--raw")
    output = capfdbinary.readouterr()
    rows = [*csv.DictReader(io.StringIO(output.out.decode(), newline=""))]
    assert Counter(row["symbol"] for row in rows) == stored
    assert b"apostrophe" not in output.err


def test_a_workbook_has_the_texts_of_raw_csv_and_days_as_dates(formulas, query, tmp_path, capfdbinary):
    query(f"update {TABLE} set extra = '{{\"bonus\": 0.12345678901234567890}}'")
    export(TABLE, f"{SETTLED}", "--raw")
    expected = exported_rows(capfdbinary)

    export(TABLE, f"{SETTLED}", "--format", "xlsx", "--output", str(tmp_path / "x.xlsx"))

    [(name, [header, *rows])] = read_workbook(tmp_path / "x.xlsx").items()
    assert name == "rebate_recent_record"
    assert header == [Text(each) for each in expected[0]]
    day = [*expected[0]].index("partition_date")
    assert {row[day] for row in rows} == {SETTLED}
    assert sorted([f"{'' if cell is None else cell}" for cell in row] for row in rows) == sorted(
        [f"{text}" for text in row.values()] for row in expected
    )
    assert b"apostrophe" not in capfdbinary.readouterr().err


def test_a_workbook_of_sums_has_exact_amounts_and_numeric_counts(amounts, tmp_path, query):
    add_up([SETTLED])
    export("affiliate.daily_commission", f"{SETTLED}", "--format", "xlsx", "--output", str(tmp_path / "x.xlsx"))

    [[header, *rows]] = read_workbook(tmp_path / "x.xlsx").values()
    [(amount, count, settled)] = query("select amount::text, count, settled from affiliate.daily_commission")
    [found] = [dict(zip((f"{cell}" for cell in header), row, strict=True)) for row in rows]
    assert (found["amount"], found["count"], found["settled"]) == (Text(amount), count, settled)
    assert len(amount.replace(".", "")) > 15


def test_a_text_that_does_not_fit_into_a_cell_leaves_no_workbook(sandbox, tmp_path):
    sandbox.binance.set_rebates([rebate(at(SETTLED), 1, note="x" * 40_000)])
    assert land(KEY, [SETTLED]).success

    with pytest.raises(
        AffiliateError, match="text of the column extra does not fit into a cell.* Export these days as CSV or Parquet"
    ):
        export(TABLE, f"{SETTLED}", "--format", "xlsx", "--output", str(tmp_path / "x.xlsx"))
    assert not (tmp_path / "x.xlsx").exists()


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
    add_up(DAYS[:3])
    capfd.readouterr()

    for name in ("daily_commission", "daily_customer_commission", "v_daily", "v_customer_daily"):
        export(f"affiliate.{name}", f"{DAYS[0]}...{DAYS[2]}")

        reported = capfd.readouterr().err
        assert f"{KEY}: {format_days([DAYS[0], DAYS[2]])} not landed, so not in this export" in reported
        assert f"{KEY}: {DAYS[1]} landed, but may still change" in reported
        assert LBANK not in reported


def test_only_known_tables_can_be_exported(sandbox, capfd):
    for table in ("affiliate.lease", "pg_authid", "binance.rebate_recent_record; drop table x"):
        with pytest.raises(CommandError, match="there is no table"):
            export(table, f"{SETTLED}")


def test_every_table_and_every_asset_with_rows_can_be_exported(sandbox, capfd):
    days = [f"{DAYS[0]}"]
    # A table and its asset have the same rows, except those of other accounts.
    names = [(each.key, days) for each in ENDPOINTS] + [(ENDPOINTS[0].table, days)]
    names += [(name, []) for each in DEFAULT.reference_tables for name in (each.table, each.key)]
    for table in ("daily_commission", "daily_customer_commission"):
        names += [(f"affiliate.{table}", days), (f"affiliate/{table}", days)]
    for name, args in names:
        export(name, *args)
        assert ",account" in capfd.readouterr().out.splitlines()[0], name
    names = [
        *((f"affiliate.{view}", days) for view in ("v_daily", "v_customer_daily", "price", "landing")),
        ("affiliate/price", days),
    ]
    for name, args in [*names, ("affiliate.v_health", [])]:
        export(name, *args)
        assert {*capfd.readouterr().out.strip().split(",")} & {"coin", "content_hash", "missing_days"}, name


def test_prices_and_the_ledger_are_exported_by_their_own_days(sandbox, query, capfd):
    land(KEY, DAYS[:3])
    query(
        "insert into affiliate.price select 'BTC', day, 1.50, 'BTCUSDT', 'host', day, day from unnest(%s::date[]) day",
        DAYS,
    )

    def column(name: str, *days) -> list[str]:
        export(*map(str, days))
        return [row[name] for row in csv.DictReader(io.StringIO(capfd.readouterr().out, newline=""))]

    assert column("day", "affiliate.price", f"{DAYS[1]}...{DAYS[2]}") == [f"{DAYS[1]}", f"{DAYS[2]}"]
    assert column("partition", "affiliate.landing", f"{DAYS[1]}...{DAYS[4]}") == [f"{DAYS[1]}", f"{DAYS[2]}"]
    assert column("usdt", "affiliate/price", DAYS[0]) == ["1.50"]


def test_rejected_and_superseded_rows_are_exported_as_received(sandbox, query, capfd):
    land(KEY, DAYS[:1])
    for table, columns in {
        "rejected_row": "(asset, partition, run_id, source, rejected_at, reason, payload)",
        "superseded_row": "(asset, partition, run_id, superseded_at, payload)",
    }.items():
        more = {"rejected_row": "'fetch', now(), 'of another day', ", "superseded_row": "now(), "}[table]
        query(
            f"""insert into affiliate.{table} {columns} values ('{KEY}', '{DAYS[1]}', 'run', {more}'{{"income": "1.50"}}')"""
        )
        export(f"affiliate.{table}", f"{DAYS[1]}")
        [row] = csv.DictReader(io.StringIO(capfd.readouterr().out, newline=""))
        assert (row["asset"], row["partition"], row["payload"]) == (KEY, f"{DAYS[1]}", '{"income": "1.50"}')


def test_an_export_of_prices_reports_the_days_that_lack_some(sandbox, query, capfd, monkeypatch):
    land(KEY, DAYS[:2])
    query("insert into affiliate.priced_day select partition, 'outdated', '' from affiliate.landing")
    capfd.readouterr()

    export("affiliate.price", f"{DAYS[0]}...{DAYS[2]}")

    reported = capfd.readouterr().err
    assert f"affiliate/price: {format_days(DAYS[:2])}: some prices have not landed" in reported
    assert f"{KEY}: {DAYS[2]} not landed, so not in this export" in reported
    assert "added up" not in reported

    monkeypatch.setenv("AFFILIATE_PRICES", "off")
    export("affiliate.price", f"{DAYS[0]}")
    assert "AFFILIATE_PRICES is off, so prices of any day may be missing" in capfd.readouterr().err


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
    with pytest.raises(CommandError, match=r"there is no table binance/nothing\. There are [^\s,]+(, [^\s,]+)*$"):
        export("binance/nothing", f"{SETTLED}")
    with pytest.raises(CommandError, match="no days of binance.rebate_recent_record were given. Add a day"):
        export(TABLE)


def test_a_file_that_cannot_be_written_is_named_as_given(amounts, tmp_path):
    with pytest.raises(IsADirectoryError) as raised:
        export(TABLE, f"{SETTLED}", "--output", str(tmp_path))
    assert raised.value.filename == str(tmp_path)


@pytest.mark.empty_database
def test_a_table_that_does_not_exist_yet_is_not_exported(sandbox, tmp_path):
    with pytest.raises(CommandError, match="nothing has ever landed"):
        export(TABLE, f"{SETTLED}", "--output", str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()


def test_an_export_waits_for_a_slow_reader(sandbox, database_url, query, monkeypatch):
    """Regression: the timeout of unacknowledged data also ended the session of a reader that was alive but paused."""
    monkeypatch.setitem(connection._SETTINGS, "tcp_user_timeout", "200ms")
    query(
        f"insert into {TABLE} (partition_date, run_id, extra) "
        "select %s, 'r', to_jsonb(repeat('x', 1000000)) from generate_series(1, 40)",
        SETTLED,
    )
    written: list[int] = []

    class SlowFile(io.BytesIO):
        def write(self, block, /) -> int:
            if not written:
                query("select pg_sleep(1)")
            written.append(len(block))
            return len(block)

    with Store(database_url) as store, snapshot(store):
        Extract(store, TABLE, [SETTLED], None).write_csv(SlowFile())
    assert sum(written) > 40_000_000
