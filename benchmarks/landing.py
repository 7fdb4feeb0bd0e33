"""(a) Speed and memory of landing rebates through the real asset.

They are compared with those of raw COPY of the same rows (the upper bound), a naive client and dlt. Each run starts
with an empty table. Afterwards the table must have exactly the source's rows, to the last digit.
"""

import importlib
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Final, LiteralString

import psycopg
from psycopg import sql

from benchmarks.harness import MB, REBATES, IsolatedProject, Measured, Table, days_back, isolated_project
from benchmarks.source import FIELDS, HASH_HEX_DIGITS, NULL, Content, Source, serve_rebates, source

# The contenders' tables.
LANDED: Final = "binance.rebate_recent_record"
COPIED: Final = "binance.copied"
NAIVE: Final = "naive"
DLT: Final = "dlt_bench.rebates"
PATH = "/sapi/v1/apiReferral/rebate/recentRecord"
# The contenders, by their headings. The first two land the asset: by `dagster asset materialize`, by `dg.materialize`.
COMMAND, IN_PROCESS, RAW_COPY, NAIVE_CLIENT, DLT_DEFAULT = "the asset", "in process", "raw COPY", "naive client", "dlt"
AMOUNTS, TIMES = ("income", "commission", "convertPrice"), ("time", "distributeTime")
PAGE = 500
DAYS = 8
ROWS, MANY_ROWS, QUICK_ROWS = 200_000, 1_000_000, 8_000
# The benchmarks measure landing, not the rate limit, which permits 3 million rows a minute.
RATE_SCALE = 1000


@dataclass(frozen=True)
class Result:
    """One run of a contender: seconds of landing and of the whole process, requests, and peak memory (bytes)."""

    landing_s: float
    process_s: float
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
    """Copy the landed rows, from CSV in memory, into a table with the same definition; return the seconds."""
    names = [*map(_snake, FIELDS), "extra", "partition_date"]
    columns = sql.SQL(", ").join(sql.Identifier(name) for name in names)
    copy_out = sql.SQL("copy (select {} from {}) to stdout (format csv)").format(columns, sql.SQL(LANDED))
    copy_in = sql.SQL("copy {} ({}) from stdin (format csv)").format(sql.SQL(COPIED), columns)
    with psycopg.connect(url) as connection:
        # The default of the column run_id, which COPY omits, reads this setting.
        connection.execute("select set_config('affiliate.run_id', 'raw', false)")
        with connection.cursor().copy(copy_out) as reader:
            text = b"".join(reader)
        connection.execute(f"create table {COPIED} (like {LANDED} including all)")
        connection.commit()

        began = time.perf_counter()
        with connection.cursor().copy(copy_in) as writer:
            writer.write(text)
        connection.commit()
        return time.perf_counter() - began


def pages(environment: dict[str, str], days: Sequence[date]) -> Iterator[list[dict[str, Any]]]:
    """Yield the pages of each day, fetched in a simple loop."""
    import hashlib
    import hmac
    from urllib.parse import urlencode

    import httpx

    base_url = environment["BINANCE_BASE_URL"]
    key = environment["BINANCE_PARTNER_API_KEY"]
    secret = environment["BINANCE_PARTNER_API_SECRET"]

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
            while rows := page(start, end):
                if len(rows) < PAGE:
                    yield rows
                    break
                # The next page requests the last millisecond again, which may have more rows.
                start = rows[-1]["time"]
                yield [row for row in rows if row["time"] < start]


def naive_client(url: str, environment: dict[str, str], days: Sequence[date]) -> float:
    """Append each page to the table with `to_sql`; return the seconds."""
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
    """Load each page with dlt's defaults, typed columns and a merge by day; return the seconds."""
    os.environ |= {"RUNTIME__DLTHUB_TELEMETRY": "false", "RUNTIME__LOG_LEVEL": "ERROR", "DLT_DATA_DIR": folder}
    # dlt is in the extra `bench` only, and cannot be imported elsewhere.
    dlt = importlib.import_module("dlt")
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


