"""The embedded PostgreSQL, run for real: what it survives, who gets in, what it says when it cannot be had.

Each home is inside pytest's temporary folder, which no other user may enter; for root that is the hard case.
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
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest

from affiliate_pipeline.app.embedded_server import programs, server
from affiliate_pipeline.app.embedded_server.cluster import Cluster, ServerError

ENSURE = "import sys, pathlib; from affiliate_pipeline.app.embedded_server import server; "
ENSURE += "print(server.ensure(pathlib.Path(sys.argv[1]), 'data'))"


def state(home: Path) -> dict:
    return json.loads((home / "postgres.json").read_text())


def data_folder(home: Path) -> Path:
    return home / state(home)["data"]


def postmasters(home: Path) -> list[psutil.Process]:
    """The live servers on the home's data."""
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
    """Stops the server and removes its data, which for root lies outside of the home."""
    if (home / "postgres.json").exists():
        server.stop(home)
        shutil.rmtree(data_folder(home).parent, ignore_errors=True)
    shutil.rmtree(home, ignore_errors=True)


def rows(url: str) -> list[int]:
    with psycopg.connect(url) as connection:
        return [n for (n,) in connection.execute("select n from kept order by n")]


def as_the_servers_user(home: Path) -> dict:
    if os.geteuid() != 0:
        return {}
    owner = data_folder(home).stat()
    return {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}


@contextmanager
def living(home: Path) -> Iterator[int]:
    process = subprocess.Popen(["sleep", "100"], cwd="/", **as_the_servers_user(home))
    yield process.pid
    process.kill()
    process.wait()


@contextmanager
def zombie(home: Path) -> Iterator[int]:
    process = subprocess.Popen(["sleep", "100"], cwd="/", **as_the_servers_user(home))
    process.kill()
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.001)
    yield process.pid
    process.wait()


class Taker(socketserver.TCPServer):
    allow_reuse_address = True


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("shared") / ".affiliate"
    with psycopg.connect(server.ensure(home, "data")) as connection:
        connection.execute("create table kept (n int)")
        connection.execute("insert into kept values (1), (2)")
    yield home
    remove(home)


@pytest.fixture
def home(shared_home: Path) -> Path:
    """A running server whose table `kept` holds 1 and 2."""
    server.ensure(shared_home, "data")
    return shared_home


@pytest.fixture
def fresh_home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / ".affiliate"
    remove(tmp_path / ".affiliate")


def test_four_processes_starting_at_once_in_a_long_closed_folder_get_one_server(tmp_path: Path) -> None:
    home = tmp_path / ("a folder with a 'long' name, " * 6).strip() / ".affiliate"
    home.parent.mkdir(mode=0o700)
    assert len(str(home)) > 120
    try:
        command, pipe = [sys.executable, "-c", ENSURE, str(home)], subprocess.PIPE
        starting = [subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) for _ in range(4)]
        # Ends only if the server holds none of the pipes of whoever started it.
        answers = [process.communicate(timeout=60) for process in starting]
        assert {told for _, told in answers} == {""}
        (url,) = {url.strip() for url, _ in answers}
        assert url == server.ensure(home, "data")
        assert len(postmasters(home)) == 1
    finally:
        remove(home)


def test_a_running_server_is_not_started_again(home: Path) -> None:
    url, running = server.ensure(home, "data"), the_postmaster(home)
    assert server.ensure(home, "data") == url
    assert the_postmaster(home) == running


