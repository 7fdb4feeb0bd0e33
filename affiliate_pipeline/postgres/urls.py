"""URLs of databases on servers that are not ours to start. The embedded server is in `server.py`."""

from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from affiliate_pipeline.postgres.store import connect, unavailable

_LIBPQ = {"dbname": "database"}


def sibling(url: str, suffix: str) -> str:
    """The URL of the database beside this one whose name has the suffix; it is created if need be."""
    name = f"{conninfo_to_dict(url).get('dbname', 'postgres')}{suffix}"
    with unavailable(), connect(url, autocommit=True) as connection:
        if not connection.execute("select from pg_database where datname = %s", (name,)).fetchone():
            try:
                connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
            except psycopg.errors.DuplicateDatabase:
                pass
    # Dagster's storage takes a URL only.
    parts = urlsplit(url)
    query = [(key, value) for key, value in parse_qsl(parts.query) if key != "dbname"]
    return urlunsplit(parts._replace(path=f"/{quote(name, safe='')}", query=urlencode(query)))


def libpq_environment(url: str) -> dict[str, str]:
    """The URL as libpq's environment variables: a password on a command line can be read by everybody."""
    return {f"PG{_LIBPQ.get(name, name).upper()}": str(value) for name, value in conninfo_to_dict(url).items()}
