"""(f) What growth costs: connections, Dagster's events, bytes per row, and landing a day in a large table."""

import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from itertools import pairwise
from typing import Final
from zoneinfo import ZoneInfo

import psycopg

from benchmarks.harness import MB, REBATES, IsolatedProject, Table, days_back, isolated_project, peaks
from benchmarks.ranges import no_preparation
from benchmarks.source import serve_rebates, source

DAYS, QUICK_DAYS = (1, 30, 365), (1, 10)
IDLE_S, QUICK_IDLE_S = 60, 5
SAMPLE_EVERY_S = 0.02
# The assets whose bytes per row are measured.
ASSETS = (
    "binance/rebate_recent_record",
    "binance/kickback_recent_record",
    "lbank/invite_user_list",
    "lbank/commission_stats_symbol_list",
    "lbank/trade_user",
    "lbank/money_detail_list",
)
USERS, RATE_SCALE = 1000, 1000
SIZE_DAYS = 6
ROWS_PER_DAY, OTHER_DAYS, QUICK_ROWS_PER_DAY = 100_000, 100, 1_000
ACCOUNTS = 10
LANDED: Final = "binance.rebate_recent_record"
INDEX: Final = "rebate_recent_record_partition_date"


@contextmanager
def sessions(project: IsolatedProject) -> Iterator[dict[str, int]]:
    """Yield how many sessions other processes open, and their maximum at one time; final only after the block."""
    counts = {"opened": 0, "peak": 0}
    ended = threading.Event()
    count_open = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    count_opened = "select sessions from pg_stat_database where datname = current_database()"

    def sample() -> None:
        while not ended.wait(SAMPLE_EVERY_S):
            [(number,)] = connection.execute(count_open).fetchall()
            counts["peak"] = max(counts["peak"], number)

    with psycopg.connect(project.url, autocommit=True) as connection:
        sampler = threading.Thread(target=sample)
        [(before,)] = connection.execute(count_opened).fetchall()
        sampler.start()
        try:
            yield counts
        finally:
            ended.set()
            sampler.join()
        # A session is counted a moment after it was opened.
        time.sleep(2)
        [(after,)] = connection.execute(count_opened).fetchall()
        counts["opened"] = after - before


def runs(project: IsolatedProject, numbers: Sequence[int]) -> Table:
    """Land days without rows; return the RAM, sessions and events of each run."""
    queries = {
        "rows in `event_logs`": "select count(*) from event_logs",
        "of these, of an asset": "select count(*) from event_logs where asset_key is not null",
        "rows in `asset_event_tags`": "select count(*) from asset_event_tags",
        "KB in `event_logs`": "select pg_total_relation_size('event_logs') / 1000",
        "KB in all tables of Dagster": "select sum(pg_total_relation_size(oid))::bigint / 1000 "
        "from pg_class "
        "where relnamespace = 'public'::regnamespace and relkind = 'r'",
    }

    def sizes_of_events() -> dict[str, int]:
        project.query("vacuum full")
        return {name: project.query(query.encode()) for name, query in queries.items()}

    # Create Dagster's tables.
    project.materialize(REBATES, days_back(1))
    columns: list[dict[str, int]] = []
    for number in numbers:
        before = sizes_of_events()
        with sessions(project) as used:
            measured = project.materialize(REBATES, days_back(number))
        after = sizes_of_events()
        column = {
            "peak RAM, MB": measured.memory["process"] // MB,
            "sessions at one time": used["peak"],
            "sessions opened": used["opened"],
        }
        for name in queries:
            column[name] = after[name] - before[name]
        columns.append(column)

    names = list(columns[0])
    return Table(
        f"One run of `{REBATES}`",
        ["days", *map(str, numbers)],
        [[name, *(f"{column[name]:,}" for column in columns)] for name in names],
        ["*sessions*: of all processes of the run, the command included. *KB* includes indexes, after `vacuum full`."],
    )


def idle(project: IsolatedProject, idle_s: float) -> Table:
    """Start a deployment's processes one by one, without runs; return the sessions of all so far, and the RAM of each."""
    workspace = ["-m", "affiliate_pipeline.definitions"]
    commands = {
        "code server": [sys.executable, "-m", "dagster", "api", "grpc", "-p", "4711", *workspace],
        "webserver": [sys.executable, "-m", "dagster_webserver", "-p", "4712", "-w", "workspace.yaml"],
        "daemon": [sys.executable, "-m", "dagster._daemon", "run", "-w", "workspace.yaml"],
    }
    (project.home / "workspace.yaml").write_text("load_from: [{grpc_server: {host: localhost, port: 4711}}]\n")

    lines: list[list[str]] = []
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for name, command in commands.items():
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            processes.append(process)
            time.sleep(20)  # until it has started
            with sessions(project) as used, peaks(process=process.pid) as ram:
                time.sleep(idle_s)
            assert process.poll() is None, name
            per_minute = used["opened"] * 60 / idle_s
            lines.append([name, str(used["peak"]), f"{per_minute:.0f}", f"{ram['process'] / MB:,.0f}"])
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait()

    return Table(
        "Processes without runs, started one after the other",
        ["process started last", "sessions at one time", "sessions opened per minute", "RAM of this process, MB"],
        lines,
        ["The sessions are those of all processes so far."],
    )


