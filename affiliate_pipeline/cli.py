"""`affiliate-pipeline`: what runs the whole on one machine. Lands through Dagster's own command line; decides nothing
about data."""

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated

import psutil
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from affiliate_pipeline import settings
from affiliate_pipeline.days import fold, runs
from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline.exchanges.spec import Endpoint
from affiliate_pipeline.ingest import now_ms
from affiliate_pipeline.postgres import server
from affiliate_pipeline.postgres.store import Store, StoreUnavailable
from affiliate_pipeline.postgres.urls import libpq_environment
from affiliate_pipeline.rest.redact import redact
from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline.sandbox import __main__ as sandbox_main
from affiliate_pipeline.settings import Project, SettingsError

UI_PORT = 3000
LEAST_FREE_BYTES = 500_000_000
READY_WAIT_S = 180
STOP_WAIT_S = 15
SANDBOX_START_DAYS = 35
MOST_REQUESTS_UNASKED = 1000

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)
console = Console(highlight=False)


class Stop(Exception):
    """One line that says what is wrong and what to do."""


def main() -> None:
    try:
        app()
    except (Stop, SettingsError, server.ServerError, StoreUnavailable) as error:
        print(f"affiliate-pipeline: {redact(error)}", file=sys.stderr)
        raise SystemExit(1) from None
    except OSError as error:
        print(f"affiliate-pipeline: {error.strerror}: {error.filename or ''}", file=sys.stderr)
        raise SystemExit(1) from None


@app.command()
def up(
    once: Annotated[bool, typer.Option("--once", help="Land the last days and exit: 0 if all landed.")] = False,
    port: Annotated[int, typer.Option(help="Port of Dagster's UI on 127.0.0.1.")] = UI_PORT,
) -> None:
    """Database, the sandbox while no exchange is configured, the last days landed, Dagster's UI; until Ctrl-C."""
    os.chdir(settings.root())
    home = settings.home()
    home.mkdir(mode=0o700, exist_ok=True)
    if shutil.disk_usage(home).free < LEAST_FREE_BYTES:
        raise Stop(f"less than {LEAST_FREE_BYTES // 1_000_000} MB are free on the disk of {home}: free some first")
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    with ExitStack() as stack:
        stack.enter_context(_alone(home))
        if not once:
            _check_port(port)
        if not settings.is_exchange_configured():
            stack.enter_context(_sandbox())
        embedded = Project.load().affiliate_database_url is None
        if embedded and not server.is_running(home):
            stack.callback(server.stop, home)
        with console.status("PostgreSQL is starting"):
            url = Project.load().database_url()
        environment = {"DAGSTER_HOME": str(_dagster_home(home))}
        dagster = None if once else stack.enter_context(_dagster(home, port, environment))
        complete = all([_land(endpoint, url, home, environment, stopping) for endpoint in ENDPOINTS])
        if stopping.is_set():
            return
        _summary(url)
        if once:
            raise typer.Exit(0 if complete else 1)
        assert dagster is not None
        _wait_until_ready(dagster, port, stopping, home)
        if not stopping.is_set():
            console.print(
                f"\nDagster's UI: [bold]http://localhost:{port}[/bold]   Data: affiliate-pipeline psql   Stop: Ctrl-C"
            )
        while not stopping.wait(1):
            if dagster.poll() is not None:
                raise Stop(f"Dagster has stopped by itself; its log is {_log(home)}")
        console.print("Stopping")


