"""How a request to Binance is signed. No endpoint, answer or retry belongs here; the clock is given."""

import hmac
import re
from base64 import b64encode
from collections.abc import Callable, Generator
from urllib.parse import quote

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA256

from affiliate_pipeline.rest.encoding import means_private_key, private_key

RECV_WINDOW_MS = 10_000


class BinanceAuth(httpx.Auth):
    """Sends each request with `recvWindow`, `timestamp`, the key's header and, last, the `signature` of the
    exact bytes of query and body. The request given stays unsigned: sending it again signs it anew.

    `secret` is an HMAC secret, a PEM private key (RSA or Ed25519) or the path of one; ValueError if unusable.
    """

    requires_request_body = True

    def __init__(self, api_key: str, secret: str, now_ms: Callable[[], int]) -> None:
        # Checked here because the HTTP layer's own error for an illegal header quotes its value.
        if not re.fullmatch("[!-~]+", api_key):
            raise ValueError("the API key is empty or has a character that a header cannot carry")
        self._api_key = api_key
        self._sign = _signer(secret)
        self._now_ms = now_ms

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        stamp = b"recvWindow=%d&timestamp=%d" % (RECV_WINDOW_MS, self._now_ms())
        payload = request.url.query + b"&" + stamp if request.url.query else stamp
        signature = quote(self._sign(payload + request.content), safe="").encode()
        query = payload + b"&signature=" + signature
        url = request.url.copy_with(query=query)
        assert url.raw_path.partition(b"?")[2] == query, "httpx would send another query than the signed one"
        headers = request.headers.copy()
        headers["X-MBX-APIKEY"] = self._api_key
        yield httpx.Request(request.method, url, headers=headers, stream=request.stream, extensions=request.extensions)


def _signer(secret: str) -> Callable[[bytes], str]:
    """What signs a payload with `secret`, as text that is not yet percent-encoded."""
    if not means_private_key(secret):
        shared = secret.encode(errors="surrogateescape")
        return lambda payload: hmac.new(shared, payload, "sha256").hexdigest()
    match private_key(secret):
        case RSAPrivateKey() as key:
            return lambda payload: b64encode(key.sign(payload, PKCS1v15(), SHA256())).decode()
        case Ed25519PrivateKey() as key:
            return lambda payload: b64encode(key.sign(payload)).decode()
    raise ValueError("the private key is of a type that Binance does not take: use RSA or Ed25519")
