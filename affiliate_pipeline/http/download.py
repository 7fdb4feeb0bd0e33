"""Downloads of files that an exchange offers by a URL. The URL is a secret: it stands in no text, and whoever serves the
file is sent nothing else, no signature and no API key."""

import time

import httpx
import stamina

from affiliate_pipeline.http.client import TIMEOUT
from affiliate_pipeline.http.error_body import read_error
from affiliate_pipeline.http.errors import Refused, Transient, UrlExpired
from affiliate_pipeline.http.failures import redirect_target
from affiliate_pipeline.http.network import DIRECT, Network, client

ATTEMPTS = 5
MAX_ERROR_BYTES = 64 << 10
# A file that trickles does not hold a run for ever.
DOWNLOAD_LIMIT_S = 900
# Amazon S3 answers 400 where the token in the URL has expired.
_GONE = (400, 401, 403, 404, 410)


def download(url: str, most_bytes: int, network: Network = DIRECT) -> bytes:
    """The file, every byte as it was sent: one that was sent as gzip is gzip still, since httpx's decoder gives the first
    member of several, or a part of one cut short, for the whole.

    Raises `UrlExpired`, `Refused` (too large, moved) or, after the last attempt, `Transient`.
    """
    failures = 0

    def again(error: Exception) -> bool:
        nonlocal failures
        failures += 1
        return isinstance(error, Transient) and failures < ATTEMPTS

    with client(network, TIMEOUT) as http:
        for attempt in stamina.retry_context(again, attempts=None, timeout=None, wait_max=4.0, wait_jitter=0.5):
            with attempt:
                file, has_length = _once(http, url, most_bytes)
                # Without its length a part of it would look whole, but nothing is cut twice at the same byte.
                if not has_length and _once(http, url, most_bytes)[0] != file:
                    raise Transient("the file host does not say how long the file is, and sent two that differ")
                return file
    raise AssertionError("retry_context neither returned nor raised")


def _once(http: httpx.Client, url: str, most_bytes: int) -> tuple[bytes, bool]:
    """The file, and whether its host said where it ends."""
    deadline = time.monotonic() + DOWNLOAD_LIMIT_S
    pieces, size, host = [], 0, ""
    try:
        host = httpx.URL(url).host
        with http.stream("GET", url, headers={"Accept-Encoding": "identity"}) as response:
            status = response.status_code
            if status != 200:
                answered = f"the file host {host} answered HTTP {status}{_said(response)}"
                if status in _GONE:
                    raise UrlExpired(f"{answered}: the URL has expired")
                if status >= 500 or status in (408, 429):
                    raise Transient(answered)
                raise Refused(f"{answered} instead of the file")
            encoding = response.headers.get("Content-Encoding", "identity").lower()
            if encoding not in ("identity", "gzip", "x-gzip"):
                raise Refused(
                    f"the file host {host} sent the file in the encoding {encoding!r}, which nobody asked for"
                )
            for piece in response.iter_raw():
                pieces.append(piece)
                size += len(piece)
                if size > most_bytes:
                    raise Refused(f"the file of {host} is larger than {most_bytes >> 20} MiB")
                if time.monotonic() > deadline:
                    raise Transient(f"the file of {host} did not end within {DOWNLOAD_LIMIT_S} s")
            return b"".join(pieces), bool({"content-length", "transfer-encoding"} & response.headers.keys())
    except httpx.InvalidURL:
        raise Refused("the URL of the file is none that can be asked") from None
    except httpx.TransportError as error:
        # Not its text: it may quote the URL.
        raise Transient(f"the file host {host} did not send the whole file ({type(error).__name__})") from None


def _said(response: httpx.Response) -> str:
    """The redirect target and the message that the host sent in place of a file, in brackets."""
    body = b""
    for piece in response.iter_raw():
        body += piece
        if len(body) > MAX_ERROR_BYTES:
            break
    target = redirect_target(response.status_code, response.headers)
    message = read_error(body, response.headers.get("Content-Type", "")).message
    said = "; ".join(each for each in (target and f"a redirect to {target}", message) if each)
    return f" ({said})" if said else ""