@dataclass(frozen=True)
class Contenders:
    """Measured runs of every contender on one set of rows.

    `_single_row_step_s`: for each contender that runs the asset, the duration of its step for a day with a single row.
    """

    _source: Source
    _project: IsolatedProject
    _days: Sequence[date]
    _expected: Content
    _single_row_step_s: dict[str, float]

    def asset(self) -> Result:
        """Land with `dagster asset materialize`."""
        return self._asset(COMMAND)

    def in_process(self) -> Result:
        """Land with `dg.materialize`."""
        return self._asset(IN_PROCESS)

    def copy(self) -> Result:
        """Copy the rows that the asset has landed."""
        self._project.query(f"drop table if exists {COPIED}")
        return self._result(COPIED, self._project.run(raw_copy, self._project.url))

    def naive(self) -> Result:
        """Land with the naive client."""
        self._project.query(f"drop table if exists {NAIVE}")
        arguments = (self._project.url, self._source.environment, self._days)
        return self._result(NAIVE, self._project.run(naive_client, *arguments))

    def dlt(self) -> Result:
        """Land with dlt's defaults, from an empty schema and without earlier state."""
        self._project.query("drop schema if exists dlt_bench, dlt_bench_staging cascade")
        folder = self._project.home / f"dlt_{time.monotonic_ns()}"
        arguments = (self._project.url, self._source.environment, self._days, str(folder))
        return self._result(DLT, self._project.run(dlt_default, *arguments))

    def _asset(self, contender: str) -> Result:
        measured, step_s = _land(self._project, contender, self._days)
        landing_s = step_s - self._single_row_step_s[contender]
        return self._result(LANDED, Measured(landing_s, measured.seconds, measured.memory))

    def _result(self, table: LiteralString, measured: Measured) -> Result:
        """The run's result; fails unless the table has the expected rows. `measured.value`: the seconds of landing."""
        content = self._content(table)
        expected = self._expected
        if table == DLT:
            # dlt gives all decimals one scale, so its hash differs.
            expected = expected._replace(hashes=content.hashes)
        assert content == expected, f"{table}: {content}, not {expected}"
        return Result(
            landing_s=measured.value,
            process_s=measured.seconds,
            requests=self._source.requests(),
            memory=measured.memory["process"],
            database_memory=measured.memory["database"],
        )

    def _content(self, table: LiteralString) -> Content:
        """The table's content, computed by PostgreSQL."""
        texts = [_field_as_text(name, table) for name in FIELDS]
        statement = sql.SQL(
            "with hashed as ("
            "select income::numeric as income, left(md5(concat_ws('|', {texts})), {digits}) as hash "
            "from {table}) "
            "select count(*), sum(income), sum(('x' || hash)::bit({bits})::bigint) "
            "from hashed"
        ).format(
            texts=sql.SQL(", ").join(texts), digits=HASH_HEX_DIGITS, bits=4 * HASH_HEX_DIGITS, table=sql.SQL(table)
        )
        with psycopg.connect(self._project.url) as connection:
            row = connection.execute(statement).fetchone()
        assert row
        rows, income, hashes = row
        return Content(rows, income, int(hashes or 0))


def _land(project: IsolatedProject, contender: str, days: Sequence[date]) -> tuple[Measured, float]:
    """Land the asset's days into empty tables; return the measured process and the seconds of its step."""
    project.clear()
    measured = project.materialize(REBATES, days) if contender == COMMAND else project.run(asset_in_process, days)
    return measured, project.step_s()


def _field_as_text(name: str, table: LiteralString) -> sql.Composed:
    """The SQL expression of the field's text, as in the summaries of the source."""
    column: sql.Composable = sql.Identifier(name if table == NAIVE else _snake(name))
    if name in TIMES and table != NAIVE:
        column = sql.SQL("(extract(epoch from {}) * 1000)::bigint").format(column)
    return sql.SQL("coalesce({}::text, {})").format(column, NULL)


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)


def run(quick: bool, rounds: int) -> list[Table]:
    """Compare the speed and memory of landing with raw COPY, the naive client and dlt."""
    tables: list[Table] = []
    for rows in (QUICK_ROWS,) if quick else (ROWS, MANY_ROWS):
        tables += _tables(rows, rounds)
    tables[-1] = replace(tables[-1], notes=NOTES)
    return tables


