"""A database that requires TLS, with certificates that each side verifies.

PgBouncer serves TLS here: the embedded PostgreSQL is built without it.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.parse import urlencode

import pytest

from affiliate_pipeline.app.__main__ import app
from affiliate_pipeline.app.embedded_server import programs
from affiliate_pipeline.app.embedded_server.cluster import ServerError
from affiliate_pipeline.postgres.connection import connect
from affiliate_pipeline.postgres.errors import StoreUnavailable
from affiliate_pipeline_tests.certificates import Authority
from affiliate_pipeline_tests.defs.direct_runs import land
from affiliate_pipeline_tests.defs.rebates import DAYS, KEY, landed, rebates, sent
from affiliate_pipeline_tests.pgbouncer import needs_pgbouncer, pgbouncer, pgbouncer_with_tls

pytestmark = needs_pgbouncer
needs_psql = pytest.mark.skipif(
    not shutil.which("psql"), reason="psql is not installed (Debian: apt-get install postgresql-client)"
)


@pytest.fixture
def tls_database(sandbox, database_url, tmp_path, monkeypatch) -> Iterator[None]:
    """The configured database requires TLS with a client certificate, whose key is encrypted."""
    with pgbouncer_with_tls(database_url, tmp_path, key_password="k%y p/w") as url:
        monkeypatch.setenv("AFFILIATE_DATABASE_URL", url)
        yield


def test_days_land_and_are_read_over_verified_tls(sandbox, tls_database, query, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    rows = rebates(DAYS[0], 20)
    sandbox.binance.set_rebates(rows)
    run = land(KEY, DAYS[:1])
    assert run.success, run.message
    assert landed(query, DAYS[0]) == sent(rows)

    app(["export", KEY, f"{DAYS[0]}"], standalone_mode=False)
    assert len(capfd.readouterr().out.splitlines()) == 1 + len(rows)
    with pytest.raises(SystemExit):
        app(["check"])
    assert "PostgreSQL 18 responds" in capfd.readouterr().out


@needs_psql
def test_psql_connects_with_tls_and_the_installed_pg_dump_runs(sandbox, database_url, tmp_path, monkeypatch, capfd):
    def execute(path: str, arguments: list[str], environment: dict[str, str]) -> None:
        assert arguments[0] == path
        subprocess.run(arguments, env=environment, check=True, timeout=120)

    monkeypatch.setattr(os, "execve", execute)
    with pgbouncer_with_tls(database_url, tmp_path) as url:
        monkeypatch.setenv("AFFILIATE_DATABASE_URL", url)
        app(["psql", "-Atc", "select 'as ' || 'expected'"], standalone_mode=False)
        assert "as expected" in capfd.readouterr().out
        app(["pg_dump", "--version"], standalone_mode=False)
        assert "pg_dump (PostgreSQL)" in capfd.readouterr().out


def test_a_missing_psql_is_reported_with_the_package_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", f"{tmp_path}")
    with pytest.raises(ServerError, match=r"'psql' is not on PATH.*cannot connect with TLS.*postgresql-client"):
        programs.client_program("psql", with_tls=True)


def test_each_failure_of_tls_is_reported_with_what_to_correct(database_url, tmp_path):
    authority, other = Authority(tmp_path), Authority(folder(tmp_path, "other"))
    _, key = other.issue("client")
    certificate, _ = authority.issue("client")
    key.chmod(0o600)
    tls = {"sslmode": "verify-full", "sslrootcert": authority.file}

    def reported(url: str, **parameters: object) -> str:
        with pytest.raises(StoreUnavailable) as raised:
            connect(f"{url}?{urlencode(parameters)}")
        # No message proposes to disable TLS.
        assert "disable" not in f"{raised.value}"
        return f"{raised.value}"

    with tls_server(database_url, authority, folder(tmp_path, "right"), "127.0.0.1") as url:
        connect(f"{url}?{urlencode(tls)}").close()
        assert "Set sslrootcert" in reported(url, **tls | {"sslrootcert": other.file})
        missing = reported(url, **tls | {"sslrootcert": tmp_path / "missing.pem"})
        assert "missing.pem" in missing and "Set sslrootcert" in missing
        assert "Set sslrootcert" in reported(url, **tls | {"sslrootcert": "system"})
        assert "set sslmode=verify-full" in reported(url, sslmode="disable")
        assert "Correct sslcert, sslkey and sslpassword" in reported(url, **tls, sslcert=certificate, sslkey=key)
    with tls_server(database_url, authority, folder(tmp_path, "wrong"), "db.example") as url:
        name = reported(url, **tls)
        assert 'certificate for "db.example"' in name and "Use a host" in name
    with pgbouncer(database_url, folder(tmp_path, "plain"), "session") as url:
        assert "Enable TLS at the server" in reported(url, **tls)
    with pgbouncer_with_tls(database_url, folder(tmp_path, "mutual")) as url:
        url = url.partition("?")[0]
        assert "Correct sslcert, sslkey and sslpassword" in reported(url, sslmode="require")


def folder(parent: Path, name: str) -> Path:
    created = parent / name
    created.mkdir()
    return created


def tls_server(database_url: str, authority: Authority, folder: Path, host: str) -> AbstractContextManager[str]:
    """A PgBouncer that requires TLS, with a certificate for that host."""
    certificate, key = authority.issue(host)
    settings = {"client_tls_sslmode": "require", "client_tls_key_file": key, "client_tls_cert_file": certificate}
    return pgbouncer(database_url, folder, "session", **settings)