def test_a_running_server_is_found_while_another_process_holds_the_lock(home: Path) -> None:
    with open(home / "postgres.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        told = subprocess.check_output([sys.executable, "-c", ENSURE, str(home)], text=True, timeout=20)
    assert told.strip() == server.ensure(home, "data")


def test_each_database_is_created_once(home: Path) -> None:
    first, second = server.ensure(home, "data"), server.ensure(home, "sand box")
    assert second == first.removesuffix("data") + "sand%20box"
    with psycopg.connect(second) as connection:
        assert connection.execute("select current_database()").fetchone() == ("sand box",)
    assert server.ensure(home, "sand box") == second


def test_the_server_is_durable_and_speaks_utc_and_utf8(home: Path) -> None:
    shown = {
        "fsync": "on",
        "full_page_writes": "on",
        "synchronous_commit": "on",
        "server_encoding": "UTF8",
        "TimeZone": "UTC",
        "max_connections": "200",
        "shared_buffers": "128MB",
        "max_wal_size": "1GB",
    }
    with psycopg.connect(server.ensure(home, "data")) as connection:
        assert {name: connection.execute(f"show {name}").fetchone()[0] for name in shown} == shown
        query = "select datlocprovider::text, datlocale from pg_database where datname = 'data'"
        assert connection.execute(query).fetchone() == ("b", "C.UTF-8")


def test_ctrl_c_does_not_reach_the_server(home: Path) -> None:
    assert os.getsid(the_postmaster(home).pid) != os.getsid(0)


def test_no_one_gets_in_without_the_password(home: Path) -> None:
    server.ensure(home, "data")
    at = {"host": "127.0.0.1", "port": state(home)["port"], "user": "affiliate", "dbname": "data"}
    with pytest.raises(psycopg.OperationalError, match="no password supplied"):
        psycopg.connect(**at)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(**at, password="wrong")
    with psycopg.connect(server.ensure(home, "data")) as connection:
        ways = connection.execute("select distinct auth_method from pg_hba_file_rules").fetchall()
        assert ways == [("scram-sha-256",)]
        assert connection.execute("show listen_addresses").fetchone() == ("127.0.0.1",)
        assert connection.execute("show unix_socket_directories").fetchone() == ("",)


def test_only_their_owner_may_read_the_files(home: Path) -> None:
    data = data_folder(home)
    folders, files = (home, data.parent, data), (home / "postgres.json", data.parent / "log")
    expected = dict.fromkeys(folders, 0o700) | dict.fromkeys(files, 0o600)
    assert {path: stat.S_IMODE(path.stat().st_mode) for path in expected} == expected
    assert not (data.parent / "password").exists()


def test_a_start_begins_a_log_and_keeps_the_one_before(home: Path) -> None:
    log = data_folder(home).parent / "log"
    server.stop(home)
    before = log.read_text()
    server.ensure(home, "data")
    assert log.with_name("log.old").read_text() == before
    assert "starting PostgreSQL" in log.read_text() and not log.read_text().startswith(before)


def test_the_programs_run_and_only_root_may_write_the_shared_ones(home: Path) -> None:
    psql = programs.program("psql")
    assert subprocess.check_output([psql, "-At", server.ensure(home, "data"), "-c", "select 1"]) == b"1\n"
    if os.geteuid() == 0:
        for path in (psql, *psql.parents):
            assert path.stat().st_uid == 0
            assert path.stat().st_mode & 0o027 == 0o005, path


def test_stop_then_ensure_keeps_the_rows(home: Path) -> None:
    assert server.url_if_running(home, "data")
    assert server.stop(home)
    assert not server.url_if_running(home, "data")
    assert postmasters(home) == []
    assert not server.stop(home)
    assert rows(server.ensure(home, "data")) == [1, 2]


def test_stop_disconnects_clients(home: Path) -> None:
    with psycopg.connect(server.ensure(home, "data")) as connection:
        connection.execute("select 1")
        assert server.stop(home)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")


def test_where_nothing_was_ever_started_nothing_runs_and_nothing_is_made(fresh_home: Path) -> None:
    assert not server.url_if_running(fresh_home, "data")
    assert not server.stop(fresh_home)
    assert not fresh_home.exists()


def test_a_killed_server_comes_back_with_its_rows_after_its_orphans_have_gone(home: Path) -> None:
    # A backend that computes does not notice that the postmaster died; a second server would ruin its data.
    with closing(psycopg.connect(server.ensure(home, "data"))) as connection:
        orphan = psutil.Process(connection.info.backend_pid)
        connection.pgconn.send_query(b"select count(*) from generate_series(1, 4e6::bigint)")
        the_postmaster(home).send_signal(signal.SIGKILL)
        url = server.ensure(home, "data")
        # A zombie where pid 1 does not collect the dead.
        assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE
    assert rows(url) == [1, 2]
    assert len(postmasters(home)) == 1


@pytest.mark.parametrize("stranger", [living, zombie])
def test_a_stale_pid_file_does_not_hinder(home: Path, stranger: Callable) -> None:
    server.stop(home)
    with stranger(home) as pid:
        file = data_folder(home) / "postmaster.pid"
        file.write_text(f"{pid}\n{data_folder(home)}\n1700000000\n{state(home)['port']}\n\n127.0.0.1\n")
        shutil.chown(file, data_folder(home).stat().st_uid, data_folder(home).stat().st_gid)
        assert rows(server.ensure(home, "data")) == [1, 2]
        assert psutil.pid_exists(pid)


def test_a_port_taken_meanwhile_is_left_to_its_taker(home: Path) -> None:
    server.stop(home)
    taken = state(home)["port"]
    with Taker(("127.0.0.1", taken), socketserver.BaseRequestHandler) as taker:
        threading.Thread(target=taker.serve_forever, args=[0.01]).start()
        try:
            assert not server.url_if_running(home, "data")
            url = server.ensure(home, "data")
        finally:
            taker.shutdown()
    assert state(home)["port"] != taken
    assert f":{state(home)['port']}/" in url
    assert rows(url) == [1, 2]


def test_the_recorded_port_is_kept_over_a_restart(home: Path) -> None:
    url = server.ensure(home, "data")
    server.stop(home)
    assert server.ensure(home, "data") == url


def test_a_home_moved_under_a_running_server_keeps_its_rows(fresh_home: Path, tmp_path: Path) -> None:
    with psycopg.connect(server.ensure(fresh_home, "data")) as connection:
        connection.execute("create table kept (n int)")
        connection.execute("insert into kept values (7)")
    moved = tmp_path / "moved"
    fresh_home.rename(moved)
    try:
        assert rows(server.ensure(moved, "data")) == [7]
        assert len(postmasters(moved)) == 1
    finally:
        remove(moved)


def test_a_killed_initdb_leaves_nothing_half_made(fresh_home: Path) -> None:
    starting = subprocess.Popen([sys.executable, "-c", ENSURE, str(fresh_home)], stdout=subprocess.DEVNULL)
    while not (fresh_home / "postgres.json").exists() or not data_folder(fresh_home).with_name("data.new").exists():
        assert starting.poll() is None
        time.sleep(0.001)
    starting.kill()
    starting.wait()
    assert not data_folder(fresh_home).exists()
    assert server.ensure(fresh_home, "data")
    assert not (data_folder(fresh_home).parent / "data.new").exists()


def test_a_full_disk_is_told_as_such(fresh_home: Path) -> None:
    cluster = Cluster(fresh_home / "postgres" / "data", 1, "secret")
    output = "creating files ... ok\ninitdb: error: could not write file: No space left on device\n"
    told = str(cluster.error("PostgreSQL's initdb failed", output))
    assert told.startswith("the disk of ")
    assert told.endswith(" is full. Free some space, then try again")


def test_a_system_user_that_cannot_be_made_is_told_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "SYSTEM_USER", "not a user's name")
    with pytest.raises(ServerError, match=r"does not run as root.*useradd.*as an ordinary user"):
        programs.system_user()


