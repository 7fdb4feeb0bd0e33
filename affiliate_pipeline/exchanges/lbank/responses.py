"""What LBank's answers mean: its envelope and error codes as our errors. No request is sent from here."""

import msgspec

from affiliate_pipeline.exchanges.lists import NO_LIST
from affiliate_pipeline.http.client import Reply
from affiliate_pipeline.http.error_body import ErrorBody, whole
from affiliate_pipeline.http.errors import AccessRefused, ClockOff, ExchangeError, Fatal, RateLimited, Transient
from affiliate_pipeline.http.failures import agreeing, describe, error_of, failure

# Affiliate API v1.5 and the exchange's list of common error codes.
_TRANSIENT_CODES = {10000, 10017}
_TOO_MANY = 10004
_CLOCK = 10600
_CLOSED = 10601
# What is usually wrong, and which causes a message may name without contradicting it.
_ACCESS_CODES = {
    10002: ("The API key or its signature is wrong: check LBANK_API_KEY and LBANK_API_SECRET", "key", "signature"),
    10005: ("The API key is wrong: check LBANK_API_KEY", "key"),
    10006: ("The API key or the openId is wrong: check LBANK_API_KEY and LBANK_OPEN_ID", "key", "user"),
    10007: (
        "The signature is wrong: check that LBANK_API_SECRET belongs to LBANK_API_KEY and is of the kind that "
        "LBANK_SIGNATURE_METHOD says",
        "signature",
    ),
    10022: (
        "Usually the key has no permission for this, or this machine's IP address is not on its list, or the openId is not "
        "ours: check them in LBank's API management, LBANK_API_KEY and LBANK_OPEN_ID",
        *("permission", "address", "user", "key"),
    ),
}
# These two may be about the openId asked for and not about us.
OPEN_ID_CODES = {10006, 10022}


class _Envelope(msgspec.Struct):
    """Only what tells a good answer is of a certain type: the rest may be sent in any way."""

    result: str | bool
    error_code: object = None
    msg: object = None
    data: msgspec.Raw = msgspec.Raw(b"null")
    ts: object = None


_decoder = msgspec.json.Decoder(_Envelope)


def read(reply: Reply) -> bytes:
    """The `data` of a good answer as JSON; else raises the `ExchangeError` that says what is wrong."""
    envelope = _envelope(reply.content)
    if envelope and str(envelope.result).lower() == "true" and reply.status_code not in (418, 429):
        data = bytes(envelope.data)
        # Where there is no list, the code has to say success too.
        if data not in NO_LIST or whole(envelope.error_code) in (None, 0):
            return data
    error = error_of(reply)
    text = describe("LBank", reply, error, "error_code")
    if envelope is None and reply.status_code == 200 and not error.is_page:
        text += " (not the envelope that its API sends)"
    by_code = _by_code(text, reply, error, envelope)
    raise failure(text, reply, error, by_code, "LBANK_API_KEY", "LBANK_BASE_URL") from None


def _by_code(text: str, reply: Reply, error: ErrorBody, envelope: _Envelope | None) -> ExchangeError | None:
    """What LBank's own code means, or that it gives none; None where only the HTTP status says it."""
    code = error.code
    if code == _TOO_MANY:
        return RateLimited(text, None)
    if code == _CLOCK:
        return ClockOff(f"{text}. The clock of this machine is off: set it by NTP", whole(envelope and envelope.ts))
    if code == _CLOSED:
        return Fatal(f"{text}. The exchange has closed this interface: ask its support")
    if code in _ACCESS_CODES:
        return AccessRefused(agreeing(text, error, *_ACCESS_CODES[code]), code)
    is_unexplained = code in (None, 0) and not error.is_page and (envelope or reply.status_code == 200)
    if code in _TRANSIENT_CODES or is_unexplained:
        return Transient(text)
    return None


def _envelope(body: bytes) -> _Envelope | None:
    try:
        return _decoder.decode(body)
    except msgspec.DecodeError:
        return None
