"""The commands `up` and `down`: run everything on one machine, and stop it.

`up` lands the last days with `dagster asset materialize`, so they are ordinary runs in Dagster's UI.
"""

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from affiliate_pipeline import environment as settings
from affiliate_pipeline.app import first_days
from affiliate_pipeline.app.check import check_disk, check_port
from affiliate_pipeline.app.cli import UI_PORT, CommandError, Port, app, console, doing
from affiliate_pipeline.app.embedded_server import server
from affiliate_pipeline.app.extras import require_extras
from affiliate_pipeline.app.processes import (
    dagster_home,
    exclusive,
    project_file,
    run_dagster,
    stop_processes,
    stop_up,
)
from affiliate_pipeline.app.sandbox import serving
from affiliate_pipeline.commission.rollup import Commission
from affiliate_pipeline.domain.days import DAY, day_ranges, format_days
from affiliate_pipeline.domain.expected_days import expected_days
from affiliate_pipeline.domain.redaction import redact
from affiliate_pipeline.domain.settings import Environment
from affiliate_pipeline.exchanges.endpoint import Endpoint, Records
from affiliate_pipeline.exchanges.registry import (
    Catalog,
    configured_catalog,
    first_day,
    first_earning_day,
    is_any_exchange_configured,
    unusable_variables,
)
from affiliate_pipeline.landing.pipeline import now_ms
from affiliate_pipeline.landing.store import Store

READY_WAIT_S = 180
READ_AGAIN_AFTER = timedelta(hours=1)


class LandingInterrupted(Exception):
    """A signal has interrupted the landing."""


