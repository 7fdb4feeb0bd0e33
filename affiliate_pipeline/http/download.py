"""Requests to URLs that are themselves secret: an offered file, and the heartbeat.

No message contains the URL, and no signature or API key is sent.
"""

import time

import httpx

from affiliate_pipeline.http.client import TIMEOUT, Response
from affiliate_pipeline.http.error_body import read_error
from affiliate_pipeline.http.errors import ExchangeError, Refused, Transient, UrlExpired
from affiliate_pipeline.http.failures import describe
from affiliate_pipeline.http.network import DIRECT, Network, client
from affiliate_pipeline.http.retry import GiveUp, retry_or_give_up

MAX_ATTEMPTS = 5
MAX_ERROR_BYTES = 64 << 10
# For all attempts together. A file that trickles would otherwise delay the end of its run without limit, and a run that
# waits for this one would take it for dead (`postgres.locks.SILENT_HOLDER_S`).
DOWNLOAD_LIMIT_S = 900
HEARTBEAT_TIMEOUT_S = 10
# Amazon S3 returns 400 where the token in the URL has expired.
_EXPIRED = (400, 401, 403, 404, 410)


def download(url: str, max_bytes: int, network: Network = DIRECT) -> bytes:
    """The file's bytes as sent.

    Gzip is not unpacked: httpx would take the first of several members, or a truncated one, for the whole file.

    Raises `UrlExpired`, `Refused` (too large, moved, of unknown length) or, after the last attempt, `Transient`.
    """
    failures = 0
    deadline = time.monotonic() + DOWNLOAD_LIMIT_S
    with client(network, TIMEOUT) as http:
        while True:
            try:
                return _once(http, url, max_bytes, deadline)
            except Transient as error:
                failures += 1
                decision = retry_or_give_up(error, failures, max_attempts=MAX_ATTEMPTS)
                if isinstance(decision, GiveUp) or time.monotonic() > deadline:
                    raise
                time.sleep(decision.after_s)


def _once(http: httpx.Client, url: str, max_bytes: int, deadline: float) -> bytes:
    file = bytearray()
    host = ""
    try:
        host = httpx.URL(url).host
        with http.stream("GET", url, headers={"Accept-Encoding": "identity"}) as response:
            _check(response, host, deadline)
            for piece in response.iter_raw():
                file += piece
                if len(file) > max_bytes:
                    raise Refused(f"the file of {host} is larger than {max_bytes >> 20} MiB")
                if time.monotonic() > deadline:
                    raise Transient(f"the file of {host} did not end within {DOWNLOAD_LIMIT_S} s")
            return bytes(file)
    except httpx.InvalidURL:
        raise Refused("the URL of the file is invalid") from None
    except httpx.TransportError as error:
        # Omit the error's text, which may quote the URL.
        raise Transient(f"the file host {host} did not send the whole file ({type(error).__name__})") from None


def _check(response: httpx.Response, host: str, deadline: float) -> None:
    """Raise unless the response is a file whose truncation would be noticed."""
    if response.status_code != 200:
        raise _failure(response, host, deadline)
    headers = response.headers
    encoding = headers.get("Content-Encoding", "identity").lower()
    if encoding not in ("identity", "gzip", "x-gzip"):
        raise Refused(f"the file host {host} sent the file in the encoding {encoding!r}, which was not requested")
    if not {"content-length", "transfer-encoding"} & headers.keys():
        raise Refused(
            f"the file host {host} does not send the length of the file, so that a truncated one would look complete"
        )


def _failure(response: httpx.Response, host: str, deadline: float) -> ExchangeError:
    """The error to raise for a response that is not a file; reads the beginning of the body for it."""
    body = b""
    for piece in response.iter_raw():
        body += piece
        if len(body) > MAX_ERROR_BYTES or time.monotonic() > deadline:
            break

    status, headers = response.status_code, response.headers
    error = read_error(body, headers.get("Content-Type", ""))
    what = describe(f"the file host {host}", Response(status, headers, body), error)
    if status in _EXPIRED:
        return UrlExpired(f"{what}. The URL has expired")
    if status >= 500 or status in (408, 429):
        return Transient(what)
    return Refused(f"{what}, instead of the file")


def ping_heartbeat(url: str, network: Network = DIRECT) -> str | None:
    """Ping a service that alerts when pings stop; return why the ping failed, None on success."""
    try:
        with client(network, HEARTBEAT_TIMEOUT_S, redirects=True) as http, http.stream("GET", url) as response:
            return None if response.is_success else f"it returned HTTP {response.status_code}"
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return type(error).__name__
    except ExchangeError as error:  # about the proxy or the certificate
        return str(error)
