"""The steps of deploy/Containerfile without a container engine: its image runs as another user and read-only."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from affiliate_pipeline.app.embedded_server import cluster, server
from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline_tests import isolation
from affiliate_pipeline_tests.e2e.containerfile import ROOT, Image, build, command, container_mounts
from affiliate_pipeline_tests.e2e.project import KEY, last_days

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="mounting needs root and unshare"),
]
WRITABLE = ("/app/storage", "/app/dagster_celery", "/app/reports", "/tmp")


@pytest.fixture
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("image")
    folder.chmod(0o755)
    yield folder
    # The mounts ended with the script's namespace.
    shutil.rmtree(folder)


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database."""
    yield server.ensure_database(tmp_path, "test")
    server.stop(tmp_path)
    if found := cluster.read(tmp_path):
        shutil.rmtree(found.folder, ignore_errors=True)


def test_the_image_lands_a_day_as_another_user_with_a_read_only_root(image_folder: Path, url: str, exchange: Sandbox):
    text = (ROOT / "deploy" / "Containerfile").read_text(encoding="utf-8")
    image, root, day = Image(text), image_folder / "stage1", last_days()[-1]
    secrets = root / "run" / "secrets"
    variables = exchange.binance.variables(exchange.url) | {
        "AFFILIATE_DATABASE_URL_FILE": "/run/secrets/database_url",
        "AFFILIATE_START_DATE": f"{day}",
    }
    land = ["dagster", "asset", "materialize", "-m", "affiliate_pipeline.definitions", "--select", f"key:{KEY}"]
    healthy = command(root, image, ["dagster", "api", "grpc-health-check", "-p", "4000"], variables)
    script = [
        *build(text, image_folder, {}),
        f"mkdir -p {secrets}; echo '{url}' > {secrets}/database_url",
        *container_mounts(root, image, WRITABLE),
        command(root, image, image.command, variables) + f" > {image_folder}/code_server.log 2>&1 &",
        command(root, image, ["id", "-u"], variables) + " > uid",
        *(
            f"! {command(root, image, ['touch', f'{folder}/file'], variables)} 2>> errors"
            for folder in ("/app", "/opt/affiliate_pipeline", "/usr")
        ),
        f"until {healthy}; do sleep 1; kill -0 $!; done",
        command(root, image, [*land, "--partition", f"{day}"], variables),
    ]
    (image_folder / "build").write_text("\n".join(script))
    environment = isolation.inherited(os.environ) | {
        name: value for name, value in os.environ.items() if name.startswith("PIP_")
    }
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "build"],
        cwd=image_folder,
        env={name: value for name, value in environment.items() if not name.startswith("PYTHON")},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout[-5000:] + (image_folder / "code_server.log").read_text()[-3000:]
    assert (image_folder / "uid").read_text() == "10001\n"
    assert (image_folder / "errors").read_text().count("Read-only file system") == 3
    with psycopg.connect(url) as connection:
        rows = connection.execute("select count(*) from binance.rebate_recent_record").fetchall()
    assert rows == [(len(exchange.binance.rebates(day)),)]


def test_the_health_check_uses_the_port_that_the_command_serves():
    text = (ROOT / "deploy" / "Containerfile").read_text(encoding="utf-8")
    checked = json.loads(text.partition("HEALTHCHECK ")[2].partition("CMD ")[2].splitlines()[0])
    arguments = Image(text).command
    assert checked[-2:] == ["-p", arguments[arguments.index("-p") + 1]]
