"""(a) Speed and memory of landing rebates through the real asset.

Compared with raw COPY of the same rows (the upper bound), a naive client and dlt. Each run starts with an empty
table, which must then have exactly the source's rows, to the last digit.
"""

import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import psycopg

from benchmarks.harness import MB, REBATES, Measured, Place, Table, days_back, place
from benchmarks.source import FIELDS, HASH_HEX_DIGITS, NULL, Content, Source, rebates, source

OURS, COPIED, NAIVE, DLT = "binance.rebate_recent_record", "binance.copied", "naive", "dlt_bench.rebates"
PATH = "/sapi/v1/apiReferral/rebate/recentRecord"
COMMAND, IN_PROCESS, RAW_COPY, NAIVE_CLIENT, DLT_DEFAULT = "the asset", "in process", "raw COPY", "naive client", "dlt"
AMOUNTS, TIMES = ("income", "commission", "convertPrice"), ("time", "distributeTime")
PAGE = 500
DAYS = 8
ROWS, MANY_ROWS, QUICK_ROWS = 200_000, 1_000_000, 8_000
# The rate limit, which permits 3 million rows a minute, must not limit the speed of landing.
RATE_SCALE = 1000


@dataclass(frozen=True)
class Result:
    """One run of a contender: seconds of landing and of the whole process, requests, and peak memory (bytes)."""

    seconds: float
    whole_s: float
    requests: int
    memory: int
    database_memory: int


def asset_in_process(days: Sequence[date]) -> None:
    """Land the days with `dg.materialize`."""
    warnings.simplefilter("ignore")
    import dagster as dg

    from affiliate_pipeline.definitions import defs

    with dg.DagsterInstance.get() as instance:
        dg.materialize(
            [defs.get_assets_def(dg.AssetKey(REBATES.split("/")))],
            instance=instance,
            resources=defs.resources,
            tags={
                "dagster/asset_partition_range_start": f"{days[0]}",
                "dagster/asset_partition_range_end": f"{days[-1]}",
            },
            run_config={"loggers": {"console": {"config": {"log_level": "ERROR"}}}},
        )


def raw_copy(url: str) -> float:
    """Copy the landed rows, from CSV in memory, into a table with the same definition; returns the seconds."""
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