@dataclass(frozen=True)
class Landing:
    """Materializes days; `land` and `add_up` raise `LandingInterrupted` once `stopping` is set."""

    environment: Environment
    stopping: threading.Event

    @property
    def catalog(self) -> Catalog:
        """The endpoints of all accounts."""
        return configured_catalog(self.environment.variables)

    def missing_days(self) -> list[tuple[Endpoint, list[date]]]:
        """By configured asset, its days that have not settled and were not read in the last hour."""
        recently = datetime.now(UTC) - READ_AGAIN_AFTER
        missing: list[tuple[Endpoint, list[date]]] = []
        with self._store() as store:
            for endpoint in self.catalog.endpoints:
                if endpoint.lands_at and self.environment.is_any_set(endpoint.credentials):
                    first = first_day(endpoint, self.environment)
                    expected = expected_days(endpoint.timetable, first, now_ms(), store.ledger(endpoint))
                    fetchable = [each for each in expected if each.is_retained(now_ms())]
                    missing.append(
                        (
                            endpoint,
                            [each.day for each in fetchable if not each.last_read_at or each.last_read_at <= recently],
                        )
                    )
        return missing

    def land(self, missing: Iterable[tuple[Endpoint, list[date]]]) -> bool:
        """Land the days and report each run; True if every day has landed.

        Assets share a run if they are of the same account, have the same partitions and miss the same consecutive days.
        """
        runs: dict[tuple[str, bool, date, tuple[date, ...]], list[Endpoint]] = {}
        for endpoint, days in missing:
            for consecutive in day_ranges(days):
                first = first_day(endpoint, self.environment)
                key = (endpoint.group, isinstance(endpoint, Records), first, tuple(consecutive))
                runs.setdefault(key, []).append(endpoint)
        return all(
            [
                self._land(endpoints, days) if is_records else self._land_today(endpoints)
                for (_, is_records, _, days), endpoints in runs.items()
            ]
        )

    def _land_today(self, endpoints: Sequence[Endpoint]) -> bool:
        """Take the snapshots of today; if the day ends meanwhile, those of the next day."""
        zone = endpoints[0].exchange.zone
        while True:
            today = datetime.now(zone).date()
            if self._land(endpoints, [today]):
                return True
            if today == datetime.now(zone).date():
                return False

    def _land(self, endpoints: Sequence[Endpoint], days: Sequence[date]) -> bool:
        first, count, began = endpoints[0], len(endpoints), datetime.now(UTC)
        account = f" (account {first.alias})" if first.alias else ""
        title = (
            f"{f'{count} assets of {first.exchange.title}{account}' if count > 1 else first.key} {format_days(days)}"
        )
        keys = [endpoint.key for endpoint in endpoints]
        success = self._materialize(keys, days, title, f"{title}: not every day landed.")
        with self._store() as store:
            ledgers = [store.ledger(endpoint, days) for endpoint in endpoints]
        landed = sum(row.checked_at >= began for ledger in ledgers for row in ledger.values())
        console.print(f"{title}: {landed} of {count * len(days)} days")
        return success

    def add_up(self) -> bool:
        """Add up the days whose rows have changed; True if all are up to date.

        While Dagster runs, the sensor `stale_days` does the same.
        """
        with self._store() as store:
            last = datetime.now(UTC).date() - DAY
            first = first_earning_day(self.catalog, self.environment)
            stale = Commission(store, self.catalog.earning).stale(first, last)
        keys = ["affiliate/daily_commission", "affiliate/daily_report"]
        return all(
            [
                self._materialize(
                    keys, days, f"Adding up {format_days(days)}", f"{format_days(days)} could not be added up."
                )
                for days in day_ranges(stale)
            ]
        )

    def _materialize(self, keys: Sequence[str], days: Sequence[date], title: str, failed: str) -> bool:
        """Run the assets over the days; return whether that succeeded, and print why not."""
        if self.stopping.is_set():
            raise LandingInterrupted
        home, began = self.environment.home, datetime.now(UTC)
        log = home / "landing.log"
        arguments = ["asset", "materialize", "-m", "affiliate_pipeline.definitions"]
        arguments += ["--select", " or ".join(f'key:"{key}"' for key in keys)]
        arguments += ["--partition-range", f"{days[0]}...{days[-1]}"]
        with doing(title):
            process = run_dagster(home, log, arguments)
            while process.poll() is None:
                if self.stopping.wait(0.2):
                    raise LandingInterrupted
        if process.returncode:
            # Imported here: importing Dagster takes as long as importing all commands.
            from affiliate_pipeline.app.instance.launcher import failure_reasons

            reasons = dict.fromkeys(map(redact, failure_reasons(dagster_home(home), days, began)))
            console.print(f"[bold red]{failed}[/]", escape("\n".join([*reasons, f"The log: {log}"])))
        return process.returncode == 0

    def summarize(self) -> None:
        """Print the landed days, rows and settled days of each asset."""
        table = Table("asset", "days landed", "rows", "settled", title="What has landed")
        with self._store() as store:
            for endpoint in self.catalog.endpoints:
                days = list(store.ledger(endpoint).values())
                table.add_row(
                    endpoint.key,
                    format_days(row.partition for row in days) or "none",
                    f"{sum(row.rows for row in days):,}",
                    f"{sum(row.settled for row in days)} of {len(days)}",
                )
        console.print(table, soft_wrap=False)

    def _store(self) -> Store:
        return Store(self.environment.database_url())


