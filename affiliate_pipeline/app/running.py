"""Commands that run the whole on one machine: `up`, `down`, `sandbox`, `psql`, `plan`. Lands through Dagster's own command
line."""

import fcntl
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated, TextIO

import psutil
import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from affiliate_pipeline import environment as settings
from affiliate_pipeline.app.cli import Stop, app, console, doing, parse_days
from affiliate_pipeline.app.embedded_server import server
from affiliate_pipeline.commission.rollup import Commission
from affiliate_pipeline.domain.days import DAY, fold, runs
from affiliate_pipeline.domain.expected_days import expected_days
from affiliate_pipeline.domain.redaction import redact
from affiliate_pipeline.environment import Environment, Project
from affiliate_pipeline.exchanges.endpoint import Endpoint, Records
from affiliate_pipeline.exchanges.registry import EARNING, ENDPOINTS
from affiliate_pipeline.landing.day_writer import Ledger, Store
from affiliate_pipeline.landing.pipeline import connected, now_ms, plan_of
from affiliate_pipeline.postgres.connection import connect
from affiliate_pipeline.postgres.urls import libpq_environment
from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline.sandbox import __main__ as sandbox_main

UI_PORT = 3000
LEAST_FREE_BYTES = 500_000_000
READY_WAIT_S = 180
STOP_WAIT_S = 60
# Every process that `up` starts, and what that one starts, has the folder in this variable: so they are found again
# whoever died, and no pid that somebody else has by now is ever taken for one of them.
STARTED_BY = "AFFILIATE_STARTED_BY"
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SANDBOX_START_DAYS = 35
SANDBOX_RATE_SCALE = 20
MOST_REQUESTS_UNASKED = 1000
# No page of an exchange holds fewer rows, so this overrates what is asked of it.
LEAST_PAGE_ROWS = 100
CHECK_AGAIN_AFTER = timedelta(hours=1)
LANDED_DAYS = 7


@app.command()
def up(
    once: Annotated[bool, typer.Option("--once", help="Land the last days and exit: 0 if all landed.")] = False,
    port: Annotated[int, typer.Option(help="Port of Dagster's UI on 127.0.0.1.", min=1, max=65535)] = UI_PORT,
) -> None:
    """Database, the sandbox while no exchange is configured, the last days landed, Dagster's UI; until Ctrl-C."""
    os.chdir(settings.root())
    is_sandbox = not settings.configured().is_exchange_configured
    if is_sandbox and settings.application().embedded is None:
        raise Stop(
            "AFFILIATE_DATABASE_URL is set and no exchange is: set the variables of an exchange (README, Real accounts), or "
            "unset AFFILIATE_DATABASE_URL to try the sandbox, which writes only to its own embedded database"
        )
    home = settings.home()
    home.mkdir(mode=0o700, exist_ok=True)
    check_disk(home)
    stopping = threading.Event()
    for number in STOP_SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, lambda *_: stopping.set())
    with ExitStack() as stack:
        stack.enter_context(_alone(home))
        if not once:
            check_port(port)
        if settings.save_env_file_as_utf8():
            console.print("Saved .env, which was UTF-16, as UTF-8: Dagster reads no other encoding.")
        if is_sandbox:
            stack.enter_context(_sandbox())
        environment = settings.application()
        if environment.embedded and not server.is_running(home):
            stack.callback(server.stop, home)
        with doing("PostgreSQL is starting"):
            url = environment.database_url()
        with Store(url) as store:
            store.require_ready()
        stack.callback(_stop_started, home)
        address = f"[bold]http://localhost:{port}[/bold]"
        dagster = None if once else _start_ui(home, port, stopping)
        if dagster and not stopping.is_set():
            console.print(f"Dagster's UI is ready: {address}")
        complete = _Landing(home, url, environment, stopping).land(
            [each for each in ENDPOINTS if each.lands_at and environment.is_any_set(each.credentials)]
        )
        if not stopping.is_set():
            complete &= _add_up(home, url, environment, stopping)
            _summary(url)
        if dagster is None:
            raise typer.Exit(0 if complete else 1)
        if not stopping.is_set():
            console.print(
                f"\nDagster's UI: {address}   The money: affiliate-pipeline report --open   "
                "Data: affiliate-pipeline psql   Stop: Ctrl-C"
            )
        while not stopping.wait(2):
            if dagster.poll() is not None:
                raise Stop(f"Dagster has stopped by itself; its log is {_log(home)}")
            if environment.embedded:  # restarts the server if it was killed
                environment.database_url()
        console.print("Stopping")


