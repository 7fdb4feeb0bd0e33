"""Parameters of calls, and refusals with error codes that each exchange sets."""

import re
from typing import ClassVar


class Refused(Exception):
    """The call is refused with this code; `name` is the parameter at fault, if any."""

    def __init__(self, code: int, name: str = "", *, status: int = 400, retry_after_s: int | None = None) -> None:
        self.code = code
        self.name = name
        self.status = status
        self.retry_after_s = retry_after_s


class Parameters(dict[str, str]):
    """A call's decoded parameters by name; the exchange's subclass sets the refusal codes."""

    missing: ClassVar[int]
    empty: ClassVar[int]
    malformed: ClassVar[int]
    end_before_start: ClassVar[int]
    max_digits: ClassVar[int]

    def text(self, name: str) -> str:
        """The text of a required parameter."""
        text = self.get(name)
        if text is None:
            raise Refused(self.missing, name)
        if not text:
            raise Refused(self.empty, name)
        return text

    def integer(self, name: str) -> int:
        """The value of a required parameter, an integer of at least 0."""
        text = self.text(name)
        if not re.fullmatch(rf"[0-9]{{1,{self.max_digits}}}", text):
            raise Refused(self.malformed, name)
        return int(text)

    def window(self) -> tuple[int, int]:
        """The first and the last millisecond requested."""
        start, end = self.integer("startTime"), self.integer("endTime")
        if end < start:
            raise Refused(self.end_before_start, "endTime")
        return start, end
