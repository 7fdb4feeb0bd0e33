"""The real embedded PostgreSQL: crashes and restarts, authentication, file permissions, and error messages.

pytest's temporary folder, which contains each `.affiliate` folder (`home`), is private to the user of the tests.
PostgreSQL does not run as root: if root runs the tests, the server runs as another user and its data is outside of
`home`.
"""

import fcntl
import json
import os
import shutil
import signal
import socketserver
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from affiliate_pipeline.app.embedded_server import programs, server
from affiliate_pipeline.app.embedded_server.cluster import Cluster, ServerError

ENSURE = "import sys, pathlib; from affiliate_pipeline.app.embedded_server import server; "
ENSURE += "print(server.ensure_database(pathlib.Path(sys.argv[1]), 'data'))"


def state(home: Path) -> dict:
    return json.loads((home / "postgres.json").read_text())


def data_folder(home: Path) -> Path:
    return home / state(home)["data"]


def postmasters(home: Path) -> list[psutil.Process]:
    """The server processes that run on the data of the home."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.name() == "postgres" and str(data_folder(home)) in process.cmdline():
                found.append(process)
        except psutil.Error:
            pass
    return found


def the_postmaster(home: Path) -> psutil.Process:
    (process,) = postmasters(home)
    return process


def remove(home: Path) -> None:
    """Stop the server, and remove the home and the data, which is outside of the home if root started the server."""
    if (home / "postgres.json").exists():
        server.stop(home)
        shutil.rmtree(data_folder(home).parent, ignore_errors=True)
    shutil.rmtree(home, ignore_errors=True)


def rows(url: str) -> list[int]:
    with psycopg.connect(url) as connection:
        return [n for (n,) in connection.execute("select n from numbers order by n")]


def server_user_arguments(home: Path) -> dict[str, Any]:
    if os.geteuid() != 0:
        return {}
    owner = data_folder(home).stat()
    return {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}


@contextmanager
def living(home: Path) -> Iterator[int]:
    process = subprocess.Popen(["sleep", "100"], cwd="/", **server_user_arguments(home))
    yield process.pid
    process.kill()
    process.wait()


@contextmanager
def zombie(home: Path) -> Iterator[int]:
    process = subprocess.Popen(["sleep", "100"], cwd="/", **server_user_arguments(home))
    process.kill()
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.001)
    yield process.pid
    process.wait()


class ReusingServer(socketserver.TCPServer):
    allow_reuse_address = True


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("shared") / ".affiliate"
    with psycopg.connect(server.ensure_database(home, "data")) as connection:
        connection.execute("create table numbers (n int)")
        connection.execute("insert into numbers values (1), (2)")
    yield home
    remove(home)


@pytest.fixture
def home(shared_home: Path) -> Path:
    """The home of a running server whose table `numbers` contains 1 and 2."""
    server.ensure_database(shared_home, "data")
    return shared_home


@pytest.fixture
def fresh_home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / ".affiliate"
    remove(tmp_path / ".affiliate")


def test_a_start_killed_during_initdb_is_repeated_by_two_processes_at_once_which_get_one_server(tmp_path: Path) -> None:
    # In a private folder with a long path.
    home = tmp_path / ("a folder with a 'long' name, " * 6).strip() / ".affiliate"
    home.parent.mkdir(mode=0o700)
    assert len(str(home)) > 120
    command, pipe = [sys.executable, "-c", ENSURE, str(home)], subprocess.PIPE
    try:
        killed = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while not (home / "postgres.json").exists() or not data_folder(home).with_name("data.new").exists():
            assert killed.poll() is None
            time.sleep(0.001)
        killed.kill()
        killed.wait()
        assert not data_folder(home).exists()

        starting = [subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) for _ in range(2)]
        # `communicate` returns only once the pipes are closed, so it hangs if the server inherits them.
        outputs = [process.communicate(timeout=60) for process in starting]
        assert {stderr for _, stderr in outputs} == {""}
        (url,) = {stdout.strip() for stdout, _ in outputs}
        assert url == server.ensure_database(home, "data")
        assert len(postmasters(home)) == 1
        assert not data_folder(home).with_name("data.new").exists()
    finally:
        remove(home)


def test_a_running_server_is_not_started_again(home: Path) -> None:
    url, running = server.ensure_database(home, "data"), the_postmaster(home)
    assert server.ensure_database(home, "data") == url
    assert the_postmaster(home) == running


def test_a_running_server_is_found_while_another_process_has_the_lock(home: Path) -> None:
    with open(home / "postgres.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        url = subprocess.check_output([sys.executable, "-c", ENSURE, str(home)], text=True, timeout=60)
    assert url.strip() == server.ensure_database(home, "data")


def test_each_database_is_created_once(home: Path) -> None:
    first, second = server.ensure_database(home, "data"), server.ensure_database(home, "sand box")
    assert second == first.removesuffix("data") + "sand%20box"
    with psycopg.connect(second) as connection:
        assert connection.execute("select current_database()").fetchone() == ("sand box",)
    assert server.ensure_database(home, "sand box") == second


def test_the_server_is_durable_and_uses_utc_and_utf8(home: Path) -> None:
    settings = {
        "fsync": "on",
        "full_page_writes": "on",
        "synchronous_commit": "on",
        "server_encoding": "UTF8",
        "TimeZone": "UTC",
        "max_connections": "200",
        "shared_buffers": "128MB",
        "max_wal_size": "1GB",
    }
    with psycopg.connect(server.ensure_database(home, "data")) as connection:
        current = "select name, current_setting(name) from unnest(%s::text[]) name"
        assert dict(connection.execute(current, [[*settings]]).fetchall()) == settings
        query = "select datlocprovider::text, datlocale from pg_database where datname = 'data'"
        assert connection.execute(query).fetchone() == ("b", "C.UTF-8")


def test_ctrl_c_does_not_reach_the_server(home: Path) -> None:
    assert os.getsid(the_postmaster(home).pid) != os.getsid(0)


def test_a_connection_requires_the_password(home: Path) -> None:
    server.ensure_database(home, "data")
    at = {"host": "127.0.0.1", "port": state(home)["port"], "user": "affiliate", "dbname": "data"}
    with pytest.raises(psycopg.OperationalError, match="no password supplied"):
        psycopg.connect(**at)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(**at, password="wrong")
    with psycopg.connect(server.ensure_database(home, "data")) as connection:
        methods = connection.execute("select distinct auth_method from pg_hba_file_rules").fetchall()
        assert methods == [("scram-sha-256",)]
        assert connection.execute("show listen_addresses").fetchone() == ("127.0.0.1",)
        assert connection.execute("show unix_socket_directories").fetchone() == ("",)


def test_only_the_owner_may_read_the_files(home: Path) -> None:
    data = data_folder(home)
    folders, files = (home, data.parent, data), (home / "postgres.json", data.parent / "log")
    expected = dict.fromkeys(folders, 0o700) | dict.fromkeys(files, 0o600)
    assert {path: stat.S_IMODE(path.stat().st_mode) for path in expected} == expected
    assert not (data.parent / "password").exists()


def test_a_start_writes_a_new_log_and_preserves_the_previous_one(home: Path) -> None:
    log = data_folder(home).parent / "log"
    server.stop(home)
    previous = log.read_text()
    server.ensure_database(home, "data")
    assert log.with_name("log.old").read_text() == previous
    assert "starting PostgreSQL" in log.read_text() and not log.read_text().startswith(previous)


def test_the_programs_run_and_only_root_may_write_them(home: Path) -> None:
    psql = programs.program("psql")
    assert subprocess.check_output([psql, "-At", server.ensure_database(home, "data"), "-c", "select 1"]) == b"1\n"
    if os.geteuid() == 0:
        for path in (psql, *psql.parents):
            assert path.stat().st_uid == 0
            assert path.stat().st_mode & 0o027 == 0o005, path


def test_the_rows_survive_a_restart(home: Path) -> None:
    assert server.url_if_running(home, "data")
    assert server.stop(home)
    assert not server.url_if_running(home, "data")
    assert postmasters(home) == []
    assert not server.stop(home)
    assert rows(server.ensure_database(home, "data")) == [1, 2]


def test_stop_disconnects_clients(home: Path) -> None:
    with psycopg.connect(server.ensure_database(home, "data")) as connection:
        connection.execute("select 1")
        assert server.stop(home)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")


def test_a_home_without_a_server_has_no_url_and_is_not_created(fresh_home: Path) -> None:
    assert not server.url_if_running(fresh_home, "data")
    assert not server.stop(fresh_home)
    assert not fresh_home.exists()


def test_a_killed_server_is_restarted_with_its_rows_after_its_orphans_have_ended(home: Path) -> None:
    # A busy backend does not notice that the postmaster has died. A second server at the same time corrupts the data.
    with closing(psycopg.connect(server.ensure_database(home, "data"))) as connection:
        orphan = psutil.Process(connection.info.backend_pid)
        connection.pgconn.send_query(b"select count(*) from generate_series(1, 4e6::bigint)")
        the_postmaster(home).send_signal(signal.SIGKILL)
        url = server.ensure_database(home, "data")
        # The orphan stays a zombie if pid 1 does not reap its children.
        assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE
    assert rows(url) == [1, 2]
    assert len(postmasters(home)) == 1


@pytest.mark.parametrize("unrelated", [living, zombie])
def test_a_stale_pid_file_does_not_prevent_a_start(
    home: Path, unrelated: Callable[[Path], AbstractContextManager[int]]
) -> None:
    server.stop(home)
    with unrelated(home) as pid:
        file = data_folder(home) / "postmaster.pid"
        file.write_text(f"{pid}\n{data_folder(home)}\n1700000000\n{state(home)['port']}\n\n127.0.0.1\n")
        shutil.chown(file, data_folder(home).stat().st_uid, data_folder(home).stat().st_gid)
        assert rows(server.ensure_database(home, "data")) == [1, 2]
        assert psutil.pid_exists(pid)


def test_another_port_is_used_if_the_recorded_one_is_in_use(home: Path) -> None:
    server.stop(home)
    recorded = state(home)["port"]
    with ReusingServer(("127.0.0.1", recorded), socketserver.BaseRequestHandler) as other:
        threading.Thread(target=other.serve_forever, args=[0.01]).start()
        try:
            assert not server.url_if_running(home, "data")
            url = server.ensure_database(home, "data")
        finally:
            other.shutdown()
    assert state(home)["port"] != recorded
    assert f":{state(home)['port']}/" in url
    assert rows(url) == [1, 2]


def test_a_restart_uses_the_recorded_port(home: Path) -> None:
    url = server.ensure_database(home, "data")
    server.stop(home)
    assert server.ensure_database(home, "data") == url


def test_the_rows_survive_a_move_of_the_home_of_a_running_server(home: Path) -> None:
    moved = home.with_name("moved")
    home.rename(moved)
    try:
        assert rows(server.ensure_database(moved, "data")) == [1, 2]
        assert len(postmasters(moved)) == 1
    finally:
        server.stop(moved)
        moved.rename(home)


def test_a_full_disk_is_reported(fresh_home: Path) -> None:
    cluster = Cluster(fresh_home / "postgres" / "data", 1, "secret")
    output = "creating files ... ok\ninitdb: error: could not write file: No space left on device\n"
    message = str(cluster.error("PostgreSQL's initdb failed", output))
    assert message.startswith("the disk of ")
    assert message.endswith(" is full. Free some space, then try again")


def test_a_system_user_that_cannot_be_created_is_reported_with_an_action(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "SYSTEM_USER", "not a user's name")
    with pytest.raises(ServerError, match=r"does not run as root.*useradd.*as an ordinary user"):
        programs.system_user()


def test_a_missing_wheel_is_reported_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "WHEEL", "absent-wheel")
    with pytest.raises(ServerError, match="pip install --force-reinstall absent-wheel"):
        programs.program("postgres")


def test_a_damaged_state_file_is_reported_and_unchanged(fresh_home: Path) -> None:
    fresh_home.mkdir()
    damaged = fresh_home / "postgres.json"
    damaged.write_text('{"data": ')
    with pytest.raises(ServerError, match="postgres.json is damaged"):
        server.ensure_database(fresh_home, "data")
    assert damaged.read_text() == '{"data": '
    damaged.unlink()


def test_a_failed_start_is_reported_with_its_cause_and_without_the_password(home: Path) -> None:
    server.stop(home)
    control = data_folder(home) / "global" / "pg_control"
    control.rename(control.with_name("elsewhere"))
    try:
        with pytest.raises(ServerError) as failure:
            server.ensure_database(home, "data")
    finally:
        control.with_name("elsewhere").rename(control)
    assert "did not start" in str(failure.value)
    assert "pg_control" in str(failure.value)
    assert str(data_folder(home).parent / "log") in str(failure.value)
    assert state(home)["password"] not in str(failure.value)
    assert state(home)["password"] not in repr(failure.getrepr(showlocals=True))
    assert rows(server.ensure_database(home, "data")) == [1, 2]
