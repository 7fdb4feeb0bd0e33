"""Tests do not see what is in the folder or the environment that they are started in."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# One of each kind: settings, definitions, the command line on the default port, a run into PostgreSQL over HTTP.
TESTS = (
    "test_environment.py::test_nothing_has_to_be_set",
    "test_definitions.py::test_every_asset_is_described_owned_and_in_the_group_of_whom_it_comes_from",
    "app/test_check.py::test_nothing_is_wrong_with_a_healthy_set_up",
    "defs/test_endpoint_assets.py::test_a_day_lands_exactly",
    "app/instance/test_storage.py::test_the_configured_database_is_used_whatever_its_driver",
)
SETTINGS = {
    "AFFILIATE_DATABASE_URL": "postgresql://nobody:nothing@127.0.0.1:9/nowhere",
    "AFFILIATE_START_DATE": "2999-01-01",
    "AFFILIATE_SCHEDULES": "nonsense",
    "AFFILIATE_RATE_SCALE": "-1",
    "BINANCE_BASE_URL": "http://127.0.0.1:9",
    "BINANCE_PARTNER_API_KEY": "nonsense",
    "LBANK_SIGNATURE_METHOD": "nonsense",
    "ALERT_URLS": "nonsense",
    "DAGSTER_UI_URL": "nonsense",
}
ENVIRONMENT = SETTINGS | {
    "HTTP_PROXY": "http://127.0.0.1:9",
    "https_proxy": "http://127.0.0.1:9",
    "ALL_PROXY": "socks5://127.0.0.1:9",
    "NO_PROXY": "::1",
    "SSL_CERT_FILE": "nowhere",
    "NETRC": "nowhere",
    "PGHOST": "nowhere",
    "PGPORT": "9",
    "PGOPTIONS": "-c default_transaction_read_only=on",
    "PGSSLMODE": "verify-full",
    "PGSERVICE": "nowhere",
    "DAGSTER_HOME": "/nowhere",
    "DAGSTER_EVENT_BATCH_SIZE": "nonsense",
    "COLUMNS": "10",
    "FORCE_COLOR": "1",
    "NO_COLOR": "1",
    "TERM": "dumb",
    "TZ": "Pacific/Kiritimati",
    "LANG": "de_DE.UTF-8",
}


@pytest.fixture
def used_folder(tmp_path: Path) -> Path:
    """A copy of the project in which `up` and Dagster have run, with other settings."""
    for name in ("affiliate_pipeline", "affiliate_pipeline_tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "dagster.yaml", "workspace.yaml"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    text = "".join(f"{name}={value}\n" for name, value in SETTINGS.items())
    (tmp_path / ".env").write_text(text)
    for name in (".affiliate", "storage", "history", "schedules", "reports"):
        (tmp_path / name).mkdir()
    (tmp_path / ".affiliate" / "settings.env").write_text(text)
    (tmp_path / ".affiliate" / "postgres.json").write_text("nonsense")
    return tmp_path


@pytest.fixture
def used_port() -> Iterator[None]:
    """Something listens on the port of Dagster's UI."""
    with socket.socket() as taken:
        with suppress(OSError):  # as it happens, it is taken
            taken.bind(("127.0.0.1", 3000))
            taken.listen()
        yield


def test_the_folder_the_environment_and_ports_in_use_change_nothing(used_folder, used_port):
    environment = {**os.environ, **ENVIRONMENT, "HOME": str(used_folder), "PYTHONPATH": str(used_folder)}
    del environment["PYTEST_CURRENT_TEST"]  # as a developer starts it
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", *(f"affiliate_pipeline_tests/{test}" for test in TESTS)],
        cwd=used_folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert {path.name for path in (used_folder / ".affiliate").iterdir()} == {"settings.env", "postgres.json"}
