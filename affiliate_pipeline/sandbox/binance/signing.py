"""How Binance verifies a signed call; which account may call what is not checked here."""

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
    # The signed text is the query followed directly by the body; the signature has to be the last parameter.
    before, last = (call.query, call.body) if call.body else ("", call.query)
    head, found, _ = f"&{last}".rpartition("&signature=")
    if not found or call.pairs[-1][0] != "signature":
        raise Refused(-1022)
    if not verifier(secret_or_public_pem)((before + head[1:]).encode(), signature):
        raise Refused(-1022)
    sent_at = params.integer("timestamp")
    recv_window = params.integer("recvWindow") if "recvWindow" in params else DEFAULT_RECV_WINDOW_MS
    if recv_window > MAX_RECV_WINDOW_MS:
        raise Refused(-1131)
    if not -recv_window <= sent_at - clock_ms <= MAX_AHEAD_MS:
        raise Refused(-1021)