@app.command()
def down() -> None:
    """Stop whatever `up` or a command of Dagster's left running here: Dagster and the embedded PostgreSQL."""
    home = settings.home()
    state = _state(home)
    running = state and _alive(state["up"])
    if running:
        running.terminate()
        psutil.wait_procs([running], timeout=2 * STOP_WAIT_S)
    stopped = [bool(running), _stop_session(state["dagster"]) if state else False, server.stop(home)]
    console.print("Stopped." if any(stopped) else "Nothing was running.")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def sandbox(context: typer.Context) -> None:
    """Serve the sandbox exchange in the foreground (see `sandbox --help`)."""
    raise typer.Exit(sandbox_main.main(context.args))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def psql(context: typer.Context) -> None:
    """Open the database in psql; further arguments are psql's."""
    environment = settings.process_environment(**libpq_environment(Project.load().database_url()))
    program = str(server.binary("psql"))
    os.execve(program, [program, *context.args], environment)


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Only one `up` runs here; what one that was killed left behind is stopped first."""
    with (home / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Stop("it is running here already; `affiliate-pipeline down` stops it") from None
        if state := _state(home):
            _stop_session(state["dagster"])
        yield
        (home / "up.json").unlink(missing_ok=True)


def _check_port(port: int) -> None:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise Stop(
            f"port {port} cannot be used ({error.strerror}): stop what uses it or choose another with --port"
        ) from None


@contextmanager
def _sandbox() -> Iterator[None]:
    """The sandbox runs, and `.affiliate/settings.env` points everything here at it."""
    chosen = settings.chosen()
    url = chosen.get("BINANCE_BASE_URL", "")
    port = int(url.rpartition(":")[2] or 0) if url else 0
    try:
        exchange = Sandbox(port=port).start()
    except OSError:
        exchange = Sandbox().start()
    first = datetime.now(UTC).date() - timedelta(days=SANDBOX_START_DAYS)
    settings.choose(
        {
            "AFFILIATE_START_DATE": chosen.get("AFFILIATE_START_DATE", first.isoformat()),
            "BINANCE_BASE_URL": exchange.url,
            "BINANCE_PARTNER_API_KEY": exchange.binance.partner_key,
            "BINANCE_PARTNER_API_SECRET": exchange.binance.partner_secret,
        }
    )
    console.print(
        "No exchange is configured, so [bold]the sandbox[/bold] plays one on this machine: made-up data, in a database of "
        "its own. For real accounts set BINANCE_PARTNER_API_KEY and BINANCE_PARTNER_API_SECRET in .env and start again."
    )
    try:
        yield
    finally:
        exchange.stop()


def _dagster_home(home: Path) -> Path:
    """A folder for what Dagster writes, with the project's dagster.yaml."""
    folder = home / "dagster"
    folder.mkdir(exist_ok=True)
    shutil.copyfile(settings.root() / "dagster.yaml", folder / "dagster.yaml")
    return folder


def _log(home: Path) -> Path:
    return home / "dagster.log"


def _run_dagster(home: Path, arguments: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C reaches only `up`, which then stops everything in order.
    with _log(home).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "dagster", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=settings.process_environment(**environment),
        )


