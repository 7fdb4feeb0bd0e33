"""What jsonb cannot hold is kept in a form from which the bytes received can be read back."""

import json
import re
from base64 import b64encode
from collections import defaultdict
from collections.abc import Iterable

import msgspec

NAME_CHARACTERS = 200
# The only key of the object that replaces a field's value, as received, that jsonb cannot hold.
AS_RECEIVED = "$json"
# jsonb's numbers have no more digits after the point, and its reader recurses.
MAX_NUMBER_DIGITS, MAX_JSON_DEPTH = 16_000, 500


def payload(received: bytes) -> str:
    """The JSON text with which jsonb keeps a row, or a body, so that its bytes can be read back.

    It is the row itself where jsonb holds it exactly, else a JSON string of its text, else (not UTF-8) the object
    `{"$base64": …}`.
    """
    try:
        text = received.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        return json.dumps({"$base64": b64encode(received).decode()})
    return text if _fits_jsonb(received) else json.dumps(text)


def extra_of(fields: Iterable[tuple[str, bytes]]) -> tuple[str, set[str]]:
    """The JSON text for `extra`, and the names that unknown fields are reported by.

    A field that jsonb cannot hold (U+0000, a number or nesting beyond its limits, a field that occurs twice) becomes
    `{"$json": "…"}` with the value's JSON text as received; of several values, joined by commas.
    """
    by_key: dict[str, list[bytes]] = defaultdict(list)
    odd: set[str] = set()
    for name, raw in fields:
        # jsonb has no U+0000 in names either: written as its JSON escape.
        key = json.dumps(name, ensure_ascii=False)[1:-1] if "\0" in name else name
        by_key[key].append(raw)
        if key != name or len(by_key[key]) > 1 or not _fits_jsonb(raw):
            odd.add(key)
    held = {
        key: {AS_RECEIVED: b",".join(raws).decode(errors="replace")} if key in odd else msgspec.Raw(raws[0])
        for key, raws in by_key.items()
    }
    # Sort: the text is hashed, and the order of fields must not matter. Cut names: they are stored in an index, whose
    # entries are limited in size.
    return msgspec.json.encode(held, order="sorted").decode(), {key[:NAME_CHARACTERS] for key in held}


_SUSPECT = re.compile(rb"\\u0000|[eE][+-]?[0-9]{4}|[{]")
_U0000 = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_NESTING = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)


class _Unfit(Exception):
    """jsonb would refuse or change a value."""


def _fits_jsonb(text: bytes) -> bool:
    """Whether jsonb holds all of the JSON text exactly, and none of its objects has `$json` as its only field."""
    if len(text) <= MAX_JSON_DEPTH and not _SUSPECT.search(text):
        return True
    depth = deepest = 0
    for token in _NESTING.finditer(text):
        depth += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(token[0], 0)
        deepest = max(deepest, depth)
    if deepest > MAX_JSON_DEPTH or _U0000.search(text):
        return False
    try:
        json.loads(text, object_pairs_hook=_fit_object, parse_float=_fit_number, parse_int=_fit_number)
    except (_Unfit, ValueError):
        return False
    return True


def _fit_object(pairs: list[tuple[str, object]]) -> None:
    names = {name for name, _ in pairs}
    if len(names) < len(pairs) or names == {AS_RECEIVED}:
        raise _Unfit


def _fit_number(text: str) -> None:
    digits, _, exponent = text.lower().partition("e")
    if (
        len(digits) > MAX_NUMBER_DIGITS
        or len(exponent) > 6
        or len(digits) + abs(int(exponent or 0)) > MAX_NUMBER_DIGITS
    ):
        raise _Unfit
