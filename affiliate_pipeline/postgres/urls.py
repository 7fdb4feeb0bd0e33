"""URLs of databases on servers that are not ours to start. The embedded server is in `server.py`."""

from collections.abc import Collection
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Conninfo

from affiliate_pipeline.postgres.store import StoreUnavailable, connect, unavailable


def sibling(url: str, suffix: str) -> str:
    """The URL of the database beside this one whose name has the suffix; it is created if need be."""
    name = f"{conninfo_to_dict(url).get('dbname', 'postgres')}{suffix}"
    with unavailable(), connect(url, autocommit=True) as connection:
        if not connection.execute("select 1 from pg_database where datname = %s", (name,)).fetchone():
            try:
                connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
            except psycopg.errors.DuplicateDatabase:
                pass
            except psycopg.errors.InsufficientPrivilege:
                raise StoreUnavailable(
                    f"the sandbox keeps its data in a database of its own, {name}, which this role may not create. Create "
                    "it, or unset AFFILIATE_DATABASE_URL, or configure an exchange"
                ) from None
    return renamed(url, suffix)


def renamed(url: str, suffix: str) -> str:
    """The URL with the suffix after the database's name, as a URL: Dagster's storage takes nothing else."""
    name = f"{conninfo_to_dict(url).get('dbname', 'postgres')}{suffix}"
    parts = urlsplit(url)
    query = [(key, value) for key, value in parse_qsl(parts.query) if key != "dbname"]
    return urlunsplit(parts._replace(path=f"/{quote(name, safe='')}", query=urlencode(query, quote_via=quote)))


def libpq_environment(url: str) -> dict[str, str]:
    """The URL as libpq's environment variables: a password on a command line can be read by everybody."""
    variables = {option.keyword.decode(): option.envvar for option in Conninfo.get_defaults()}
    given = conninfo_to_dict(url).items()
    return {variable.decode(): str(value) for name, value in given if (variable := variables.get(name))}


def public_tables(url: str, schemas: Collection[str]) -> str:
    """The URL, with sessions that keep tables in `public` even where the role is called like one of these schemas: such
    a schema would lead the search path."""
    given = conninfo_to_dict(url)
    if given.get("user") not in schemas or "options" in given:
        return url
    return f"{url}{'&' if '?' in url else '?'}options={quote('-c search_path=public', safe='')}"
