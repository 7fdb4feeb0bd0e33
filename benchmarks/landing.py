"""How fast, and in how much memory, a range of rebates lands through the real asset, beside what bounds it: raw COPY
of the same rows from above, a naive client from below. `make bench` prints it and writes `results.md`.

All three start from an empty table each time and have to hold the same rows to the last digit. What each process needs
to import and Dagster to start is measured apart.
"""

import argparse
import importlib.metadata
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
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
from rich.console import Console
from rich.table import Table

from affiliate_pipeline.postgres import server
from benchmarks.source import FIELDS, HASH_HEX_DIGITS, NULL, Content, Source, source

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).with_name("results.md")
ASSET = "binance/rebate_recent_record"
OURS, COPIED, NAIVE = "binance.rebate_recent_record", "binance.copied", "naive"
PATH = "/sapi/v1/apiReferral/rebate/recentRecord"
RAW_COPY, NAIVE_CLIENT = "raw COPY", "naive client"
PAGE = 500
ROWS = 200_000
DAYS = 8
SAMPLE_EVERY_S = 0.05
SAMPLES_PER_LISTING = 8
MB = 1_000_000
SPAWN = get_context("spawn")


@dataclass(frozen=True)
class Result:
    """One run of one contender: how long landing took, how long everything, requests, and peaks of memory (bytes)."""

    seconds: float
    whole_s: float
    requests: int
    memory: int
    source_memory: int
    database_memory: int


def asset_in_process(days: Sequence[date]) -> None:
    """The asset over the range by `dg.materialize`."""
    warnings.simplefilter("ignore")
    import dagster as dg

    from affiliate_pipeline.definitions import defs

    with dg.DagsterInstance.get() as instance:
        dg.materialize(
            [defs.get_assets_def(dg.AssetKey(ASSET.split("/")))],
            instance=instance,
            resources=defs.resources,
            tags={
                "dagster/asset_partition_range_start": f"{days[0]}",
                "dagster/asset_partition_range_end": f"{days[-1]}",
            },
            run_config={"loggers": {"console": {"config": {"log_level": "ERROR"}}}},
        )


def raw_copy(url: str) -> float:
    """The rows that have landed, as CSV in memory, copied into a table like theirs and committed; the seconds."""
    columns = ", ".join([*map(_snake, FIELDS), "extra", "partition_date"])
    with psycopg.connect(url) as connection:
        connection.execute("select set_config('affiliate.run_id', 'raw', false)")
        with connection.cursor().copy(f"copy (select {columns} from {OURS}) to stdout (format csv)") as copying:
            text = b"".join(copying)
        connection.execute(f"create table {COPIED} (like {OURS} including all)")
        connection.commit()
        began = time.perf_counter()
        with connection.cursor().copy(f"copy {COPIED} ({columns}) from stdin (format csv)") as copying:
            copying.write(text)
        connection.commit()
        return time.perf_counter() - began


