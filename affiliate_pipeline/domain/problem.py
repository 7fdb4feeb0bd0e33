"""Failures as fields, for people and programs; their text is rendered only here and never parsed back."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from typing import Self


@dataclass(frozen=True)
class Problem:
    """A failure: what happened, its impact and the action to take.

    The impact is what is safe and what is missing. All three texts lack the final full stop. `code` names the kind of
    failure: for an exception, its class in snake case.
    """

    code: str
    what: str
    impact: str = ""
    action: str = ""

    def __str__(self) -> str:
        return _joined(self.what, self.impact, self.action)

    @property
    def cause(self) -> str:
        """What happened and what to do, without the impact, which differs between days."""
        return _joined(self.what, self.action)

    def adding(self, *, impact: str = "", action: str = "") -> "Problem":
        """The problem with these sentences appended."""
        return Problem(self.code, self.what, _joined(self.impact, impact), _joined(self.action, action))

    def to_json(self) -> dict[str, str]:
        """The fields by name, as `from_json` reads them."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, str]) -> Self:
        """The problem whose `to_json` returned these fields."""
        return cls(fields["code"], fields["what"], fields["impact"], fields["action"])


class AffiliateError(Exception):
    """A failure that people can act on; any other exception is an internal error."""

    def __init__(self, what: str, action: str = "", *, impact: str = ""):
        code = re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()
        self.problem = Problem(code, what.rstrip("."), impact.rstrip("."), action.rstrip("."))
        super().__init__(str(self.problem))


class SettingsError(AffiliateError):
    """A setting is missing or invalid; its text names variables and files, but quotes no secret.

    `variable` is the variable at fault, if there is one, and the action is about that variable.
    """

    def __init__(self, what: str, action: str, *, variable: str = "", impact: str = ""):
        super().__init__(what, action, impact=impact)
        self.variable = variable

    @property
    def errors(self) -> "Sequence[SettingsError]":
        """One error for each variable at fault."""
        return [self]


class SettingsErrors(SettingsError):
    """Several settings are missing or invalid."""

    def __init__(self, errors: Sequence[SettingsError], action: str):
        super().__init__("; ".join(error.problem.what for error in errors), action)
        self._errors = errors

    @property
    def errors(self) -> Sequence[SettingsError]:
        """One error for each variable at fault, with its own action."""
        return self._errors


def grouped(problems: Mapping[date, Problem]) -> dict[Problem, list[date]]:
    """The days of each problem, in order."""
    days: dict[Problem, list[date]] = {}
    for day in sorted(problems):
        days.setdefault(problems[day], []).append(day)
    return days


def _joined(*sentences: str) -> str:
    return ". ".join(sentence for sentence in sentences if sentence)