@contextmanager
def _dagster(home: Path, port: int, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Dagster's webserver and daemon."""
    arguments = ["dev", "-w", "workspace.yaml", "-h", "127.0.0.1", "-p", str(port)]
    environment = {"DAGSTER_UI_URL": f"http://localhost:{port}", **environment}
    process = _run_dagster(home, arguments, environment)
    (home / "up.json").write_text(json.dumps({"up": _identity(os.getpid()), "dagster": _identity(process.pid)}))
    try:
        yield process
    finally:
        _stop_session(_identity(process.pid) if process.poll() is None else [process.pid, None])


def _land(endpoint: Endpoint, url: str, home: Path, environment: dict[str, str], stopping: threading.Event) -> bool:
    """Lands the days that the source holds wholly and that have not landed or not settled; True if all did."""
    start = Project.load().affiliate_start_date
    days = [day for day in endpoint.remembered_days(now_ms()) if day >= start]
    with Store(url) as store:
        ledger = store.ledger(endpoint, days)
    wanted = [day for day in days if day not in ledger or not ledger[day].settled]
    if wanted and not settings.is_sandbox() and days[-1] in wanted:
        # One day tells what the others will cost.
        if not _materialize(endpoint, wanted[-1:], url, home, environment, stopping):
            return False
        with Store(url) as store:
            rows = store.ledger(endpoint, wanted[-1:])[wanted[-1]].rows
        requests = endpoint.strategy.requests(rows) * (len(wanted) - 1)
        wanted = wanted[:-1]
        if requests > MOST_REQUESTS_UNASKED and not _agreed(endpoint, wanted, requests):
            return True
    return all([_materialize(endpoint, run, url, home, environment, stopping) for run in runs(wanted)])


def _agreed(endpoint: Endpoint, days: list[date], requests: int) -> bool:
    question = f"{endpoint.key}: landing {fold(days)} takes about {requests} requests. Do it now?"
    if not sys.stdin.isatty():
        console.print(f"{question} Nobody is here to ask: not done. Launch a backfill in the UI instead.")
        return False
    return typer.confirm(question)


def _materialize(
    endpoint: Endpoint, days: list[date], url: str, home: Path, environment: dict[str, str], stopping: threading.Event
) -> bool:
    began = datetime.now(UTC)
    process = _run_dagster(
        home,
        [
            *("asset", "materialize", "-m", "affiliate_pipeline.definitions", "--select", f'key:"{endpoint.key}"'),
            *("--partition-range", f"{days[0]}...{days[-1]}"),
        ],
        environment,
    )
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("days"),
        TimeElapsedColumn(),
    )
    try:
        with Store(url) as store, Progress(*columns, console=console) as progress:
            task = progress.add_task(f"{endpoint.key} {fold(days)}", total=len(days))
            while True:
                running = process.poll() is None
                checked = [row for row in store.ledger(endpoint, days).values() if row.checked_at >= began]
                progress.update(task, completed=len(checked))
                if not running or stopping.wait(0.3):
                    break
    finally:
        if process.poll() is None:
            _stop_session(_identity(process.pid))
    if process.returncode and not stopping.is_set():
        console.print(f"[bold red]{endpoint.key}: not every day of {fold(days)} landed.[/] {_last_failure(home)}")
    return process.returncode == 0


def _last_failure(home: Path) -> str:
    """What the failed run said, from the log of Dagster."""
    text = _log(home).read_text(errors="replace")
    _, found, failure = text.rpartition("dagster._core.definitions.events.Failure: ")
    said = failure.partition("\n\nStack Trace")[0] if found else "Its log:"
    return f"{said}\n{_log(home)}"


def _wait_until_ready(dagster: subprocess.Popen[bytes], port: int, stopping: threading.Event, home: Path) -> None:
    deadline = time.monotonic() + READY_WAIT_S
    with console.status("Dagster's UI is starting"):
        while not stopping.wait(0.2):
            if dagster.poll() is not None or time.monotonic() > deadline:
                raise Stop(f"Dagster did not start; its log is {_log(home)}")
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=1):
                    return
            except OSError:
                continue


def _summary(url: str) -> None:
    table = Table("asset", "days landed", "rows", "settled", title="What has landed")
    with Store(url) as store:
        for endpoint in ENDPOINTS:
            days = list(store.ledger(endpoint).values())
            table.add_row(
                endpoint.key,
                fold(row.partition for row in days) or "none",
                f"{sum(row.rows for row in days):,}",
                f"{sum(row.settled for row in days)} of {len(days)}",
            )
    console.print(table)


def _state(home: Path) -> dict[str, list] | None:
    try:
        return json.loads((home / "up.json").read_text())
    except (FileNotFoundError, ValueError):
        return None


def _identity(pid: int) -> list:
    """A process that no other one can be taken for once it has gone."""
    return [pid, psutil.Process(pid).create_time()]


def _alive(identity: list) -> psutil.Process | None:
    pid, created = identity
    try:
        process = psutil.Process(pid)
        return process if process.create_time() == created and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def _stop_session(leader: list) -> bool:
    """Stops a process and everything that it started in its session; True if anything was running."""
    pid, _ = leader

    def session() -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) == pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (ProcessLookupError, PermissionError, psutil.Error):
                continue
        return found

    found = session()
    if process := _alive(leader):
        process.send_signal(signal.SIGINT)
        psutil.wait_procs([process], timeout=STOP_WAIT_S)
    for number in (signal.SIGTERM, signal.SIGKILL):
        left = session()
        for process in left:
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(left, timeout=STOP_WAIT_S / 3)
    return bool(found)
