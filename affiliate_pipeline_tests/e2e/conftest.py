"""Fixtures: a project that has landed days, and an exchange that is not the project's own sandbox."""

from collections.abc import Iterator

import pytest

from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline_tests.e2e.project import Project, kill


@pytest.fixture(scope="session")
def _landed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    project = Project(tmp_path_factory.mktemp("landed"))
    done = project.run("up", "--once")
    assert done.returncode == 0, done.stdout + done.stderr
    yield project
    project.remove()


@pytest.fixture
def landed(_landed: Project) -> Iterator[Project]:
    """A project that has landed the last days from its sandbox. None of its processes is running."""
    yield _landed
    if _landed.processes():
        _landed.run("down")
    left = _landed.processes()
    kill(left)
    assert not left


@pytest.fixture
def exchange() -> Iterator[Sandbox]:
    """A sandbox in the test's process, which the project uses as a configured exchange."""
    with Sandbox(rows_per_day=1000) as exchange:
        yield exchange
