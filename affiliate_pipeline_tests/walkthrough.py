"""Documents whose code blocks are edits: read from the Markdown and applied to a copy of the project.

The sentence before a block names the file, in backticks, and the edit: "Create `path`:", "At the end of `path`, add:",
"In `path`, after (or before) the line `line`, add:" or "In `path`, replace the line `line` by:".
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from affiliate_pipeline_tests.e2e.project import ROOT, Project

_FENCE = "```"
_EDIT = re.compile(
    r"^(?P<create>Create|At the end of|In)\s`(?P<path>[^`]+)`"
    r"(?:,\s(?P<how>after|before|replace)\sthe\sline\s(?P<ticks>`+)(?P<line>.+?)(?P=ticks))?(?:,\sadd|\sby)?:\n\n"
    rf"{_FENCE}\w+\n(?P<block>.*?)^{_FENCE}$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Edit:
    """One block of a document. `how`: `Create`, `At the end of`, or where from the `line`: `after`, `before`, `replace`."""

    path: str
    how: str
    line: str
    block: str

    def apply(self, folder: Path) -> None:
        file = folder / self.path
        if self.how == "Create":
            assert not file.exists(), self.path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(self.block, encoding="utf-8")
            return
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        first = last = len(lines)
        if self.line:
            [at] = [number for number, line in enumerate(lines) if line.strip() == self.line]
            first, last = {"before": (at, at), "after": (at + 1, at + 1), "replace": (at, at + 1)}[self.how]
        file.write_text("".join([*lines[:first], self.block, *lines[last:]]), encoding="utf-8")


def edits(document: Path) -> list[Edit]:
    """The document's edits, in order; every fenced block in it is one of them."""
    text = document.read_text(encoding="utf-8")
    found = [
        Edit(edit["path"], edit["how"] or edit["create"], edit["line"] or "", edit["block"])
        for edit in _EDIT.finditer(text)
    ]
    assert 2 * len(found) == len(re.findall(rf"^{_FENCE}", text, re.MULTILINE)) > 0
    return found


def follow(document: str, project: Project) -> list[str]:
    """Applies the edits of the document in `docs/` and runs `make docs`; the Python files that were edited."""
    found = edits(ROOT / "docs" / document)
    for edit in found:
        edit.apply(project.folder)
    # Nothing is installed: the interpreter of this process has everything.
    run(project, ["make", "docs", "-o", ".venv/.installed", f"BIN={Path(sys.executable).parent}"])
    return sorted({edit.path for edit in found if edit.path.endswith(".py")})


def run(project: Project, command: list[str], **environment: str) -> str:
    """What the command prints, run in the copy of the project; it has to succeed."""
    done = project.execute(command, environment, timeout_s=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check_style(project: Project, paths: list[str]) -> None:
    run(project, [sys.executable, "-m", "ruff", "check", "--no-cache", *paths])
    run(project, [sys.executable, "-m", "ruff", "format", "--no-cache", "--check", *paths])
