"""Find, start and stop the embedded PostgreSQL: one server per `.affiliate` folder (`home`).

It listens on 127.0.0.1 only and requires the password. It has no unix socket, whose path could be too long.
"""

import os
import secrets
import shutil
import signal
import socket
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import psutil
import psycopg
from psycopg import sql

from affiliate_pipeline.app.embedded_server.cluster import (
    SYSTEM_FOLDER,
    Cluster,
    ServerError,
    locked,
    os_errors_as_server_errors,
    read,
    try_alive_lock,
    write,
)
from affiliate_pipeline.app.embedded_server.programs import make_folder, run
from affiliate_pipeline.domain.settings import DATABASE_VARIABLE, Environment

ROLE = "affiliate"
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "max_wal_size": "1GB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # Checkpoints would add two lines to the log every five minutes.
    "log_checkpoints": "off",
}
MAX_LAUNCHES = 3
# Recovery after a crash replays up to max_wal_size, which takes minutes on a slow disk.
WAIT_S = 300
CONNECT_TIMEOUT_S = 5
POLL_S = 0.02


def is_embedded(environment: Environment) -> bool:
    """Whether no database is configured, so that the application uses the embedded one."""
    return DATABASE_VARIABLE not in environment.variables


def start_database(environment: Environment) -> Environment:
    """Start the embedded server with its database, if it is used; return the environment with the database's URL."""
    if not is_embedded(environment):
        return environment
    database = environment.mode.value
    return replace(environment, embedded_url=ensure_database(environment.home, database))


def running_database(environment: Environment) -> Environment | None:
    """The environment with its database's URL; None if that database is embedded and its server is not running."""
    if not is_embedded(environment):
        return environment
    database = environment.mode.value
    url = url_if_running(environment.home, database)
    return replace(environment, embedded_url=url) if url else None


def ensure_database(home: Path, database: str) -> str:
    """The database's URL, after starting the server and creating the database if necessary.

    Processes may call this concurrently.
    """
    with os_errors_as_server_errors(home) as folder:
        cluster = read(folder)
        # The server is not running, lacks the database, or was started before the project's folder was moved.
        if cluster is None or _data_directory(cluster, database) != str(cluster.data):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with locked(folder):
                cluster = _start(folder)
                _create_database(cluster, database)
        return _url(cluster, database)


def url_if_running(home: Path, database: str) -> str | None:
    """The database's URL; None unless a server is running on the data folder of `home`."""
    with os_errors_as_server_errors(home) as folder:
        cluster = read(folder)
        if cluster is None or _data_directory(cluster) != str(cluster.data):
            return None
        return _url(cluster, database)


def stop(home: Path) -> bool:
    """Shut the server down, which disconnects its clients; True if it was running."""
    with os_errors_as_server_errors(home) as folder:
        if read(folder) is None:
            return False
        with locked(folder):
            cluster = read(folder)
            if cluster is None or not cluster.folder.exists():
                return False
            deadline = time.monotonic() + WAIT_S
            was_running = False
            while _is_alive(cluster):
                was_running = True
                if time.monotonic() > deadline:
                    raise ServerError(f"PostgreSQL did not stop within {WAIT_S} s", f"See its log, {cluster.log}")
                _shut_down(cluster)
                time.sleep(POLL_S)
            return was_running


def _is_alive(cluster: Cluster) -> bool:
    """Whether a process of the server, or of initdb, is alive."""
    with try_alive_lock(cluster) as lock_fd:
        return lock_fd is None


def _url(cluster: Cluster, database: str) -> str:
    return f"postgresql://{ROLE}:{cluster.password}@127.0.0.1:{cluster.port}/{quote(database, safe='')}"


def _start(home: Path) -> Cluster:
    """Create, start or restart the cluster as needed; return it once it accepts connections."""
    cluster = read(home) or _new(home)
    make_folder(cluster)
    deadline = time.monotonic() + WAIT_S
    launches = 0
    while True:
        with try_alive_lock(cluster) as lock_fd:
            if lock_fd is not None:  # no process of the server is alive
                if launches == MAX_LAUNCHES:
                    raise cluster.error("PostgreSQL did not start")
                if launches == 0 and cluster.log.exists():
                    cluster.log.replace(cluster.log.with_name("log.old"))
                launches += 1
                cluster = _launch(home, cluster, lock_fd)

        data_directory = _data_directory(cluster)
        if data_directory == str(cluster.data):
            return cluster
        if data_directory:  # started before the project's folder was moved: restart it under the new path
            _shut_down(cluster)
        if time.monotonic() > deadline:
            raise cluster.error(f"PostgreSQL accepted no connection within {WAIT_S} s")
        time.sleep(POLL_S)


