"""Problems of a database are found before the first request to an exchange."""

from collections.abc import Iterator
from typing import LiteralString

import psycopg
import pytest
from psycopg import errors, sql

from affiliate_pipeline.landing.store import Store, privileges
from affiliate_pipeline.postgres.connection import connect
from affiliate_pipeline.postgres.errors import StoreUnavailable, as_store_unavailable
from affiliate_pipeline.postgres.readiness import problems
from affiliate_pipeline_tests.conftest import materialize
from affiliate_pipeline_tests.defs.direct_runs import land
from affiliate_pipeline_tests.defs.rebates import DAYS, ENDPOINT, KEY, rebates


@pytest.fixture
def guest(database_url, query):
    """The URL for a role that owns no table."""
    query("drop role if exists guest")
    query("create role guest login password 'guest'")
    yield f"postgresql://guest:guest@{database_url.partition('@')[2]}"
    query("reassign owned by guest to current_user")
    query("drop owned by guest")
    query("drop role guest")


def problems_of(url: str) -> str:
    with connect(url, autocommit=True) as connection:
        return "; ".join(error.problem.what for error in problems(connection, privileges([ENDPOINT])))


@pytest.mark.empty_database
def test_a_usable_database_has_no_problem(sandbox, database_url):
    assert problems_of(database_url) == ""
    land(KEY, DAYS[:1])
    assert problems_of(database_url) == ""


@pytest.mark.empty_database
def test_each_missing_right_is_reported(sandbox, database_url, query, guest, monkeypatch):
    sandbox.binance.set_rebates(rebates(DAYS[0], 3))
    assert "create on the database (for schema affiliate, binance)" in problems_of(guest)
    land(KEY, DAYS[:1])
    assert "usage on schema affiliate" in problems_of(guest)
    for schema in ("affiliate", "binance"):
        query(f"grant usage on schema {schema} to guest")
        query(f"grant select on all tables in schema {schema} to guest")
    missing = problems_of(guest)
    assert "insert on affiliate.landing" in missing and "delete on binance.rebate_recent_record" in missing
    assert "select on" not in missing

    monkeypatch.setenv("AFFILIATE_DATABASE_URL", guest)
    sandbox.requests.clear()
    run = materialize(KEY, DAYS[:2])
    assert sorted(run.failed) == DAYS[:2]
    assert run.message.count("the database's role lacks a privilege") == 1
    assert "grant insert on affiliate.landing to guest; " in run.message
    assert sandbox.requests == []


def test_a_missing_right_to_create_temporary_tables_is_reported(database_url, query, guest):
    query("revoke temporary on database test from public")
    try:
        assert "temporary on the database" in problems_of(guest)
    finally:
        query("grant temporary on database test to public")


def test_a_database_of_another_encoding_is_refused_before_the_first_request(sandbox, database_url, query, monkeypatch):
    url = database_url.removesuffix("/test") + "/other"
    monkeypatch.setenv("AFFILIATE_DATABASE_URL", url)
    for encoding in ("SQL_ASCII", "LATIN1"):
        query("drop database if exists other")
        query(f"create database other encoding '{encoding}' template template0 locale 'C'")
        assert f"encoding is {encoding}" in problems_of(url)
        with pytest.raises(StoreUnavailable, match=rf"the database's encoding is {encoding}.* template template0"):
            land(KEY, DAYS[:1])
    assert sandbox.requests == []
    query("drop database other")


SETTINGS = {
    "statement_timeout": "10s",
    "idle_in_transaction_session_timeout": "10s",
    "idle_session_timeout": "10s",
    "lock_timeout": "10s",
    "default_transaction_isolation": "serializable",
    "search_path": "nowhere",
    "standard_conforming_strings": "off",
    "bytea_output": "escape",
    "intervalstyle": "iso_8601",
    "extra_float_digits": "-15",
    "synchronous_commit": "off",
    "datestyle": "German, DMY",
    "timezone": "Asia/Tokyo",
    "row_security": "on",
}


@pytest.fixture
def unusual_settings(database_url) -> Iterator[None]:
    """The database's defaults are `SETTINGS`."""

    def alter(change: LiteralString) -> None:
        with psycopg.connect(database_url, autocommit=True) as connection:
            for name, value in SETTINGS.items():
                statement = sql.SQL(f"alter database test {change}")
                connection.execute(statement.format(name=sql.Identifier(name), value=sql.Literal(value)))

    alter("set {name} = {value}")
    yield
    alter("reset {name}")


def test_settings_of_the_database_are_overridden(database_url, unusual_settings):
    query = "select name, current_setting(name) from unnest(%s::text[]) as name"
    with psycopg.connect(database_url) as plain:
        assert dict(plain.execute(query, (list(SETTINGS),)).fetchall()) == SETTINGS
    with connect(database_url) as connection:
        overridden = dict(connection.execute(query, (list(SETTINGS),)).fetchall())
    assert not overridden.items() & SETTINGS.items()


def test_days_land_in_a_database_with_unusual_settings(sandbox, unusual_settings):
    days = DAYS[:2]
    sandbox.binance.set_rebates(row for day in days for row in rebates(day, 50))
    assert [day.changed for day in land(KEY, days).landed.values()] == [True, True]
    assert [day.changed for day in land(KEY, days).landed.values()] == [False, False]


def test_an_old_server_is_refused(database_url, monkeypatch):
    monkeypatch.setattr("affiliate_pipeline.postgres.connection.MIN_SERVER_VERSION", 990000)
    with pytest.raises(StoreUnavailable, match="is too old"):
        Store(database_url)


def test_every_error_of_the_driver_becomes_store_unavailable():
    found = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, psycopg.Error)}
    assert len(found) > 200
    for error in found:
        with pytest.raises(StoreUnavailable), as_store_unavailable():
            raise error("something")


def test_an_exhausted_connection_limit_is_reported(database_url, query, guest):
    query("alter role guest connection limit 1")
    with psycopg.connect(guest), pytest.raises(StoreUnavailable, match="Raise the limit of connections"):
        connect(guest)


@pytest.mark.empty_database
def test_a_new_database_is_ready(database_url):
    with Store(database_url) as store:
        store.require_ready(ENDPOINT)
