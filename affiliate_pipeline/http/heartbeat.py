"""Ping of a dead man's switch, a service that alerts when pings stop."""

import httpx

from affiliate_pipeline.http.errors import ExchangeError
from affiliate_pipeline.http.network import DIRECT, Network, client

TIMEOUT_S = 10


def beat(url: str, network: Network = DIRECT) -> str | None:
    """Request the URL; returns why that failed, None if it succeeded. The URL is a secret and is in no text."""
    try:
        with client(network, TIMEOUT_S, redirects=True) as http, http.stream("GET", url) as response:
            return None if response.is_success else f"it answered HTTP {response.status_code}"
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return type(error).__name__
    except ExchangeError as error:  # about the proxy or the certificate
        return str(error)
