"""How LBank verifies a signed call; the rate limit is in `exchange`."""

import re
from collections.abc import Mapping
from email.message import Message
from hashlib import md5
from urllib.parse import parse_qsl

from affiliate_pipeline.sandbox.exchange import Call
from affiliate_pipeline.sandbox.lbank.parameters import LBankParameters
from affiliate_pipeline.sandbox.parameters import Refused
from affiliate_pipeline.sandbox.signatures import is_public_key, verifier

MAX_CLOCK_DIFFERENCE_MS = 60_000
ECHOSTR = re.compile(r"[A-Za-z0-9]{30,40}")
SIGNING_PARAMETERS = ("api_key", "timestamp", "signature_method", "echostr")


def api_key_of(call: Call) -> str | None:
    """The key that the call names, not yet verified."""
    return dict(_pairs(call)).get("api_key") or call.headers.get("api_key")


def verified(call: Call, keys: Mapping[str, str], clock_ms: int) -> LBankParameters:
    """Verify the call; return its parameters without those of the signature."""
    pairs = _pairs(call)
    params = LBankParameters(pairs)
    _add_from_headers(params, call.headers)
    secret_or_public_pem = keys.get(params["api_key"])
    if secret_or_public_pem is None:
        raise Refused(10005)
    sign = params.pop("sign", "")
    if not sign:
        raise Refused(10001, "sign")
    if len(dict(pairs)) < len(pairs):
        raise Refused(10003)
    if not ECHOSTR.fullmatch(params["echostr"]):
        raise Refused(10031)
    if abs(params.integer("timestamp") - clock_ms) > MAX_CLOCK_DIFFERENCE_MS:
        raise Refused(10600)
    if params["signature_method"] not in ("HmacSHA256", "RSA"):
        raise Refused(10003, "signature_method")
    if not _is_signed(params, sign, secret_or_public_pem):
        raise Refused(10007)
    return LBankParameters({name: value for name, value in params.items() if name not in SIGNING_PARAMETERS})


def _pairs(call: Call) -> list[tuple[str, str]]:
    # Unlike in `Call.pairs`, a '+' is a blank.
    return parse_qsl(call.query, keep_blank_values=True)


def _add_from_headers(params: LBankParameters, headers: Message) -> None:
    """Add the `SIGNING_PARAMETERS` sent as headers; refuse if one is missing or differs from that of the query."""
    for name in SIGNING_PARAMETERS:
        header = headers.get(name)
        if header and name not in params:
            params[name] = header
        if header and params[name] != header:
            raise Refused(10003, name)
        if not params.get(name):
            raise Refused(10001, name)


def _is_signed(params: LBankParameters, sign: str, secret_or_public_pem: str) -> bool:
    is_rsa = is_public_key(secret_or_public_pem)
    if params["signature_method"] != ("RSA" if is_rsa else "HmacSHA256"):
        return False
    # An HMAC has to be in lower case, which the verifier does not check.
    if not is_rsa and sign != sign.lower():
        return False
    text = "&".join(f"{name}={value}" for name, value in sorted(params.items()))
    digest = md5(text.encode(), usedforsecurity=False).hexdigest().upper()
    return verifier(secret_or_public_pem)(digest.encode(), sign)