@app.command()
def down() -> None:
    """Stop whatever `up` or a command of Dagster's left running here: Dagster and the embedded PostgreSQL."""
    home = settings.home()
    stopped = [_stop_up(home), _stop_started(home), server.stop(home)]
    console.print("Stopped." if any(stopped) else "Nothing was running.")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def sandbox(context: typer.Context) -> None:
    """Serve the sandbox exchange in the foreground (see `sandbox --help`)."""
    raise typer.Exit(sandbox_main.main(context.args))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def psql(context: typer.Context) -> None:
    """Open the database in psql; further arguments are psql's."""
    _become("psql", context.args)


@app.command("pg_dump", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def pg_dump(context: typer.Context) -> None:
    """Back the database up with pg_dump; further arguments are pg_dump's (see the runbook)."""
    _become("pg_dump", context.args)


@app.command()
def plan(
    asset: Annotated[str, typer.Argument(help="As in Dagster: lbank/trade_user")],
    days: Annotated[str, typer.Argument(help="One day or a range: 2026-10-01...2026-10-31")],
) -> None:
    """What fetching a range of days costs, in requests and minutes, and what an assignment would change; lands nothing.

    Where it depends on who is under us, LBank's roster is refreshed first if it is older than the range.
    """
    endpoint = next((endpoint for endpoint in ENDPOINTS if endpoint.key == asset), None)
    if endpoint is None:
        raise Stop(f"there is no asset {asset}; there are {', '.join(endpoint.key for endpoint in ENDPOINTS)}")
    wanted = parse_days(days)
    environment = settings.application()
    with (
        Store(environment.database_url()) as store,
        connected(endpoint, store, variables=environment.variables) as session,
    ):
        costs = plan_of(endpoint, wanted, session=session, store=store)
        console.print(escape(f"{endpoint.key} {fold(wanted)}: {costs}"))


def _become(program: str, arguments: Sequence[str]) -> None:
    """Goes on as one of PostgreSQL's own programs, connected to the database."""
    url = settings.application().database_url()
    # Connect first: PostgreSQL's programs detect no pooler, and their errors suggest no fix for a wrong address.
    connect(url).close()
    environment = settings.process_environment(**libpq_environment(url))
    path = str(server.binary(program))
    os.execve(path, [path, *arguments], environment)


def check_disk(home: Path) -> None:
    for folder in (home, server.SYSTEM_FOLDER):  # as root, the data are in the latter
        if folder.exists() and shutil.disk_usage(folder).free < LEAST_FREE_BYTES:
            raise Stop(
                f"less than {LEAST_FREE_BYTES // 1_000_000} MB are free on the disk of {folder}: free some space, then "
                "start again"
            )


def check_port(port: int) -> None:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise Stop(
            f"port {port} cannot be used ({error.strerror}): stop what uses it or choose another with --port"
        ) from None


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Only one `up` runs here; what one that was killed left behind is stopped first."""
    with (home / "up.lock").open("a+") as lock:
        if not _lock(lock):
            raise Stop("it is running here already; `affiliate-pipeline down` stops it")
        lock.seek(0)
        killed = lock.read()
        # First of all: until then `down` reads the pid of the one that was killed, which may be a stranger's by now.
        lock.truncate(0)
        lock.write(f"{os.getpid()}")
        lock.flush()
        if killed:
            _stop_started(home)
            server.stop(home)
        try:
            yield
        finally:
            lock.truncate(0)


def _stop_up(home: Path) -> bool:
    """Stops the `up` that runs here; True if there was one."""
    with suppress(FileNotFoundError), (home / "up.lock").open() as lock:
        told, deadline = "", time.monotonic() + STOP_WAIT_S
        while not _lock(lock):
            lock.seek(0)
            # Whoever holds the lock is alive, so the pid in it is theirs; they may not have written it yet.
            pid = lock.read()
            late = time.monotonic() > deadline
            if pid and (pid != told or late):
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL if late else signal.SIGTERM)
                told = pid
            time.sleep(0.1)
        return bool(told)
    return False


def _lock(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def started(home: Path) -> list[psutil.Process]:
    """What an `up` of this folder has started, directly or not, and is still running."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # it has just gone, or is somebody else's
            if process.environ().get(STARTED_BY) == str(home):
                found.append(process)
    return found


def _stop_started(home: Path) -> bool:
    """Stops all of `started`, in good order where it can be; True if there was anything."""
    left = found = started(home)
    # SIGINT is what Dagster gets from a Ctrl-C on a terminal.
    for number, patience_s in ((signal.SIGINT, 15), (signal.SIGTERM, 5), (signal.SIGKILL, 5)):
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        deadline = time.monotonic() + patience_s
        while (left := started(home)) and time.monotonic() < deadline:
            time.sleep(0.1)
        if not left:
            break
    return bool(found)


@contextmanager
def _sandbox() -> Iterator[None]:
    """The sandbox runs, and `.affiliate/settings.env` points everything here at it."""
    chosen = settings.chosen()
    port = int(chosen.get("BINANCE_BASE_URL", "").rpartition(":")[2] or 0)
    try:
        exchange = Sandbox(port=port, rate_scale=SANDBOX_RATE_SCALE).start()
    except OSError:
        exchange = Sandbox(rate_scale=SANDBOX_RATE_SCALE).start()
    first = datetime.now(UTC).date() - timedelta(days=SANDBOX_START_DAYS)
    settings.choose(
        {
            "AFFILIATE_START_DATE": chosen.get("AFFILIATE_START_DATE", first.isoformat()),
            "AFFILIATE_RATE_SCALE": str(SANDBOX_RATE_SCALE),
            "BINANCE_BASE_URL": exchange.url,
            "BINANCE_PARTNER_API_KEY": exchange.binance.partner_key,
            "BINANCE_PARTNER_API_SECRET": exchange.binance.partner_secret,
            "BINANCE_CLIENT_API_KEY": exchange.binance.client_key,
            "BINANCE_CLIENT_API_SECRET": exchange.binance.client_secret,
            "BINANCE_API_AGENT_CODE": exchange.binance.api_agent_code,
            "LBANK_BASE_URL": exchange.url,
            "LBANK_API_KEY": exchange.lbank.api_key,
            "LBANK_API_SECRET": exchange.lbank.api_secret,
            "LBANK_OPEN_ID": exchange.lbank.own_open_id,
        }
    )
    console.print(
        "No exchange is configured, so [bold]the sandbox[/bold] plays them on this machine: made-up data, in a database "
        f"of its own, and {SANDBOX_RATE_SCALE} times the real rate limits.\n"
        "For real accounts set BINANCE_PARTNER_API_KEY and BINANCE_PARTNER_API_SECRET, or LBANK_API_KEY, "
        "LBANK_API_SECRET and LBANK_OPEN_ID, in .env and start again."
    )
    try:
        yield
    finally:
        exchange.stop()


def _run_dagster(home: Path, log: Path, arguments: list[str], **environment: str) -> subprocess.Popen[bytes]:
    """A Dagster command with a folder of its own for what it writes, in a session of its own: Ctrl-C reaches only `up`,
    which then stops everything in order."""
    folder = home / "dagster"
    folder.mkdir(exist_ok=True)
    shutil.copyfile(settings.root() / "dagster.yaml", folder / "dagster.yaml")
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "dagster", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=settings.process_environment(DAGSTER_HOME=str(folder), **{STARTED_BY: str(home)}, **environment),
        )


