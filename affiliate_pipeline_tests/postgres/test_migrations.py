"""Databases of every earlier release are upgraded once, despite crashes; those of newer releases are refused."""

import gzip
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from pathlib import Path

import psycopg
import pytest

from affiliate_pipeline.commission.rollup import Commission
from affiliate_pipeline.exchanges.registry import DEFAULT, ENDPOINTS
from affiliate_pipeline.landing import endpoint_tables
from affiliate_pipeline.landing.store import Store
from affiliate_pipeline.monitoring.alerts import Alert, Kind
from affiliate_pipeline.monitoring.outbox import Outbox
from affiliate_pipeline.postgres.connection import connect
from affiliate_pipeline.postgres.errors import StoreUnavailable
from affiliate_pipeline.postgres.migrations import CORE, Migrations, migrate
from affiliate_pipeline_tests import child_processes
from affiliate_pipeline_tests.test_characterization import RELEASE_0_1_0

Query = Callable[..., list[tuple]]

pytestmark = pytest.mark.empty_database


def migrations(folder: Path, *statements: str) -> Migrations:
    """One file per statement."""
    folder.mkdir(exist_ok=True)
    for number, statement in enumerate(statements, start=1):
        (folder / f"{number:04}_step.sql").write_text(statement)
    return Migrations("thing", folder)


def apply(url: str, files: Migrations) -> None:
    with connect(url, autocommit=True) as connection:
        migrate(connection, files)


@pytest.fixture
def applied(query: Query) -> Callable[[], list[tuple]]:
    return lambda: query("select number, name from affiliate.schema_migration where schema = 'thing' order by 1")


def kill_while_waiting(database_url: str, query: Query, statement: str) -> None:
    """Start a process that migrates, and kill it while a statement with this text waits for a lock."""
    run = child_processes.start(child_processes.open_store, database_url)
    waiting = (
        f"select pid from pg_stat_activity where wait_event_type = 'Lock' and position('{statement}' in query) > 0"
    )
    while not query(waiting):
        assert run.is_alive()
    run.kill()
    run.join()
    query(f"select pg_terminate_backend(pid) from ({waiting}) waiting")


def test_each_file_is_applied_once_in_order(database_url, query, applied, tmp_path):
    first = "create table thing.a (n int)", "insert into thing.a values (1); insert into thing.a values (2)"
    for _ in range(2):
        apply(database_url, migrations(tmp_path, *first))
    # In a migration, a percent sign is no placeholder of the driver.
    apply(database_url, migrations(tmp_path, *first, "update thing.a set n = n + 1 where 100 % n = 0"))
    assert query("select n from thing.a order by n") == [(2,), (3,)]
    assert applied() == [(1, "0001_step"), (2, "0002_step"), (3, "0003_step")]


def test_a_failing_file_changes_nothing_and_earlier_files_stay_applied(database_url, query, applied, tmp_path):
    with pytest.raises(StoreUnavailable, match="division by zero"):
        apply(
            database_url,
            migrations(tmp_path, "create table thing.a (n int)", "insert into thing.a values (1); select 1 / 0"),
        )
    assert (query("select n from thing.a"), applied()) == ([], [(1, "0001_step")])
    apply(database_url, migrations(tmp_path, "create table thing.a (n int)", "insert into thing.a values (1)"))
    assert (query("select n from thing.a"), len(applied())) == ([(1,)], 2)


def test_a_migration_that_was_killed_is_completed_at_the_next_start(database_url, query, applied, tmp_path):
    statements = ["create table thing.a (n int)", "insert into thing.a values (1)"]
    halting = migrations(tmp_path, statements[0], f"{statements[1]}; select pg_sleep(60)")
    run = child_processes.start(child_processes.migrate_from, database_url, halting.folder)
    while not query("select 1 from pg_stat_activity where wait_event = 'PgSleep'"):
        assert run.is_alive()
    run.kill()
    run.join()
    # PostgreSQL itself would notice the closed connection only at its next check (`client_connection_check_interval`).
    query("select pg_terminate_backend(pid) from pg_stat_activity where wait_event = 'PgSleep'")
    assert (query("select n from thing.a"), applied()) == ([], [(1, "0001_step")])

    apply(database_url, migrations(tmp_path, *statements))
    assert (query("select n from thing.a"), len(applied())) == ([(1,)], 2)