def sizes(project: IsolatedProject) -> Table:
    """Land several days of the sandbox's content; return the bytes per row."""
    today = datetime.now(ZoneInfo("Asia/Shanghai")).date()
    lbank_days = [today - timedelta(days=back) for back in (3, 2, 1)]
    lines: list[list[str]] = []
    for key in ASSETS:
        project.materialize(key, days_back(SIZE_DAYS) if key.startswith("binance") else lbank_days)
        table = key.replace("/", ".")
        with psycopg.connect(project.url, autocommit=True) as connection:
            connection.execute(f"vacuum full analyze {table}".encode())
            [(rows, heap, indexes)] = connection.execute(
                f"select count(*), pg_table_size('{table}'), pg_indexes_size('{table}') from {table}".encode()
            ).fetchall()
        lines.append([f"`{key}`", f"{rows:,}", f"{heap / rows:.0f}", f"{indexes / rows:.0f}"])
    return Table(
        "Bytes per row", ["asset", "rows", "table", "indexes"], lines, ["Sandbox content, after `vacuum full`."]
    )


def fill(project: IsolatedProject, rows: int, days: int, accounts: int) -> None:
    """Add rows of older days, in the order in which they would have landed: copies of the landed day's rows."""
    names = project.query(
        "select string_agg(quote_ident(attname), ', ') "
        "from pg_attribute "
        "where attrelid = %s::regclass and attnum > 0 and attname not in ('account', 'partition_date')",
        LANDED,
    )
    statement = (
        f"insert into {LANDED} ({names}, account, partition_date) "
        f"select {names}, %s, partition_date - %s "
        f"from {LANDED} "
        "where account = '' and partition_date = %s "
        "limit %s"
    )
    [landed_day] = days_back(1)
    aliases = ["", *(f"a{number}" for number in range(1, accounts))]

    with psycopg.connect(project.url, autocommit=True) as connection:
        for days_earlier in range(days, 0, -1):
            for alias in aliases:
                connection.execute(statement.encode(), (alias, days_earlier, landed_day, rows // accounts))
        connection.execute(f"vacuum analyze {LANDED}".encode())


def partition(project: IsolatedProject, days: int) -> None:
    """Replace the table by one that is partitioned by month, with the same rows."""
    # A few more days: the function `accounts` later adds rows of five days, which in a quick run are more than `days`.
    first = days_back(days + 6)[0].replace(day=1)
    # Up to the next month at least: the partition of the current month ends where the next one begins. `first` is up to
    # 30 days before `days + 6` days ago, and the next month begins at most 31 days from now.
    months = sorted({(first + timedelta(days=number)).replace(day=1) for number in range(30 + days + 6 + 31 + 1)})

    with psycopg.connect(project.url) as connection:
        connection.execute(f"alter table {LANDED} rename to unpartitioned".encode())
        connection.execute(f"alter index binance.{INDEX} rename to unpartitioned_day".encode())
        connection.execute(
            f"create table {LANDED} (like binance.unpartitioned including defaults including comments) "
            "partition by range (partition_date)".encode()
        )
        connection.execute(f"create index {INDEX} on {LANDED} (partition_date)".encode())
        for month, next_month in pairwise(months):
            statement = (
                f"create table {LANDED}_{month:%Y_%m} "
                f"partition of {LANDED} "
                f"for values from ('{month}') to ('{next_month}')"
            )
            connection.execute(statement.encode())
        connection.execute(f"insert into {LANDED} select * from binance.unpartitioned order by partition_date".encode())
        connection.execute("drop table binance.unpartitioned")
    with psycopg.connect(project.url, autocommit=True) as connection:
        connection.execute(f"vacuum analyze {LANDED}".encode())


def step_s(project: IsolatedProject, day: date, rounds: int) -> float:
    """The median duration of a run's step that lands the day as if for the first time."""
    seconds: list[float] = []
    for _ in range(rounds):
        project.query("delete from affiliate.landing")
        with psycopg.connect(project.url, autocommit=True) as connection:
            connection.execute(f"delete from {LANDED} where partition_date = %s and account = ''".encode(), (day,))
            connection.execute(f"vacuum {LANDED}".encode())
        project.materialize(REBATES, [day])
        seconds.append(project.step_s())
    return statistics.median(seconds)


def explained(project: IsolatedProject, statement: str) -> tuple[float, int]:
    """Run a statement and undo it; return its milliseconds, and how many pages of 8 KB it read."""
    with psycopg.connect(project.url) as connection:
        [(plan,)] = connection.execute(f"explain (analyze, buffers, format json) {statement}".encode()).fetchall()
        connection.rollback()
    root = plan[0]["Plan"]
    return plan[0]["Execution Time"], root["Shared Hit Blocks"] + root["Shared Read Blocks"]


def large(project: IsolatedProject, quick: bool, rounds: int) -> list[Table]:
    """Land a day in an empty, a large and a partitioned table; read a day that several accounts have."""
    rows, others = (QUICK_ROWS_PER_DAY, 3) if quick else (ROWS_PER_DAY, OTHER_DAYS)
    [day] = days_back(1)
    delete = f"delete from {LANDED} where partition_date = '{day}' and account = ''"
    landing_s: dict[str, float] = {}
    delete_costs: dict[str, tuple[float, int]] = {}

    def measure(other_rows: str) -> None:
        landing_s[other_rows] = step_s(project, day, rounds)
        delete_costs[other_rows] = explained(project, delete)

    project.clear()
    measure("0")
    fill(project, rows, others, accounts=1)
    measure(f"{rows * others:,}")
    partition(project, others)
    measure(f"{rows * others:,}, by month")

    table = Table(
        f"Landing a day of {rows:,} rows in a table with rows of {others} other days, median of {rounds}",
        ["other rows", *landing_s],
        [
            ["step, s", *(f"{seconds:.2f}" for seconds in landing_s.values())],
            ["relative to an empty table", *(f"{seconds / landing_s['0']:.2f}" for seconds in landing_s.values())],
            ["delete of the day, ms", *(f"{ms:.0f}" for ms, _ in delete_costs.values())],
            ["pages read by the delete", *(f"{pages:,}" for _, pages in delete_costs.values())],
        ],
        [
            "*by month*: the table is partitioned. Only for such a table, or one with triggers or other column types, "
            "does landing read new rows back and compare them. The delete finds its rows cached."
        ],
    )
    return [table, accounts(project, day, rows)]


def accounts(project: IsolatedProject, day: date, rows: int) -> Table:
    """Read one account's rows of a day that several accounts have, with and without an index by account."""
    with psycopg.connect(project.url, autocommit=True) as connection:
        connection.execute(f"truncate {LANDED}".encode())
    project.query("delete from affiliate.landing")
    project.materialize(REBATES, [day])
    fill(project, rows, days=5, accounts=ACCOUNTS)

    statement = (
        f"select sum(income) from {LANDED} where partition_date = '{day - timedelta(days=2)}' and account = 'a3'"
    )
    lines = [["(partition_date)", *size_and_cost(project, INDEX, statement)]]
    previous_index = INDEX
    for index, definition in (
        ("by_account", "(partition_date, account)"),
        ("by_brin", "using brin (partition_date, account) with (pages_per_range = 16)"),
    ):
        project.query(f"drop index binance.{previous_index}".encode())
        project.query(f"create index {index} on {LANDED} {definition}".encode())
        project.query(f"analyze {LANDED}".encode())
        lines.append([definition, *size_and_cost(project, index, statement)])
        previous_index = index
    return Table(
        f"One account's {rows // ACCOUNTS:,} rows of a day that {ACCOUNTS} accounts have",
        ["index", "bytes per row", "pages read", "ms"],
        lines,
    )


def size_and_cost(project: IsolatedProject, index: str, statement: str) -> tuple[str, str, str]:
    """The bytes of the index per row, and the pages and ms of the statement, as text."""
    size = f"select sum(pg_relation_size(relid)) / (select count(*) from {LANDED}) from pg_partition_tree(%s)"
    bytes_per_row = project.query(size.encode(), f"binance.{index}")
    ms, pages = min(explained(project, statement) for _ in range(3))
    return f"{bytes_per_row:.1f}", f"{pages:,}", f"{ms:.1f}"


def run(quick: bool, rounds: int) -> list[Table]:
    """Measure what growth costs."""
    numbers = QUICK_DAYS if quick else DAYS
    rows = QUICK_ROWS_PER_DAY if quick else ROWS_PER_DAY
    tables: list[Table] = []

    with (
        source(serve_rebates, [(0, days_back(number)) for number in numbers]) as exchange,
        isolated_project(**exchange.environment) as project,
    ):
        tables.append(runs(project, numbers))
        tables.append(idle(project, QUICK_IDLE_S if quick else IDLE_S))

    with (
        source(no_preparation, users=USERS, rate_scale=RATE_SCALE) as exchange,
        isolated_project(**exchange.environment, AFFILIATE_RATE_SCALE=str(RATE_SCALE)) as project,
    ):
        tables.append(sizes(project))

    with source(serve_rebates, [(rows, days_back(1))]) as exchange, isolated_project(**exchange.environment) as project:
        project.materialize(REBATES, days_back(1))
        tables.extend(large(project, quick, rounds))
    return tables
