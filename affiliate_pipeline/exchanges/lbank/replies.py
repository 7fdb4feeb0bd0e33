"""What LBank's answers mean: its envelope and error codes as our errors. No request is sent from here."""

import msgspec

from affiliate_pipeline.rest.client import Reply
from affiliate_pipeline.rest.errors import AccessRefused, ClockOff, Fatal, RateLimited, Refused, Transient
from affiliate_pipeline.rest.redact import redact

# Affiliate API v1.5 and the exchange's list of common error codes.
_TRANSIENT_CODES = {10000, 10017}
_TOO_MANY = 10004
_CLOCK = 10600
_CLOSED = 10601
_ACCESS_CODES = {
    10002: "It refuses the API key or its signature: check LBANK_API_KEY and LBANK_API_SECRET",
    10005: "It refuses the API key: check LBANK_API_KEY",
    10006: "It refuses the API key or the openId asked for: check LBANK_API_KEY and LBANK_OPEN_ID",
    10007: "It refuses the signature: check that LBANK_API_SECRET belongs to LBANK_API_KEY and is of the kind that "
    "LBANK_SIGNATURE_METHOD says",
    10022: "The key has no permission for this, or this machine's IP address is not on its list, or the openId asked for "
    "is not ours: check them in LBank's API management, LBANK_API_KEY and LBANK_OPEN_ID",
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
    status, body = reply.status_code, reply.content
    if status in (418, 429):
        raise RateLimited(f"LBank answered HTTP {status}", reply.retry_after_s)
    if body.lstrip()[:1] == b"<":
        raise Transient(f"LBank answered HTTP {status} with a web page (HTML): its firewall, or trouble of its own")
    try:
        envelope = _decoder.decode(body)
    except msgspec.DecodeError as error:
        raise Transient(f"LBank answered HTTP {status} with something that is not its envelope ({error})") from None
    if str(envelope.result).lower() == "true":
        data = bytes(envelope.data)
        if data == b"null":
            raise Transient("LBank answered without data")
        return data
    code = _whole(envelope.error_code)
    text = f"LBank answered error_code {code}: {redact(envelope.msg or 'no message').rstrip('.')}"
    if code == _TOO_MANY:
        raise RateLimited(text, reply.retry_after_s)
    if code is None or code in _TRANSIENT_CODES or status >= 500:
        raise Transient(text)
    if code == _CLOCK:
        raise ClockOff(f"{text}. The clock of this machine is off: set it by NTP", _whole(envelope.ts))
    if code == _CLOSED:
        raise Fatal(f"{text}. The exchange has closed this interface: ask its support")
    if code in _ACCESS_CODES:
        raise AccessRefused(f"{text}. {_ACCESS_CODES[code]}", code)
    raise Refused(text)


def _whole(value: object) -> int | None:
    try:
        return int(float(str(value)))
    except (ValueError, OverflowError):
        return None
