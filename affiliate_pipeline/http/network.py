"""The only place where HTTP clients are made: which proxy a request goes through, and which certificates are trusted.

httpx reads the environment when a client is made and raises errors of its own for what it cannot use, before anything is
requested. So that is switched off (`trust_env=False`, which also keeps a netrc out of requests). This module reads the
variables itself, when a request needs them, and its errors name the variable.
"""

import ipaddress
import logging
import re
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache
from pathlib import Path
from urllib.parse import unquote

import certifi
import httpx

from affiliate_pipeline.domain.redaction import redact, silence_http_logs
from affiliate_pipeline.http.errors import ExchangeError, ProxyFailed, ProxyUnreachable, UnusableNetwork

DEFAULT_LIMITS = httpx.Limits(max_connections=8, max_keepalive_connections=8)
_PROXY = re.compile(
    r"(?:(?P<scheme>[a-z][a-z0-9+.-]*)://)?(?:(?P<login>.*)@)?(?P<host>\[[0-9a-f:.]+\]|[^\s:/@\[\]?#]+)"
    r"(?::(?P<port>\d{1,5})?)?/?",
    re.IGNORECASE,
)
_SCHEMES = {"http": "http", "https": "https", "socks": "socks5", "socks5": "socks5", "socks5h": "socks5h"}
_BYPASS = re.compile(r"(?:(?P<scheme>\w+)://)?(?P<host>\[[^\]]+\]|[^:\[\]]+?)(?::(?P<port>\d+))?/?")
_BYPASSED_NAME = re.compile(r"[\w.*-]+")
_HASHED_NAME = re.compile(r"[0-9a-f]{8}\.\d+")
_TO_DO_PROXY = "Set {} to http://host:port, or unset it if this machine needs no proxy"
_TO_DO_LOGIN = "Put user and password for the proxy into {} (http://user:password@host:port)"
_TO_DO_CERTIFICATE = (
    "If your network inspects TLS, set SSL_CERT_FILE to the PEM file of its CA certificates; otherwise check this "
    "machine's clock and whose server it is"
)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Proxy:
    """A proxy, and the variable that names it."""

    variable: str
    scheme: str
    host: str
    port: int | None
    login: tuple[str, str] | None = field(repr=False)

    def __str__(self) -> str:
        """Without user and password."""
        return f"the proxy {self.host}{f':{self.port}' if self.port else ''} ({self.variable})"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}{f':{self.port}' if self.port else ''}"


class Network:
    """How this machine reaches others, by variables as curl knows them: `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and
    `NO_PROXY` in upper or lower case, `SSL_CERT_FILE`, `SSL_CERT_DIR`. Other variables do not count."""

    def __init__(self, variables: Mapping[str, str]):
        self._variables = variables

    def proxy_for(self, url: httpx.URL) -> Proxy | None:
        """The proxy for requests to the URL, never one for this machine's own addresses; raises `UnusableNetwork`."""
        host = url.host.rstrip(".").lower()
        if _is_loopback(host) or any(bypass(url.scheme, host, url.port) for bypass in self._bypasses):
            return None
        for name in (f"{url.scheme}_proxy", "all_proxy"):
            for variable in (name, name.upper()):  # as everywhere, lower case wins
                if value := self._variables.get(variable):
                    return _proxy(variable, value)
        return None

    @cached_property
    def _bypasses(self) -> list["_Bypass"]:
        variable = "no_proxy" if "no_proxy" in self._variables else "NO_PROXY"
        return _bypasses(variable, self._variables.get(variable, ""))

    def tls(self) -> ssl.SSLContext:
        """Verifies servers by the certificates that are configured; raises `UnusableNetwork`."""
        # As in httpx, the file wins.
        file = self._variables.get("SSL_CERT_FILE")
        return _tls(file, None if file else self._variables.get("SSL_CERT_DIR"))


DIRECT = Network({})


def client(
    network: Network, timeout: httpx.Timeout | float, limits: httpx.Limits = DEFAULT_LIMITS, *, redirects: bool = False
) -> httpx.Client:
    """A client whose requests raise, besides httpx's errors, `UnusableNetwork` and `ProxyUnreachable`."""
    silence_http_logs()
    transport = _Transport(network, limits)
    return httpx.Client(transport=transport, trust_env=False, timeout=timeout, follow_redirects=redirects)


