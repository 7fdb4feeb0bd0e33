"""What makes a database unusable for landing is found before an exchange is requested, by runs and by `check`."""

import psycopg
import pytest
from psycopg import errors

from affiliate_pipeline.landing.store import Store, rights
from affiliate_pipeline.postgres.connection import connect
from affiliate_pipeline.postgres.errors import StoreUnavailable, unavailable
from affiliate_pipeline.postgres.readiness import problems
from affiliate_pipeline_tests.conftest import materialize
from affiliate_pipeline_tests.defs.rebates import DAYS, ENDPOINT, KEY, rebates


@pytest.fixture
def guest(database_url, query):
    """The URL for a role that owns nothing of what has landed."""
    query("drop role if exists guest")
    query("create role guest login password 'guest'")
    yield f"postgresql://guest:guest@{database_url.partition('@')[2]}"
    query("reassign owned by guest to current_user")
    query("drop owned by guest")
    query("drop role guest")


def found(url: str) -> str:
    with connect(url, autocommit=True) as connection:
        return "; ".join(error.problem.what for error in problems(connection, rights([KEY])))


def test_a_usable_database_has_no_problem(sandbox, database_url):
    assert found(database_url) == ""
    materialize(KEY, DAYS)
    assert found(database_url) == ""


def test_each_missing_right_is_named(sandbox, database_url, query, guest, monkeypatch):
    sandbox.binance.set_rebates(rebates(DAYS[0], 3))
    assert "create on the database (for schema affiliate, binance)" in found(guest)
    materialize(KEY, DAYS[:1])
    assert "usage on schema affiliate" in found(guest)
    for schema in ("affiliate", "binance"):
        query(f"grant usage on schema {schema} to guest")
        query(f"grant select on all tables in schema {schema} to guest")
    told = found(guest)
    assert "insert on affiliate.landing" in told and "delete on binance.rebate_recent_record" in told
    assert "select on" not in told

    monkeypatch.setenv("AFFILIATE_DATABASE_URL", guest)
    sandbox.requests.clear()
    run = materialize(KEY, DAYS)
    assert sorted(run.failed) == DAYS
    assert run.message.count("the database's role lacks a right") == 1
    assert sandbox.requests == []


def test_temporary_tables_are_needed(database_url, query, guest):
    query("revoke temporary on database test from public")
    assert "temporary on the database" in found(guest)
    query("grant temporary on database test to public")


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_of_another_encoding_is_refused_before_the_exchange_is_requested(
    sandbox, database_url, query, monkeypatch, encoding
):
    query("drop database if exists other")
    query(f"create database other encoding '{encoding}' template template0 locale 'C'")
    url = database_url.removesuffix("/test") + "/other"
    assert f"encoding is {encoding}" in found(url)
    monkeypatch.setenv("AFFILIATE_DATABASE_URL", url)
    run = materialize(KEY, DAYS)
    assert (
        f"the database's encoding is {encoding}" in run.failed[DAYS[0]] and "template template0" in run.failed[DAYS[0]]
    )
    assert sandbox.requests == []
    query("drop database other")


@pytest.mark.parametrize(
    "setting",
    [
        "statement_timeout = 10000",
        "idle_in_transaction_session_timeout = 10000",
        "idle_session_timeout = 10000",
        "lock_timeout = 10000",
        "default_transaction_isolation = 'serializable'",
        "search_path = 'nowhere'",
        "standard_conforming_strings = off",
        "bytea_output = 'escape'",
        "intervalstyle = 'iso_8601'",
        "extra_float_digits = -15",
        "synchronous_commit = off",
        "datestyle = 'German'",
        "timezone = 'Asia/Tokyo'",
        "row_security = on",
    ],
)
def test_settings_of_the_database_have_no_effect(sandbox, database_url, query, setting):
    sandbox.binance.set_rebates(row for day in DAYS for row in rebates(day, 50))
    name = setting.partition(" ")[0]
    query(f"alter database test set {setting}")
    try:
        with connect(database_url) as connection:
            row = connection.execute("select current_setting(%s)", (name,)).fetchone()
            assert row and row[0].replace("'", "") != setting.partition(" = ")[2].strip("'").replace("10000", "10s")
        run = materialize(KEY, DAYS)
        assert run.success, run.message
        assert not any(metadata["changed"] for metadata in materialize(KEY, DAYS).materialized.values())
    finally:
        with psycopg.connect(
            database_url, autocommit=True, options="-c statement_timeout=0 -c search_path=public"
        ) as reset:
            reset.execute(f"alter database test reset {name}")


def test_an_old_server_is_refused(database_url, monkeypatch):
    monkeypatch.setattr("affiliate_pipeline.postgres.connection.OLDEST_SERVER", 990000)
    with pytest.raises(StoreUnavailable, match="is too old"):
        Store(database_url)


@pytest.mark.parametrize(
    "error",
    sorted(
        {each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, psycopg.Error)}, key=str
    ),
)
def test_no_error_of_the_driver_escapes(error):
    with pytest.raises(StoreUnavailable), unavailable():
        raise error("something")


def test_the_limit_of_connections_is_named(database_url, query, guest):
    query("alter role guest connection limit 1")
    with psycopg.connect(guest), pytest.raises(StoreUnavailable, match="Raise the limit of connections"):
        connect(guest)


def test_a_new_database_is_ready(database_url):
    with Store(database_url) as store:
        store.require_ready(ENDPOINT)
