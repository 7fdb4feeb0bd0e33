"""URLs of databases on servers that are not ours to start."""

import os
import subprocess
from collections.abc import Iterator
from urllib.parse import quote

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from affiliate_pipeline.postgres import server
from affiliate_pipeline.postgres.store import StoreUnavailable, connect
from affiliate_pipeline.postgres.urls import libpq_environment, sibling


def name_of(url: str) -> str:
    with connect(url) as connection:
        return connection.execute("select current_database()::text").fetchone()[0]


@pytest.fixture
def odd_database(database_url: str, query) -> Iterator[str]:
    """The URL of a database whose name has to be encoded."""
    query('create database "odd /?&+ ö"')
    yield database_url.removesuffix("/test") + "/" + quote("odd /?&+ ö", safe="")
    query('drop database "odd /?&+ ö"')
    query('drop database if exists "odd /?&+ ö_sandbox"')


@pytest.fixture(autouse=True)
def no_sibling_left(query) -> Iterator[None]:
    yield
    query('drop database if exists "test_sandbox"')


def test_a_sibling_is_another_database_beside_it(database_url):
    url = sibling(database_url, "_sandbox")
    assert name_of(url) == "test_sandbox"
    assert sibling(database_url, "_sandbox") == url
    expected = conninfo_to_dict(database_url) | {"dbname": "test_sandbox"}
    assert conninfo_to_dict(url) == expected


def test_the_name_may_be_odd(odd_database):
    url = sibling(odd_database, "_sandbox")
    assert name_of(url) == "odd /?&+ ö_sandbox"


@pytest.mark.parametrize("query_", ["sslmode=prefer", "connect_timeout=7&sslmode=prefer", "application_name=a%26b%3Dc"])
def test_the_parameters_stay(database_url, query_):
    url = sibling(f"{database_url}?{query_}", "_sandbox")
    assert conninfo_to_dict(url) == conninfo_to_dict(f"{database_url}?{query_}") | {"dbname": "test_sandbox"}
    assert name_of(url) == "test_sandbox"


def test_the_name_may_stand_in_the_parameters(database_url):
    url = sibling(database_url.replace("/test", "/") + "?dbname=test", "_sandbox")
    assert name_of(url) == "test_sandbox"


@pytest.mark.parametrize("value", ["-c%20statement_timeout%3D5000", "-c%20search_path%3Dx"])
def test_options_stay(database_url, value):
    url = sibling(f"{database_url}?options={value}", "_sandbox")
    assert conninfo_to_dict(url)["options"] == conninfo_to_dict(f"{database_url}?options={value}")["options"]


@pytest.fixture
def guest(database_url: str, query) -> Iterator[str]:
    """The URL for a role that may not create databases."""
    query("drop role if exists guest")
    query("create role guest login password 'gu/st'")
    host = database_url.partition("@")[2]
    yield f"postgresql://guest:gu%2Fst@{host}"
    query("drop role guest")


def test_a_sibling_that_is_there_is_not_created_again(guest, database_url):
    sibling(database_url, "_sandbox")
    assert name_of(sibling(guest, "_sandbox")) == "test_sandbox"


def test_a_role_that_may_not_create_databases_is_told_so(guest):
    with pytest.raises(StoreUnavailable):
        sibling(guest, "_sandbox")


def test_a_server_that_is_not_there_is_told_in_words_and_without_the_password():
    with pytest.raises(StoreUnavailable, match="AFFILIATE_DATABASE_URL") as raised:
        sibling("postgresql://me:hunter2@127.0.0.1:1/x", "_sandbox")
    assert "hunter2" not in str(raised.value) and "hunter2" not in repr(raised.value)


def test_psql_reaches_the_same_database_with_nothing_on_its_command_line(database_url):
    environment = {"PATH": os.environ["PATH"], **libpq_environment(f"{database_url}?connect_timeout=5")}
    told = subprocess.run(
        [server.binary("psql"), "-XAtc", "select current_database(), current_user"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (told.stdout, told.stderr) == (f"test|{conninfo_to_dict(database_url)['user']}\n", "")


def test_encoded_parts_are_decoded():
    url = "postgresql://m%40e:p%2Fw%25@db.example:5433/a%20b?sslmode=require"
    assert libpq_environment(url) == {
        "PGUSER": "m@e",
        "PGPASSWORD": "p/w%",
        "PGHOST": "db.example",
        "PGPORT": "5433",
        "PGDATABASE": "a b",
        "PGSSLMODE": "require",
    }


# What libpq itself says of every parameter: its name and its variable.
KNOWN = {
    option.keyword.decode(): option.envvar.decode() for option in psycopg.pq.Conninfo.get_defaults() if option.envvar
}
WRONG = {"application_name", "channel_binding", "client_encoding", "target_session_attrs", "ssl_min_protocol_version"}


@pytest.mark.parametrize(
    ("parameter", "variable"),
    [
        (parameter, variable)
        for parameter, variable in KNOWN.items()
        if parameter in WRONG | {"user", "password", "host", "hostaddr", "port", "dbname", "sslmode", "sslrootcert"}
        or parameter in {"connect_timeout", "options", "passfile", "gssencmode"}
    ],
)
def test_a_parameter_becomes_the_variable_that_libpq_reads(parameter, variable):
    assert libpq_environment(make_conninfo(**{parameter: "1"})) == {variable: "1"}