def test_sessions_that_migrate_concurrently_apply_each_file_once(database_url, query, applied, tmp_path):
    files = migrations(tmp_path, "create table thing.a (n int)", "insert into thing.a values (1); select pg_sleep(0.3)")
    with ThreadPoolExecutor(5) as pool:
        for applying in [pool.submit(apply, database_url, files) for _ in range(5)]:
            applying.result()
    assert (query("select n from thing.a"), len(applied())) == ([(1,)], 2)


def test_a_database_of_a_newer_release_is_refused(database_url, query):
    Store(database_url).close()
    query("insert into affiliate.schema_migration values ('affiliate', 9999, '9999_later')")
    with pytest.raises(StoreUnavailable, match=r"newer release \(migration 9999\) than this program"):
        Store(database_url)


def test_an_owner_without_the_right_to_create_schemas_can_migrate(database_url, query, tmp_path):
    query("drop role if exists plain")
    query("create role plain login password 'plain' nosuperuser")
    for schema in ("affiliate", "thing", "binance"):
        query(f"create schema {schema} authorization plain")
    try:
        url = f"postgresql://plain:plain@{database_url.partition('@')[2]}"
        apply(url, CORE)
        apply(url, migrations(tmp_path, "create table thing.a (n int)"))
        assert query("select count(*) from thing.a") == [(0,)]
        endpoint = next(each for each in ENDPOINTS if each.key == "binance/rebate_recent_record")
        with psycopg.connect(url) as connection:
            endpoint_tables.ensure(connection, endpoint)
        assert query("select count(*) from binance.rebate_recent_record") == [(0,)]
    finally:
        query("drop owned by plain cascade")
        query("drop role plain")


def create_unversioned_tables(query: Query) -> None:
    """Create the tables of a release that had no `schema_migration`, with the SQL of the first migration."""
    query("create schema affiliate")
    query(CORE.files[1].read_text())  # `files` is by number, from 1.


def test_deliveries_of_an_earlier_release_continue(database_url, query):
    create_unversioned_tables(query)
    query(
        "insert into affiliate.alert (key, title, text, failed, good_news, raised_at, reached, missed, delivered_at) values "
        "('1', 'delivered to a', '', '{}', false, '2026-11-01', '{a,a}', '{\"b\": 3}', null), "
        "('2', 'not tried', '', '{}', false, '2026-11-02', '{}', '{}', null), "
        "('3', 'delivered', '', '{\"x/y\": [\"2026-11-01\"]}', false, '2026-11-03', '{a,b}', '{\"b\": 1}', '2026-11-04'), "
        "('4', 'landed since', '', '{}', true, '2026-11-04', '{a,b}', '{}', null)"
    )
    query("insert into affiliate.alert_target values ('b', 3, '2100-01-01'), ('gone', 1, now())")
    with Outbox(database_url) as outbox:
        found = {target: [(alert.key, attempts) for alert, attempts in outbox.due(target)] for target in "abc"}
        assert found == {"a": [("2", 0)], "b": [("2", 0)], "c": [("1", 0), ("2", 0), ("4", 0)]}
        assert [alert.kind for alert, _ in outbox.due("c")] == [Kind.FAILURE, Kind.FAILURE, Kind.RECOVERY]
        assert outbox.failing_targets() == {"b"}
        (still_open,) = outbox.open_alerts()
        assert still_open.missing == {"x/y": {date(2026, 11, 1)}}
        outbox.record_delivery("b", [Alert("2", "", "")], timedelta(0))
        assert [(alert.key, attempts) for alert, attempts in outbox.due("b")] == [("1", 3)]


