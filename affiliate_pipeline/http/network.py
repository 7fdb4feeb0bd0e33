"""HTTP clients, made only here: which proxy a request uses, which certificates are trusted.

httpx would read the environment when a client is made, and fail on unusable values before anything is requested.
`trust_env=False` switches that off, and the use of netrc. This module reads the variables itself when a request needs
them, and its errors name the variable.
"""

import ipaddress
import logging
import re
import socket
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote

import certifi
import httpx

from affiliate_pipeline.domain.problem import SettingsError
from affiliate_pipeline.domain.redaction import redact, silence_http_logs
from affiliate_pipeline.domain.wording import up_command
from affiliate_pipeline.http.errors import ConnectionFailed, ExchangeError, NoResponse, UnusableNetwork

# The variables that `Network` reads; those of proxies also in upper case.
VARIABLES = (
    *("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"),
    *("all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR"),
)
_LIMITS = httpx.Limits(max_connections=8, max_keepalive_connections=8)
_SCHEMES = {"http": "http", "https": "https", "socks": "socks5", "socks5": "socks5", "socks5h": "socks5h"}
# An entry of NO_PROXY: scheme, address in brackets or host, port.
_BYPASS = r"(?:(\w+)://)?(?:\[([^\]]+)\]|([\w.*-]+(?:/\d+)?))(?::(\d+))?/?"
_HASHED_NAMES = "[0-9a-f]" * 8 + ".[0-9]*"
_CHECK_PROXY = "Check the proxy and its variable, or unset the variable if no proxy is needed"
_UNSENDABLE = (ssl.SSLError, UnicodeError, httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.LocalProtocolError)
_IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
_IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Proxy:
    """A proxy, and the variable that names it."""

    variable: str
    url: str
    login: tuple[str, str] | None = field(repr=False)

    def __str__(self) -> str:
        """Without user and password."""
        return f"the proxy {self.url.partition('://')[2]} ({self.variable})"


class Network:
    """How this machine reaches other hosts: read from the variables that curl uses.

    `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` in upper or lower case, `SSL_CERT_FILE`, `SSL_CERT_DIR`.
    Other variables are ignored.
    """

    def __init__(self, variables: Mapping[str, str]):
        self._variables = variables

    def proxy_for(self, url: httpx.URL) -> Proxy | None:
        """The proxy for the URL; None for a direct connection, as to this machine itself. Raises `UnusableNetwork`."""
        host = url.host.rstrip(".").lower()
        address = _address(host)
        if host == "localhost" or host.endswith(".localhost"):
            return None
        if address and (address.is_loopback or address.is_unspecified):
            return None

        port = url.port or {"http": 80, "https": 443}.get(url.scheme)
        no_proxy_variable, entries = self._first("no_proxy")
        for bypass in _bypasses(no_proxy_variable, entries):
            matches_scheme_and_port = bypass.scheme in ("all", url.scheme) and bypass.port in (None, port)
            if matches_scheme_and_port and bypass.covers(host, address):
                return None

        variable, value = self._first(f"{url.scheme}_proxy", "all_proxy")
        return _proxy(variable, value) if value else None

    def _first(self, *names: str) -> tuple[str, str]:
        """The first variable that is set (lower case first) and its value; else empty texts."""
        for name in names:
            for variable in (name, name.upper()):
                if value := self._variables.get(variable):
                    return variable, value
        return "", ""

    def tls(self) -> ssl.SSLContext:
        """The TLS context with the configured CA certificates; raises `UnusableNetwork`."""
        # As in httpx, the file takes precedence.
        if file := self._variables.get("SSL_CERT_FILE"):
            return _tls(file=file, folders=None)
        return _tls(file=None, folders=self._variables.get("SSL_CERT_DIR"))


DIRECT = Network({})


def client(network: Network, timeout: httpx.Timeout | float, *, redirects: bool = False) -> httpx.Client:
    """A client whose requests raise httpx's errors, `UnusableNetwork` and `NoResponse`."""
    silence_http_logs()
    return httpx.Client(transport=_Transport(network), trust_env=False, timeout=timeout, follow_redirects=redirects)


def require_sandbox(base_url: str) -> None:
    """Raise `SettingsError` if the sandbox is not running: requests to it would be retried for minutes."""
    url = httpx.URL(base_url)
    try:
        socket.create_connection((url.host, url.port or 80), timeout=5).close()
    except OSError:
        raise SettingsError(
            f"the sandbox is not running at {base_url}", f"Start it: `{up_command()}`, and leave that running"
        ) from None


def host_of(url: str) -> str:
    """The URL's host, as used in the ledger's sources and in the scopes of rate limits."""
    return httpx.URL(url).host


