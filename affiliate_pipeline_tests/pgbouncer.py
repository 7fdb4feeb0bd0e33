"""A real PgBouncer in front of the test's database. Contains no tests."""

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest
from psycopg.conninfo import conninfo_to_dict

from affiliate_pipeline_tests.certificates import Authority

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
needs_pgbouncer = pytest.mark.skipif(
    PGBOUNCER is None, reason="pgbouncer is not installed (Debian: apt-get install pgbouncer)"
)
CONFIGURATION = Path(__file__).parent / "cases" / "transaction-pooler" / "pgbouncer.ini"
START_TIMEOUT_S = 30


@contextmanager
def pgbouncer(database_url: str, folder: Path, mode: str, **settings: object) -> Iterator[str]:
    """Run a PgBouncer in this pool mode with these additional settings, and yield its URL."""
    server = conninfo_to_dict(database_url)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    databases = "host={host} port={port} user={user} password={password}".format(**server)
    text = CONFIGURATION.read_text()
    text = re.sub(r"(?m)^\* = .*$", f"* = {databases}", text)
    text = re.sub(r"(?m)^listen_port = .*$", f"listen_port = {port}", text)
    text = re.sub(r"(?m)^pool_mode = .*$", f"pool_mode = {mode}", text)
    text += "\n" + "".join(f"{name} = {value}\n" for name, value in settings.items())
    configuration = folder / f"pgbouncer-{port}.ini"
    configuration.write_text(text)
    command = [str(PGBOUNCER), str(configuration)]
    if os.getuid() == 0:
        # PgBouncer refuses to run as root.
        for parent in (configuration, *configuration.parents):
            if parent.owner() == "root" and str(parent) not in ("/", "/tmp"):
                parent.chmod(0o755)
        command[1:1] = ["-u", "nobody"]
    log = folder / f"pgbouncer-{port}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.02)
        yield f"postgresql://{server['user']}@127.0.0.1:{port}/{server['dbname']}"
    finally:
        process.terminate()
        process.wait()


@contextmanager
def pgbouncer_with_tls(database_url: str, folder: Path, key_password: str = "") -> Iterator[str]:
    """Run a PgBouncer in session mode that requires TLS with a client certificate, and yield its URL with both."""
    authority = Authority(folder)
    certificate, key = authority.issue("127.0.0.1")
    client_certificate, client_key = authority.issue("client", key_password)
    client_key.chmod(0o600)
    settings = {
        "client_tls_sslmode": "verify-full",
        "client_tls_key_file": key,
        "client_tls_cert_file": certificate,
        "client_tls_ca_file": authority.file,
    }
    parameters = {
        "sslmode": "verify-full",
        "sslrootcert": authority.file,
        "sslcert": client_certificate,
        "sslkey": client_key,
    } | ({"sslpassword": key_password} if key_password else {})
    with pgbouncer(database_url, folder, "session", **settings) as url:
        yield f"{url}?{urlencode(parameters, quote_via=quote)}"
