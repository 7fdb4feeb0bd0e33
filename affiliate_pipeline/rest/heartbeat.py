"""The call by which somebody outside knows that all is well (a dead-man's switch). Knows neither exchange nor day."""

import httpx

from affiliate_pipeline.rest.redact import silence_http_logs

TIMEOUT_S = 10


def beat(url: str) -> str | None:
    """Calls the URL; why it could not be called, None if it was. The URL is a secret and stands in no text."""
    silence_http_logs()
    try:
        with httpx.stream("GET", url, timeout=TIMEOUT_S, follow_redirects=True) as answer:
            return None if answer.is_success else f"it answered HTTP {answer.status_code}"
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return type(error).__name__
