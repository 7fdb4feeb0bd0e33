"""The tests ignore settings in the folder and in the environment that they are started in."""

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
# One test of each kind: settings, definitions, a command that checks a port, a run that fetches and lands rows,
# Dagster's storage.
TESTS = (
    "test_environment.py::test_every_setting_has_a_default",
    "test_definitions.py::test_every_asset_has_a_description_an_owner_and_the_group_of_its_exchange",
    "app/test_check.py::test_a_healthy_installation_has_no_findings",
    "defs/test_endpoint_assets.py::test_a_day_lands_exactly",
    "app/instance/test_storage.py::test_the_configured_database_is_used_whatever_its_driver",
)
SETTINGS = {
    "AFFILIATE_DATABASE_URL": "postgresql://user:password@127.0.0.1:9/nowhere",
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
    """A copy of the project with settings, and with the files that `up` and Dagster leave behind."""
    for name in ("affiliate_pipeline", "affiliate_pipeline_tests"):
        # With the compiled modules, which are valid in the copy too, since it preserves the time stamps.
        shutil.copytree(ROOT / name, tmp_path / name)
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
    """Another process listens on the default port of Dagster's UI."""
    with socket.socket() as taken:
        with suppress(OSError):  # It may be in use already.
            taken.bind(("127.0.0.1", 3000))
            taken.listen()
        yield


@pytest.mark.e2e
def test_the_folder_the_environment_and_a_port_in_use_affect_no_test(used_folder, used_port):
    environment = {**os.environ, **ENVIRONMENT, "HOME": str(used_folder), "PYTHONPATH": str(used_folder)}
    # Without this variable, the started pytest isolates itself, as it does when a developer starts it.
    del environment["PYTEST_CURRENT_TEST"]
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
