"""The application on three hosts: one that controls, and two Celery workers. Contains no tests."""

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline_tests import isolation
from affiliate_pipeline_tests.cluster.hosts import ADDRESS, Host, Network, network
from affiliate_pipeline_tests.cluster.services import Postgres, Redis
from affiliate_pipeline_tests.defs.affiliates import DATED, ENDPOINT, landed, rows_of, sent
from affiliate_pipeline_tests.e2e.project import BACKFILL_STATUS, ROOT, UI, reachable, wait_for

# Of the webserver, on the loopback of the control host.
PORT = 3000
# What `docs/deploying.md` installs on each bare host.
FILES = ("dagster.yaml", "deploy/workspace.yaml", "deploy/celery.yaml")
LOG = """
query Log($id: ID!, $cursor: String) {
  logsForRun(runId: $id, afterCursor: $cursor) {
    ... on EventConnection {
      cursor hasMore
      events {
        __typename
        ... on MessageEvent { message stepKey timestamp }
        ... on EngineEvent { error { message } metadataEntries { label ... on TextMetadataEntry { text } } }
        ... on ExecutionStepFailureEvent { error { message } }
        ... on RunFailureEvent { error { message } }
      }
    }
  }
}"""
TIMES = "query Run($id: ID!) { runOrError(runId: $id) { ... on Run { startTime endTime } } }"
FAILURES = {"ExecutionStepFailureEvent", "RunFailureEvent"}
KEYS = [f"lbank/{name}" for name in DATED]


def commands(kind: str) -> list[list[str]]:
    """The commands that the guide names for this kind of host."""
    [block] = re.findall(rf"(?ms)^```sh {kind}\n(.*?)^```", (ROOT / "docs" / "deploying.md").read_text())
    return [shlex.split(line) for line in block.splitlines()]


def last_days(count: int) -> list[date]:
    """The last days that have ended in UTC+8, oldest first.

    They include yesterday: otherwise the overdue monitor would request a run for the missing day.
    """
    today = (datetime.now(UTC) + timedelta(hours=8)).date()
    return [today - timedelta(days=number) for number in range(count, 0, -1)]


