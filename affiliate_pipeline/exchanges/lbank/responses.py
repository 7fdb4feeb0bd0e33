"""Interpretation of LBank's responses: the envelope, and error codes as our errors."""

from collections.abc import Callable

import msgspec

from affiliate_pipeline.exchanges.lists import NO_LIST
from affiliate_pipeline.http.client import Response
from affiliate_pipeline.http.error_body import as_integer
from affiliate_pipeline.http.errors import (
    AccessRefused,
    ExchangeError,
    Fatal,
    RateLimited,
    TimestampRejected,
    Transient,
)
from affiliate_pipeline.http.failures import Interpreter, Meaning, error_of

# Affiliate API v1.5 and the exchange's list of common error codes.
_CODES = {
    10000: Meaning(Transient),
    10017: Meaning(Transient),
    10004: Meaning(RateLimited),
    10600: Meaning(TimestampRejected, "The clock of this machine is off: set it by NTP"),
    10601: Meaning(Fatal, "The exchange has closed this interface: contact its support"),
    10002: Meaning(
        AccessRefused, "The API key or its signature is wrong: check {key} and {secret}", causes=("key", "signature")
    ),
    10005: Meaning(AccessRefused, "The API key is wrong: check {key}", causes=("key",)),
    10006: Meaning(
        AccessRefused, "The API key or the openId is wrong: check {key} and {open_id}", causes=("key", "user")
    ),
    10007: Meaning(
        AccessRefused,
        "The signature is wrong: check that {secret} belongs to {key} and is of the kind that {method} names",
        causes=("signature",),
    ),
    10022: Meaning(
        AccessRefused,
        "Usually the key has no permission for this, or this machine's IP address is not on its list, or the openId is not "
        "ours: check them in LBank's API management, {key} and {open_id}",
        causes=("permission", "address", "user", "key"),
    ),
}
# These two may be about the requested openId and not about us.
OPEN_ID_CODES = {10006, 10022}
# The openId is not under the key's account, or the key lacks the permission.
STRANGER_CODE = 10022
CLOSED_CODE = 10601


def _interpreter(variable: Callable[[str], str]) -> Interpreter:
    return Interpreter(
        "LBank",
        _CODES,
        key_name=variable("LBANK_API_KEY"),
        secret_name=variable("LBANK_API_SECRET"),
        base_url_name="LBANK_BASE_URL",
        code_name="error_code",
        more_names={"open_id": variable("LBANK_OPEN_ID"), "method": variable("LBANK_SIGNATURE_METHOD")},
    )


class _Envelope(msgspec.Struct):
    """Only what identifies a successful response is typed: the rest may be of any type."""

    result: str | bool
    error_code: object = None
    data: msgspec.Raw = msgspec.Raw(b"null")
    ts: object = None


_decoder = msgspec.json.Decoder(_Envelope)


def read(response: Response, variable: Callable[[str], str] = lambda name: name) -> bytes:
    """The `data` of a successful response as JSON; otherwise raises an `ExchangeError`.

    For the text of the error, `variable` turns the name of the default account's variable (LBANK_API_KEY) into that of
    this account's (LBANK_API_KEY__ACME).
    """
    try:
        envelope = _decoder.decode(response.content)
    except msgspec.DecodeError:
        envelope = None

    if envelope and _reports_success(envelope) and response.status_code not in (418, 429):
        data = bytes(envelope.data)
        has_list = data not in NO_LIST
        # Without a list, the code has to mean success too.
        if has_list or as_integer(envelope.error_code) in (None, 0):
            return data

    raise _failure_of(response, envelope, _interpreter(variable)) from None


def _reports_success(envelope: _Envelope) -> bool:
    return str(envelope.result).lower() == "true"


def _failure_of(response: Response, envelope: _Envelope | None, interpreter: Interpreter) -> ExchangeError:
    """The error to raise for a failed response; `envelope` is None if it has none."""
    error = error_of(response)
    has_status_200 = response.status_code == 200
    lacks_envelope = envelope is None and has_status_200 and not error.is_markup
    note = " (not the envelope that its API sends)" if lacks_envelope else ""

    # A failure without a reason may be temporary.
    is_from_api = (envelope is not None or has_status_200) and not error.is_markup
    is_unexplained = is_from_api and error.code in (None, 0)
    meaning = Meaning(Transient) if is_unexplained else None

    failure = interpreter.failure(response, error, meaning, note)
    if isinstance(failure, TimestampRejected) and envelope:
        failure.server_ms = as_integer(envelope.ts)
    return failure