class _Transport(httpx.BaseTransport):
    """A pool of connections for each host, made when the first request needs it."""

    def __init__(self, network: Network):
        self._network = network
        self._pools: dict[tuple[str, str, int | None], tuple[httpx.HTTPTransport, Proxy | None]] = {}
        self._lock = threading.Lock()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        pool, proxy = self._pool(request.url)
        try:
            response = pool.handle_request(request)
        except _UNSENDABLE as error:
            what = (
                f"no request can be sent to {redact(request.url.host)} ({type(error).__name__}): the base URL is wrong"
            )
            raise UnusableNetwork(what) from None
        except httpx.TransportError as error:
            raise _explained(error, request.url, proxy) from None

        if proxy and request.url.scheme == "http" and _is_from_proxy(response):
            response.close()
            status = response.status_code
            # Not ConnectionFailed: a forwarded request may have reached the exchange before the proxy gave up.
            raise _proxy_failure(proxy, f"HTTP {status}", status, NoResponse)
        return response

    def _pool(self, url: httpx.URL) -> tuple[httpx.HTTPTransport, Proxy | None]:
        address = (url.scheme, url.host, url.port)
        with self._lock:
            if address not in self._pools:
                proxy = self._network.proxy_for(url)
                self._pools[address] = (self._new_pool(url, proxy), proxy)
            return self._pools[address]

    def _new_pool(self, url: httpx.URL, proxy: Proxy | None) -> httpx.HTTPTransport:
        # Loading certificates takes longer than a request on loopback: without https, use an empty context.
        tls = self._network.tls() if url.scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        httpx_proxy = None
        if proxy:
            proxy_tls = self._network.tls() if proxy.url.startswith("https") else None
            httpx_proxy = httpx.Proxy(proxy.url, ssl_context=proxy_tls, auth=proxy.login)
        return httpx.HTTPTransport(verify=tls, trust_env=False, limits=_LIMITS, proxy=httpx_proxy)

    def close(self) -> None:
        for pool, _ in self._pools.values():
            pool.close()


def _is_from_proxy(response: httpx.Response) -> bool:
    """Whether the response to a forwarded request is the proxy's own: an exchange sends only JSON."""
    is_json = "json" in response.headers.get("Content-Type", "")
    return response.status_code == 407 or (response.status_code in (403, 502, 503, 504) and not is_json)


def _proxy(variable: str, value: str) -> Proxy:
    """The proxy in the variable's value, a URL or only host and port; raises `UnusableNetwork`."""
    value = value.strip("\"'")
    if "://" not in value:
        value = f"http://{value}"
    scheme, _, rest = value.partition("://")
    login, _, address = rest.rpartition("@")
    address = address.rstrip("/")
    try:
        url = httpx.URL(f"{_SCHEMES[scheme.lower()]}://{address}")
        is_port_valid = url.port is None or 0 < url.port < 65536
        if re.search(r"[\s/?#]", address) or not url.host or not is_port_valid:
            raise ValueError
    except (KeyError, ValueError, httpx.InvalidURL):
        raise UnusableNetwork(
            f"{variable} is not the URL of a proxy",
            f"Set {variable} to http://host:port, or unset it if this machine needs no proxy",
        ) from None

    if url.scheme.startswith("socks") and find_spec("socksio") is None:
        raise UnusableNetwork(
            f"the proxy {address} ({variable}) is a SOCKS proxy, which needs the package socksio",
            f"Install httpx[socks], or set {variable} to an HTTP proxy",
        )
    if not login.strip(":"):
        return Proxy(variable, f"{url}", login=None)
    user, _, password = login.partition(":")
    return Proxy(variable, f"{url}", login=(unquote(user), unquote(password)))


@dataclass(frozen=True)
class _Bypass:
    """An entry of NO_PROXY."""

    scheme: str
    host: str | _IpNetwork
    port: int | None

    def covers(self, host: str, address: _IpAddress | None) -> bool:
        if not isinstance(self.host, str):
            return address is not None and address in self.host
        return fnmatchcase(host, self.host) or host.endswith(f".{self.host.removeprefix('.')}")


@lru_cache
def _bypasses(variable: str, value: str) -> list[_Bypass]:
    """The valid entries of NO_PROXY; an invalid one is logged as a warning once per process."""
    bypasses: list[_Bypass] = []
    for entry in filter(None, re.split(r"[\s,;]+", value.strip("\"'").lower())):
        if bypass := _bypass(entry):
            bypasses.append(bypass)
        else:
            log.warning(
                "%s: ignored %s, which is not a host, an address or a range of addresses", variable, redact(entry)
            )
    return bypasses


