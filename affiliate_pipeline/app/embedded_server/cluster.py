"""The embedded PostgreSQL on disk: data folder, port, password, locks and errors.

home/postgres.json   data folder, port, password; written before the data, so that a killed process loses nothing
home/postgres.lock   held while a process starts or stops the server
home/postgres/       data, log, log.old, alive.lock. As root: /var/lib/affiliate_pipeline/<random>/
"""

import errno
import fcntl
import json
import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from affiliate_pipeline.domain.files import replacing
from affiliate_pipeline.domain.problem import AffiliateError

# Used as root: PostgreSQL refuses to run as root, and its own user may have no access to the project.
SYSTEM_FOLDER = Path("/var/lib/affiliate_pipeline")


class ServerError(AffiliateError):
    """The embedded PostgreSQL failed; the problem never contains its password."""


@dataclass(frozen=True)
class Cluster:
    """The content of `postgres.json`."""

    data: Path
    port: int
    password: str = field(repr=False)

    @property
    def folder(self) -> Path:
        """The folder of the data, the log and the lock file."""
        return self.data.parent

    @property
    def log(self) -> Path:
        """The server's log since its last start; the previous one is `log.old`."""
        return self.folder / "log"

    def error(self, what: str, output: str | None = None) -> ServerError:
        """The error with the line of `output`, by default the server's log, that names the cause."""
        if output is None:
            output = self.log.read_text(errors="replace") if self.log.exists() else ""
        if os.strerror(errno.ENOSPC) in output:
            return _disk_full(self.folder)

        lines = [line.strip() for line in output.splitlines() if line.strip()]
        errors = [line for line in lines if re.search(r"\b(FATAL|PANIC|error):", line)]
        cause = "it printed nothing"
        if lines:
            cause = (errors or lines)[-1]
        return ServerError(f"{what}: {cause}", f"See its log, {self.log}")


def read(home: Path) -> Cluster | None:
    """The cluster of `home`; None if there is none. Raises `ServerError` if `postgres.json` is damaged."""
    path = home / "postgres.json"
    try:
        stored = json.loads(path.read_text())
        # Relative if inside `home`, which may be moved; joining leaves an absolute path unchanged.
        return Cluster(home / stored["data"], int(stored["port"]), stored["password"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise ServerError(f"{path} is damaged", "Restore it: it contains the password") from None


def write(home: Path, cluster: Cluster) -> None:
    """Replace `postgres.json` in one step; only its owner may read it."""
    is_inside_home = cluster.data.is_relative_to(home)
    data = cluster.data.relative_to(home) if is_inside_home else cluster.data
    with replacing(home / "postgres.json", 0o600) as file:
        file.write(json.dumps({**asdict(cluster), "data": str(data)}).encode())
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def locked(home: Path) -> Generator[None, None, None]:
    """Hold the lock under which the server is started or stopped."""
    with open(os.open(home / "postgres.lock", os.O_RDWR | os.O_CREAT, 0o600)) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def try_alive_lock(cluster: Cluster) -> Generator[int | None, None, None]:
    """Yield the descriptor of a locked file; None while a server or initdb process is alive.

    These processes inherit the descriptor, so the kernel releases the lock when the last of them ends. This is reliable
    even for orphans of a killed postmaster, for zombies, and for a server in another container, whose pids are not
    visible here.
    """
    with open(cluster.folder / "alive.lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock_fd = file.fileno()
        except BlockingIOError:
            lock_fd = None
        yield lock_fd


@contextmanager
def os_errors_as_server_errors(home: Path) -> Generator[Path, None, None]:
    """Yield the resolved folder; raise errors of the operating system as `ServerError`."""
    try:
        yield home.resolve()
    except PermissionError as error:
        raise ServerError(
            f"this user has no access to {error.filename or home} ({error.strerror})",
            f"Run the command as the owner of {home}, or change the owner (chown -R)",
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(error.filename or home) from error
        raise ServerError(f"The embedded PostgreSQL of {home} failed: {error}") from error


def _disk_full(path: Path | str) -> ServerError:
    return ServerError(f"the disk of {path} is full", "Free some space, then try again")