def _log(home: Path) -> Path:
    return home / "dagster.log"


def _start_ui(home: Path, port: int, stopping: threading.Event) -> subprocess.Popen[bytes]:
    """Dagster's webserver and daemon, ready."""
    arguments = ["dev", "-w", "workspace.yaml", "-h", "127.0.0.1", "-p", str(port)]
    dagster = _run_dagster(
        home, _log(home), arguments, DAGSTER_UI_URL=f"http://localhost:{port}", AFFILIATE_SCHEDULES="true"
    )
    deadline = time.monotonic() + READY_WAIT_S
    with doing("Dagster's UI is starting"):
        while not stopping.wait(0.2):
            if dagster.poll() is not None or time.monotonic() > deadline:
                raise Stop(f"Dagster did not start; its log is {_log(home)}")
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
    return dagster


@dataclass
class _Landing:
    """Lands the last days by `dagster asset materialize`. `requests_left`: that many more may be made of real exchanges
    before somebody is asked."""

    home: Path
    url: str
    environment: Environment
    stopping: threading.Event
    requests_left: int = MOST_REQUESTS_UNASKED

    def land(self, endpoints: Sequence[Endpoint]) -> bool:
        """Lands the days that the sources hold wholly, but for those that have settled or were just looked at; True if
        all landed."""
        complete = True
        together: dict[tuple, list[Endpoint]] = {}
        for endpoint in endpoints:
            wanted = self._wanted(endpoint)
            if wanted and not self.environment.is_sandbox and not self._affordable(endpoint, wanted):
                complete = False
                continue
            for run in runs(wanted):
                # One run can land only assets whose partitions are the same.
                together.setdefault((endpoint.exchange.name, isinstance(endpoint, Records), *run), []).append(endpoint)
        landed = [self._materialize(group, run) for (_, _, *run), group in together.items()]
        return complete and all(landed)

    def _wanted(self, endpoint: Endpoint) -> list[date]:
        start = Project.load(variables=self.environment.variables).affiliate_start_date
        first = max(start, datetime.now(endpoint.exchange.zone).date() - LANDED_DAYS * DAY)
        recently = datetime.now(UTC) - CHECK_AGAIN_AFTER
        return [
            each.day
            for each in expected_days(endpoint.timetable, first, now_ms(), self._ledger(endpoint))
            if each.is_retained(now_ms()) and not (each.prior and each.prior > recently)
        ]

    def _affordable(self, endpoint: Endpoint, wanted: list[date]) -> bool:
        """Whether the days, one of which may be landed here and taken out, may be asked for."""
        with Store(self.url) as store, connected(endpoint, store, variables=self.environment.variables) as session:
            plan = endpoint.strategy.plan(session, wanted, endpoint.exchange.zone)
        requests = plan.max_requests
        if requests is None:
            ledger = self._ledger(endpoint)
            if not ledger:  # one day tells what the others will cost
                day = wanted.pop()
                if not self._materialize([endpoint], [day]):
                    return False
                ledger = self._ledger(endpoint)
                self.requests_left -= sum(row.rows for row in ledger.values()) // LEAST_PAGE_ROWS
            requests = plan.min_requests + len(wanted) * max(row.rows for row in ledger.values()) // LEAST_PAGE_ROWS
        if requests > self.requests_left and not self._agreed(endpoint, wanted, requests):
            return False
        self.requests_left -= requests
        return True

    def _agreed(self, endpoint: Endpoint, days: list[date], requests: int) -> bool:
        question = f"{endpoint.key}: landing {fold(days)} takes about {requests} requests. Do it now?"
        if not sys.stdin.isatty():
            console.print(f"{question} Nobody is here to ask: not done. Launch a backfill in the UI instead.")
            return False
        # Here a signal has to end the waiting for the answer.
        handlers = {number: signal.signal(number, signal.default_int_handler) for number in STOP_SIGNALS}
        try:
            return typer.confirm(question)
        except typer.Abort:
            self.stopping.set()
            return False
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _materialize(self, endpoints: Sequence[Endpoint], days: Sequence[date]) -> bool:
        if self.stopping.is_set():
            return False
        first = endpoints[0]
        title = first.key if len(endpoints) == 1 else f"{len(endpoints)} assets of {first.exchange.title}"
        title = f"{title} {fold(days)}"
        log = self.home / "landing.log"
        arguments = ["asset", "materialize", "-m", "affiliate_pipeline.definitions"]
        arguments += ["--select", " or ".join(f'key:"{endpoint.key}"' for endpoint in endpoints)]
        arguments += ["--partition-range", f"{days[0]}...{days[-1]}"]
        began = datetime.now(UTC)
        process = _run_dagster(self.home, log, arguments)
        with _progress(title, len(endpoints) * len(days)) as show:
            while True:
                running = process.poll() is None
                ledgers = [self._ledger(endpoint, days) for endpoint in endpoints]
                show(sum(row.checked_at >= began for ledger in ledgers for row in ledger.values()))
                if not running:
                    break
                if self.stopping.wait(0.5):
                    return False
        if process.returncode:
            console.print(f"[bold red]{title}: not every day landed.[/] {escape(_failure(log))}")
        return process.returncode == 0

    def _ledger(self, endpoint: Endpoint, days: Sequence[date] | None = None) -> dict[date, Ledger]:
        with Store(self.url) as store:
            return store.ledger(endpoint, days)


