"""URLs of databases on servers that are not ours to start. The embedded server is in `server.py`."""

from collections.abc import Collection, Mapping
from urllib.parse import quote, urlencode

from psycopg.pq import Conninfo

from affiliate_pipeline.postgres.connection import parameters


def libpq_environment(url: str) -> dict[str, str]:
    """The URL as libpq's environment variables: a password on a command line can be read by everybody."""
    variables = {option.keyword.decode(): option.envvar for option in Conninfo.get_defaults()}
    given = parameters(url).items()
    return {variable.decode(): value for name, value in given if (variable := variables.get(name))}


def public_tables(url: str, schemas: Collection[str]) -> str:
    """The URL as SQLAlchemy reads it too, with sessions that keep tables in `public` even if the role has the name
    of one of these schemas, which would then come first in the search path."""
    given = parameters(url)
    if given.get("user") in schemas:
        given = {"options": "-c search_path=public"} | given
    return _url(given)


def _url(given: Mapping[str, str]) -> str:
    rest = dict(given)
    credentials = quote(rest.pop("user", ""), safe="")
    if "password" in rest:
        credentials += f":{quote(rest.pop('password'), safe='')}"
    name = quote(rest.pop("dbname", ""), safe="")
    address = ""
    # SQLAlchemy accepts several hosts, or a socket's folder, only as parameters.
    if not set(",/") & set(rest.get("host", "")):
        host = rest.pop("host", "")
        address = (f"[{host}]" if ":" in host else host) + (f":{rest.pop('port')}" if host and "port" in rest else "")
    return (
        f"postgresql://{credentials}{'@' if credentials else ''}{address}/{name}"
        f"{'?' if rest else ''}{urlencode(rest, quote_via=quote, safe='')}"
    )
