"""Code and message of a response body that is not the requested data, redacted for quoting."""

import html
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

from affiliate_pipeline.domain.redaction import redact

MAX_MESSAGE_CHARACTERS = 200
# Enough for any message.
_MAX_TEXT_BYTES = 64 << 10
_MAX_DEPTH = 5
_MAX_ITEMS = 5
_CODE_NAMES = ("code", "errorcode", "errcode", "errno", "retcode", "status", "statuscode")
_MESSAGE_NAMES = (
    *("msg", "message", "messagedetail", "errormsg", "errmsg", "errormessage", "title", "error", "errors"),
    *("errordescription", "description", "detail", "details", "reason", "cause"),
)
# Messages that mean a failure, whatever the status and code. Compiled when a request fails, not at start-up.
TOO_MANY = r"(?i)too many requests|rate.?limited|banned until"
UNSERVED_LOCATION = (
    r"(?i)restricted (location|area|region|countr|jurisdiction)|(in|from) your (country|region|location)"
)
MAINTENANCE = (
    r"(?i)maintenance|maintain(ing|ed)|service (is )?(temporarily |currently )?unavailable|temporarily unavailable|"
    r"(system|server|service) (is )?(too )?(busy|overloaded)|being upgraded|system upgrade|维护|系统繁忙|系统升级|服务不可用"
)
# A decimal number; the first group is its integer part.
_NUMBER = r"([+-]?[0-9]{1,18})(\.[0-9]+)?"
_CHARSET = rb"(?i)charset\s*=\s*[\"']?([\w-]+)"
# Of HTML or XML: invisible parts, tags, and the elements in which XML names an error.
_INVISIBLE = r"(?is)<!--.*?(?:-->|\Z)|<(script|style|noscript|template|svg)\b.*?(?:</\1\s*>|\Z)"
_TAG = r"<[^<>]*>"
_NAMED = r"(?is)<(code|message|msg)\b[^<>]*>([^<>]+)<"
_QUERY = r"(\w+://[^\s?#\"'<>]*)[?#][^\s\"'<>]*"
# Texts with the length of a key or signature: a message may quote one without the name by which `redact` finds it.
_LONG_RANDOM = r"(?<![\w/.-])(?=\w*[0-9])(?=\w*[A-Za-z])\w{32,}(?![\w.])"


@dataclass(frozen=True)
class ErrorBody:
    """The error that a response's body describes.

    `message` is one short redacted line, empty if the body has none; `is_markup`: the body is HTML or XML;
    `is_message`: `message` is an error message and not the beginning of data; `is_failure`: the body reports a failure,
    whatever the HTTP status.
    """

    code: int | None
    message: str
    is_markup: bool = False
    is_message: bool = True
    is_failure: bool = True

    @property
    def http_status(self) -> int | None:
        """The HTTP status, if the body has that in place of the exchange's own code."""
        return self.code if self.code is not None and 400 <= self.code < 600 else None


def read_error(body: bytes, content_type: str = "") -> ErrorBody:
    """The code and the message of any body; never raises."""
    text = _text(body, content_type)
    looks_like_json = text.startswith(("{", "["))
    is_declared_html = "html" in content_type.lower()
    if text.startswith("<") or (is_declared_html and text and not looks_like_json):
        return _read_markup(text)

    value = _json(text)
    fields = _fields(value)
    codes_and_messages = list(_codes_and_messages(value))
    code = next((each for each in codes_and_messages if isinstance(each, int)), None)
    messages = [each for each in codes_and_messages if isinstance(each, str) and each.strip()]

    # If there is no message, the text itself is the message, unless all its fields are codes and empty messages.
    has_no_other_field = code is not None and bool(fields) and fields.keys() <= {*_CODE_NAMES, *_MESSAGE_NAMES}
    if messages:
        message = _line("; ".join(dict.fromkeys(messages)))
    elif has_no_other_field:
        message = ""
    else:
        message = _line(text)

    is_message = bool(messages) or not looks_like_json
    is_failure = _reports_failure(fields, code) or (is_message and _means_failure(message))
    return ErrorBody(code, message, is_message=is_message, is_failure=is_failure)


def _means_failure(message: str) -> bool:
    return any(re.search(pattern, message) for pattern in (UNSERVED_LOCATION, TOO_MANY, MAINTENANCE))


def quote(body: bytes, content_type: str = "") -> str:
    """The beginning of a body as one redacted line."""
    return _line(_text(body, content_type)) or "nothing"


