"""Repair of invalid JSON bodies, so that one invalid value does not cost the other rows."""

import json
import re
from contextlib import suppress

# Replaces text that cannot be decoded.
REPLACEMENT = "\N{REPLACEMENT CHARACTER}".encode()
# Deeper values become a text with their JSON: parsers recurse, and the stack ends at about a thousand levels.
MAX_DEPTH = 100

# Patterns are compiled when a body is repaired, not at start-up.
_TOKEN = rb'(?s)"(?:[^"\\]|\\.)*"|[^\s\[\]{},:"]+'
# Strings are matched too, so that brackets inside them are skipped.
_STRING_OR_BRACKET = rb'(?s)"(?:[^"\\]|\\.)*"|[\[{]|[\]}]'
_SCALAR = rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null"
_CONTROL = rb"[\x00-\x1f]"
# Match a surrogate pair before a lone surrogate. A backslash that matches by itself begins no escape.
_ESCAPE = (
    rb'\\(?:["\\/bfnrt]|u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})'
    rb"|u[0-9a-fA-F]{4})?"
)


def as_utf8(body: bytes) -> bytes:
    """The body in UTF-8 without a byte order mark; invalid bytes become U+FFFD."""
    encoding = json.detect_encoding(body)
    if encoding == "utf-8":
        with suppress(UnicodeDecodeError):
            body.decode()
            return body
    return body.decode(encoding, errors="replace").encode()


def repaired(body: bytes) -> bytes:
    """The body, of which only what is invalid JSON or nested too deep is replaced.

    Half a surrogate pair becomes U+FFFD. Control characters are escaped, and so are backslashes that begin no escape.
    Literals and numbers that JSON lacks (NaN, 01) become texts, and so do values nested deeper than MAX_DEPTH.
    """
    return _flattened(re.sub(_TOKEN, _as_json, body))


def possible_rows(body: bytes) -> list[bytes]:
    """The body as the only item if it may contain rows; otherwise empty.

    A body, even a truncated one, may contain rows if it begins like a JSON list or object, contains an object and is
    longer than `[{}]`.
    """
    text = body.strip()
    may_contain_rows = text[:1] in (b"{", b"[") and b"{" in text and len(text) > len(b"[{}]")
    return [body] if may_contain_rows else []


def unreadable_rows(body: bytes) -> list[bytes]:
    """The `possible_rows` of a body that cannot be parsed even after its repair; otherwise empty."""
    try:
        json.loads(repaired(as_utf8(body)))
    except ValueError:
        return possible_rows(body)
    return []


def _as_json(token: re.Match[bytes]) -> bytes:
    text = token[0]
    if text[:1] == b'"':
        text = re.sub(_ESCAPE, _as_escape, text)
        return re.sub(_CONTROL, lambda control: b"\\u%04x" % control[0][0], text)
    if re.fullmatch(_SCALAR, text):
        return text
    return json.dumps(text.decode(errors="replace")).encode()


def _as_escape(escape: re.Match[bytes]) -> bytes:
    if escape[1]:  # half a surrogate pair
        return REPLACEMENT
    return b"\\\\" if escape[0] == b"\\" else escape[0]


def _flattened(body: bytes) -> bytes:
    """The body; each value nested deeper than MAX_DEPTH is replaced by a string of its JSON."""
    pieces: list[bytes] = []
    copied_until = deep_start = depth = 0
    for token in re.finditer(_STRING_OR_BRACKET, body):
        if token[0] in (b"[", b"{"):
            depth += 1
            if depth == MAX_DEPTH + 1:
                deep_start = token.start()
        elif token[0] in (b"]", b"}"):
            if depth == MAX_DEPTH + 1:
                deep_value = body[deep_start : token.end()].decode(errors="replace")
                pieces.append(body[copied_until:deep_start])
                pieces.append(json.dumps(deep_value, ensure_ascii=False).encode())
                copied_until = token.end()
            depth -= 1

    pieces.append(body[copied_until:])
    return b"".join(pieces)
