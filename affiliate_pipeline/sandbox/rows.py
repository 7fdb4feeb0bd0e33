"""Rows as JSON bytes, with numbers exactly as written."""

import json
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any


class Number(str):
    """Text sent as an unquoted JSON number, as written; `decode` returns decimals as this type."""


_json = json.JSONEncoder(ensure_ascii=False).encode


def encode(row: Mapping[str, Any]) -> bytes:
    """The row as one JSON object."""
    members: list[str] = []
    for name, value in row.items():
        text = str(value) if isinstance(value, Number | Decimal) else _json(value)
        members.append(f"{_json(name)}:{text}")
    return ("{" + ",".join(members) + "}").encode()


def decode(row: bytes) -> dict[str, Any]:
    """The row as a dict, which `encode` converts to the same JSON values."""
    return json.loads(row, parse_float=Number)


def array(rows: Iterable[bytes]) -> bytes:
    """The rows as one JSON array."""
    return b"[" + b",".join(rows) + b"]"
