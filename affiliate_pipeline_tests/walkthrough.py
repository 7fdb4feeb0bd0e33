"""Applies the code blocks of a document to a copy of the project. Contains no tests.

The sentence before a block names the file, in backticks, and the edit: "Create `path`:", "At the end of `path`, add:",
"In `path`, after (or before) the line `line`, add:" or "In `path`, replace the line `line` by:".
"""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affiliate_pipeline_tests.e2e.project import ROOT, Project

_FENCE = "```"
_EDIT = re.compile(
    r"^(?P<opening>Create|At the end of|In)\s`(?P<path>[^`]+)`"
    r"(?:,\s(?P<how>after|before|replace)\sthe\sline\s(?P<ticks>`+)(?P<line>.+?)(?P=ticks))?(?:,\sadd|\sby)?:\n\n"
    rf"{_FENCE}\w+\n(?P<block>.*?)^{_FENCE}$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Edit:
    """One block of a document. `how` is `Create`, `At the end of`, or relates to `line`: `after`, `before`, `replace`."""

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
    """The document's edits, in order. Every fenced block must be one."""
    text = document.read_text(encoding="utf-8")
    found = [
        Edit(edit["path"], edit["how"] or edit["opening"], edit["line"] or "", edit["block"])
        for edit in _EDIT.finditer(text)
    ]
    assert 2 * len(found) == len(re.findall(rf"^{_FENCE}", text, re.MULTILINE)) > 0
    return found


def follow(document: str, project: Project) -> list[str]:
    """Apply the edits of the document in `docs/` to the copy, and return the paths of the edited Python files."""
    found = edits(ROOT / "docs" / document)
    for edit in found:
        edit.apply(project.folder)
    return sorted({edit.path for edit in found if edit.path.endswith(".py")})


def check_style(project: Project, paths: list[str]) -> None:
    _run(project, ["-m", "ruff", "check", "--no-cache", *paths])
    _run(project, ["-m", "ruff", "format", "--no-cache", "--check", *paths])


def run_script(project: Project, script: str, *arguments: str, **environment: str) -> dict[str, Any]:
    """Run Python code in the copy, and return the JSON that it prints."""
    return json.loads(_run(project, ["-c", script, *arguments], **environment))


def run_tests(project: Project, *names: str) -> None:
    """Run `make docs` and these test files in the copy."""
    # Installs nothing: this process's interpreter has every dependency.
    made = project.execute(["make", "docs", "-o", ".venv/.installed", f"BIN={Path(sys.executable).parent}"], {})
    assert made.returncode == 0, made.stdout + made.stderr
    paths = [str(project.folder / "affiliate_pipeline_tests" / name) for name in names]
    _run(project, ["-m", "pytest", "-q", "-p", "no:cacheprovider", *paths])


def _run(project: Project, arguments: list[str], **environment: str) -> str:
    """Run Python with these arguments in the copy; it must succeed. Return what it prints."""
    done = project.execute([sys.executable, *arguments], environment, timeout_s=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
