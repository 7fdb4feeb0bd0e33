"""What is wrong with rows that do not fit their schema, column by column."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from affiliate_pipeline.domain.wording import count_of


@dataclass(frozen=True)
class ColumnProblem:
    """A column's failed check: the first failing row, its redacted value, and the row count."""

    column: str
    check: str
    row: int = 0
    sample: str | None = None
    count: int = 1

    def __str__(self) -> str:
        example = f", such as {self.sample}" if self.sample else ""
        return f"{self.column}: {self.check} in {count_of(self.count, 'row')}{example}"


class Invalid(Exception):
    """Rows that do not fit their schema; each problem is listed once, with its row count."""

    def __init__(self, problems: Iterable[ColumnProblem]):
        merged: dict[tuple[str, str], ColumnProblem] = {}
        for problem in problems:
            key = problem.column, problem.check
            first = merged.get(key)
            merged[key] = replace(first, count=first.count + problem.count) if first else problem
        self.problems = tuple(merged.values())
        self.first_row = min(problem.row for problem in self.problems)
        super().__init__("; ".join(map(str, self.problems)))
