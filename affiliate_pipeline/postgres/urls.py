"""URLs of databases on servers that are not ours to start. The embedded server is in `server.py`."""

from collections.abc import Collection
from urllib.parse import quote

from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Conninfo


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
