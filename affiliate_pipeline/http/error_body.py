"""Code and message of a response body that is not the requested data, redacted for quoting."""

import json
import re
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from html.parser import HTMLParser

from affiliate_pipeline.domain.redaction import redact

MAX_MESSAGE_CHARACTERS = 200
# Enough for any message; a page that is longer repeats its menus.
_MAX_TEXT_BYTES = 64 << 10
_MAX_DEPTH = 5
_CODE_NAMES = ("code", "errorcode", "errcode", "errno", "retcode", "status", "statuscode")
_MESSAGE_NAMES = (
    *("msg", "message", "messagedetail", "errormsg", "errmsg", "errormessage", "title", "error", "errors"),
    *("errordescription", "description", "detail", "details", "reason", "cause"),
)
_WHOLE = re.compile(r"([+-]?[0-9]{1,18})(\.[0-9]+)?", re.ASCII)
_CHARSET = re.compile(rb"charset\s*=\s*[\"']?([\w-]+)", re.IGNORECASE)
_QUERY = re.compile(r"(\w+://[^\s?#\"'<>]*)[?#][^\s\"'<>]*")
# As long as a key or signature, which a message may quote without naming it.
_TOKEN = re.compile(r"(?<![\w/.-])(?=\w*[0-9])(?=\w*[A-Za-z])\w{32,}(?![\w.])")


@dataclass(frozen=True)
class ErrorBody:
    """`message` is one short redacted line, empty if the body is; `is_page`: HTML or XML; `is_message`: it is one and not
    the beginning of data; `is_failure`: an object that says that the request failed, whatever the HTTP status."""

    code: int | None
    message: str
    is_page: bool = False
    is_message: bool = True
    is_failure: bool = False

    @property
    def http_status(self) -> int | None:
        """The HTTP status that the body states in place of a code of the exchange's own."""
        return self.code if self.code is not None and 400 <= self.code < 600 else None


def read_error(body: bytes, content_type: str = "") -> ErrorBody:
    """The code and the message of any body; nothing is raised."""
    text = _text(body, content_type)
    if text[:1] == "<" or (text and "html" in content_type.lower() and text[:1] not in "{["):
        code, message = _page(text)
        return ErrorBody(code, _line(message), is_page=True)
    value = _json(text)
    code, messages = None, []
    for found in _found(value):
        if isinstance(found, int):
            code = found if code is None else code
        elif found.strip() and found not in messages:
            messages.append(found)
    is_message = bool(messages) or text[:1] not in ("{", "[")
    message = "; ".join(messages) or ("" if code is not None and _is_bare(value) else text)
    return ErrorBody(code, _line(message), is_message=is_message, is_failure=_is_failure(value, code))


def quote(body: bytes, content_type: str = "") -> str:
    """The beginning of a body as one redacted line."""
    return _line(_text(body, content_type)) or "nothing"


def _found(value: object, depth: int = 0) -> Iterator[int | str]:
    """Codes as numbers and messages as texts, in the order of their weight."""
    if depth > _MAX_DEPTH or value is None or isinstance(value, bool):
        return
    if isinstance(value, str):
        nested = _json(value) if value.lstrip()[:1] in ("{", "[") else None
        if nested is None:
            yield value
        else:
            yield from _found(nested, depth + 1)
    elif isinstance(value, list):
        for each in value[:_MAX_DEPTH]:
            yield from _found(each, depth + 1)
    elif isinstance(value, dict):
        fields = {_plain(name): each for name, each in value.items()}
        for name in _CODE_NAMES:
            code = fields.get(name)
            number = whole(code)
            # A `status` is an HTTP status or a state, and no code of the exchange's own.
            if number is not None and (not name.startswith("status") or 400 <= number < 600):
                yield number
            elif isinstance(code, str) and number is None and not name.startswith("status"):
                yield code
        for name in _MESSAGE_NAMES:
            yield from _found(fields.get(name), depth + 1)
    else:
        yield str(value)


def whole(value: object) -> int | None:
    """The whole number that a JSON value is, as a number or as text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    found = _WHOLE.fullmatch(str(value).strip())
    return int(found[1]) if found else None


def _is_bare(value: object) -> bool:
    """Whether an object has nothing but its code and fields for messages, which are empty."""
    return isinstance(value, dict) and {_plain(name) for name in value} <= {*_CODE_NAMES, *_MESSAGE_NAMES}


def _is_failure(value: object, code: int | None) -> bool:
    if not isinstance(value, dict):
        return False
    fields = {_plain(name): each for name, each in value.items()}
    success = str(fields.get("success")).lower()
    return bool(
        (code or 0) < 0
        or (code not in (None, 0, 200) and success not in ("true", "1"))
        or success in ("false", "0")
        or fields.get("error") not in (None, False, 0, "", "0", [], {})
        or fields.get("errors")
        or str(fields.get("status")).lower() in ("error", "fail", "failed", "failure")
    )


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()


def _json(text: str) -> object:
    """The value of a JSON text, read more leniently than data is; None if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _text(body: bytes, content_type: str) -> str:
    if body[:2] == b"\x1f\x8b":  # gzip without its header
        try:
            body = zlib.decompressobj(wbits=31).decompress(body, _MAX_TEXT_BYTES)
        except zlib.error:
            return "something compressed that cannot be read"
    body = body[:_MAX_TEXT_BYTES]
    declared = _CHARSET.search(content_type.encode(errors="replace")) or _CHARSET.search(body[:1024])
    marks = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}
    marked = next((encoding for mark, encoding in marks.items() if body.startswith(mark)), None)
    for encoding in (marked, "utf-8", declared and declared[1].decode(), "gb18030"):
        try:
            if encoding:
                return body.decode(encoding).strip()
        except (UnicodeError, LookupError):
            # A text cut within a character still has this encoding.
            if encoding in ("utf-8", marked) and len(body) == _MAX_TEXT_BYTES:
                return body.decode(encoding, errors="replace").strip()
    return body.decode("latin-1").strip()


def _line(text: str) -> str:
    """The text in one line without control characters, secrets, queries of URLs and full emails."""
    text = " ".join("".join(each if each.isprintable() else " " for each in text[: 8 * MAX_MESSAGE_CHARACTERS]).split())
    text = _TOKEN.sub("***", redact(_QUERY.sub(r"\1?***", text)))
    return text if len(text) <= MAX_MESSAGE_CHARACTERS else text[:MAX_MESSAGE_CHARACTERS].rstrip() + "…"


class _Page(HTMLParser):
    """The texts of a page, and those of the elements that name an error."""

    _UNSEEN = ("script", "style", "noscript", "template", "svg")

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.named: dict[str, str] = {}
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        text = " ".join(data.split())
        if not text or any(tag in self._UNSEEN for tag in self._open):
            return
        if self._open:
            self.named.setdefault(self._open[-1], text)
        if text not in self.texts:
            self.texts.append(text)


def _page(text: str) -> tuple[int | None, str]:
    page = _Page()
    # Leave out what the parser cannot handle.
    with suppress(AssertionError):
        page.feed(text)
        page.close()
    if message := page.named.get("message") or page.named.get("msg"):
        code = page.named.get("code", "")
        return whole(code), message if whole(code) is not None or not code else f"{code}: {message}"
    return None, " ".join(page.texts)
