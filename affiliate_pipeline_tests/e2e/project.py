"""A copy of the project. Tests run its commands, Dagster and its database in separate processes. Contains no tests."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import psycopg

from affiliate_pipeline.app.embedded_server import server
from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline_tests import isolation

ROOT = Path(__file__).parents[2]
KEY = "binance/rebate_recent_record"
T = TypeVar("T")
# Longer than anything takes on a slow machine: a time limit only ends a test that would wait forever.
PATIENCE_S = 600
STATUS = """
query Status($path: [String!]!) {
  assetNodeOrError(assetKey: {path: $path}) {
    ... on AssetNode {
      assetPartitionStatuses { ... on TimePartitionStatuses { ranges { startKey endKey status } } }
    }
  }
}"""
PARTITIONS = """
query Partitions {
  assetNodes { assetKey { path } partitionStats { numPartitions numMaterialized } }
}"""
LAUNCH = """
mutation Launch($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename ... on LaunchRunSuccess { run { id } } ... on PythonError { message }
  }
}"""
BACKFILL = """
mutation Backfill($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message }
  }
}"""
REEXECUTE = """
mutation Again($params: ReexecutionParams!) {
  reexecutePartitionBackfill(reexecutionParams: $params) {
    __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message }
  }
}"""
BACKFILL_STATUS = """
query Backfill($id: String!) {
  partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status runs(limit: 100) { id status } } }
}"""
RUNS = "{ runsOrError { ... on Runs { results { id status repositoryOrigin { repositoryLocationName } } } } }"
RUN_STATUS = "query Run($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"


def last_days() -> list[date]:
    """The ended days that the source still retains completely, oldest first."""
    today = datetime.now(UTC).date()
    return [today - timedelta(days=i) for i in range(6, 0, -1)]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def wait_for(what: Callable[[], T | None], timeout_s: float = PATIENCE_S) -> T:
    """Call it until it returns a truthy value, and return that value."""
    deadline = time.monotonic() + timeout_s
    while True:
        began = time.monotonic()
        if value := what():
            return value
        assert began < deadline, f"{what}: not within {timeout_s} s"
        # So that the checks leave most of the CPU to what they wait for.
        time.sleep(min(1, max(0.1, 5 * (time.monotonic() - began))))


def kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


class Started:
    """A running command, and its output so far."""

    def __init__(self, process: subprocess.Popen[str]):
        self.process = process
        self.lines: list[str] = []
        assert process.stdout
        self._reader = threading.Thread(target=self.lines.extend, args=(process.stdout,), daemon=True)
        self._reader.start()

    @property
    def printed(self) -> str:
        return "".join(self.lines)

    def wait_for_output(self, text: str, timeout_s: float = PATIENCE_S) -> None:
        def printed() -> bool:
            assert self.process.poll() is None or text in self.printed, self.printed
            return text in self.printed

        wait_for(printed, timeout_s)

    def stop(self, signal_number: int) -> int:
        """Send this signal, and return the exit code."""
        self.process.send_signal(signal_number)
        code = self.process.wait(PATIENCE_S)
        self._reader.join(10)
        return code


class Project:
    """A copy of the project's files, without the developer's settings and data."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.created_ms = time.time_ns() // 1_000_000
        # Git reads another user's checkout only if it is a `safe.directory`; tests do not read the developer's Git settings.
        list_files = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "--cached", "--others", "--exclude-standard"]
        for name in subprocess.check_output(list_files, cwd=ROOT, text=True).splitlines():
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        # Otherwise, the first processes would all compile the package.
        for compiled in (ROOT / "affiliate_pipeline").rglob("__pycache__"):
            shutil.copytree(compiled, folder / compiled.relative_to(ROOT), dirs_exist_ok=True)

    @property
    def home(self) -> Path:
        return self.folder / ".affiliate"

    def environment(self, **more: str) -> dict[str, str]:
        # The copy takes precedence over an installed package.
        return {**isolation.inherited(os.environ), "PYTHONPATH": str(self.folder), **more}

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "affiliate_pipeline.app", *arguments]

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `affiliate-pipeline` until it exits."""
        return self.execute(self.command(*arguments), environment)

    def dagster(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.execute([sys.executable, "-m", "dagster", *arguments], environment)

    def materialize(
        self, first: date, last: date | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `dagster asset materialize`."""
        return self.dagster(*materialize(first, last), **environment)

    def execute(
        self, command: list[str], environment: dict[str, str], timeout_s: float = PATIENCE_S
    ) -> subprocess.CompletedProcess[str]:
        """Run a command that exits by itself, in the project's folder and environment."""
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment(**environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    @contextmanager
    def started(self, command: list[str], **environment: str) -> Iterator[Started]:
        """Start the command, with stdout and stderr in one stream. At the end, every process of the project is killed."""
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment(**environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        with process:
            try:
                yield Started(process)
            finally:
                process.kill()
                if self.processes():
                    self.run("down")
                kill(self.processes())

    @contextmanager
    def up(self, port: int) -> Iterator[Started]:
        """Start `up`, and wait until its landing has ended."""
        with self.started(self.command("up", "--port", str(port))) as started:
            started.wait_for_output("Dagster's UI:")
            yield started

    @contextmanager
    def dagster_dev(self) -> Iterator[tuple[Started, "UI"]]:
        """Start webserver, daemon and code server, and wait until the webserver responds."""
        port = free_port()
        command = [sys.executable, "-m", "dagster", "dev", "-p", str(port)]
        with self.started(command, DAGSTER_HOME=str(self.folder)) as started:
            wait_for(lambda: reachable(port))
            yield started, UI(port)

    def configure(self, **variables: str) -> None:
        """Write `.env`."""
        (self.folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in variables.items()))

    def query(self, statement: str, *values: Any) -> list[tuple]:
        """Run SQL in the project's embedded database (the sandbox's if there is no `.env`), and return the rows."""
        name = "affiliate" if (self.folder / ".env").is_file() else "affiliate_sandbox"
        with psycopg.connect(server.ensure_database(self.home, name), options="-c timezone=UTC") as connection:
            return connection.execute(statement.encode(), values).fetchall()

    def data_folder(self) -> Path | None:
        """The folder with the data of the project's PostgreSQL."""
        file = self.home / "postgres.json"
        return (self.home / json.loads(file.read_text())["data"]).parent if file.is_file() else None

    def processes(self) -> list[psutil.Process]:
        """Every other process with one of the project's folders in its working directory, command or environment."""
        folders = [str(folder) for folder in (self.folder, self.data_folder()) if folder]
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                text = f"{process.cwd()}\n{process.cmdline()}\n{process.environ()}"
            except (psutil.Error, OSError):
                continue
            if any(folder in text for folder in folders):
                found.append(process)
        return found

    def postmaster(self) -> psutil.Process:
        return next(process for process in self.processes() if "-D" in command_of(process))

    def remove(self) -> None:
        """Stop every process and delete every file."""
        if self.processes():
            self.run("down")
        left = self.processes()
        kill(left)
        if folder := self.data_folder():
            shutil.rmtree(folder)
        shutil.rmtree(self.folder)
        assert not left


def materialize(first: date, last: date | None = None) -> list[str]:
    """The arguments of `dagster asset materialize`."""
    days = ["--partition", f"{first}"] if last is None else ["--partition-range", f"{first}...{last}"]
    return ["asset", "materialize", "-m", "affiliate_pipeline.definitions", "--select", f'key:"{KEY}"', *days]


class UI:
    """Dagster's GraphQL API, for the assets of one code location."""

    def __init__(self, port: int, location: str = "affiliate_pipeline.definitions"):
        self.url = f"http://127.0.0.1:{port}"
        # One client, since creating one loads the certificate authorities. It leaves no connection open.
        self._client = httpx.Client(timeout=120, limits=httpx.Limits(max_keepalive_connections=0))
        self.repository = {"repositoryLocationName": location, "repositoryName": "__repository__"}

    def execute(self, query: str, **variables: Any) -> dict[str, Any]:
        response = self._client.post(f"{self.url}/graphql", json={"query": query, "variables": variables}).json()
        assert "errors" not in response, response
        return response["data"]

    def backfill(self, keys: Sequence[str], days: Sequence[date]) -> str:
        """Launch a backfill of these assets and days, and return its id."""
        selection = [{"path": key.split("/")} for key in keys]
        params = {"assetSelection": selection, "partitionNames": [f"{day}" for day in days]}
        launched = self.execute(BACKFILL, params=params)["launchPartitionBackfill"]
        assert launched["__typename"] == "LaunchBackfillSuccess", launched
        return launched["backfillId"]

    def backfill_again(self, backfill_id: str) -> str:
        """Launch a backfill of the days that failed in this one, and return its id."""
        params = {"parentRunId": backfill_id, "strategy": "FROM_FAILURE"}
        launched = self.execute(REEXECUTE, params=params)["reexecutePartitionBackfill"]
        assert launched["__typename"] == "LaunchBackfillSuccess", launched
        return launched["backfillId"]

    def backfill_end(self, backfill_id: str, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
        """Wait until the backfill ends, and return it with its runs."""

        def ended() -> dict[str, Any] | None:
            backfill = self.execute(BACKFILL_STATUS, id=backfill_id)["partitionBackfillOrError"]
            return backfill if backfill["status"].startswith(("COMPLETED", "FAILED")) else None

        return wait_for(ended, timeout_s)

    def days(self, key: str = KEY) -> dict[str, list[date]]:
        """The asset's days by status."""
        node = self.execute(STATUS, path=key.split("/"))["assetNodeOrError"]
        days: dict[str, list[date]] = {}
        for found in node["assetPartitionStatuses"]["ranges"]:
            first, last = date.fromisoformat(found["startKey"]), date.fromisoformat(found["endKey"])
            days.setdefault(found["status"], []).extend(
                first + timedelta(days=i) for i in range((last - first).days + 1)
            )
        return days

    def missing_partitions(self) -> dict[str, int]:
        """The number of partitions that are not materialized, by asset. Completely materialized assets are left out."""
        nodes = self.execute(PARTITIONS)["assetNodes"]
        stats = {"/".join(each["assetKey"]["path"]): each["partitionStats"] for each in nodes}
        missing = {key: each["numPartitions"] - each["numMaterialized"] for key, each in stats.items() if each}
        return {key: count for key, count in missing.items() if count}

    def launch(self, day: date) -> str:
        """Queue a run of the day, and return its id."""
        return self._launch([KEY], {"dagster/partition": f"{day}"})

    def launch_range(self, keys: Sequence[str], days: Sequence[date], **config: bool) -> str:
        """Queue one run of these assets over the (consecutive) days, of which there may be none, and return its id."""
        ends = {"start": days[0], "end": days[-1]} if days else {}
        tags = {f"dagster/asset_partition_range_{end}": f"{day}" for end, day in ends.items()}
        return self._launch(keys, tags, **config)

    def _launch(self, keys: Sequence[str], tags: dict[str, str], **config: bool) -> str:
        selector = {
            **self.repository,
            "jobName": "__ASSET_JOB",
            "assetSelection": [{"path": key.split("/")} for key in keys],
        }
        metadata = {"tags": [{"key": key, "value": value} for key, value in tags.items()]}
        ops = {key.replace("/", "__"): {"config": config} for key in keys} if config else {}
        params = {"selector": selector, "executionMetadata": metadata, "runConfigData": {"ops": ops}}
        launched = self.execute(LAUNCH, params=params)["launchRun"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        return launched["run"]["id"]

    def runs(self) -> list[dict[str, Any]]:
        """All runs: `id`, `status`, and the `location` they were launched for."""
        found = self.execute(RUNS)["runsOrError"]["results"]
        return [{**run, "location": (run["repositoryOrigin"] or {}).get("repositoryLocationName")} for run in found]

    def run_status(self, run_id: str) -> str:
        return self.execute(RUN_STATUS, id=run_id)["runOrError"]["status"]

    def run_end(self, run_id: str, timeout_s: float = PATIENCE_S) -> str:
        """Wait until the run ends, and return its status."""

        def ended() -> str | None:
            status = self.run_status(run_id)
            return status if status in ("SUCCESS", "FAILURE", "CANCELED") else None

        return wait_for(ended, timeout_s)


def command_of(process: psutil.Process) -> list[str]:
    """The process's command line; empty if it has ended."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def reachable(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/server_info").status_code == 200
    except httpx.HTTPError:
        return False


def credentials(exchange: Sandbox) -> dict[str, str]:
    """The settings of the exchange as Binance, with the first of `last_days` as the start date."""
    return {
        "BINANCE_BASE_URL": exchange.url,
        "BINANCE_PARTNER_API_KEY": exchange.binance.partner_key,
        "BINANCE_PARTNER_API_SECRET": exchange.binance.partner_secret,
        "AFFILIATE_START_DATE": f"{last_days()[0]}",
    }