def _new(home: Path) -> Cluster:
    """A new cluster, saved in `postgres.json`; its data and port do not exist yet."""
    if os.geteuid() == 0:
        data = SYSTEM_FOLDER / secrets.token_hex(8) / "data"
    else:
        data = home / "postgres" / "data"
        if data.exists():
            raise ServerError(
                f"{data} exists, but {home / 'postgres.json'}, which contains its password, is missing",
                "Restore that file; or, to start with an empty database, move the data away",
            )
    cluster = Cluster(data, port=0, password=secrets.token_urlsafe(32))
    write(home, cluster)
    return cluster


def _launch(home: Path, cluster: Cluster, lock_fd: int) -> Cluster:
    """Start the server without waiting for it; return the cluster with the port, which may be new.

    First creates the data of a cluster that has never run.
    """
    if not cluster.data.exists():
        if cluster.port:  # it has run before: a new, empty database would look like data loss
            raise ServerError(
                f"PostgreSQL's data folder {cluster.data} is missing",
                f"Restore it, or a backup of it; or, to start with an empty database, remove {home / 'postgres.json'}",
            )
        _initialize(cluster, lock_fd)
    _remove_stale_pid(cluster)

    launched = replace(cluster, port=free_port(cluster.port))
    if launched != cluster:
        write(home, launched)
    settings = {"port": launched.port, **SETTINGS}
    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    run(launched, lock_fd, "pg_ctl", "start", "--no-wait", "-D", launched.data, "-l", launched.log, "-o", options)
    return launched


def _initialize(cluster: Cluster, lock_fd: int) -> None:
    """Create the data of a cluster that has never run; the folder gets its final name once it is complete."""
    unfinished, password_file = cluster.folder / "data.new", cluster.folder / "password"
    # A killed process may have left them.
    shutil.rmtree(unfinished, ignore_errors=True)
    password_file.unlink(missing_ok=True)

    owner = cluster.folder.stat()
    try:
        with open(os.open(password_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
            file.write(cluster.password)
        locale = ("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
        access = ("--auth=scram-sha-256", f"--username={ROLE}", f"--pwfile={password_file}")
        # Iterations protect passwords that can be guessed; this one is random, and they take half of each connection's time.
        run(cluster, lock_fd, "initdb", "-D", unfinished, *locale, *access, "-c", "scram_iterations=1")
    finally:
        password_file.unlink(missing_ok=True)
    unfinished.rename(cluster.data)


def _remove_stale_pid(cluster: Cluster) -> None:
    """Remove postmaster.pid unless its process runs on this data.

    PostgreSQL refuses to start if the pid in the file exists, even if it is that of a zombie.
    """
    file = cluster.data / "postmaster.pid"
    command: list[str] = []
    with suppress(FileNotFoundError, ValueError, IndexError, psutil.Error):
        pid = int(file.read_text().split()[0])
        command = psutil.Process(pid).cmdline()
    if str(cluster.data) not in command:  # otherwise a server was started by hand on this data
        file.unlink(missing_ok=True)


def free_port(preferred: int = 0) -> int:
    """A port of 127.0.0.1 on which no server listens, the preferred one if possible."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as PostgreSQL does
        try:
            probe.bind(("127.0.0.1", preferred))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _connect(cluster: Cluster, database: str = "postgres") -> psycopg.Connection:
    return psycopg.connect(
        host="127.0.0.1",
        port=cluster.port,
        user=ROLE,
        password=cluster.password,
        dbname=database,
        # Otherwise another program on this port could request the password in clear text.
        require_auth="scram-sha-256",
        connect_timeout=CONNECT_TIMEOUT_S,
        autocommit=True,
    )


def _data_directory(cluster: Cluster, database: str = "postgres") -> str | None:
    """The running server's data folder, which differs from `cluster.data` after a copy or move.

    None if the server does not accept a connection to the database.
    """
    try:
        with _connect(cluster, database) as connection:
            row = connection.execute("show data_directory").fetchone()
            return row[0] if row else None
    except psycopg.OperationalError:
        return None


def _create_database(cluster: Cluster, database: str) -> None:
    try:
        with _connect(cluster) as connection:
            if not connection.execute("select 1 from pg_database where datname = %s", [database]).fetchone():
                connection.execute(sql.SQL("create database {}").format(sql.Identifier(database)))
    except psycopg.Error as error:
        raise cluster.error(f"the database {database!r} could not be created", str(error)) from error


def _shut_down(cluster: Cluster) -> None:
    """Request a fast shutdown of the postmaster, without waiting; its pid comes from the server, not from a file."""
    with suppress(psycopg.OperationalError, psutil.Error), _connect(cluster) as connection:
        postmaster = psutil.Process(connection.info.backend_pid).parent()
        if postmaster and postmaster.name() == "postgres":
            postmaster.send_signal(signal.SIGINT)
