"""LBank's error codes and messages, and the parameters that only LBank has."""

from collections.abc import Mapping
from typing import TypeVar

from affiliate_pipeline.sandbox.parameters import Parameters, Refused

MESSAGES = {
    10000: "Internal error",
    10001: "Parameter can not be null",
    10003: "Invalid parameter",
    10004: "Request too frequent",
    10005: "Secret key does not exist",
    10006: "User does not exist",
    10007: "Invalid signature",
    10017: "Server exception",
    10022: "Invalid authorization",
    10031: "echostr length must be valid and length must be from 30 to 40",
    10600: "intercepted by replay attacks filter, check timestamp",
    10601: "Interface closed unavailable",
    20026: "Invalid parameter",
}
# The usual code for a status.
CODES = {418: 10004, 429: 10004}
MAX_PAGE_SIZE = 100

T = TypeVar("T")


class LBankParameters(Parameters):
    """Parameters with LBank's codes."""

    missing = 10001
    empty = malformed = end_before_start = 10003
    max_digits = 14

    def check_names(self, required: frozenset[str], optional: frozenset[str]) -> None:
        """Refuse the call if a required parameter is missing or empty, or if there is an unknown one."""
        for name in sorted(required):
            # An empty coin requests all coins.
            if name not in self or (not self[name] and name != "coin"):
                raise Refused(10001, name)
        if unknown := self.keys() - required - optional:
            raise Refused(10003, min(unknown))

    def choice(self, name: str, choices: Mapping[str, T]) -> T:
        """The choice that the parameter selects by its value; refuses any other value."""
        if self[name] not in choices:
            raise Refused(10003, name)
        return choices[self[name]]

    def page(self) -> tuple[int, int]:
        """The page size, and the offset or id after which the page begins (0 without `start`)."""
        size = self.integer("pageSize")
        if not 1 <= size <= MAX_PAGE_SIZE:
            raise Refused(20026, "pageSize")
        return size, self.integer("start") if "start" in self else 0
