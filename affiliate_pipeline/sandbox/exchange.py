"""The interface between the sandbox's server and its exchanges: accounts, call, response, protocol."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from email.message import Message
from functools import cached_property
from typing import Protocol
from urllib.parse import unquote

# Without `__`, which separates a variable's name from the alias. Without `_file` at the end: the value of a variable
# whose name ends with `_FILE` (`LBANK_API_SECRET__ACME_FILE`) is the path of a file with the secret.
ALIAS = re.compile(r"(?!.*__|.*_file$)[a-z][a-z0-9_]{0,30}")


def alias_of(text: str) -> str:
    """The text itself if it is a valid alias of a further account; raises ValueError otherwise."""
    if ALIAS.fullmatch(text):
        return text
    raise ValueError(f"{text} is not an alias: {ALIAS.pattern}")


def credential(alias: str, name: str) -> str:
    """A key or secret of the account; the default account's alias is empty."""
    return "-".join(part for part in ("sandbox", alias, name) if part)


def suffixed(variables: Mapping[str, str], alias: str) -> dict[str, str]:
    """The variables with the names that they have for this account."""
    suffix = f"__{alias.upper()}" if alias else ""
    return {f"{name}{suffix}": value for name, value in variables.items()}


@dataclass(frozen=True)
class Call:
    """One request, with query and body exactly as received."""

    method: str
    path: str
    query: str
    body: str
    headers: Message

    @cached_property
    def pairs(self) -> list[tuple[str, str]]:
        """The decoded parameters of query and body, in order; a '+' stays a '+'."""
        pairs: list[tuple[str, str]] = []
        for text in (self.query, self.body):
            for parameter in text.split("&"):
                if parameter:
                    name, _, value = parameter.partition("=")
                    pairs.append((unquote(name), unquote(value)))
        return pairs

    @cached_property
    def params(self) -> dict[str, str]:
        """The decoded parameters by name; of duplicates, the last."""
        return dict(self.pairs)


@dataclass(frozen=True)
class Response:
    """One response; `code` is the exchange's error code, `fault` the injected fault."""

    status: int
    body: bytes
    content_type: str = "application/json;charset=UTF-8"
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    code: int | None = None
    fault: str | None = None
    delay_s: float = 0


NOT_FOUND = Response(404, b"<html><body><h2>404 Not found</h2></body></html>", "text/html")


class Exchange(Protocol):
    """What the server and the faults require of one account at an exchange."""

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The path prefixes of this exchange."""
        ...

    def serves(self, call: Call) -> bool:
        """Whether the call has a key of this account, or requests a file of it."""
        ...

    def respond(self, call: Call) -> Response:
        """The exchange's own response, which may be a refusal."""
        ...

    def refusal(self, status: int, code: int | None = None, retry_after_s: int | None = None) -> Response:
        """A refusal in the exchange's envelope; the code defaults to the status's usual one."""
        ...

    def variables(self, url: str) -> dict[str, str]:
        """The environment variables of a client of this exchange at the URL."""
        ...

    def days(self, call: Call) -> tuple[date, date] | None:
        """The first and last of the exchange's days that a call covers; None if it names no time."""
