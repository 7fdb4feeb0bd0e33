"""Removal of secrets and email addresses from texts and logs."""

import logging
import re

_SENSITIVE_NAME = (
    r"[\w-]*(?:signature(?![-_]?method)|api[-_]?key|access[-_]?key|secret|token|password|credential|authorization|echostr)"
    r"|sign(?![\w-])"
)
# The lookbehind lets a match begin only where a name begins: otherwise a long name would take quadratic time. A value
# without quotes has to be on the line of its name: otherwise, after a name without a value, the start of the next line
# would be removed. A name directly before `://` is the scheme of a URL, so no value follows.
_NAMED = re.compile(
    rf"(?i)(?<![\w-])(?={_SENSITIVE_NAME})([\w-]+)([\"']?\s*[=:](?:\s*(?=[\"'])|[^\S\n]*))(?!//)((?:bearer|basic|digest|token)\s+)?"
    r"(\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|[^&\s\"',}]+)"
)
# After a colon, a sentence may continue: `SignatureDoesNotMatch: The request signature …`, `LBANK_API_SECRET: its key is …`.
_SENTENCE = re.compile(r"[A-Z]?[a-z]{0,11} [A-Za-z`(]")
_PEM = re.compile(r"-----BEGIN[^-]*-----.*?(-----END[^-]*-----|$)", re.DOTALL)
# Our own messages show how to write a URL as `scheme://user:password@host`.
_PASSWORD_IN_URL = re.compile(r"(?<!\w)(\w+://(?!user:password@host\b)[^\s:/@]*:)[^\s@/]+@")
_AT = r"(?:@|%40|\\u0040)"
_QUOTED_EMAIL = re.compile(rf"\"[^\"@]*\"{_AT}")
# A match begins after a separator. Its group, one or two characters, remains visible. Skipped are `***@`, which is what
# is left of a password in a URL or of a quoted local part, and `password@host` in our own messages.
_EMAIL = re.compile(
    rf"(?<![^\s@\"<>=,;:(&'])(?!\*\*\*@|password@host\b)([^\s@\"<>=,;:(&'][^\s@\"<>=,;:(]?)(?:(?!%40|\\u0040)[^\s@\"<>=,;:(])*{_AT}"
)


def redact(text: object) -> str:
    """The text with secrets replaced by `***` and emails' local parts cut to two characters."""
    clean = _PEM.sub("-----***-----", str(text))
    clean = _PASSWORD_IN_URL.sub(r"\1***@", clean)
    clean = _NAMED.sub(_without_secret, clean)
    return _EMAIL.sub(r"\1***@", _QUOTED_EMAIL.sub("***@", clean))


def _without_secret(found: re.Match[str]) -> str:
    name, separator, scheme, value = found.groups()
    if separator == ": " and not scheme and _SENTENCE.match(found.string, found.start(4)):
        return found[0]
    quote = value[0] if value[0] in "\"'" else ""
    return f"{name}{separator}{scheme or ''}{quote}***{quote}"


def silence_http_logs() -> None:
    """Drop httpx's and httpcore's logs below WARNING: they contain signed URLs and API keys."""
    # Filters are not inherited by child loggers, so each of httpcore's loggers is named.
    for name in ("httpx", *(f"httpcore.{part}" for part in ("connection", "http11", "http2", "proxy", "socks"))):
        logging.getLogger(name).addFilter(_is_warning)  # a filter is added only once


def _is_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING
