"""The tables that are created from schemas, in a real PostgreSQL."""

import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date

import psycopg
import pytest

from affiliate_pipeline.exchanges.endpoint import Endpoint
from affiliate_pipeline.exchanges.fetching import DayBatch
from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline.landing import endpoint_tables
from affiliate_pipeline.landing.day_writer import DayWriter
from affiliate_pipeline.landing.prepare import Block, PreparedDay, Summary
from affiliate_pipeline.landing.store import Store
from affiliate_pipeline.postgres.errors import StoreUnavailable
from affiliate_pipeline.schema import columns as schema
from affiliate_pipeline.schema.columns import Row, columns
from affiliate_pipeline.schema.fingerprint import Fingerprint

empty_database = pytest.mark.empty_database


class Small(Row):
    time = schema.instant('When; it\'s the "instant", 100 % of it.')
    income = schema.amount("How much.")


class Grown(Row):
    time = schema.instant("A better description.")
    order = schema.text("A keyword of SQL.")
    income = schema.amount("How much.", nullable=True)
    trade_id = schema.bigint("Which.")
    level = schema.smallint("How high.")
    paid = schema.flag("Whether.", optional=True)


def endpoint(model: type[Row], name: str = "thing") -> Endpoint:
    return replace(ENDPOINTS[0], name=name, schema=model, time_column="time", sum_by=None, description=f"It's {name}.")


@pytest.fixture
def create(database_url: str) -> Callable[..., None]:
    def create(*endpoints: Endpoint) -> None:
        with Store(database_url) as store:
            for each in endpoints:
                endpoint_tables.ensure(store.connection, each)

    return create


@pytest.fixture
def types(query) -> Callable[[str], dict[str, str]]:
    """Returns the type of each column of a table, followed by ` not null` if the column is not nullable."""

    def types(table: str) -> dict[str, str]:
        return dict(
            query(
                "select attname::text, format_type(atttypid, atttypmod) || case when attnotnull then ' not null' else '' end "
                "from pg_attribute where attrelid = %s::regclass and attnum > 0 order by attnum",
                table,
            )
        )

    return types


def test_a_table_has_the_columns_of_its_schema_and_the_common_ones(create, types):
    create(endpoint(Grown))
    assert list(types("binance.thing").items()) == [
        ("time", "timestamp with time zone"),
        ("order", "text"),
        ("income", "numeric"),
        ("trade_id", "bigint"),
        ("level", "smallint"),
        ("paid", "boolean"),
        ("extra", "jsonb"),
        ("account", "text not null"),
        ("partition_date", "date not null"),
        ("landed_at", "timestamp with time zone not null"),
        ("run_id", "text not null"),
    ]


def test_every_endpoint_has_its_table_with_comments_and_an_index(create, types, query):
    create(*ENDPOINTS)
    for each in ENDPOINTS:
        table = each.table
        assert list(types(table)) == [
            *(column.name for column in columns(each.schema)),
            *("extra", "account", "partition_date", "landed_at", "run_id"),
        ]
        comments = query(
            "select attname::text, col_description(attrelid, attnum) from pg_attribute where attrelid = %s::regclass "
            "and attnum > 0 and col_description(attrelid, attnum) is not null",
            table,
        )
        described = {column.name: column.description for column in columns(each.schema)}
        assert dict(comments) == described | {"account": endpoint_tables.ACCOUNT_DESCRIPTION}, table
        assert query("select obj_description(%s::regclass)", table) == [(each.description,)]
        (index,) = query("select pg_get_indexdef(indexrelid) from pg_index where indrelid = %s::regclass", table)
        assert "(partition_date)" in index[0]


def test_ledger_and_quarantine_have_exactly_the_columns_that_other_programs_may_read(create, types):
    create()
    assert list(types("affiliate.landing").items()) == [
        ("asset", "text not null"),
        ("partition", "date not null"),
        ("rows", "bigint not null"),
        ("content_hash", "text not null"),
        ("settled", "boolean not null"),
        ("source", "text not null"),
        ("landed_at", "timestamp with time zone not null"),
        ("checked_at", "timestamp with time zone not null"),
        ("run_id", "text not null"),
    ]
    common = ["asset", "partition", "run_id"]
    assert list(types("affiliate.rejected_row")) == [*common, "source", "rejected_at", "reason", "payload", "complete"]
    assert list(types("affiliate.superseded_row")) == [*common, "superseded_at", "payload"]
    assert types("affiliate.superseded_row")["payload"].startswith("jsonb")


def test_new_fields_of_a_schema_become_nullable_columns_and_rows_are_preserved(create, types, query):
    create(endpoint(Small))
    query("insert into binance.thing values (now(), 1.50, null, '', '2026-11-03', now(), 'r')")
    create(endpoint(Grown))
    found = types("binance.thing")
    assert {name: found[name] for name in ("order", "trade_id", "level", "paid")} == {
        "order": "text", "trade_id": "bigint", "level": "smallint", "paid": "boolean",
    }  # fmt: skip
    assert query('select income::text, "order", trade_id, run_id from binance.thing') == [("1.50", None, None, "r")]


def test_a_changed_description_updates_the_comment(create, query):
    create(endpoint(Small))
    create(endpoint(Grown))
    assert query("select col_description('binance.thing'::regclass, 1)") == [("A better description.",)]


def test_no_column_is_dropped(create, types):
    create(endpoint(Grown))
    create(endpoint(Small))
    assert {"order", "trade_id", "level", "paid"} <= types("binance.thing").keys()


