"""Interpretation of Binance's responses: error codes and HTTP statuses as our errors."""

import msgspec

from affiliate_pipeline.http.client import Response
from affiliate_pipeline.http.errors import AccessRefused, RateLimited, TimestampRejected, Transient
from affiliate_pipeline.http.failures import Interpreter, Meaning, error_of

SERVER_TIME_PATH = "/api/v3/time"
UID_PATH = "/api/v3/account"
# If the request for the uid is refused with one of these codes, the key may only lack the permission to read the uid.
# If the key itself is wrong, the next request is refused too.
PERMISSION_CODES = (-1002, -2015)

# https://developers.binance.com/docs/binance-spot-api-docs/errors, read 2026-11. For most codes about the key, only the
# message gives the reason.
_CODES = {
    **dict.fromkeys((-1000, -1001, -1006, -1007, -1008, -1016), Meaning(Transient)),
    **dict.fromkeys(
        (-1002, -1099, -2008, -2017), Meaning(AccessRefused, "Check {key} and its settings at the exchange")
    ),
    -1003: Meaning(RateLimited),
    -1021: Meaning(TimestampRejected, "Set this machine's clock by NTP"),
    -1022: Meaning(
        AccessRefused, "The secret does not belong to the API key: check {secret} and {key}", causes=("signature",)
    ),
    -2014: Meaning(AccessRefused, "Check that {key} is the whole API key and nothing else", causes=("key",)),
    -2015: Meaning(
        AccessRefused,
        "Usually the API key ({key}) is wrong, this machine's IP address is not on the key's list, or the key lacks the "
        "permission to read",
        causes=("key", "address", "permission"),
    ),
}


class _ServerTime(msgspec.Struct, rename="camel"):
    server_time: int


def read(response: Response, key_name: str, secret_name: str) -> bytes:
    """The body of a successful response; otherwise raises an `ExchangeError`.

    The error names the two variables if the key or its secret may be wrong.
    """
    # A list is rows: do not parse it a second time in search of an error.
    if response.status_code == 200 and response.content.lstrip()[:1] == b"[":
        return response.content
    error = error_of(response)
    # Errors may come with HTTP 200 as well.
    if response.status_code == 200 and not error.is_failure:
        return response.content
    raise Interpreter("Binance", _CODES, key_name, secret_name, "BINANCE_BASE_URL").failure(response, error) from None


class _Account(msgspec.Struct):
    uid: int | None = None


def uid(body: bytes) -> str | None:
    """The account's uid from the body of `UID_PATH`; None if it has no usable one. Raises ValueError."""
    try:
        found = msgspec.json.decode(body, type=_Account).uid
    except msgspec.ValidationError:
        return None
    except msgspec.DecodeError:
        raise ValueError("the response is not JSON") from None
    return None if found is None else str(found)


class _Agent(msgspec.Struct, rename="camel"):
    rebate_working: bool = True


def agent_problem(body: bytes) -> str:
    """What the response reports as wrong with the agent's code, as the rest of a sentence; empty: nothing."""
    try:
        works = msgspec.json.decode(body, type=_Agent).rebate_working
    except msgspec.DecodeError:  # the assets that read the response report it
        return ""
    return "" if works else "is not a code that works for this client: Binance returned rebateWorking false"


def server_time_ms(body: bytes) -> int:
    """The exchange's clock from the body of `SERVER_TIME_PATH`; raises ValueError."""
    try:
        return msgspec.json.decode(body, type=_ServerTime).server_time
    except msgspec.DecodeError:
        raise ValueError("the response has no serverTime") from None
