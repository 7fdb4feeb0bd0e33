"""The signature of a request to LBank. Independent of endpoints, responses and retries."""

import secrets
from collections.abc import Callable, Generator
from hashlib import md5
from string import ascii_letters, digits
from typing import Literal
from urllib.parse import parse_qsl

import httpx

from affiliate_pipeline.http.encoding import encode, read_secret

ECHOSTR_CHARACTERS = 35  # 30 to 40 are accepted


class OtherKindOfSecret(ValueError):
    """The secret is not of the kind that the signature method requires."""


class LBankAuth(httpx.Auth):
    """Sorts each request's parameters and adds `sign`, computed from the values before percent-encoding.

    The given request is not changed: each attempt gets a new signature and echostr.
    `secret` is an HMAC secret or, for `RSA`, a private key in any form of `read_secret`; ValueError if unusable.
    """

    def __init__(
        self, api_key: str, secret: str, method: Literal["HmacSHA256", "RSA"], now_ms: Callable[[], int]
    ) -> None:
        self._api_key, self._method, self._now_ms = api_key, method, now_ms
        self._sign = _signer(secret, method)

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Yield the signed copy of the request."""
        echostr = "".join(secrets.choice(ascii_letters + digits) for _ in range(ECHOSTR_CHARACTERS))
        signing_params = {
            "timestamp": str(self._now_ms()),
            "signature_method": self._method,
            "echostr": echostr,
        }
        unsigned = _params(request.url) | signing_params | {"api_key": self._api_key}
        params = dict(sorted(unsigned.items()))
        raw = "&".join(f"{name}={value}" for name, value in params.items())
        digest = md5(raw.encode(), usedforsecurity=False).hexdigest().upper()
        params["sign"] = self._sign(digest.encode())

        url = request.url.copy_with(query=encode(params).encode())
        if _params(url) != params:
            raise RuntimeError("httpx would send parameters that differ from the signed ones")

        # LBank's official client sends `signing_params` as headers, known clients of the affiliate API as parameters:
        # send both.
        headers = request.headers.copy()
        headers.update(signing_params)
        yield httpx.Request(request.method, url, headers=headers, stream=request.stream, extensions=request.extensions)


def _params(url: httpx.URL) -> dict[str, str]:
    """The query's decoded parameters; an empty one (`coin=`) is a parameter too, and is signed."""
    return dict(parse_qsl(url.query.decode(), keep_blank_values=True))


def _signer(secret: str, method: str) -> Callable[[bytes], str]:
    """A function that signs a digest with `secret`; its result is not percent-encoded."""
    if method not in ("HmacSHA256", "RSA"):
        raise ValueError("the signature method is neither HmacSHA256 nor RSA")
    read = read_secret(secret)
    match read.kind, method:
        case ("HMAC", "HmacSHA256") | ("RSA", "RSA"):
            return read.sign
        case "HMAC", _:
            raise OtherKindOfSecret("the secret is not a private key, and the method is RSA: one of them is wrong")
        case "RSA", _:
            raise OtherKindOfSecret("the secret is a private key, and the method is HmacSHA256: one of them is wrong")
        case kind, _:
            raise ValueError(f"the secret is a private key of type {kind}, which LBank does not accept: use RSA")
