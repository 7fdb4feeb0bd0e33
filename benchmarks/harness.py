"""What all parts of the benchmark share: an isolated project, measured processes, and tables of results."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import count
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, LiteralString

import psutil
import psycopg
from psycopg import sql

from affiliate_pipeline.app.embedded_server import cluster as clusters
from affiliate_pipeline.app.embedded_server import server

ROOT = Path(__file__).resolve().parent.parent
SETTING_PREFIXES = ("AFFILIATE_", "BINANCE_", "LBANK_", "ALERT_", "HEARTBEAT_", "DAGSTER_")
REBATES = "binance/rebate_recent_record"
SAMPLE_EVERY_S = 0.05
# How many samples use the same list of descendants (`peaks`).
SAMPLES_PER_LISTING = 8
MB = 1_000_000
SPAWN = get_context("spawn")


@dataclass(frozen=True)
class Table:
    """A table of results, with notes that explain its numbers."""

    title: str
    header: Sequence[str]
    lines: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def markdown(self) -> str:
        """Return the table with its title and notes."""
        alignments = ["---:"] * len(self.header)
        alignments[0] = "---"
        rows = [self.header, alignments, *self.lines]
        text = [f"### {self.title}", ""]
        text += [f"| {' | '.join(row)} |" for row in rows]
        if self.notes:
            text.append("")
            text += [f"- {note}" for note in self.notes]
        text.append("")
        return "\n".join(text)


@dataclass(frozen=True)
class Measured:
    """A process's return value, its duration from start to exit, and the peak RAM (bytes) of each group of `peaks`."""

    value: Any
    seconds: float
    memory: Mapping[str, int]


class IsolatedProject:
    """A project folder with its own database."""

    def __init__(self, home: Path, url: str):
        self.home = home
        self.url = url
        self._database_pid = self.query("select split_part(pg_read_file('postmaster.pid'), E'\\n', 1)::int")

    def query(self, statement: LiteralString | bytes, *values: Any) -> Any:
        """Return the first value of the first row, or None."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement, values or None)
            row = cursor.fetchone() if cursor.description else None
            return None if row is None else row[0]

    def postgresql_version(self) -> str:
        """Return the server's version, such as 18.1."""
        return self.query("show server_version")

    def clear(self) -> None:
        """Empty the ledger and the endpoints' tables."""
        with psycopg.connect(self.url) as connection:
            tables = connection.execute(
                "select schemaname, tablename from pg_tables "
                "where schemaname in ('binance', 'lbank') or (schemaname, tablename) = ('affiliate', 'landing')"
            ).fetchall()
            for table in tables:
                connection.execute(sql.SQL("truncate {}").format(sql.Identifier(*table)))

    def run(self, function: Callable[..., Any], *arguments: Any) -> Measured:
        """Run the function in a new process."""
        # Write earlier changes to disk now: a checkpoint during the measurement would slow the measured process.
        self.query("checkpoint")

        receiver, sender = SPAWN.Pipe(duplex=False)
        process = SPAWN.Process(target=_send, args=(sender, function, arguments))
        began = time.perf_counter()
        process.start()
        # Otherwise `recv` would wait forever for a process that failed.
        sender.close()

        assert process.pid
        with peaks(process=process.pid, database=self._database_pid) as memory:
            value = receiver.recv()
            process.join()
        return Measured(value, time.perf_counter() - began, memory)

    def materialize(self, key: str, days: Sequence[date]) -> Measured:
        """Land the asset's days with `dagster asset materialize`, in a new process."""
        self.query("checkpoint")  # as in `run`
        command = [sys.executable, "-m", "dagster", "asset", "materialize", "-m", "affiliate_pipeline.definitions"]
        command += ["--select", f'key:"{key}"']
        if len(days) > 1:
            command += ["--partition-range", f"{days[0]}...{days[-1]}"]
        else:
            command += ["--partition", f"{days[0]}"]

        began = time.perf_counter()
        with (
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process,
            peaks(process=process.pid, database=self._database_pid) as memory,
        ):
            output, _ = process.communicate()
        assert process.returncode == 0, output
        return Measured(None, time.perf_counter() - began, memory)

    def step_s(self) -> float:
        """The duration of the last run's step."""
        seconds = self.query(
            "with step as ("
            "select max(timestamp) filter (where dagster_event_type = 'STEP_START') as started, "
            "max(timestamp) filter (where dagster_event_type = 'STEP_SUCCESS') as succeeded "
            "from event_logs) "
            "select extract(epoch from succeeded - started)::float8 "
            "from step"
        )
        assert seconds is not None, "the asset's step failed"
        return seconds

    def run_s(self) -> float:
        """The duration of the last run, from its first event to its last."""
        return self.query(
            "with last_event as (select run_id from event_logs order by id desc limit 1) "
            "select extract(epoch from max(timestamp) - min(timestamp))::float8 "
            "from event_logs "
            "where run_id = (select run_id from last_event)"
        )


@contextmanager
def isolated_project(**environment: str) -> Iterator[IsolatedProject]:
    """Create an isolated project, enter its folder and environment, and remove it after the block.

    Other variables of the package and of Dagster are removed from the environment, and the given ones are added.
    """
    home = Path(tempfile.mkdtemp(prefix="benchmark_"))
    environment_before = dict(os.environ)
    folder_before = Path.cwd()
    try:
        for name in list(os.environ):
            if name.startswith(SETTING_PREFIXES):
                del os.environ[name]
        shutil.copyfile(ROOT / "dagster.yaml", home / "dagster.yaml")
        (home / "workspace.yaml").touch()
        # In the repository's folder, its .env would apply.
        os.chdir(home)
        url = server.ensure_database(home, "benchmark")
        os.environ |= {"AFFILIATE_DATABASE_URL": url, "DAGSTER_HOME": str(home), **environment}
        yield IsolatedProject(home, url)
    finally:
        os.chdir(folder_before)
        os.environ.clear()
        os.environ.update(environment_before)
        _remove(home)


def _remove(home: Path) -> None:
    cluster = clusters.read(home.resolve())
    server.stop(home)
    if cluster:
        shutil.rmtree(cluster.folder, ignore_errors=True)
    shutil.rmtree(home, ignore_errors=True)


def _send(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    sender.send(function(*arguments))


def days_back(number: int) -> list[date]:
    """The last `number` UTC days that have ended, oldest first."""
    today = datetime.now(UTC).date()
    return [today - timedelta(days=back) for back in range(number, 0, -1)]


@contextmanager
def peaks(**groups: int) -> Iterator[dict[str, int]]:
    """Yield the peak RAM (bytes) of each group: a process (PID) and its descendants, whose shared pages count once.

    The values are final only after the block.
    """
    peak = dict.fromkeys(groups, 0)
    ended = threading.Event()

    def sample() -> None:
        trees: dict[str, list[psutil.Process]] = {}
        for sample_number in count():
            # Listing descendants reads the state of all processes of the machine, which is too slow for each sample.
            if sample_number % SAMPLES_PER_LISTING == 0:
                trees = {name: _tree(pid) for name, pid in groups.items()}
            for name, tree in trees.items():
                peak[name] = max(peak[name], _memory(tree))
            if ended.wait(SAMPLE_EVERY_S):
                return

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield peak
    finally:
        ended.set()
        sampler.join()


def _tree(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _memory(processes: Sequence[psutil.Process]) -> int:
    private = shared = 0
    for process in processes:
        try:
            memory = process.memory_info()
        except psutil.Error:
            continue
        shared_pages = getattr(memory, "shared", 0)
        private += memory.rss - shared_pages
        shared = max(shared, shared_pages)
    return private + shared