@pytest.mark.parametrize(("table", "column"), [("alert", "missed"), ("rejected_row", "complete")])
def test_a_column_that_an_earlier_release_lacks_is_added(database_url, query, table, column):
    create_unversioned_tables(query)
    query(f"alter table affiliate.{table} drop column {column}")
    with Outbox(database_url) as outbox:
        assert outbox.add(Alert("1", "", "")) and len(outbox.due("a")) == 1
    query("select complete from affiliate.rejected_row")


def test_an_upgraded_database_of_release_0_1_0_has_the_tables_of_a_new_one(database_url, query):
    columns = (
        "select table_schema || '.' || table_name, column_name, data_type, is_nullable, column_default "
        "from information_schema.columns where table_schema = 'affiliate' order by 1, 2"
    )
    Store(database_url).close()
    expected = query(columns)
    query("drop schema affiliate cascade")
    with psycopg.connect(database_url) as connection:
        connection.execute(gzip.decompress(RELEASE_0_1_0.read_bytes()))
    Store(database_url).close()
    assert query(columns) == expected


def test_a_process_killed_while_it_adds_the_account_columns_adds_none_and_the_next_one_adds_all(database_url, query):
    with psycopg.connect(database_url) as connection:
        connection.execute(gzip.decompress(RELEASE_0_1_0.read_bytes()))
    with_account = (
        "select count(*) from information_schema.columns where column_name = 'account' and table_schema <> 'affiliate'"
    )
    with psycopg.connect(database_url) as reader:
        # Block the migration at the last table: in the transaction that is killed, all others already have the column.
        reader.execute("select from lbank.trade_user_team")
        kill_while_waiting(database_url, query, "endpoint_table")
    assert query(with_account) == [(0,)]
    assert query("select max(number) from affiliate.schema_migration where schema = 'affiliate'") == [(2,)]

    Store(database_url).close()
    assert query(with_account) == [(len(ENDPOINTS),)]
    # A day that had landed before the upgrade can be added up although none of its assets has landed since.
    [(day,)] = query("select min(partition) from affiliate.landing where asset = 'binance/rebate_recent_record'")
    with Store(database_url) as store:
        assert Commission(store, DEFAULT.earning).add_up(day, "run")
    sums = query(
        "select asset, amount from affiliate.daily_commission where account = '' and kind = 'rebate' order by 1"
    )
    coins = "select 'binance/rebate_recent_record', sum(income) from binance.rebate_recent_record"
    assert sorted(sums) == sorted(query(f"{coins} where partition_date = %s group by asset", day)) != []


def test_the_keys_of_both_exchanges_are_recorded_from_a_year_of_days_despite_a_kill(database_url, query):
    with psycopg.connect(database_url) as connection:
        connection.execute(gzip.decompress(RELEASE_0_1_0.read_bytes()))
    Store(database_url).close()
    query("drop table affiliate.account; delete from affiliate.schema_migration where name = '0005_account'")
    query(
        "insert into affiliate.landing select asset, day::date, 0, 'hash', true, source, day, day, 'run' "
        "from (select distinct asset, source from affiliate.landing) assets, "
        "generate_series('2025-11-03'::timestamptz, '2026-11-02', '1 day') day on conflict do nothing"
    )
    [(days,)] = query("select count(*) from affiliate.landing")
    assert days > 365 * 10
    ledger = "select md5(string_agg(t::text, ',' order by asset, partition)) from affiliate.landing t"
    before = query(ledger)
    with psycopg.connect(database_url) as blocker:
        # The migration waits here after it has created its table.
        blocker.execute("lock table affiliate.landing in access exclusive mode")
        kill_while_waiting(database_url, query, "affiliate.account")
    assert query("select to_regclass('affiliate.account')") == [(None,)]

    Store(database_url).close()
    keys = query(
        "select exchange, role, alias, identity = fingerprint, length(fingerprint), first_seen::date::text, last_seen "
        "from affiliate.account order by 1, 2"
    )
    roles = [("binance", "client"), ("binance", "partner"), ("lbank", "affiliate")]
    assert keys == [(*each, "", True, 12, "2025-11-03", None) for each in roles]
    assert query(ledger) == before
