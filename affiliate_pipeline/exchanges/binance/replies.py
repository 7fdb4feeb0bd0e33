"""What Binance's answers mean: its error codes and HTTP statuses as our errors. No request is sent from here."""

import re

import msgspec

from affiliate_pipeline.rest.client import Reply
from affiliate_pipeline.rest.errors import AccessRefused, ClockOff, RateLimited, Refused, Transient
from affiliate_pipeline.rest.redact import redact

SERVER_TIME_PATH = "/api/v3/time"

# https://developers.binance.com/docs/binance-spot-api-docs/errors, read 2026-11.
_TRANSIENT_CODES = {-1000, -1001, -1006, -1007, -1008, -1016}
_TOO_MANY = -1003
_CLOCK = -1021
_SIGNATURE = -1022
_ACCESS_CODES = {-1002, -2014, -2015}


_BANNED_UNTIL = re.compile(r"banned until (\d{13})\b")


class _Error(msgspec.Struct):
    code: int
    msg: str | None = None


# Some write the code as text.
_error_decoder = msgspec.json.Decoder(_Error, strict=False)


class _ServerTime(msgspec.Struct, rename="camel"):
    server_time: int


def read(reply: Reply, key_name: str, secret_name: str) -> bytes:
    """The body of a good answer; else raises the `ExchangeError` that says what is wrong, and names the two variables
    where the key or its secret may be."""
    status = reply.status_code
    html = reply.content.lstrip()[:1] == b"<"
    error = _error(reply.content)
    # Errors may come with HTTP 200 as well; what is none has no code or, as a collection that began, a positive one.
    if status == 200 and not html and not (error and error.code < 0):
        return reply.content
    text = f"Binance answered HTTP {status}" + (
        f", code {error.code}: {redact(error.msg or 'no message').rstrip('.')}" if error else ""
    )
    if status in (418, 429) or (error and error.code == _TOO_MANY):
        raise RateLimited(text, _retry_after_s(reply, error))
    if html or status >= 500 or (error is None and status == 403):
        raise Transient(f"{text} with a web page (HTML)" if html else text)
    if error is None:
        raise Refused(f"{text}, without an explanation")
    if error.code == _CLOCK:
        raise ClockOff(f"{text}. Set this machine's clock by NTP")
    if error.code == _SIGNATURE:
        raise AccessRefused(f"{text}. The secret does not belong to the API key: check {secret_name} and {key_name}")
    if error.code in _ACCESS_CODES or status in (401, 403, 451):
        raise AccessRefused(
            f"{text}. Binance does not say which: the API key ({key_name}) is wrong, this machine's IP address is not on "
            "the key's list, or the key lacks the permission to read"
        )
    if error.code in _TRANSIENT_CODES:
        raise Transient(text)
    raise Refused(text)


def server_time_ms(body: bytes) -> int:
    """The exchange's clock from the body of `SERVER_TIME_PATH`; raises ValueError."""
    try:
        return msgspec.json.decode(body, type=_ServerTime).server_time
    except msgspec.DecodeError:
        raise ValueError("no serverTime in the answer") from None


def _error(body: bytes) -> _Error | None:
    try:
        return _error_decoder.decode(body)
    except msgspec.DecodeError:
        return None


def _retry_after_s(reply: Reply, error: _Error | None) -> float | None:
    """The longest silence that the header or the message asks for; None if neither does."""
    asked = [] if reply.retry_after_s is None else [reply.retry_after_s]
    if error and (banned := _BANNED_UNTIL.search(error.msg or "")):
        asked.append(max(0.0, int(banned[1]) / 1000 - reply.sent_s))
    return max(asked, default=None)