def as_integer(value: object) -> int | None:
    """The integer part of a JSON number or of a number as text; None for any other value."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    found = re.fullmatch(_NUMBER, str(value).strip())
    return int(found[1]) if found else None


def _codes_and_messages(value: Any, depth: int = 0) -> Iterator[int | str]:
    """Codes as numbers and messages as texts, in the order of `_CODE_NAMES` and then `_MESSAGE_NAMES`.

    A text that is JSON itself is searched too.
    """
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        value = _json(value) or value
    if depth > _MAX_DEPTH or value is None or isinstance(value, bool):
        return

    if isinstance(value, list):
        for each in cast(list[Any], value)[:_MAX_ITEMS]:
            yield from _codes_and_messages(each, depth + 1)
    elif isinstance(value, dict):
        fields = _fields(value)
        for name in _CODE_NAMES:
            yield from _found_code(name, fields.get(name))
        for name in _MESSAGE_NAMES:
            yield from _codes_and_messages(fields.get(name), depth + 1)
    else:
        yield str(value)


def _found_code(name: str, code: Any) -> Iterator[int | str]:
    """The field's code as a number, or its text, which counts as a message; of a status, only an HTTP error."""
    number = as_integer(code)
    if name.startswith("status"):  # an HTTP status or a state, not the exchange's own code
        if number is not None and 400 <= number < 600:
            yield number
    elif number is not None:
        yield number
    elif isinstance(code, str):
        yield code


def _reports_failure(fields: dict[str, Any], code: int | None) -> bool:
    """Whether an object's code or its fields `success`, `error`, `errors` or `status` report a failure."""
    if not fields:
        return False
    success = str(fields.get("success")).lower()
    if success in ("false", "0"):
        return True
    if code is not None and code < 0:
        return True
    if code not in (None, 0, 200) and success not in ("true", "1"):
        return True
    if fields.get("errors") or fields.get("error") not in (None, False, 0, "", "0", [], {}):
        return True
    return str(fields.get("status")).lower() in ("error", "fail", "failed", "failure")


def _fields(value: Any) -> dict[str, Any]:
    """An object's fields by lower-case name without separators; empty for any other value."""
    fields = cast(dict[str, Any], value) if isinstance(value, dict) else {}
    return {re.sub(r"[\s_-]", "", name).lower(): each for name, each in fields.items()}


def _json(text: str) -> Any:
    """The value of a JSON text, parsed more leniently than data; None if it is invalid."""
    with suppress(ValueError, RecursionError):
        return json.loads(text)


def _read_markup(text: str) -> ErrorBody:
    text = re.sub(_INVISIBLE, " ", text)
    # Reversed, so that the first element of each name counts.
    elements = {name.lower(): html.unescape(content).strip() for name, content in reversed(re.findall(_NAMED, text))}
    message = elements.get("message") or elements.get("msg")
    if message:
        code = elements.get("code", "")
        number = as_integer(code)
        if code and number is None:
            message = f"{code}: {message}"
        return ErrorBody(number, _line(message), is_markup=True)

    texts = [" ".join(html.unescape(piece).split()) for piece in re.split(_TAG, text)]
    distinct = dict.fromkeys(each for each in texts if each)
    return ErrorBody(None, _line(" ".join(distinct)), is_markup=True)


def _text(body: bytes, content_type: str) -> str:
    """The beginning of the body as text, unpacked if it is gzip, in the first encoding that fits."""
    if body[:2] == b"\x1f\x8b":  # gzip that no header declares
        try:
            body = zlib.decompressobj(wbits=31).decompress(body, _MAX_TEXT_BYTES)
        except zlib.error:
            return "compressed data that cannot be read"
    # The end of a truncated body may be a part of a character.
    errors = "replace" if len(body) >= _MAX_TEXT_BYTES else "strict"
    body = body[:_MAX_TEXT_BYTES]

    encodings = [json.detect_encoding(body)]
    declared = re.search(_CHARSET, content_type.encode(errors="replace")) or re.search(_CHARSET, body[:1024])
    if declared:
        encodings.append(declared[1].decode())
    encodings.append("gb18030")
    for encoding in encodings:
        with suppress(UnicodeError, LookupError):
            return body.decode(encoding, errors).strip()
    return body.decode("latin-1").strip()


def _line(text: str) -> str:
    """The text as one line without control characters, secrets, URL queries and full emails."""
    # More than the maximum, since white space and redaction shorten the text.
    beginning = text[: 8 * MAX_MESSAGE_CHARACTERS]
    printable = "".join(each if each.isprintable() else " " for each in beginning)
    line = " ".join(printable.split())
    line = redact(re.sub(_QUERY, r"\1?***", line))
    line = re.sub(_LONG_RANDOM, "***", line)
    if len(line) <= MAX_MESSAGE_CHARACTERS:
        return line
    return line[:MAX_MESSAGE_CHARACTERS].rstrip() + "…"
