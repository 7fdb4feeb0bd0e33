"""What went wrong, as fields for people and programs. Rendered here only, and never parsed back."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import date
from typing import Self


@dataclass(frozen=True)
class Problem:
    """A failure: what happened, its impact and the action to take.

    The impact is what is safe and what is missing. All three are sentences without a full stop. `code` names the kind
    of failure: the class of the error, in snake case.
    """

    code: str
    what: str
    impact: str = ""
    action: str = ""

    def __str__(self) -> str:
        return _joined(self.what, self.impact, self.action)

    @property
    def cause(self) -> str:
        """What happened and what to do: days that failed alike have this in common, whatever had landed for them."""
        return _joined(self.what, self.action)

    def adding(self, *, impact: str = "", action: str = "") -> "Problem":
        """The problem with these sentences appended."""
        return Problem(self.code, self.what, _joined(self.impact, impact), _joined(self.action, action))

    def to_json(self) -> dict[str, str]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, str]) -> Self:
        return cls(fields["code"], fields["what"], fields["impact"], fields["action"])


class AffiliateError(Exception):
    """The root of all failures that are reported to people, who act on them; anything else is an internal error."""

    def __init__(self, what: str, action: str = "", *, impact: str = ""):
        code = re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()
        self.problem = Problem(code, what.rstrip("."), impact.rstrip("."), action.rstrip("."))
        super().__init__(str(self.problem))


class SettingsError(AffiliateError):
    """Something has to be configured; the problem names every variable or file concerned, and no value."""


def grouped(problems: Mapping[date, Problem]) -> dict[Problem, list[date]]:
    """The days in order by what is wrong with them."""
    days: dict[Problem, list[date]] = {}
    for day in sorted(problems):
        days.setdefault(problems[day], []).append(day)
    return days


def _joined(*sentences: str) -> str:
    return ". ".join(sentence for sentence in sentences if sentence)
