"""PostgreSQL with TLS and Redis on a host. Contains no tests."""

import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import redis
from psycopg.conninfo import make_conninfo

from affiliate_pipeline_tests.certificates import Authority
from affiliate_pipeline_tests.cluster.hosts import Host
from affiliate_pipeline_tests.database import Database
from affiliate_pipeline_tests.e2e.project import wait_for

PASSWORD = "cluster-secret"
# The system user of Debian's package: the server refuses to run as root.
USER = "postgres"
POSTGRES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))[::-1]), None)
CONFIGURATION = """
listen_addresses = '*'
port = 5432
unix_socket_directories = ''
ssl = on
ssl_cert_file = 'server.pem'
ssl_key_file = 'server.key'
max_connections = 200
# fsync protects data only from a crash of the real machine, and tests kill only processes.
fsync = off
"""


def missing() -> str | None:
    """Why the services cannot be started here; None if they can."""
    return None if POSTGRES else "not installed: PostgreSQL with TLS (Debian: apt-get install postgresql)"


class Postgres:
    """PostgreSQL, which accepts only TLS connections; `url` is for clients that verify it."""

    def __init__(self, host: Host) -> None:
        assert POSTGRES
        self.host, self.bin, self.data = host, POSTGRES.parent, host.home / "postgres"
        self.authority = Authority(host.network.folder)
        self.url = (
            f"postgresql://affiliate:{PASSWORD}@{host.name}:5432/affiliate"
            f"?sslmode=verify-full&sslrootcert={self.authority.file}"
        )
        self.database = self._connection("affiliate")

    def create(self) -> None:
        """Create its data, certificate and database, and start it."""
        # The paths for this process; `self.data` is the path of the same data folder on the host.
        data, password = self.host.folder / self.data.name, self.host.folder / "password"
        data.mkdir()
        shutil.chown(data, USER, USER)
        password.write_text(PASSWORD)
        options = ["--username=affiliate", f"--pwfile={password.name}", "--auth=scram-sha-256", "--locale=C"]
        self.host.run(f"{self.bin}/initdb", "-D", f"{self.data}", *options, "--encoding=UTF8", user=USER)
        with (data / "postgresql.conf").open("a") as file:
            file.write(CONFIGURATION)
        (data / "pg_hba.conf").write_text("hostssl all all all scram-sha-256\n")
        for file in self.authority.issue(self.host.name):
            own = Path(shutil.move(file, data / f"server{file.suffix}"))
            own.chmod(0o600)
            shutil.chown(own, USER, USER)
        self.start()
        with closing(self._connection("postgres")) as database:
            database.query("create database affiliate")

    def start(self) -> None:
        """Start it, and wait until it accepts connections."""
        self.control("start", "-w", "-l", f"{self.data}/log")

    def stop(self, mode: str = "immediate") -> None:
        """Stop it, and wait until it has ended."""
        self.control("stop", "-w", "-m", mode)

    def control(self, *arguments: str) -> None:
        """Run `pg_ctl`."""
        self.host.run(f"{self.bin}/pg_ctl", "-D", f"{self.data}", *arguments, user=USER)

    def _connection(self, database: str) -> Database:
        # The test cannot resolve the names of hosts.
        return Database(make_conninfo(self.url, hostaddr=self.host.address, dbname=database))


class Redis:
    """Redis as Celery's broker and result backend. Unless `durable`, a restart loses its data."""

    def __init__(self, host: Host, *, durable: bool = True) -> None:
        self.host, self.durable = host, durable
        self.url = f"redis://:{PASSWORD}@{host.name}:6379/0"
        self.client = redis.Redis(host.address, password=PASSWORD)

    def start(self) -> None:
        """Start it, and wait until it responds."""
        options = ["--bind", "0.0.0.0", "--requirepass", PASSWORD, "--dir", f"{self.host.home}", "--save", ""]
        options += ["--appendonly", "yes" if self.durable else "no"]
        self.host.start("redis", ["redis-server", *options], env={"PATH": os.environ["PATH"]})
        wait_for(self.responds)

    def responds(self) -> bool:
        try:
            return self.client.ping()
        except redis.RedisError:
            return False

    def stop(self) -> None:
        """Stop it as an operator does."""
        self.client.shutdown()

    def kill(self) -> None:
        """Kill it."""
        self.host.signal("redis-server")

    def queued(self) -> int:
        """The number of tasks that no worker has taken."""
        return sum(self.client.llen(key) for key in self.queues())

    def queues(self) -> Iterator[bytes]:
        """The lists of tasks, one per priority."""
        return (key for key in self.client.scan_iter("dagster*") if self.client.type(key) == b"list")