def naive_client(url: str, base_url: str, key: str, secret: str, days: Sequence[date]) -> float:
    """The loop that everybody writes first: page after page, each into the table by `to_sql`; the seconds."""
    import hashlib
    import hmac
    from urllib.parse import urlencode

    import httpx
    import pandas as pd
    import sqlalchemy

    def page(start: int, end: int) -> list[dict[str, Any]]:
        params = {"startTime": start, "endTime": end, "limit": PAGE, "timestamp": time.time_ns() // 1_000_000}
        query = urlencode(params)
        signature = hmac.new(secret.encode(), query.encode(), hashlib.sha256).hexdigest()
        response = client.get(f"{base_url}{PATH}?{query}&signature={signature}", headers={"X-MBX-APIKEY": key})
        return response.raise_for_status().json()

    engine = sqlalchemy.create_engine(url)
    began = time.perf_counter()
    with httpx.Client() as client, engine.begin() as connection:
        for day in days:
            start = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1000
            end = start + 86_400_000 - 1
            rows = page(start, end)
            while rows:
                full = len(rows) == PAGE
                if full:
                    # The rest of the last millisecond may be on the next page.
                    start = rows[-1]["time"]
                    rows = [row for row in rows if row["time"] < start]
                pd.DataFrame(rows).to_sql("naive", connection, if_exists="append", index=False)
                rows = page(start, end) if full else []
    return time.perf_counter() - began


@contextmanager
def peaks(**groups: int) -> Iterator[dict[str, int]]:
    """The most memory that each process and what it started had at once: pages shared in a group count once."""
    most = dict.fromkeys(groups, 0)
    ended = threading.Event()

    def sample() -> None:
        trees: dict[str, list[psutil.Process]] = {}
        for number in count():
            # Looking for children reads the state of every process: not at every sample.
            if number % SAMPLES_PER_LISTING == 0:
                trees = {name: _tree(pid) for name, pid in groups.items()}
            for name, tree in trees.items():
                most[name] = max(most[name], _memory(tree))
            if ended.wait(SAMPLE_EVERY_S):
                return

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield most
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


class Bench:
    """The source, the database, and one measured run after the other."""

    def __init__(self, exchange: Source, url: str, days: Sequence[date]):
        self._source, self._url, self._days = exchange, url, days
        self._database_pid = self._query("select split_part(pg_read_file('postmaster.pid'), E'\\n', 1)::int")

    def asset(self) -> Result:
        """The asset in one process."""
        return self._asset(self._spawned(asset_in_process, self._days))

    def command(self) -> Result:
        """The asset by Dagster's command line, which runs it in a process that it starts."""
        arguments = [
            *("-m", "dagster", "asset", "materialize", "-m", "affiliate_pipeline.definitions"),
            *("--select", f'key:"{ASSET}"', "--partition-range", f"{self._days[0]}...{self._days[-1]}"),
        ]
        began = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            with self._watched(process.pid) as memory:
                said, _ = process.communicate()
        assert process.returncode == 0, said
        return self._asset((None, time.perf_counter() - began, memory))

    def copy(self) -> Result:
        """Raw COPY; needs what the asset has landed."""
        self._query(f"drop table if exists {COPIED}")
        seconds, whole_s, memory = self._spawned(raw_copy, self._url)
        return self._result(COPIED, seconds, whole_s, memory)

    def naive(self) -> Result:
        """The naive client."""
        self._query(f"drop table if exists {NAIVE}")
        exchange = self._source
        arguments = (self._url, exchange.url, exchange.key, exchange.secret, self._days)
        seconds, whole_s, memory = self._spawned(naive_client, *arguments)
        return self._result(NAIVE, seconds, whole_s, memory)

    def empty(self) -> None:
        """The asset has landed nothing."""
        if self._query(f"select to_regclass('{OURS}')"):
            self._query(f"truncate {OURS}, affiliate.landing")

    def _asset(self, measured: tuple[None, float, dict[str, int]]) -> Result:
        step_s = self._query(
            "select extract(epoch from max(timestamp) filter (where dagster_event_type = 'STEP_SUCCESS') - "
            "max(timestamp) filter (where dagster_event_type = 'STEP_START'))::float8 from event_logs"
        )
        assert step_s and step_s > 0, "the asset's step failed"
        _, whole_s, memory = measured
        return self._result(OURS, step_s, whole_s, memory)

    def _result(self, table: str, seconds: float, whole_s: float, memory: dict[str, int]) -> Result:
        found = self._content(table)
        assert found == self._source.content, f"{table} holds {found}, the source {self._source.content}"
        requests = self._source.requests()
        return Result(seconds, whole_s, requests, memory["contender"], memory["source"], memory["database"])

    def _spawned(self, function: Callable[..., Any], *arguments: Any) -> tuple[Any, float, dict[str, int]]:
        """What the function returns in a new process, how long that took from its start to its end, and the peaks."""
        self._query("checkpoint")
        receiver, sender = SPAWN.Pipe(duplex=False)
        process = SPAWN.Process(target=_send, args=(sender, function, arguments))
        began = time.perf_counter()
        process.start()
        sender.close()
        assert process.pid
        with self._watched(process.pid) as memory:
            returned = receiver.recv()
            process.join()
        return returned, time.perf_counter() - began, memory

    def _watched(self, pid: int) -> Any:
        return peaks(contender=pid, source=self._source.pid, database=self._database_pid)

    def _content(self, table: str) -> Content:
        """What the table holds, computed by PostgreSQL."""
        texts = []
        for name in FIELDS:
            column = f'"{name}"' if table == NAIVE else _snake(name)
            if name.lower().endswith("time") and table != NAIVE:
                column = f"(extract(epoch from {column}) * 1000)::bigint"
            texts.append(f"coalesce({column}::text, '{NULL}')")
        digest = f"('x' || left(md5(concat_ws('|', {', '.join(texts)})), {HASH_HEX_DIGITS}))"
        bits = 4 * HASH_HEX_DIGITS
        statement = f"select count(*), sum(income::numeric), sum({digest}::bit({bits})::bigint) from {table}"
        with psycopg.connect(self._url) as connection:
            row = connection.execute(statement).fetchone()
        assert row
        return Content(row[0], row[1], int(row[2] or 0))

    def _query(self, statement: str) -> Any:
        with psycopg.connect(self._url, autocommit=True) as connection:
            cursor = connection.execute(statement)
            row = cursor.fetchone() if cursor.description else None
            return row and row[0]


def _send(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    sender.send(function(*arguments))


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.landing", description="How fast rebates land.")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--rounds", type=int, default=3, help="the median of so many is told")
    options = parser.parse_args()
    today = datetime.now(UTC).date()
    days = [today - timedelta(days=back) for back in range(DAYS, 0, -1)]
    console = Console()
    load = os.getloadavg()[0]
    home = Path(tempfile.mkdtemp(prefix="benchmark_"))
    try:
        with console.status("The sandbox makes up its rows"), source(options.rows, days) as exchange:
            url = server.ensure(home, "benchmark")
            _configure(home, url, exchange)
            bench = Bench(exchange, url, days)
            results: dict[str, list[Result]] = {}
            for number in range(options.rounds):
                for name, run in (
                    ("the asset, by its command", bench.command),
                    ("the asset, in process", bench.asset),
                    (RAW_COPY, bench.copy),
                    (NAIVE_CLIENT, bench.naive),
                ):
                    console.print(f"round {number + 1} of {options.rounds}: {name}")
                    if run in (bench.command, bench.asset):
                        bench.empty()
                    results.setdefault(name, []).append(run())
            version = bench._query("show server_version")
    finally:
        _remove(home)
    text = _report(console, options.rows, options.rounds, results, version, load)
    if options.rows == ROWS:
        RESULTS.write_text(text)
        console.print(f"Written to {RESULTS.parent.name}/{RESULTS.name}")


def _configure(home: Path, url: str, exchange: Source) -> None:
    """This process, and those it starts, know nothing but the benchmark's own exchange and database."""
    for name in list(os.environ):
        if name.startswith(("AFFILIATE_", "BINANCE_", "LBANK_", "ALERT_", "HEARTBEAT_", "DAGSTER_")):
            del os.environ[name]
    shutil.copyfile(ROOT / "dagster.yaml", home / "dagster.yaml")
    (home / "workspace.yaml").touch()
    # No .env of the project either.
    os.chdir(home)
    os.environ |= {
        "AFFILIATE_DATABASE_URL": url,
        "BINANCE_BASE_URL": exchange.url,
        "BINANCE_PARTNER_API_KEY": exchange.key,
        "BINANCE_PARTNER_API_SECRET": exchange.secret,
        "DAGSTER_HOME": str(home),
    }


def _remove(home: Path) -> None:
    cluster = server._read(home.resolve())
    server.stop(home)
    if cluster:
        shutil.rmtree(cluster.folder, ignore_errors=True)
    shutil.rmtree(home, ignore_errors=True)


def _report(
    console: Console, rows: int, rounds: int, results: dict[str, list[Result]], version: str, load: float
) -> str:
    """The results as a table, printed and as Markdown."""

    def middle(name: str, value: Callable[[Result], float]) -> float:
        return statistics.median(map(value, results[name]))

    def speed(name: str) -> float:
        return rows / middle(name, lambda result: result.seconds)

    def memory(name: str, whose: Callable[[Result], int]) -> str:
        return f"{middle(name, whose) / MB:,.0f}"

    names = list(results)
    lines = [
        ["landing, s", *(f"{middle(name, lambda result: result.seconds):.2f}" for name in names)],
        ["rows/s", *(f"{speed(name):,.0f}" for name in names)],
        ["times the naive client", *(f"{speed(name) / speed(NAIVE_CLIENT):.2f}" for name in names)],
        ["of raw COPY", *(f"{speed(name) / speed(RAW_COPY):.3f}" for name in names)],
        [
            "start and end, s",
            *(f"{middle(name, lambda result: result.whole_s - result.seconds):.1f}" for name in names),
        ],
        ["requests", *(f"{middle(name, lambda result: result.requests):,.0f}" for name in names)],
        ["peak memory, MB", *(memory(name, lambda result: result.memory) for name in names)],
        ["the sandbox's, MB", *(memory(name, lambda result: result.source_memory) for name in names)],
        ["PostgreSQL's, MB", *(memory(name, lambda result: result.database_memory) for name in names)],
    ]
    title = f"Landing {rows:,} rebates of {DAYS} days"
    table = Table("", title=f"{title}, median of {rounds}")
    for name in names:
        table.add_column(name, justify="right")
    for line in lines:
        table.add_row(*line)
    console.print(table)
    packages = ("dagster", "pandas", "pandera", "pyarrow", "psycopg", "httpx", "sqlalchemy")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    markdown = [["", *names], ["---", *["---:"] * len(names)], *lines]
    memory_gb = psutil.virtual_memory().total / 2**30
    return "\n".join(
        [
            f"# {title}",
            "",
            f"Written by `make bench` on {datetime.now(UTC):%Y-%m-%d}; median of rounds: {rounds}. {psutil.cpu_count()} cores "
            f"({platform.machine()}), shared with the sandbox and PostgreSQL; {memory_gb:.0f} GB of memory; "
            f"{platform.system()}, load average {load:.1f} before; Python {platform.python_version()}; PostgreSQL {version}; {versions}.",
            "",
            *(f"| {' | '.join(line)} |" for line in markdown),
            "",
            "- *landing*: from the start of the asset's step to its end: requests, validation by pandera, COPY, the ledger and",
            "  Dagster's events of each day. For the naive client its loop, for raw COPY the COPY and its commit.",
            "- *start*: everything else that the process did: imports, and Dagster's own start and end.",
            "- *peak MB*: the contender's process and all it started. The sandbox's and PostgreSQL's own processes are apart.",
            "- Every table held exactly the source's rows each time: the same number, the same exact sum, the same hash of the",
            "  multiset of rows, computed by PostgreSQL, by Python for the source.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
