"""The signature of a request to Binance. Independent of endpoints, responses and retries."""

from collections.abc import Callable, Generator
from urllib.parse import quote

import httpx

from affiliate_pipeline.http.encoding import check_api_key, read_secret

RECV_WINDOW_MS = 10_000


class BinanceAuth(httpx.Auth):
    """Signs each request with `recvWindow`, `timestamp`, the key's header and `signature`.

    The signature covers the exact bytes of query and body, and comes last. The given request is not changed: each
    attempt gets a new signature.
    `secret` is an HMAC secret or a private key (RSA or Ed25519) in any form of `read_secret`; ValueError if unusable.
    """

    requires_request_body = True

    def __init__(self, api_key: str, secret: str, now_ms: Callable[[], int]) -> None:
        # Checked here because the HTTP layer's own error for an illegal header quotes its value.
        check_api_key(api_key, secret)
        self._api_key = api_key
        self._now_ms = now_ms
        self._sign = read_secret(secret).sign

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Yield the signed copy of the request."""
        signing_params = b"recvWindow=%d&timestamp=%d" % (RECV_WINDOW_MS, self._now_ms())
        payload = b"&".join(filter(None, (request.url.query, signing_params)))
        signature = quote(self._sign(payload + request.content), safe="").encode()
        query = payload + b"&signature=" + signature
        url = request.url.copy_with(query=query)
        _, _, sent_query = url.raw_path.partition(b"?")
        if sent_query != query:
            raise RuntimeError("httpx would send a query that differs from the signed one")
        headers = request.headers.copy()
        headers["X-MBX-APIKEY"] = self._api_key
        yield httpx.Request(request.method, url, headers=headers, stream=request.stream, extensions=request.extensions)