class Cluster(UI):
    """The hosts `control` and `workers`, and the GraphQL API of the first one."""

    def __init__(self, network: Network, variables: Mapping[str, str], *, concurrency: int, durable: bool) -> None:
        self.control, *self.workers = (network.host(name) for name in ("control", "worker1", "worker2"))
        super().__init__(PORT)
        self.concurrency = concurrency
        self.postgres, self.redis = Postgres(self.control), Redis(self.control, durable=durable)
        self.variables = {
            **variables,
            "AFFILIATE_DATABASE_URL": self.postgres.url,
            "AFFILIATE_EXECUTOR": "celery",
            "AFFILIATE_CELERY_BROKER": self.redis.url,
            "AFFILIATE_CELERY_BACKEND": self.redis.url,
        }

    def boot(self) -> None:
        """Start all hosts, and wait until runs can be launched."""
        self.control.boot()
        self.install(self.control)
        self.postgres.create()
        self.redis.start()
        migrate, *services = commands("control")
        self.control.run(*migrate, env=self.environment(self.control))
        for command in services:
            self.control.start(command[0], command, self.environment(self.control))
        self.boot_workers(*self.workers)
        wait_for(self.is_reachable)
        wait_for(self.is_loaded)

    def boot_workers(self, *workers: Host) -> None:
        """Start these hosts with a Celery worker each, and wait until the Celery workers take tasks."""
        starts = {worker: self.times_ready(worker) for worker in workers}
        for worker in workers:
            worker.boot()
            self.install(worker)
            [command] = commands("worker")
            options = ["--", f"--concurrency={self.concurrency}"]
            worker.start("worker", [*command, *options], self.environment(worker))
        wait_for(lambda: all(self.times_ready(worker) > before for worker, before in starts.items()))

    def install(self, host: Host) -> None:
        """Copy the files of the host's DAGSTER_HOME."""
        for name in FILES:
            shutil.copy(ROOT / name, host.folder)

    def environment(self, host: Host) -> dict[str, str]:
        inherited = isolation.inherited(os.environ)
        path = f"{Path(sys.executable).parent}:{inherited['PATH']}"
        own = {
            "PATH": path,
            "PYTHONPATH": f"{ROOT}",
            "HOME": f"{host.home}",
            "DAGSTER_HOME": f"{host.home}",
        }
        # Otherwise Celery refuses to run as root.
        return {**inherited, **self.variables, **own, "C_FORCE_ROOT": "1"}

    def execute(self, query: str, **variables: Any) -> dict[str, Any]:
        with self.control.network_of():
            return super().execute(query, **variables)

    def is_reachable(self) -> bool:
        with self.control.network_of():
            return reachable(PORT)

    def is_loaded(self) -> bool:
        """Whether the webserver has loaded the code location; if not, reload it."""
        nodes = self.execute("{ assetNodes { assetKey { path } } }")["assetNodes"]
        if not nodes:
            self.execute("mutation { reloadWorkspace { __typename } }")
        return bool(nodes)

    def times_ready(self, worker: Host) -> int:
        """How many times the Celery worker has connected to the broker."""
        log = worker.log("worker")
        return log.read_text().count(f"@{worker.name} ready") if log.is_file() else 0

    def events(self, run_id: str) -> list[dict[str, Any]]:
        """The run's log."""
        found: list[dict[str, Any]] = []
        cursor = None
        while True:
            page = self.execute(LOG, id=run_id, cursor=cursor)["logsForRun"]
            found += page["events"]
            cursor = page["cursor"]
            if not page["hasMore"]:
                return found

    def workers_of(self, run_id: str) -> dict[str, str]:
        """The host that executed each step of the run."""
        return {
            event["stepKey"]: entry["text"].rpartition("@")[2]
            for event in self.events(run_id)
            for entry in event.get("metadataEntries", [])
            if entry["label"] == "Celery worker"
        }

    def worker_of(self, run_id: str) -> Host:
        """The worker that executes the run's only step, once it has begun."""

        def names() -> list[str]:
            assert self.run_status(run_id) != "FAILURE", self.failure(run_id)
            return [*self.workers_of(run_id).values()]

        [name] = wait_for(names)
        return next(worker for worker in self.workers if worker.name == name)

    def run_of(self, backfill_id: str) -> str | None:
        """The only run of the backfill, once there is one."""
        runs = self.execute(BACKFILL_STATUS, id=backfill_id)["partitionBackfillOrError"]["runs"]
        return runs[0]["id"] if runs else None

    def duration_s(self, run_id: str) -> float:
        """How long the run took."""
        run = self.execute(TIMES, id=run_id)["runOrError"]
        return run["endTime"] - run["startTime"]

    def responds(self) -> bool:
        """Whether the API responds without an error, as it does once it has noticed a restart of its database."""
        try:
            self.runs()
        except (AssertionError, httpx.HTTPError, ValueError):
            return False
        return True

    def landed_days(self, key: str) -> set[date]:
        """The days in the ledger."""
        days = self.postgres.database.query("select partition from affiliate.landing where asset = %s", key)
        return {day for (day,) in days}

    def failures(self, backfill: Mapping[str, Any]) -> dict[str, str]:
        """The messages of the failed steps and runs of a backfill, by run."""
        return {run["id"]: self.failure(run["id"]) for run in backfill["runs"] if run["status"] == "FAILURE"}

    def failure(self, run_id: str) -> str:
        """The messages of the run's failures."""
        failed = [event for event in self.events(run_id) if event["__typename"] in FAILURES or event.get("error")]
        return "\n".join(f"{event['message']} {(event.get('error') or {}).get('message', '')}" for event in failed)

    def assert_landed(self, exchange: Sandbox, keys: Sequence[str], days: Sequence[date]) -> None:
        """Assert that LBank's tables have rows of these days only, and of each settled day exactly the exchange's."""
        now_ms = exchange.now()
        for name in (key.removeprefix("lbank/") for key in keys):
            stored = self.postgres.database.query(f"select distinct partition_date from lbank.{name}")
            assert {day for (day,) in stored} <= {*days}, name
            for day in days:
                # The exchange may still change the rows of a day that has not settled.
                if ENDPOINT[name].timetable.has_settled(day, now_ms):
                    rows = landed(self.postgres.database.query, name, day)
                    assert rows == sent(rows_of(exchange, name, day)), f"{name} {day}"


@contextmanager
def cluster(
    days: Sequence[date],
    *,
    rate_scale: float = 1,
    accounts: Sequence[str] = (),
    concurrency: int = 2,
    durable: bool = True,
) -> Iterator[tuple[Cluster, Sandbox]]:
    """A running cluster with these partitions, and the exchange that its hosts reach over the network.

    Args:
        concurrency: The number of steps that each worker executes at the same time.
        durable: Whether Redis restores its data when it is restarted.
    """
    with network() as hosts, Sandbox(accounts=accounts, rate_scale=rate_scale, host=ADDRESS) as exchange:
        variables = {name: value for name, value in exchange.variables.items() if name.startswith("LBANK_")}
        variables |= {"AFFILIATE_START_DATE": f"{days[0]}", "AFFILIATE_RATE_SCALE": f"{rate_scale}"}
        cluster = Cluster(hosts, variables, concurrency=concurrency, durable=durable)
        try:
            with closing(cluster.postgres.database):
                cluster.boot()
                yield cluster, exchange
        except BaseException:
            for log in sorted((hosts.folder / "logs").iterdir()):
                print(f"--- the end of {log.name}:\n{log.read_text(errors='replace')[-4000:]}")
            raise
