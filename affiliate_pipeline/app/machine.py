"""What a command needs of this machine: free disk space, a free port."""

import shutil
import socket
from pathlib import Path

from affiliate_pipeline.app.cli import Stop
from affiliate_pipeline.app.embedded_server.cluster import SYSTEM_FOLDER

MIN_FREE_BYTES = 500_000_000


def check_disk(home: Path) -> None:
    """Raises `Stop` if a disk is nearly full."""
    for folder in (home, SYSTEM_FOLDER):  # for root, the latter holds the data
        if folder.exists() and shutil.disk_usage(folder).free < MIN_FREE_BYTES:
            raise Stop(
                f"less than {MIN_FREE_BYTES // 1_000_000} MB are free on the disk of {folder}",
                "Free some space, then start again",
            )


def check_port(port: int) -> None:
    """Raises `Stop` if the port cannot be listened on."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise Stop(
            f"port {port} cannot be used ({error.strerror})",
            "Stop what uses it, or choose another with --port (`make up ARGS='--port 3001'`)",
        ) from None
