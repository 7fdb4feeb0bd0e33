"""The database's URL: its parameters, and the forms that other programs accept."""

import re
from urllib.parse import quote, urlencode

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Conninfo

from affiliate_pipeline.domain.settings import DatabaseUrl
from affiliate_pipeline.postgres.errors import URL_NAME, StoreUnavailable

# libpq waits for minutes for a host that does not respond, and for hours on a connection that a network failure or a
# failover has cut: with these parameters, at most a minute.
_TIMEOUTS = {
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
}


def name_of(url: str) -> str:
    """The name under which messages report the URL: that of its variable, if it is known."""
    return url.name if isinstance(url, DatabaseUrl) else URL_NAME


def parameters(url: str) -> dict[str, str]:
    """The parameters in the URL by libpq's names.

    Raises `StoreUnavailable` without quoting the URL: the part that cannot be parsed may be a piece of the password.
    """
    try:
        by_name = {name: str(value) for name, value in conninfo_to_dict(url).items()}
    except (psycopg.Error, ValueError):
        raise _unparsable(url) from None
    if _may_expose_password(url, hosts=by_name.get("host", ""), ports=by_name.get("port", "")):
        raise _unparsable(url)
    return by_name


def _may_expose_password(url: str, hosts: str, ports: str) -> bool:
    """Whether a part of the URL other than its password may contain a piece of the password.

    An `@` or `/` in a password moves the parts after it: pieces of the password would be taken for host, port or
    database, and be quoted in connection errors.
    """
    authority, _, path = url.partition("://")[2].partition("/")
    if authority.count("@") > 1 or "@" in path.partition("?")[0]:
        return True
    are_hosts = all(host.startswith("/") or re.fullmatch(r"[\w.:-]*", host) for host in hosts.split(","))
    are_ports = all(re.fullmatch("[0-9]{0,5}", port) and int(port or 1) in range(1, 65536) for port in ports.split(","))
    return not are_hosts or not are_ports


def _unparsable(url: str) -> StoreUnavailable:
    return StoreUnavailable(
        f"{name_of(url)} cannot be parsed",
        f"Write {name_of(url)} as postgresql://user:password@host:port/database; in the user name and the password, `% / ? # @ : [ ]` "
        "and spaces are written as %25 %2F %3F %23 %40 %3A %5B %5D and %20",
    )


def with_timeouts(url: str) -> dict[str, str]:
    """The parameters in the URL, and timeouts where the URL sets none; raises like `parameters`."""
    return _TIMEOUTS | parameters(url)


def libpq_environment(url: str) -> dict[str, str]:
    """The URL as libpq's environment variables, since any local user can read a command line."""
    variables = {option.keyword.decode(): option.envvar for option in Conninfo.get_defaults()}
    environment: dict[str, str] = {}
    for name, value in parameters(url).items():
        variable = variables.get(name)
        if variable:
            environment[variable.decode()] = value
    return environment


def sqlalchemy_url(url: str) -> str:
    """The URL `with_timeouts` in a form that SQLAlchemy accepts too."""
    remaining = with_timeouts(url)
    credentials = quote(remaining.pop("user", ""), safe="")
    if "password" in remaining:
        credentials += f":{quote(remaining.pop('password'), safe='')}"
    if credentials:
        credentials += "@"
    database = quote(remaining.pop("dbname", ""), safe="")

    address = ""
    host = remaining.get("host", "")
    # SQLAlchemy accepts several hosts, or a socket's folder, only as parameters.
    if "," not in host and "/" not in host:
        remaining.pop("host", None)
        address = f"[{host}]" if ":" in host else host
        if host and "port" in remaining:
            address += f":{remaining.pop('port')}"

    # Not empty: the timeouts are in it.
    query = urlencode(remaining, quote_via=quote, safe="")
    return f"postgresql://{credentials}{address}/{database}?{query}"
