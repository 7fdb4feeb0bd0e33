"""Hosts on one switch, each with its own addresses, name, processes and folder, in namespaces. Contains no tests.

A host is the namespaces of one process, its init. When that process dies, the kernel kills every other process of the
host and removes its network, as when a machine loses power. The init ends with the tests, so no process is left behind.
"""

import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import psutil

from affiliate_pipeline_tests.e2e.project import command_of

ADDRESS = "10.0.0.1"
PROGRAMS = ("ip", "unshare", "nsenter", "setpriv", "redis-server")
CLONE_NEWNET = 0x40000000
# Mounts the host's own folder at `Host.home`, which is the same path on all hosts, hides the folders of the others, and
# makes all hosts known by name. `read` returns once the process of the tests has ended.
INIT = """
set -e
hostname "$1"
mount --bind "$2/$1" "$3"
mount -t tmpfs -o ro tmpfs "$2"
mount --bind "$4" /etc/hosts
ip link set lo up
echo ready
read -r _
"""
# Restarts a service that has ended, as systemd does.
SUPERVISE = 'while :; do "$@"; sleep 1; done'


def missing() -> str | None:
    """Why hosts cannot be created here; None if they can."""
    if os.getuid() != 0:
        return "creating network namespaces requires root"
    if absent := [name for name in PROGRAMS if shutil.which(name) is None]:
        return f"not installed: {', '.join(absent)} (Debian: apt-get install iproute2 redis-server)"
    probe = ["unshare", "--net", "--uts", "--pid", "--mount", "--fork", "ip", "link", "add", "type", "veth"]
    if subprocess.run(probe, capture_output=True).returncode:
        return "namespaces and virtual network devices are not permitted here"
    return None


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(command)}: {done.stderr}"


class Network:
    """The switch, and the folder with the hosts' folders and logs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hosts: dict[str, Host] = {}
        self.home = folder / "home"
        for name in ("hosts", "logs", "home"):
            (folder / name).mkdir()
        self.names = folder / "names"
        self.names.write_text("127.0.0.1 localhost\n")

    def host(self, name: str) -> "Host":
        """A new host; it is started by `Host.boot`."""
        host = self.hosts[name] = Host(self, name, f"10.0.0.{10 + len(self.hosts)}")
        with self.names.open("a") as names:
            names.write(f"{host.address} {name}\n")
        return host


@contextmanager
def network() -> Iterator[Network]:
    """A switch to which this thread is connected at ADDRESS.

    Meanwhile, this thread and the processes and threads that it starts have no other network.
    """
    folder = Path(tempfile.mkdtemp(prefix="affiliate_cluster_"))
    folder.chmod(0o755)
    try:
        with _network_of(None):
            _run("ip", "link", "set", "lo", "up")
            _run("ip", "link", "add", "switch", "type", "bridge")
            _run("ip", "address", "add", f"{ADDRESS}/24", "dev", "switch")
            _run("ip", "link", "set", "switch", "up")
            network = Network(folder)
            try:
                yield network
            finally:
                for host in network.hosts.values():
                    host.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _network_of(pid: int | None) -> Iterator[None]:
    """Connect new sockets of this thread to the network of that process, or to a new network."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if pid is None:
            entered = libc.unshare(CLONE_NEWNET)
        else:
            other = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
            entered = libc.setns(other, CLONE_NEWNET)
            os.close(other)
        assert entered == 0, os.strerror(ctypes.get_errno())
        try:
            yield
        finally:
            assert libc.setns(before, CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
    finally:
        os.close(before)


class Host:
    """One machine: `boot` switches it on, `kill` off; `cut` and `connect` are about its network cable.

    Attributes:
        folder: Its own folder, which no other host sees.
        home: The path of that folder on the host itself, the same on all hosts.
    """

    def __init__(self, network: Network, name: str, address: str) -> None:
        self.network, self.name, self.address = network, name, address
        self.folder = network.folder / "hosts" / name
        self.folder.mkdir()
        self.home = network.home
        self._init: psutil.Process | None = None
        self._unshare: subprocess.Popen[str] | None = None
        self._services: list[subprocess.Popen[bytes]] = []

    def boot(self) -> None:
        """Create its namespaces and connect it to the switch."""
        isolated = ["unshare", "--net", "--uts", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]
        arguments = [self.name, f"{self.folder.parent}", f"{self.home}", f"{self.network.names}"]
        self._unshare = subprocess.Popen(
            [*isolated, "sh", "-c", INIT, "init", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._unshare.stdout
        assert self._unshare.stdout.readline() == "ready\n"
        [self._init] = psutil.Process(self._unshare.pid).children()
        _run("ip", "link", "add", self.name, "type", "veth", "peer", "name", "eth0", "netns", f"{self._init.pid}")
        self.connect()
        _run("ip", "link", "set", self.name, "up")
        _run(*self.command("ip", "address", "add", f"{self.address}/24", "dev", "eth0"))
        _run(*self.command("ip", "link", "set", "eth0", "up"))

    def kill(self) -> None:
        """Kill every process at once. Its files stay."""
        if self._init and self._unshare:
            with suppress(psutil.NoSuchProcess):
                self._init.kill()
            # The kernel reports the death of a host's init after that of all its other processes.
            self._unshare.communicate()
            for service in self._services:
                service.wait()
            self._init, self._unshare, self._services = None, None, []

    def cut(self) -> None:
        """Drop every packet from and to it from now on, without any notice to either side."""
        _run("ip", "link", "set", self.name, "nomaster")

    def connect(self) -> None:
        """Restore its network."""
        _run("ip", "link", "set", self.name, "master", "switch")

    def network_of(self) -> AbstractContextManager[None]:
        """Connect new sockets of this thread to the host's own network, which includes its loopback."""
        assert self._init, f"{self.name} is off"
        return _network_of(self._init.pid)

    def command(self, *command: str, user: str | None = None) -> list[str]:
        """The command as it is run on this host."""
        assert self._init, f"{self.name} is off"
        enter = ["nsenter", "--target", f"{self._init.pid}", "--net", "--uts", "--pid", "--mount", "--"]
        as_user = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []
        return [*enter, *as_user, "env", f"--chdir={self.home}", *command]

    def run(self, *command: str, user: str | None = None, env: Mapping[str, str] | None = None) -> str:
        """Run a command that ends by itself, and return its output."""
        done = subprocess.run(
            self.command(*command, user=user),
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{self.name}: {shlex.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self, name: str, command: Sequence[str], env: Mapping[str, str], user: str | None = None) -> None:
        """Start a service, which is restarted until its host is killed. Its output is appended to its log."""
        supervised = self.command("sh", "-c", SUPERVISE, "supervise", *command, user=user)
        with self.log(name).open("ab") as log:
            self._services.append(
                subprocess.Popen(supervised, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            )

    def log(self, name: str) -> Path:
        """The log of the service."""
        return self.network.folder / "logs" / f"{self.name}-{name}.log"

    def processes(self, text: str = "") -> list[psutil.Process]:
        """Its processes whose command contains the text, without its init and what restarts its services."""
        assert self._init, f"{self.name} is off"
        own = os.readlink(f"/proc/{self._init.pid}/ns/pid")
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            with suppress(OSError, psutil.Error):
                if os.readlink(f"/proc/{process.pid}/ns/pid") == own and text in " ".join(command_of(process)):
                    found.append(process)
        return [process for process in found if process != self._init and SUPERVISE not in command_of(process)]

    def signal(self, text: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to each of `processes(text)`."""
        for process in self.processes(text):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)