def land(url: str, of: Endpoint, block: bytes) -> None:
    with Store(url) as store, store.exclusive(of):
        endpoint_tables.ensure(store.connection, of)
        digest = Fingerprint((hash(block) % 2**64, 0, 0, 0))
        day = PreparedDay(DayBatch(date(2026, 11, 3), [], 1, requests=0), iter([Block(block, Summary(1, digest))]))
        assert DayWriter(store.connection, of, "s", ["s"], "r", allow_shrink=True).write(day, settled=False)


@pytest.mark.parametrize(
    ("relaxed", "block"),
    [
        pytest.param(Grown, b'2026-11-03 00:00:00Z,"x",,1,1,true,\n', id="a column that has become nullable"),
        pytest.param(
            type("Less", (Row,), {"time": schema.instant("When.")}),
            b"2026-11-03 00:00:00Z,\n",
            id="a column that the schema no longer has",
        ),
    ],
)
def test_rows_of_a_relaxed_schema_land(create, database_url, relaxed, block):
    create(endpoint(Small))
    land(database_url, endpoint(relaxed), block)


def test_rows_land_in_a_table_with_new_columns(create, database_url, query):
    create(endpoint(Small))
    land(database_url, endpoint(Grown), b'2026-11-03 00:00:00Z,"a ""b""",1.0,1,1,,"{""z"":1.10}"\n')
    assert query(
        'select "order", income::text, paid, extra::text, partition_date::text, run_id from binance.thing'
    ) == [('a "b"', "1.0", None, '{"z": 1.10}', "2026-11-03", "r")]


@empty_database
def test_concurrent_sessions_that_create_tables_do_not_collide(database_url, query):
    start = threading.Barrier(4, timeout=60)

    def create_all(_: int) -> None:
        start.wait()
        with Store(database_url) as store:
            for each in ENDPOINTS[:2]:
                endpoint_tables.ensure(store.connection, each)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(create_all, range(4)))
    tables = [f"affiliate.{name}" for name in ("landing", "rejected_row", "superseded_row", "lease")]
    tables += [each.table for each in ENDPOINTS[:2]]
    assert query("select name from unnest(%s::text[]) name where to_regclass(name) is null", tables) == []


@empty_database
def test_a_schema_that_another_session_creates_meanwhile_is_used(database_url, query):
    other = endpoint(Small)
    other = replace(other, exchange=replace(other.exchange, name="another"))
    # `first` has the name of a live run: waiting for the lock of any other session is an error.
    with (
        Store(database_url) as store,
        ThreadPoolExecutor(1) as pool,
        psycopg.connect(database_url, application_name="affiliate_pipeline 1@elsewhere") as first,
    ):
        endpoint_tables.ensure(store.connection, endpoint(Small))  # Now the session has cached the catalog.
        first.execute("select pg_advisory_xact_lock(hashtext('affiliate_pipeline.ddl'))")
        first.execute("create schema another")
        waiting = pool.submit(endpoint_tables.ensure, store.connection, other)
        while not waiting.done() and not query("select 1 from pg_locks where locktype = 'advisory' and not granted"):
            time.sleep(0.01)
        first.commit()
        waiting.result()


@pytest.fixture
def short_lock_timeout(query) -> Iterator[None]:
    query("alter database test set lock_timeout = '300ms'")
    yield
    query("alter database test reset lock_timeout")


def test_an_unchanged_table_is_ensured_during_an_open_transaction_of_a_reader(create, database_url, short_lock_timeout):
    create(endpoint(Small))
    with psycopg.connect(database_url) as reader:
        reader.execute("select from binance.thing")
        create(endpoint(Small))


def error_of_store(url: str) -> Exception | None:
    """The error of creating a `Store`, if any."""
    try:
        Store(url).__exit__()
    except (StoreUnavailable, psycopg.Error) as error:
        found = error.with_traceback(None)
        found.__context__ = None
    else:
        found = None
    gc.collect()  # Emits the ResourceWarning of a connection that is still open.
    return found


IGNORE_OPEN_CONNECTIONS = pytest.mark.filterwarnings("ignore:.*was deleted while still open:ResourceWarning")


@IGNORE_OPEN_CONNECTIONS
def test_an_unfinished_landing_does_not_block_the_store_of_another_run(create, database_url, short_lock_timeout):
    create()
    with psycopg.connect(database_url) as other:
        other.execute("delete from affiliate.rejected_row")  # Every landing deletes from this table.
        assert error_of_store(database_url) is None


@pytest.fixture
def guest_url(database_url: str, query) -> Iterator[str]:
    """The URL for a role without the right to create anything."""
    query("drop role if exists guest")
    query("create role guest login password 'guest'")
    yield f"postgresql://guest:guest@{database_url.partition('@')[2]}"
    query("drop role guest")


@IGNORE_OPEN_CONNECTIONS
@empty_database
def test_a_role_that_may_not_create_tables_gets_store_unavailable(guest_url):
    assert isinstance(error_of_store(guest_url), StoreUnavailable)


@empty_database
def test_a_store_that_cannot_be_created_leaves_no_connection_open(guest_url, monkeypatch):
    warnings: list[ResourceWarning] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: warnings.append(unraisable.exc_value))
    assert error_of_store(guest_url)
    for warning in warnings:
        raise warning


def test_identifiers_and_texts_are_quoted(create, query):
    create(endpoint(Small, 'odd "name"; drop'))
    assert query("select obj_description(c.oid) from pg_class c where relname = %s", 'odd "name"; drop') == [
        ('It\'s odd "name"; drop.',)
    ]