def pages(environment: dict[str, str], days: Sequence[date]) -> Iterator[list[dict[str, Any]]]:
    """Yield the pages of each day, fetched by a simple loop."""
    import hashlib
    import hmac
    from urllib.parse import urlencode

    import httpx

    base_url, key, secret = (
        environment[name] for name in ("BINANCE_BASE_URL", "BINANCE_PARTNER_API_KEY", "BINANCE_PARTNER_API_SECRET")
    )

    def page(start: int, end: int) -> list[dict[str, Any]]:
        params = {"startTime": start, "endTime": end, "limit": PAGE, "timestamp": time.time_ns() // 1_000_000}
        query = urlencode(params)
        signature = hmac.new(secret.encode(), query.encode(), hashlib.sha256).hexdigest()
        response = client.get(f"{base_url}{PATH}?{query}&signature={signature}", headers={"X-MBX-APIKEY": key})
        return response.raise_for_status().json()

    with httpx.Client() as client:
        for day in days:
            start = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1000
            end = start + 86_400_000 - 1
            rows = page(start, end)
            while rows:
                full = len(rows) == PAGE
                if full:
                    # Request the last millisecond again: it may continue on the next page.
                    start = rows[-1]["time"]
                    rows = [row for row in rows if row["time"] < start]
                yield rows
                rows = page(start, end) if full else []


def naive_client(url: str, environment: dict[str, str], days: Sequence[date]) -> float:
    """Append each page to the table by `to_sql`; returns the seconds."""
    import httpx  # noqa: F401 (its import is not measured)
    import pandas as pd
    import sqlalchemy

    engine = sqlalchemy.create_engine(url)
    began = time.perf_counter()
    with engine.begin() as connection:
        for rows in pages(environment, days):
            pd.DataFrame(rows).to_sql(NAIVE, connection, if_exists="append", index=False)
    return time.perf_counter() - began


def dlt_default(url: str, environment: dict[str, str], days: Sequence[date], folder: str) -> float:
    """Load the same pages with dlt's defaults, columns typed and merged by day; returns the seconds."""
    os.environ |= {"RUNTIME__DLTHUB_TELEMETRY": "false", "RUNTIME__LOG_LEVEL": "ERROR", "DLT_DATA_DIR": folder}
    import dlt
    import httpx  # noqa: F401 (its import is not measured)

    types = {
        "partition_date": {"data_type": "date"},
        **{name: {"data_type": "bigint"} for name in ("orderId", "tradeId")},
        **{name: {"data_type": "timestamp"} for name in TIMES},
        **{name: {"data_type": "decimal", "precision": 38, "scale": 18} for name in AMOUNTS},
    }

    def typed(row: dict[str, Any]) -> dict[str, Any]:
        for name in AMOUNTS:
            if row.get(name) is not None:
                row[name] = Decimal(row[name])
        for name in TIMES:
            if row.get(name) is not None:
                row[name] = datetime.fromtimestamp(row[name] / 1000, UTC)
        row["partition_date"] = row["time"].date()
        return row

    @dlt.resource(name="rebates", write_disposition="merge", merge_key="partition_date", columns=types)
    def resource() -> Iterator[list[dict[str, Any]]]:
        for rows in pages(environment, days):
            yield [typed(row) for row in rows]

    pipeline = dlt.pipeline("bench", destination=dlt.destinations.postgres(url), dataset_name="dlt_bench")
    began = time.perf_counter()
    pipeline.run(resource())
    return time.perf_counter() - began


class Bench:
    """Measured runs of every contender on one set of rows."""

    def __init__(self, exchange: Source, at: Place, days: Sequence[date], content: Content, quiet_s: dict[str, float]):
        self._source, self._at, self._days, self._expected, self._quiet_s = exchange, at, days, content, quiet_s

    def asset(self) -> Result:
        """Land by Dagster's command line, which starts a process for the step."""
        return self._asset(COMMAND)

    def in_process(self) -> Result:
        """Land by `dg.materialize`."""
        return self._asset(IN_PROCESS)

    def copy(self) -> Result:
        """Copy the rows that the asset has landed."""
        self._at.query(f"drop table if exists {COPIED}")
        return self._result(COPIED, self._at.spawned(raw_copy, self._at.url))

    def naive(self) -> Result:
        self._at.query(f"drop table if exists {NAIVE}")
        return self._result(NAIVE, self._at.spawned(naive_client, self._at.url, self._source.environment, self._days))

    def dlt(self) -> Result:
        self._at.query("drop schema if exists dlt_bench, dlt_bench_staging cascade")
        folder = self._at.home / f"dlt_{time.monotonic_ns()}"
        arguments = (self._at.url, self._source.environment, self._days, str(folder))
        return self._result(DLT, self._at.spawned(dlt_default, *arguments))

    def _asset(self, way: str) -> Result:
        measured, step_s = _step(self._at, way, self._days)
        return self._result(OURS, Measured(step_s - self._quiet_s[way], measured.seconds, measured.memory))

    def _result(self, table: str, measured: Measured) -> Result:
        found = self._content(table)
        expected = self._expected
        # dlt's decimals have one scale for all rows, so that the hashes differ.
        assert found == expected or (table == DLT and found[:2] == expected[:2]), f"{table}: {found}, not {expected}"
        requests = self._source.requests()
        return Result(
            measured.value, measured.seconds, requests, measured.memory["contender"], measured.memory["database"]
        )

    def _content(self, table: str) -> Content:
        """The table's content, computed by PostgreSQL."""
        texts = []
        for name in FIELDS:
            column = f'"{name}"' if table == NAIVE else _snake(name)
            if name.lower().endswith("time") and table != NAIVE:
                column = f"(extract(epoch from {column}) * 1000)::bigint"
            texts.append(f"coalesce({column}::text, '{NULL}')")
        digest = f"('x' || left(md5(concat_ws('|', {', '.join(texts)})), {HASH_HEX_DIGITS}))"
        bits = 4 * HASH_HEX_DIGITS
        with psycopg.connect(self._at.url) as connection:
            row = connection.execute(
                f"select count(*), sum(income::numeric), sum({digest}::bit({bits})::bigint) from {table}"
            ).fetchone()
        assert row
        return Content(row[0], row[1], int(row[2] or 0))


def _step(at: Place, way: str, days: Sequence[date]) -> tuple[Measured, float]:
    """Land the asset's days into empty tables; returns the process and the seconds of its step."""
    at.clear()
    measured = at.materialized(REBATES, days) if way == COMMAND else at.spawned(asset_in_process, days)
    return measured, at.step_s()


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)


