"""How Binance verifies a signed call; which role may call what is checked in `exchange`."""

import re

from affiliate_pipeline.sandbox.binance.parameters import BinanceParameters
from affiliate_pipeline.sandbox.exchange import Call
from affiliate_pipeline.sandbox.parameters import Refused
from affiliate_pipeline.sandbox.signatures import verifier

MAX_AHEAD_MS = 1000
DEFAULT_RECV_WINDOW_MS = 5000
MAX_RECV_WINDOW_MS = 60_000
SIGNING_PARAMETERS = frozenset({"timestamp", "recvWindow", "signature"})

# RFC 3986: unreserved characters, and %XX in upper case. Since 2026-01-15 the real server rebuilds the text that it
# verifies, so any other encoding makes the signature wrong.
_CHARACTER = r"(?:[A-Za-z0-9\-._~]|%[0-9A-F]{2})"
CANONICAL = re.compile(rf"(?:{_CHARACTER}+={_CHARACTER}*(?:&{_CHARACTER}+={_CHARACTER}*)*)?")


def verify(call: Call, secret_or_public_pem: str, clock_ms: int) -> None:
    """Refuse the call unless it has the account's signature and is within its recvWindow."""
    if not (CANONICAL.fullmatch(call.query) and CANONICAL.fullmatch(call.body)):
        raise Refused(-1022)
    if len(call.params) < len(call.pairs):
        raise Refused(-1101)
    params = BinanceParameters(call.params)
    signature = params.text("signature")
    if not verifier(secret_or_public_pem)(_signed_text(call).encode(), signature):
        raise Refused(-1022)

    sent_at = params.integer("timestamp")
    recv_window = params.integer("recvWindow") if "recvWindow" in params else DEFAULT_RECV_WINDOW_MS
    if recv_window > MAX_RECV_WINDOW_MS:
        raise Refused(-1131)
    ahead_ms = sent_at - clock_ms
    if not -recv_window <= ahead_ms <= MAX_AHEAD_MS:
        raise Refused(-1021)


def _signed_text(call: Call) -> str:
    """The query followed directly by the body, without the signature; refuses if it is not the last parameter."""
    last_name, _ = call.pairs[-1]
    if last_name != "signature":
        raise Refused(-1022)
    # The leading "&" is for a signature that is the only parameter of the query or the body.
    last_part = call.body or call.query
    head, separator, _ = f"&{last_part}".rpartition("&signature=")
    if not separator:  # the name is percent-encoded
        raise Refused(-1022)
    signed_part = head.removeprefix("&")
    return call.query + signed_part if call.body else signed_part