def _bypass(entry: str) -> _Bypass | None:
    """The entry of NO_PROXY; None if it is invalid."""
    parts = re.fullmatch(_BYPASS, entry)
    if not parts:
        # An IPv6 address without brackets does not match the pattern.
        network = _ip_network(entry)
        return _Bypass("all", network, port=None) if network else None
    scheme, address, name, port = parts.groups(default="")
    host = _ip_network(address or name) or name.rstrip(".")
    if not host:  # what is in brackets is no address, or the name has only dots
        return None
    return _Bypass(scheme or "all", host, int(port) if port else None)


def _ip_network(text: str) -> _IpNetwork | None:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _address(host: str) -> _IpAddress | None:
    """The host as an IP address, whatever its spelling (127.1 is 127.0.0.1); None for a name."""
    try:
        numeric = socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST)[0][4][0]
        address = ipaddress.ip_address(str(numeric).partition("%")[0])
    except (OSError, ValueError):
        return None
    return getattr(address, "ipv4_mapped", None) or address


@lru_cache(4)
def _tls(file: str | None, folders: str | None) -> ssl.SSLContext:
    """The TLS context with the CA certificates of the file or else of the folders, by default certifi's."""
    # Not ssl.create_default_context(): it would write the connections' secrets to SSLKEYLOGFILE, or fail on it.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if file:
        try:
            context.load_verify_locations(cafile=Path(file).expanduser())
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            problem = "contains no PEM certificate" if isinstance(error, ssl.SSLError | ValueError) else error.strerror
            raise UnusableNetwork(
                f"SSL_CERT_FILE cannot be used: {problem}",
                "Set it to a PEM file of CA certificates that the user who runs this may read, or unset it",
            ) from None
    elif folders:
        has_certificates = any(any(Path(folder).glob(_HASHED_NAMES)) for folder in folders.split(":"))
        if not has_certificates:
            raise UnusableNetwork(
                "SSL_CERT_DIR cannot be used: it is not a folder of certificates named by their hashes",
                "Set it to a folder that `openssl rehash` has been run on, or unset it",
            )
        context.load_verify_locations(capath=folders)
    else:
        context.load_verify_locations(cafile=certifi.where())
    return context


def _explained(error: httpx.TransportError, url: httpx.URL, proxy: Proxy | None) -> Exception:
    """The error to raise instead: about the certificate or else the proxy; without a proxy, httpx's own."""
    tls_error = _tls_cause(error)
    if isinstance(tls_error, ssl.SSLCertVerificationError):
        through = f" through {proxy}" if proxy else ""
        return UnusableNetwork(
            f"the certificate of {url.host}{through} cannot be verified ({tls_error.verify_message})",
            "If your network inspects TLS, set SSL_CERT_FILE to the PEM file of its CA certificates; otherwise check "
            "this machine's clock, and which server the host name resolves to",
        )
    if proxy is None:
        return error

    if isinstance(error, httpx.ProxyError):
        status_at_start = re.match(r"\d{3}\b", f"{error}")
        status = int(status_at_start[0]) if status_at_start else None
        return _proxy_failure(proxy, redact(error), status, ConnectionFailed)
    if tls_error and proxy.url.startswith("https"):
        return UnusableNetwork(
            f"{proxy} does not use TLS, although its URL begins with https:// ({tls_error.reason})",
            f"Write http:// in {proxy.variable} if the proxy itself is reached without TLS",
        )
    cause = f"{type(error).__name__}: {redact(error)}".removesuffix(": ")
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return ConnectionFailed(f"{proxy} could not be reached, or closed the connection ({cause})", _CHECK_PROXY)
    return NoResponse(f"no complete response was received through {proxy} ({cause})", _CHECK_PROXY)


def _tls_cause(error: BaseException | None) -> ssl.SSLError | None:
    """The TLS error that led to the error; None if there is none."""
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return error


def _proxy_failure(proxy: Proxy, response: str, status: int | None, unreachable: type[NoResponse]) -> ExchangeError:
    """The error for a proxy's own response; of type `unreachable` if the proxy cannot reach the host."""
    if status in (502, 503, 504):
        return unreachable(f"{proxy} returned {response}: it cannot reach the requested host", _CHECK_PROXY)
    if status == 407:
        action = f"Add the proxy's user and password to {proxy.variable} (http://user:password@host:port)"
    else:
        action = f"Allow this host in the proxy, or unset {proxy.variable} if no proxy is needed"
    return UnusableNetwork(f"{proxy} refused the request: {response}", action)
