"""The database's URL as environment variables for PostgreSQL's own programs."""

import os
import subprocess

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from affiliate_pipeline.app.embedded_server.programs import program
from affiliate_pipeline.postgres.urls import libpq_environment


def test_psql_reaches_the_same_database_by_its_environment_only(database_url):
    environment = {"PATH": os.environ["PATH"], **libpq_environment(f"{database_url}?connect_timeout=60")}
    run = subprocess.run(
        [program("psql"), "-XAtc", "select current_database(), current_user"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (run.stdout, run.stderr) == (f"test|{conninfo_to_dict(database_url)['user']}\n", "")


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


# The environment variable of each parameter, as libpq reports it.
VARIABLES = {
    option.keyword.decode(): option.envvar.decode() for option in psycopg.pq.Conninfo.get_defaults() if option.envvar
}
PARAMETERS = {
    *(
        "user",
        "password",
        "host",
        "hostaddr",
        "port",
        "dbname",
        "sslmode",
        "sslrootcert",
        "application_name",
        "options",
    ),
    *("connect_timeout", "passfile", "gssencmode", "channel_binding", "client_encoding", "target_session_attrs"),
    "ssl_min_protocol_version",
}


@pytest.mark.parametrize(
    ("parameter", "variable"),
    [(parameter, VARIABLES[parameter]) for parameter in sorted(PARAMETERS & VARIABLES.keys())],
)
def test_a_parameter_becomes_the_variable_that_libpq_reads(parameter, variable):
    assert libpq_environment(make_conninfo(**{parameter: "1"})) == {variable: "1"}