@app.command()
def up(
    once: Annotated[
        bool, typer.Option("--once", help="Land the last days, then exit: with 0 if all have landed, else 1.")
    ] = False,
    port: Port = UI_PORT,
) -> None:
    """Start the database, the sandbox if no exchange is configured, and Dagster; land the last days. Ctrl-C stops it."""
    os.chdir(settings.root())
    configured = settings.configured()
    is_sandbox = not is_any_exchange_configured(configured.variables)
    if is_sandbox and not server.is_embedded(configured):
        raise CommandError(
            "AFFILIATE_DATABASE_URL is set, but no exchange is configured",
            "Set the variables of an exchange (README, Real accounts), or unset AFFILIATE_DATABASE_URL to try the "
            "sandbox, which writes only to its own embedded database",
        )
    needed = {"embedded": server.is_embedded(configured), "ui": not once}
    require_extras(*(name for name, is_needed in needed.items() if is_needed))
    home = configured.home
    home.mkdir(mode=0o700, exist_ok=True)
    check_disk(home)
    stopping = _stop_on_signals()
    with ExitStack() as stack:
        stack.enter_context(exclusive(home))
        if not once:
            check_port(port)
        if settings.save_env_file_as_utf8():
            console.print("Saved .env, which was UTF-16, as UTF-8: Dagster reads no other encoding.")
        if is_sandbox:
            stack.enter_context(serving({}))
        environment = settings.application()
        for unusable in unusable_variables(environment.variables):
            console.print(escape(f"{unusable.name} is ignored: {unusable.problem}. {unusable.action}."))
        if server.is_embedded(environment) and not server.running_database(environment):
            stack.callback(server.stop, home)
        with doing("PostgreSQL is starting"):
            environment = server.start_database(environment)
        with Store(environment.database_url()) as store:
            store.require_ready()
            environment = first_days.ensure(environment, store)
        stack.callback(stop_processes, home)
        landing = Landing(environment, stopping)
        if once:
            raise typer.Exit(0 if _land(landing) else 1)
        log = home / "dagster.log"
        dagster = _start_ui(home, log, port, stopping)
        with suppress(LandingInterrupted):
            _land_in_background(stack, landing, port)
        while not stopping.wait(2):
            if dagster.poll() is not None:
                raise CommandError(f"Dagster has stopped unexpectedly; its log is {log}")
            server.start_database(environment)  # restarts the embedded server if it was killed
        console.print("Stopping")


def _stop_on_signals() -> threading.Event:
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, lambda _number, _frame: stopping.set())
    return stopping


def _land(landing: Landing) -> bool:
    """Land and add up the last days; return whether all of them succeeded."""
    try:
        complete = landing.land(landing.missing_days())
        complete &= landing.add_up()
    except LandingInterrupted:
        return False
    landing.summarize()
    return complete


def _land_in_background(stack: ExitStack, landing: Landing, port: int) -> None:
    """Land the newest days, then earlier ones in a thread, which `stack` stops and joins."""
    if landing.stopping.is_set():
        raise LandingInterrupted
    console.print(f"Dagster's UI is ready: [bold]http://localhost:{port}[/bold]")
    missing = landing.missing_days()
    landing.land((endpoint, days[-1:]) for endpoint, days in missing)
    landing.add_up()

    def land_earlier() -> None:
        with suppress(LandingInterrupted):
            landing.land((endpoint, days[:-1]) for endpoint, days in missing)
            landing.summarize()

    background = threading.Thread(target=land_earlier)
    background.start()
    stack.callback(background.join)
    stack.callback(landing.stopping.set)
    console.print(
        f"\nDagster's UI: [bold]http://localhost:{port}[/bold]   Report: affiliate-pipeline report --open   "
        "Data: affiliate-pipeline psql   Stop: Ctrl-C"
    )


def _start_ui(home: Path, log: Path, port: int, stopping: threading.Event) -> subprocess.Popen[bytes]:
    """Start Dagster's webserver and daemon; return once the UI is ready."""
    arguments = ["dev", "-w", str(project_file("workspace.yaml")), "-h", "127.0.0.1", "-p", str(port)]
    variables = {"DAGSTER_UI_URL": f"http://localhost:{port}", "AFFILIATE_SCHEDULES": "true"}
    dagster = run_dagster(home, log, arguments, **variables)
    deadline = time.monotonic() + READY_WAIT_S
    with doing("Dagster's UI is starting"):
        while not stopping.wait(0.2):
            if dagster.poll() is not None or time.monotonic() > deadline:
                raise CommandError(f"Dagster did not start; its log is {log}")
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
    return dagster


@app.command()
def down() -> None:
    """Stop what `up` or a Dagster command has left running in this folder: Dagster and the embedded PostgreSQL."""
    home = settings.home()
    stopped = [stop_up(home), stop_processes(home), server.stop(home)]
    console.print("Stopped." if any(stopped) else "Nothing was running.")
