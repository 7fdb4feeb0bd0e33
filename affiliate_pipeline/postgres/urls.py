"""The database's URL in the forms that other programs read."""

from collections.abc import Collection
from urllib.parse import quote, urlencode

from psycopg.pq import Conninfo

from affiliate_pipeline.postgres.connection import parameters


def libpq_environment(url: str) -> dict[str, str]:
    """The URL as libpq's environment variables: every user of the machine can read a command line."""
    variables = {option.keyword.decode(): option.envvar for option in Conninfo.get_defaults()}
    given = parameters(url).items()
    return {variable.decode(): value for name, value in given if (variable := variables.get(name))}


def public_tables(url: str, schemas: Collection[str]) -> str:
    """The URL as SQLAlchemy reads it too, for sessions that keep tables in `public`.

    In a session of a role that has the name of one of these schemas, that schema would come first in the search path.
    """
    given = parameters(url)
    if given.get("user") in schemas:
        given = {"options": "-c search_path=public"} | given
    credentials = quote(given.pop("user", ""), safe="")
    if "password" in given:
        credentials += f":{quote(given.pop('password'), safe='')}"
    name, address = quote(given.pop("dbname", ""), safe=""), ""
    # SQLAlchemy accepts several hosts, or a socket's folder, only as parameters.
    if not set(",/") & set(given.get("host", "")):
        host = given.pop("host", "")
        address = (f"[{host}]" if ":" in host else host) + (f":{given.pop('port')}" if host and "port" in given else "")
    rest = urlencode(given, quote_via=quote, safe="")
    return f"postgresql://{credentials}{'@' if credentials else ''}{address}/{name}{'?' if rest else ''}{rest}"
