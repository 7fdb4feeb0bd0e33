"""Shared by all parts of the benchmark.

An isolated project with its own database, processes whose time and memory are measured, and tables of results.
"""

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
from typing import Any

import psutil
import psycopg

from affiliate_pipeline.app.embedded_server import cluster as clusters
from affiliate_pipeline.app.embedded_server import server

ROOT = Path(__file__).resolve().parent.parent
OURS = ("AFFILIATE_", "BINANCE_", "LBANK_", "ALERT_", "HEARTBEAT_", "DAGSTER_")
REBATES = "binance/rebate_recent_record"
SAMPLE_EVERY_S = 0.05
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
        rows = [self.header, ["---", *["---:"] * (len(self.header) - 1)], *self.lines]
        notes = ["", *(f"- {note}" for note in self.notes)] if self.notes else []
        return "\n".join([f"### {self.title}", "", *(f"| {' | '.join(row)} |" for row in rows), *notes, ""])


@dataclass(frozen=True)
class Measured:
    """A process's return value, its duration from start to end, and the peak memory (bytes) of each group."""

    value: Any
    seconds: float
    memory: Mapping[str, int]


class Place:
    """An isolated project folder and its database."""

    def __init__(self, home: Path, url: str):
        self.home, self.url = home, url
        self._database_pid = self.query("select split_part(pg_read_file('postmaster.pid'), E'\\n', 1)::int")

    def query(self, statement: str, *values: Any) -> Any:
        """Return the first value of the first row, or None."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement, values or None)
            row = cursor.fetchone() if cursor.description else None
            return row and row[0]

    def version(self) -> str:
        return self.query("show server_version")

    def clear(self) -> None:
        """Empty the ledger and the endpoints' tables."""
        for (name,) in self._rows(
            "select format('%I.%I', schemaname, tablename) from pg_tables "
            "where schemaname in ('binance', 'lbank') or (schemaname, tablename) = ('affiliate', 'landing')"
        ):
            self.query(f"truncate {name}")

    def _rows(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url) as connection:
            return connection.execute(statement).fetchall()

    def spawned(self, function: Callable[..., Any], *arguments: Any, **watched: int) -> Measured:
        """Run the function in a new process."""
        self.query("checkpoint")
        receiver, sender = SPAWN.Pipe(duplex=False)
        process = SPAWN.Process(target=_send, args=(sender, function, arguments))
        began = time.perf_counter()
        process.start()
        sender.close()
        assert process.pid
        with peaks(contender=process.pid, database=self._database_pid, **watched) as memory:
            value = receiver.recv()
            process.join()
        return Measured(value, time.perf_counter() - began, memory)

    def materialized(self, key: str, days: Sequence[date], **watched: int) -> Measured:
        """Land the asset's days with Dagster's command line, in a new process."""
        self.query("checkpoint")
        selection = ["--partition-range", f"{days[0]}...{days[-1]}"] if len(days) > 1 else ["--partition", f"{days[0]}"]
        command = [
            "asset",
            "materialize",
            "-m",
            "affiliate_pipeline.definitions",
            "--select",
            f'key:"{key}"',
            *selection,
        ]
        began = time.perf_counter()
        with (
            subprocess.Popen(
                [sys.executable, "-m", "dagster", *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            ) as process,
            peaks(contender=process.pid, database=self._database_pid, **watched) as memory,
        ):
            output, _ = process.communicate()
        assert process.returncode == 0, output
        return Measured(None, time.perf_counter() - began, memory)

    def step_s(self) -> float:
        """The duration of the last run's step."""
        return self._between("STEP_START", "STEP_SUCCESS")

    def run_s(self) -> float:
        """The duration of the last run, from its first planned materialization to its end."""
        return self.query(
            "select extract(epoch from max(timestamp) - min(timestamp))::float8 from event_logs where run_id = "
            "(select run_id from event_logs order by id desc limit 1)"
        )

    def _between(self, first: str, last: str) -> float:
        seconds = self.query(
            "select extract(epoch from max(timestamp) filter (where dagster_event_type = %s) - "
            "max(timestamp) filter (where dagster_event_type = %s))::float8 from event_logs",
            last,
            first,
        )
        assert seconds is not None, "the asset's step failed"
        return seconds


@contextmanager
def place(**environment: str) -> Iterator[Place]:
    """Create a `Place`. This process and its children are configured with it and these variables only."""
    home = Path(tempfile.mkdtemp(prefix="benchmark_"))
    before = dict(os.environ)
    folder = Path.cwd()
    try:
        for name in [name for name in os.environ if name.startswith(OURS)]:
            del os.environ[name]
        shutil.copyfile(ROOT / "dagster.yaml", home / "dagster.yaml")
        (home / "workspace.yaml").touch()
        # Leave the project, whose .env would apply.
        os.chdir(home)
        url = server.ensure(home, "benchmark")
        os.environ |= {"AFFILIATE_DATABASE_URL": url, "DAGSTER_HOME": str(home), **environment}
        yield Place(home, url)
    finally:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(before)
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
    """The last days that have ended, oldest first."""
    today = datetime.now(UTC).date()
    return [today - timedelta(days=back) for back in range(number, 0, -1)]


@contextmanager
def peaks(**groups: int) -> Iterator[dict[str, int]]:
    """Yield the peak memory (bytes) of each process and its descendants; pages shared within a group count once."""
    peak = dict.fromkeys(groups, 0)
    ended = threading.Event()

    def sample() -> None:
        trees: dict[str, list[psutil.Process]] = {}
        for number in count():
            # Listing descendants reads the state of every process, which is too slow for every sample.
            if number % SAMPLES_PER_LISTING == 0:
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
        common = getattr(memory, "shared", 0)
        private += memory.rss - common
        shared = max(shared, common)
    return private + shared