class _Transport(httpx.BaseTransport):
    """A pool of connections for each proxy, and one without; made when the first request needs it."""

    def __init__(self, network: Network, limits: httpx.Limits):
        self._network, self._limits = network, limits
        self._routes: dict[tuple[str, str, int | None], tuple[httpx.HTTPTransport, Proxy | None]] = {}
        self._pools: dict[tuple[bool, Proxy | None], httpx.HTTPTransport] = {}
        self._lock = threading.Lock()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        pool, proxy = self._route(request.url)
        try:
            response = pool.handle_request(request)
        except httpx.TransportError as error:
            raise _explained(error, request.url, proxy) from None
        except (ssl.SSLError, UnicodeError, httpx.InvalidURL) as error:
            raise UnusableNetwork(
                f"no request can be sent to {redact(request.url.host)} ({type(error).__name__})", "Check the base URL"
            ) from None
        if proxy and request.url.scheme == "http" and _is_of_proxy(response):
            response.close()
            error = _refused(proxy, f"HTTP {response.status_code}", response.status_code)
            # Forwarded, a request may have reached the exchange before the proxy gave up.
            raise ProxyFailed(f"{error}") if isinstance(error, ProxyUnreachable) else error
        return response

    def _route(self, url: httpx.URL) -> tuple[httpx.HTTPTransport, Proxy | None]:
        address = (url.scheme, url.host, url.port)
        if address not in self._routes:
            with self._lock:
                if address not in self._routes:
                    proxy = self._network.proxy_for(url)
                    self._routes[address] = self._pool(url.scheme == "https", proxy), proxy
        return self._routes[address]

    def _pool(self, is_https: bool, proxy: Proxy | None) -> httpx.HTTPTransport:
        key = (is_https, proxy)
        if key not in self._pools:
            through = None
            # Loading the certificates takes longer than a request on loopback. This context trusts no certificate.
            tls = self._network.tls() if is_https else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            if proxy:
                secured = self._network.tls() if proxy.scheme == "https" else None
                through = _usable(proxy, secured)
            self._pools[key] = httpx.HTTPTransport(verify=tls, trust_env=False, limits=self._limits, proxy=through)
        return self._pools[key]

    def close(self) -> None:
        for pool in self._pools.values():
            pool.close()


def _usable(proxy: Proxy, secured: ssl.SSLContext | None) -> httpx.Proxy:
    if proxy.scheme.startswith("socks"):
        try:
            import socksio  # noqa: F401
        except ImportError:
            raise UnusableNetwork(
                f"{proxy} is a SOCKS proxy, which needs the package socksio",
                f"Install httpx[socks], or set {proxy.variable} to an HTTP proxy",
            ) from None
    try:
        return httpx.Proxy(proxy.url, ssl_context=secured, auth=proxy.login)
    except (httpx.InvalidURL, ValueError):
        raise _malformed(proxy.variable) from None


def _proxy(variable: str, value: str) -> Proxy:
    parts = _PROXY.fullmatch(value.strip("\"'"))
    scheme = parts and _SCHEMES.get((parts["scheme"] or "http").lower())
    if not parts or not scheme or int(parts["port"] or 80) not in range(1, 65536):
        raise _malformed(variable)
    user, _, password = (parts["login"] or "").partition(":")
    login = (unquote(user), unquote(password)) if user or password else None
    return Proxy(variable, scheme, parts["host"], int(parts["port"]) if parts["port"] else None, login)


def _malformed(variable: str) -> UnusableNetwork:
    return UnusableNetwork(f"{variable} is not the URL of a proxy", _TO_DO_PROXY.format(variable))


@dataclass(frozen=True)
class _Bypass:
    """An entry of NO_PROXY."""

    scheme: str | None
    host: str | ipaddress.IPv4Network | ipaddress.IPv6Network
    port: int | None

    def __call__(self, scheme: str, host: str, port: int | None) -> bool:
        if self.scheme not in (None, "all", scheme):
            return False
        if self.port not in (None, port or {"http": 80, "https": 443}.get(scheme)):
            return False
        if not isinstance(self.host, str):
            address = _address(host)
            return address is not None and address.version == self.host.version and address in self.host
        if "*" in self.host:
            return fnmatchcase(host, self.host)
        return host.endswith(self.host if self.host.startswith(".") else f".{self.host}") or host == self.host


@lru_cache
def _bypasses(variable: str, value: str) -> list[_Bypass]:
    """The valid entries; an invalid one is logged as a warning once per process."""
    bypasses = []
    for entry in re.split(r"[\s,;]+", value.strip("\"'").lower()):
        if not entry:
            continue
        if bypass := _bypass(entry):
            bypasses.append(bypass)
        else:
            log.warning(
                "%s: the entry %s is not a host, address or range of addresses; ignored", variable, redact(entry)
            )
    return bypasses


