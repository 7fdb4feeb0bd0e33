"""The command `export`: the rows of some days, with every digit."""

import os
import shutil
import sys
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from affiliate_pipeline.app.cli import Stop, app, parse_days
from affiliate_pipeline.app.database import started
from affiliate_pipeline.commission.export import Extract, extract
from affiliate_pipeline.commission.figures import Incomplete, incomplete
from affiliate_pipeline.commission.rollup import TABLE, Commission
from affiliate_pipeline.domain.days import fold
from affiliate_pipeline.domain.environment import Environment
from affiliate_pipeline.environment import application
from affiliate_pipeline.exchanges.registry import EARNING, ENDPOINTS
from affiliate_pipeline.landing.store import Store

TABLES = {**{endpoint.key.replace("/", "."): endpoint for endpoint in ENDPOINTS}, TABLE: None}


class Format(StrEnum):
    csv = "csv"
    parquet = "parquet"


@app.command()
def export(
    table: Annotated[str, typer.Argument(help="As in the database: binance.rebate_recent_record")],
    days: Annotated[str, typer.Argument(help="One day or a range: 2026-10-01...2026-10-31")],
    kind: Annotated[Format, typer.Option("--format", help="csv or parquet.")] = Format.csv,
    output: Annotated[Path | None, typer.Option(help="The file to write; by default standard output.")] = None,
) -> None:
    """The rows of some days, with every digit: csv as the database writes them, or parquet with wide enough decimals.

    What of these days has not landed or may still change is said on standard error.
    """
    table = table.replace("/", ".")
    if table not in TABLES:
        raise Stop(f"there is no table {table}; there are {', '.join(TABLES)}")
    wanted = parse_days(days)
    if kind is Format.parquet and output is None and sys.stdout.isatty():
        raise Stop("parquet is nothing for a terminal: give a file with --output")
    environment = started(application())
    with Store(environment.database_url()) as store:
        with extract(store, table, wanted[0], wanted[-1]) as found:
            if found is None:
                raise Stop(f"nothing has ever landed in {table}")
            with _written(output) as file:
                _write(found, kind, file)
            # Inside, so that it is of the same moment as the rows.
            for line in _doubts(store, table, wanted, environment):
                print(f"affiliate-pipeline: {line}", file=sys.stderr)


def _write(found: Extract, kind: Format, file: BinaryIO) -> None:
    if kind is Format.csv:
        found.write_csv(file)
        return
    with tempfile.TemporaryFile() as whole:  # a pipe cannot tell where it is
        amounts = found.write_parquet(whole)
        whole.seek(0)
        shutil.copyfileobj(whole, file)
    if amounts:
        types = ", ".join(f"{name} {kind}" for name, kind in amounts.items())
        print(f"affiliate-pipeline: amounts are {types}", file=sys.stderr)


@contextmanager
def _written(output: Path | None) -> Generator[BinaryIO, None, None]:
    """Standard output, or a file that is there only once all of it has been written."""
    if output is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    unfinished = output.with_name(f"{output.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            yield file
        unfinished.replace(output)
    finally:
        unfinished.unlink(missing_ok=True)


def _doubts(store: Store, table: str, days: list[date], environment: Environment) -> Iterator[str]:
    """What whoever does the books has to know of these days."""
    endpoint = TABLES[table]
    if endpoint is None:
        commission = Commission(store, EARNING)
        configured = [each for each in EARNING if environment.is_any_set(each.credentials)]
        doubts = incomplete(commission, configured, days)
        if late := commission.stale(days[0], days[-1]):
            yield f"of {fold(late)} something has landed that has not been added up yet"
    else:
        landed = store.ledger(endpoint, days)
        missing = [day for day in days if day not in landed]
        doubts = [Incomplete(endpoint.key, missing, [day for day, row in landed.items() if not row.settled])]
    for each in doubts:
        if each.missing:
            yield f"{each.name}: {fold(each.missing)} not landed: nothing of it is in this export"
        if each.unsettled:
            yield f"{each.name}: {fold(each.unsettled)} landed, but may still change"
