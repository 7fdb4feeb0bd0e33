"""`make` in a folder that was moved or copied: the scripts in `.venv` contain the path of the old one."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder, whose path has a space, with the Makefile and a virtual environment that it considers complete."""
    folder = tmp_path / "the project"
    (folder / ".venv" / "bin").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    (folder / ".venv" / ".installed").touch()
    write_script(folder, folder)
    return folder


def write_script(folder: Path, installed_in: Path) -> None:
    """The command as pip and uv write it where the path of the interpreter is too long or has a space."""
    script = folder / ".venv" / "bin" / "affiliate-pipeline"
    script.write_text(f"#!/bin/sh\n'''exec' '{installed_in}/.venv/bin/python' \"$0\" \"$@\"\n' '''\necho started\n")
    script.chmod(0o755)


def make(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", "-s", "up", "PYTHON=/bin/false"], cwd=folder, capture_output=True, text=True)


def test_in_a_moved_folder_make_reports_it_and_creates_the_environment_again(project):
    moved = project.rename(project.with_name("elsewhere"))
    done = make(moved)
    assert done.stdout == "This folder was moved or copied: .venv is created again\n"
    # PYTHON, which would create it, is /bin/false and always fails.
    assert "needs Python" in done.stderr and not (moved / ".venv").exists()


def test_in_a_folder_that_was_not_moved_nothing_is_installed(project):
    python = project / ".venv" / "bin" / "python"
    python.write_text("#!/bin/sh\necho started\n")
    python.chmod(0o755)
    assert make(project).stdout == "started\n"


def test_an_environment_that_several_folders_share_is_never_removed(project):
    shared = (project / ".venv").rename(project.with_name("shared"))
    (project / ".venv").symlink_to(shared)
    write_script(project, Path("/elsewhere"))
    make(project)
    assert (shared / ".installed").exists()
