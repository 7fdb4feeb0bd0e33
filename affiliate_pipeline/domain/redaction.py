"""Removal of secrets and email addresses from texts and logs."""

import logging
import re

_SECRET_NAME = re.compile(
    r"(?i)signature|^sign$|api[-_]?key|access[-_]?key|secret|token|password|credential|authorization|echostr"
)
# The lookbehind lets a match begin only where a name begins: otherwise a long name would take quadratic time.
_NAMED = re.compile(
    r"(?i)(?<![\w-])([\w-]+)([\"']?\s*[=:]\s*)(?!//)((?:bearer|basic)\s+)?(\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|[^&\s\"',}]+)"
)
_PEM = re.compile(r"-----BEGIN[^-]*-----.*?(-----END[^-]*-----|$)", re.DOTALL)
_PASSWORD_IN_URL = re.compile(r"(?<!\w)(\w+://[^\s:/@]*:)[^\s@/]+@")
_AT = r"(?:@|%40|\\u0040)"
_QUOTED_EMAIL = re.compile(rf"\"[^\"@]*\"{_AT}")
_EMAIL = re.compile(
    rf"(?<![^\s@\"<>=,;:(&'])([^\s@\"<>=,;:(&'][^\s@\"<>=,;:(]?)(?:(?!%40|\\u0040)[^\s@\"<>=,;:(])*{_AT}"
)


def redact(text: object) -> str:
    """The text with secrets replaced by `***` and emails' local parts cut to two characters."""
    clean = _PEM.sub("-----***-----", str(text))
    clean = _PASSWORD_IN_URL.sub(r"\1***@", clean)
    clean = _NAMED.sub(_without_secret, clean)
    return _EMAIL.sub(r"\1***@", _QUOTED_EMAIL.sub("***@", clean))


def _without_secret(found: re.Match[str]) -> str:
    name, separator, scheme, value = found.groups()
    if not _SECRET_NAME.search(name):
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