@contextmanager
def _progress(title: str, days: int) -> Iterator[Callable[[int], None]]:
    """Something to call with the number of days done; shows it, where there is no terminal as a line per change."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("days"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=days)
        shown = -1

        def show(done: int) -> None:
            nonlocal shown
            progress.update(task, completed=done)
            if done != shown and not console.is_terminal:
                console.print(f"{title}: {done} of {days} days")
            shown = done

        yield show


def _add_up(home: Path, url: str, environment: Environment, stopping: threading.Event) -> bool:
    """Materializes the assets about money for the days of which something has landed; True if all are up to date. Later
    a sensor does it."""
    start = Project.load(variables=environment.variables).affiliate_start_date
    with Store(url) as store:
        stale = Commission(store, EARNING).stale(start, datetime.now(UTC).date() - DAY)
    log = home / "money.log"
    keys = 'key:"affiliate/daily_commission" or key:"affiliate/daily_report"'
    for days in runs(stale):
        arguments = ["asset", "materialize", "-m", "affiliate_pipeline.definitions", "--select", keys]
        arguments += ["--partition-range", f"{days[0]}...{days[-1]}"]
        with doing(f"Adding up {fold(days)}"):
            process = _run_dagster(home, log, arguments)
            while process.poll() is None:
                if stopping.wait(0.2):
                    return False
        if process.returncode:
            console.print(f"[bold red]{fold(days)} could not be added up.[/] {escape(_failure(log))}")
            return False
    return True


def _failure(log: Path) -> str:
    """What the failed run said, from its log."""
    failures = re.findall(r"\.Failure: (.*?)\n\nStack Trace", log.read_text(errors="replace"), re.DOTALL)
    return "\n".join([*dict.fromkeys(map(redact, failures)), f"The log: {log}"])


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
    console.print(table, soft_wrap=False)
