"""What Binance's answers mean: its error codes and HTTP statuses as our errors. No request is sent from here."""

import msgspec

from affiliate_pipeline.http.client import Reply
from affiliate_pipeline.http.error_body import ErrorBody
from affiliate_pipeline.http.errors import AccessRefused, ClockOff, ExchangeError, RateLimited, Transient
from affiliate_pipeline.http.failures import agreeing, describe, error_of, failure, is_failure

SERVER_TIME_PATH = "/api/v3/time"

# https://developers.binance.com/docs/binance-spot-api-docs/errors, read 2026-11.
_TRANSIENT_CODES = {-1000, -1001, -1006, -1007, -1008, -1016}
_TOO_MANY = -1003
_CLOCK = -1021
_SIGNATURE = -1022
_FORMAT = -2014
_REJECTED = -2015
# Concern the key; only the message gives the reason.
_ACCESS_CODES = {-1002, -1099, -2008, -2017}


class _ServerTime(msgspec.Struct, rename="camel"):
    server_time: int


def read(reply: Reply, key_name: str, secret_name: str) -> bytes:
    """The body of a good answer; else raises the `ExchangeError` that says what is wrong, and names the two variables
    where the key or its secret may be."""
    # A list is rows: do not parse it a second time in search of an error.
    if reply.status_code == 200 and reply.content.lstrip()[:1] == b"[":
        return reply.content
    error = error_of(reply)
    # Errors may come with HTTP 200 as well.
    if reply.status_code == 200 and not is_failure(error):
        return reply.content
    text = describe("Binance", reply, error)
    by_code = _by_code(text, error, key_name, secret_name)
    raise failure(text, reply, error, by_code, key_name, "BINANCE_BASE_URL") from None


def _by_code(text: str, error: ErrorBody, key_name: str, secret_name: str) -> ExchangeError | None:
    """What Binance's own code means; None where there is none."""
    code = error.code
    if code == _TOO_MANY:
        return RateLimited(text, None)
    if code == _CLOCK:
        return ClockOff(f"{text}. Set this machine's clock by NTP")
    if code == _SIGNATURE:
        addition = f"The secret does not belong to the API key: check {secret_name} and {key_name}"
        return AccessRefused(agreeing(text, error, addition, "signature"))
    if code == _FORMAT:
        addition = f"Check that {key_name} is the whole API key and nothing else"
        return AccessRefused(agreeing(text, error, addition, "key"))
    if code == _REJECTED:
        addition = (
            f"Usually the API key ({key_name}) is wrong, this machine's IP address is not on the key's list, or the key "
            "lacks the permission to read"
        )
        return AccessRefused(agreeing(text, error, addition, "key", "address", "permission"))
    if code in _ACCESS_CODES:
        return AccessRefused(f"{text}. Check {key_name} and its settings at the exchange")
    return Transient(text) if code in _TRANSIENT_CODES else None


def server_time_ms(body: bytes) -> int:
    """The exchange's clock from the body of `SERVER_TIME_PATH`; raises ValueError."""
    try:
        return msgspec.json.decode(body, type=_ServerTime).server_time
    except msgspec.DecodeError:
        raise ValueError("no serverTime in the answer") from None
