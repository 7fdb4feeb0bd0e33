"""Keeps secrets and people out of texts and logs. Knows no exchange."""

import logging
import re

_SECRET = re.compile(
    r"(?i)\b((?:\w+[-_])*(?:signature|sign|api[-_]?key|secret|token|password|accesskeyid|echostr))"
    r"(\"?\s*[=:]\s*\"?)[^&\s\"',}]+"
)
_PEM = re.compile(r"-----BEGIN[^-]*-----.*?(-----END[^-]*-----|$)", re.DOTALL)
_PASSWORD_IN_URL = re.compile(r"(\w+://[^\s:/@]*:)[^\s@/]+@")
_EMAIL = re.compile(r"([^\s@\"'<>=&,;:(]{1,2})[^\s@\"'<>=&,;:(]*@")


def redact(text: object) -> str:
    """The text with secrets replaced by `***` and emails cut to two letters of their local part."""
    clean = _PEM.sub("-----***-----", str(text))
    clean = _PASSWORD_IN_URL.sub(r"\1***@", clean)
    clean = _SECRET.sub(r"\1\2***", clean)
    return _EMAIL.sub(r"\1***@", clean)


class _BelowWarning(logging.Filter):
    """Drops what httpx and httpcore say below WARNING: full signed URLs at INFO, headers with keys at DEBUG."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING


def silence_http_logs() -> None:
    """Signed URLs and key headers can no longer reach a log, whatever level somebody sets."""
    # Filters are not inherited by child loggers, so each of httpcore's own is named.
    for name in ("httpx", *(f"httpcore.{part}" for part in ("connection", "http11", "http2", "proxy", "socks"))):
        logger = logging.getLogger(name)
        if not any(isinstance(present, _BelowWarning) for present in logger.filters):
            logger.addFilter(_BelowWarning())