def _bypass(entry: str) -> _Bypass | None:
    try:  # before a port is split off: an IPv6 address has colons
        return _Bypass(None, ipaddress.ip_network(entry, strict=False), None)
    except ValueError:
        parts = _BYPASS.fullmatch(entry)
    if not parts:
        return None
    host, port = parts["host"].strip("[]"), int(parts["port"]) if parts["port"] else None
    try:
        return _Bypass(parts["scheme"], ipaddress.ip_network(host, strict=False), port)
    except ValueError:
        return _Bypass(parts["scheme"], host.rstrip("."), port) if _BYPASSED_NAME.fullmatch(host) else None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        try:  # 127.1, which the resolver takes for an address too
            return ipaddress.ip_address(socket.inet_aton(host)) if re.fullmatch(r"[0-9a-fx.]+", host) else None
        except OSError:
            return None
    return getattr(address, "ipv4_mapped", None) or address


def _is_loopback(host: str) -> bool:
    address = _address(host)
    if address is None:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


@lru_cache(4)
def _tls(file: str | None, folders: str | None) -> ssl.SSLContext:
    # Not ssl.create_default_context(): it would write the connections' secrets to SSLKEYLOGFILE, or fail over it.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if file:
        try:
            context.load_verify_locations(cafile=Path(file).expanduser())
        except (OSError, ValueError) as error:  # of which ssl.SSLError is one
            found = "holds no PEM certificate" if isinstance(error, ssl.SSLError | ValueError) else error.strerror
            raise UnusableNetwork(
                f"SSL_CERT_FILE cannot be used: {found}",
                "Set it to a PEM file of CA certificates that the user who runs this may read, or unset it",
            ) from None
    elif folders:
        if not any(map(_HASHED_NAME.fullmatch, _names_in(folders))):
            raise UnusableNetwork(
                "SSL_CERT_DIR cannot be used: it is not a folder of certificates named by their hashes",
                "Set it to a folder that `openssl rehash` has been run on, or unset it",
            )
        context.load_verify_locations(capath=folders)
    else:
        context.load_verify_locations(cafile=certifi.where())
    return context


def _names_in(folders: str) -> Iterator[str]:
    for folder in folders.split(":"):
        try:
            yield from [path.name for path in Path(folder).iterdir()]
        except OSError:
            continue


def _explained(error: httpx.TransportError, url: httpx.URL, proxy: Proxy | None) -> Exception:
    """An error that names the proxy or certificate to fix; httpx's own if neither is the cause."""
    tls_error = _cause(error, ssl.SSLError)
    if isinstance(tls_error, ssl.SSLCertVerificationError):
        through = f" through {proxy}" if proxy else ""
        return UnusableNetwork(
            f"the certificate of {url.host}{through} cannot be verified ({tls_error.verify_message})",
            _TO_DO_CERTIFICATE,
        )
    if isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError):
        return UnusableNetwork(f"no request can be sent to {url.host} ({type(error).__name__})", "Check the base URL")
    if proxy is None:
        return error
    if isinstance(error, httpx.ProxyError):
        status = int(found[0]) if (found := re.match(r"\d{3}\b", f"{error}")) else None
        return _refused(proxy, redact(error), status)
    if tls_error and proxy.scheme == "https":
        return UnusableNetwork(
            f"{proxy} does not speak TLS as its https:// promises ({tls_error.reason})",
            f"Write http:// in {proxy.variable} if the proxy itself is reached without TLS",
        )
    said = f"{type(error).__name__}: {redact(error)}".removesuffix(": ")
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return ProxyUnreachable(f"{proxy} could not be reached, or closed the connection ({said})")
    return ProxyFailed(f"no complete answer came through {proxy} ({said})")


def _cause(error: BaseException | None, kind: type[Exception]) -> Exception | None:
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error


def _is_of_proxy(response: httpx.Response) -> bool:
    """Whether the response to a forwarded request is the proxy's own: an exchange sends only JSON."""
    is_json = "json" in response.headers.get("Content-Type", "")
    return response.status_code == 407 or (response.status_code in (403, 502, 503, 504) and not is_json)


def _refused(proxy: Proxy, said: str, status: int | None) -> ExchangeError:
    if status in (502, 503, 504):
        return ProxyUnreachable(f"{proxy} answered {said}: it does not reach the exchange")
    to_do = _TO_DO_LOGIN if status == 407 else "Have the proxy permit this host, or unset {} if none is needed"
    return UnusableNetwork(f"{proxy} refused the request: {said}", to_do.format(proxy.variable))