def test_a_missing_wheel_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "WHEEL", "absent-wheel")
    with pytest.raises(ServerError, match="pip install --force-reinstall absent-wheel"):
        programs.program("postgres")


def test_a_damaged_state_file_is_told_and_left_alone(fresh_home: Path) -> None:
    fresh_home.mkdir()
    damaged = fresh_home / "postgres.json"
    damaged.write_text('{"data": ')
    with pytest.raises(ServerError, match="postgres.json is damaged"):
        server.ensure(fresh_home, "data")
    assert damaged.read_text() == '{"data": '
    damaged.unlink()


def test_data_that_cannot_start_is_told_with_its_cause_and_without_the_password(home: Path) -> None:
    server.stop(home)
    control = data_folder(home) / "global" / "pg_control"
    control.rename(control.with_name("elsewhere"))
    try:
        with pytest.raises(ServerError) as failure:
            server.ensure(home, "data")
    finally:
        control.with_name("elsewhere").rename(control)
    assert "did not start" in str(failure.value)
    assert "pg_control" in str(failure.value)
    assert str(data_folder(home).parent / "log") in str(failure.value)
    assert state(home)["password"] not in str(failure.value)
    assert state(home)["password"] not in repr(failure.getrepr(showlocals=True))
    assert rows(server.ensure(home, "data")) == [1, 2]
