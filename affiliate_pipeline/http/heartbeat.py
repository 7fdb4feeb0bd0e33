"""The call by which somebody outside knows that all is well (a dead-man's switch). Knows neither exchange nor day."""

import httpx

from affiliate_pipeline.http.errors import ExchangeError
from affiliate_pipeline.http.network import DIRECT, Network, client

TIMEOUT_S = 10


def beat(url: str, network: Network = DIRECT) -> str | None:
    """Calls the URL; why it could not be called, None if it was. The URL is a secret and stands in no text."""
    try:
        with client(network, TIMEOUT_S, redirects=True) as http, http.stream("GET", url) as answer:
            return None if answer.is_success else f"it answered HTTP {answer.status_code}"
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return type(error).__name__
    except ExchangeError as error:  # about the proxy or the certificate
        return str(error)