def run(quick: bool, rounds: int) -> list[Table]:
    tables = []
    for rows in (QUICK_ROWS,) if quick else (ROWS, MANY_ROWS):
        days = days_back(DAYS + 2)
        sets = [(rows, days[2:]), (rows, days[:1])]
        with (
            source(rebates, sets) as exchange,
            place(**exchange.environment, AFFILIATE_RATE_SCALE=str(RATE_SCALE)) as at,
        ):
            ways = (COMMAND, IN_PROCESS) if rows <= ROWS else (COMMAND,)
            quiet_s = {way: statistics.median(_step(at, way, days[1:2])[1] for _ in range(rounds)) for way in ways}
            exchange.requests()
            for (_, landed_days), content in zip(sets, exchange.prepared, strict=True):
                bench = Bench(exchange, at, landed_days, content, quiet_s)
                contenders: dict[str, tuple[Callable[[], Result], int]] = {
                    COMMAND: (bench.asset, rounds),
                    RAW_COPY: (bench.copy, rounds),
                }
                if len(landed_days) > 1:
                    # These take minutes for many rows.
                    slow_rounds = rounds if rows <= ROWS else 1
                    if IN_PROCESS in ways:
                        contenders[IN_PROCESS] = bench.in_process, rounds
                    contenders |= {NAIVE_CLIENT: (bench.naive, slow_rounds), DLT_DEFAULT: (bench.dlt, slow_rounds)}
                results: dict[str, list[Result]] = {name: [] for name in contenders}
                for number in range(rounds):
                    for name, (contender, max_rounds) in contenders.items():
                        if number < max_rounds:
                            results[name].append(contender())
                tables.append(_table(rows, len(landed_days), rounds, results))
    tables[-1] = Table(tables[-1].title, tables[-1].header, tables[-1].lines, NOTES)
    return tables


NOTES = (
    "*landing*: for the asset, its step from start to end (requests, validation by pandera, COPY, the ledger, "
    "Dagster's events and checks of each day) minus the step of a day without rows. For dlt its `run`, for the naive "
    "client its loop, for raw COPY the COPY and its commit. Imports are not included.",
    "*start and end*: the rest of the process: imports, connections, and Dagster's startup and shutdown, including "
    "the process that `dagster asset materialize` starts for a step.",
    "*the asset* is `dagster asset materialize`, *in process* is `dg.materialize`. *dlt* has typed columns and "
    "merges by day.",
    "*peak memory* is that of the contender's process and its descendants; PostgreSQL's is listed separately.",
    "After every run, the table had exactly the source's rows: the same number, exact sum and hash of the multiset "
    "of rows as texts, computed by PostgreSQL for the table and by Python for the source. For dlt, which gives all "
    "decimals one scale, the hash is not compared.",
    f"The client's rate limit was {RATE_SCALE} times the real one.",
)


def _table(rows: int, days: int, rounds: int, results: dict[str, list[Result]]) -> Table:
    def middle(name: str, value: Callable[[Result], float]) -> float:
        return statistics.median(map(value, results[name]))

    def speed(name: str) -> float:
        return rows / middle(name, lambda result: result.seconds)

    def line(title: str, text: Callable[[str], str]) -> list[str]:
        return [title, *map(text, results)]

    lines = [
        line("landing, s", lambda name: f"{middle(name, lambda result: result.seconds):.2f}"),
        line("rows/s", lambda name: f"{speed(name):,.0f}"),
        line("of raw COPY", lambda name: f"{speed(name) / speed(RAW_COPY):.3f}"),
        *(
            line(f"times {slower}", lambda name, slower=slower: f"{speed(name) / speed(slower):.2f}")
            for slower in (NAIVE_CLIENT, DLT_DEFAULT)
            if slower in results
        ),
        line("start and end, s", lambda name: f"{middle(name, lambda result: result.whole_s - result.seconds):.1f}"),
        line("requests", lambda name: f"{middle(name, lambda result: result.requests):,.0f}"),
        line("peak memory, MB", lambda name: f"{middle(name, lambda result: result.memory) / MB:,.0f}"),
        line("PostgreSQL's, MB", lambda name: f"{middle(name, lambda result: result.database_memory) / MB:,.0f}"),
    ]
    over = "one day" if days == 1 else f"{days} days"
    return Table(f"{rows:,} rebates of {over}, median of {rounds}", ["", *results], lines)
