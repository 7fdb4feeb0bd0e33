"""A Redis server as Celery's broker. Contains no tests."""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis


@dataclass
class Broker:
    """A Redis server in a process of its own."""

    folder: Path
    port: int

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    @property
    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port)

    @contextmanager
    def running(self) -> Iterator[None]:
        command = f"redis-server --port {self.port} --bind 127.0.0.1 --dir {self.folder} --save 60 1".split()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
            try:
                while not self.is_ready():
                    assert server.poll() is None
                yield
            finally:
                # As Debian's service does; Redis then saves its data and exits.
                server.terminate()

    def is_ready(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.ConnectionError:
            return False


def broker_in(folder: Path) -> Broker:
    """A broker on a free port, with its data in the folder."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return Broker(folder, probe.getsockname()[1])