def _tables(rows: int, rounds: int) -> list[Table]:
    """Measure the contenders on this number of rows in several days, and on as many in one day."""
    full_day, single_row_day, *several_days = days_back(DAYS + 2)
    # `serve_rebates` adds one row on the day before each set, as proof that the source retains the set's days. The day
    # before `several_days` is `single_row_day`, so it has one row.
    sets = [(rows, several_days), (rows, [full_day])]
    asset_contenders = (COMMAND, IN_PROCESS) if rows <= ROWS else (COMMAND,)
    tables: list[Table] = []
    with (
        source(serve_rebates, sets) as exchange,
        isolated_project(**exchange.environment, AFFILIATE_RATE_SCALE=str(RATE_SCALE)) as project,
    ):
        single_row_step_s: dict[str, float] = {}
        for contender in asset_contenders:
            steps_s = [_land(project, contender, [single_row_day])[1] for _ in range(rounds)]
            single_row_step_s[contender] = statistics.median(steps_s)
        # Discard the requests of these runs.
        exchange.requests()

        for (_, days), content in zip(sets, exchange.prepared, strict=True):
            contenders = Contenders(exchange, project, days, content, single_row_step_s)
            results = _results(contenders, rows, len(days), rounds)
            tables.append(_table(rows, len(days), rounds, results))
    return tables


def _results(contenders: Contenders, rows: int, days: int, rounds: int) -> dict[str, list[Result]]:
    """Measure each contender once per round; for a single day, only the asset's command and raw COPY."""
    # The slow contenders take minutes for many rows.
    slow_rounds = rounds if rows <= ROWS else 1
    measurements: dict[str, tuple[Callable[[], Result], int]] = {
        COMMAND: (contenders.asset, rounds),
        RAW_COPY: (contenders.copy, rounds),
    }
    if days > 1 and rows <= ROWS:
        measurements[IN_PROCESS] = contenders.in_process, rounds
    if days > 1:
        measurements[NAIVE_CLIENT] = contenders.naive, slow_rounds
        measurements[DLT_DEFAULT] = contenders.dlt, slow_rounds

    results: dict[str, list[Result]] = {name: [] for name in measurements}
    for number in range(rounds):
        for name, (measure, max_rounds) in measurements.items():
            if number < max_rounds:
                results[name].append(measure())
    return results


NOTES = (
    "*landing*: for the asset, its step from start to end (requests, validation by pandera, COPY, the ledger, "
    "Dagster's events and checks of each day) minus the step of a day with a single row. For dlt its `run`, for the naive "
    "client its loop, for raw COPY the COPY and its commit. Imports are not included.",
    "*start and end*: the rest of the process: imports, connections, and Dagster's startup and shutdown.",
    "*the asset* is `dagster asset materialize`, *in process* is `dg.materialize`. *dlt* has typed columns and "
    "merges by day.",
    "*peak memory* is that of the contender's process and its descendants; PostgreSQL's is listed separately.",
    "After every run, the table had exactly the source's rows: the row count, the exact sum of `income` and an "
    "order-independent hash of the rows were equal. PostgreSQL computed them for the table, Python for the source. "
    "For dlt, which gives all decimals one scale, the hash is not compared.",
    f"For more than {ROWS:,} rebates, the naive client and dlt were measured once.",
    f"The client's rate limit was {RATE_SCALE} times the real one.",
)


def _table(rows: int, days: int, rounds: int, results: dict[str, list[Result]]) -> Table:
    def medians(value: Callable[[Result], float]) -> dict[str, float]:
        return {name: statistics.median(map(value, measured)) for name, measured in results.items()}

    def line(title: str, values: Mapping[str, float], form: str) -> list[str]:
        return [title, *(format(value, form) for value in values.values())]

    def relative_to(other: str) -> dict[str, float]:
        return {name: speed / speeds[other] for name, speed in speeds.items()}

    landing_s = medians(lambda result: result.landing_s)
    speeds = {name: rows / seconds for name, seconds in landing_s.items()}
    lines = [
        line("landing, s", landing_s, ".2f"),
        line("rows/s", speeds, ",.0f"),
        line("speed relative to raw COPY", relative_to(RAW_COPY), ".3f"),
    ]
    for slower in (NAIVE_CLIENT, DLT_DEFAULT):
        if slower in results:
            lines.append(line(f"speed relative to {slower}", relative_to(slower), ".2f"))
    lines += [
        line("start and end, s", medians(lambda result: result.process_s - result.landing_s), ".1f"),
        line("requests", medians(lambda result: result.requests), ",.0f"),
        line("peak memory, MB", medians(lambda result: result.memory / MB), ",.0f"),
        line("PostgreSQL's, MB", medians(lambda result: result.database_memory / MB), ",.0f"),
    ]
    period = "one day" if days == 1 else f"{days} days"
    return Table(f"{rows:,} rebates of {period}, median of {rounds}", ["", *results], lines)
