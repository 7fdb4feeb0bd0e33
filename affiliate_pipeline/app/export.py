"""The command `export`: the rows of a table or view as CSV, an Excel workbook or Parquet."""

import shutil
import sys
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from affiliate_pipeline.app.cli import CommandError, app, parse_days
from affiliate_pipeline.app.reading import Days, daily_commission, open_store, require_days
from affiliate_pipeline.commission import columns, customers, prices, rollup
from affiliate_pipeline.commission.figures import Incomplete, incomplete
from affiliate_pipeline.commission.rollup import Commission
from affiliate_pipeline.domain.days import format_days
from affiliate_pipeline.domain.files import replacing
from affiliate_pipeline.domain.settings import Environment
from affiliate_pipeline.domain.wording import PROGRAM, command, count_of
from affiliate_pipeline.exchanges.endpoint import Endpoint, ReferenceTable
from affiliate_pipeline.exchanges.registry import Catalog, configured_catalog
from affiliate_pipeline.landing import day_writer, ledger, quarantine
from affiliate_pipeline.landing.store import Store

if TYPE_CHECKING:
    from affiliate_pipeline.commission.export import Extract


class Format(StrEnum):
    """The formats of `export`."""

    csv = "csv"
    xlsx = "xlsx"
    parquet = "parquet"


@dataclass(frozen=True)
class _Source:
    """A table or view to export, and the key of an asset that writes it, if there is one.

    Without a day column it is not divided into days. With `account` (empty: the default one), only that account's rows
    are exported.
    """

    table: str
    key: str = ""
    day_column: str = "partition_date"
    endpoints: Sequence[Endpoint] = ()
    account: str | None = None


def _view_source(view: str) -> _Source:
    first_column, _type, _description = columns.VIEWS[view][0]
    return _Source(view, day_column="day" if first_column == "day" else "")


# Sums, prices and the views for other tools.
_COMPUTED = (
    _Source(rollup.TABLE, rollup.COMMISSION),
    _Source(customers.TABLE, customers.CUSTOMERS),
    _Source(prices.TABLE, prices.PRICE, day_column="day"),
    *map(_view_source, columns.VIEWS),
)
# The tables of the ledger, rejected rows and superseded rows need not have any row for a day, so they have no gaps.
_BOOKKEEPING = tuple(
    _Source(table, day_column="partition") for table in (ledger.TABLE, quarantine.TABLE, day_writer.SUPERSEDED)
)


@app.command()
def export(
    name: Annotated[
        str,
        typer.Argument(
            metavar="TABLE",
            help="A table or view (binance.rebate_recent_record), or an asset (binance/acme/rebate_recent_record)",
        ),
    ],
    days: Days = "",
    kind: Annotated[Format, typer.Option("--format", help="csv, xlsx (Excel) or parquet.")] = Format.csv,
    output: Annotated[Path | None, typer.Option(help="The file to write; by default standard output.")] = None,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw", help="For programs: CSV without apostrophes before texts that a spreadsheet would execute."
        ),
    ] = False,
) -> None:
    """Export the rows of a range of days without rounding, as CSV, an Excel workbook or Parquet.

    A table has the rows of all accounts, which the column `account` names; an exchange's asset has those of one
    account. Days that have not landed or may still change are reported on standard error.
    """
    # Imported here: it imports pyarrow, which most commands do not need.
    from affiliate_pipeline.commission.export import Extract, exists, snapshot

    if kind is not Format.csv and output is None and sys.stdout.isatty():
        raise CommandError(f"a terminal cannot show {kind}: give a file with --output")
    if name == rollup.REPORT:
        raise CommandError(f"{name} is a page and not a table", f"Write it with `{command('report')}`")

    requested = parse_days(days) if days else None
    with open_store() as (environment, store), snapshot(store):
        landed_assets = ledger.assets(store.connection)
        source = _source(name, configured_catalog(environment.variables, landed_assets))
        require_days(name, requested, has_days=bool(source.day_column))
        if not exists(store, source.table):
            raise CommandError(f"nothing has ever landed in {source.table}")

        with _open_output(output) as file:
            extract = Extract(store, source.table, requested, source.account, source.day_column)
            for note in _write(extract, kind, file, raw=raw):
                _print_note(note)
        if requested:
            # Inside the block, to read the same snapshot as the rows.
            for line in _gap_lines(store, source, requested, environment, landed_assets):
                _print_note(line)


def _print_note(line: str) -> None:
    print(f"{PROGRAM}: {line}", file=sys.stderr)


def _source(name: str, catalog: Catalog) -> _Source:
    """The table or asset of this name; raises `CommandError`."""
    assets = {each.key: each for each in (*catalog.endpoints, *catalog.reference_tables)}
    if name in assets:
        return _source_of([assets[name]], account=assets[name].alias)
    of_table = [asset for asset in assets.values() if asset.table == name]
    if of_table:
        return _source_of(of_table, account=None)
    for source in (*_COMPUTED, *_BOOKKEEPING):
        if name and name in (source.key, source.table):
            return source

    if "/" in name:
        candidates = [*assets, *(source.key for source in _COMPUTED if source.key)]  # views have no asset key
    else:
        tables = [asset.table for asset in assets.values()]
        candidates = [*tables, *(source.table for source in (*_COMPUTED, *_BOOKKEEPING))]
    raise CommandError(f"there is no table {name}", f"There are {', '.join(dict.fromkeys(candidates))}")


def _source_of(assets: Sequence[Endpoint | ReferenceTable], account: str | None) -> _Source:
    """The table that these assets share; `account` as in `_Source`."""
    endpoints = [asset for asset in assets if isinstance(asset, Endpoint)]
    day_column = "partition_date" if endpoints else ""
    return _Source(assets[0].table, assets[0].key, day_column, endpoints, account)


def _write(extract: "Extract", kind: Format, file: BinaryIO, *, raw: bool) -> Iterator[str]:
    """Write the rows; yield notes about the file: the texts that were changed, the types of amounts."""
    if kind is Format.csv:
        escaped_by_column = extract.write_csv(file, raw=raw)
        if escaped_by_column:
            texts = count_of(sum(escaped_by_column.values()), "text")
            names = ", ".join(escaped_by_column)
            yield f"{texts} in {names} would be executed by a spreadsheet, so an apostrophe was added in front; --raw adds none"
        return

    with tempfile.TemporaryFile() as whole:  # both formats require a seekable file, which a pipe is not
        if kind is Format.xlsx:
            extract.write_workbook(whole)
        else:
            amount_types = extract.write_parquet(whole)
            if amount_types:
                types = ", ".join(f"{name} {column_type}" for name, column_type in amount_types.items())
                yield f"amounts are {types}"
        whole.seek(0)
        shutil.copyfileobj(whole, file)


@contextmanager
def _open_output(output: Path | None) -> Generator[BinaryIO, None, None]:
    """Standard output, or a file that appears only after all of it has been written."""
    if output is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with replacing(output) as file:
        yield file


def _gap_lines(
    store: Store, source: _Source, days: list[date], environment: Environment, landed_assets: Sequence[str]
) -> Iterator[str]:
    """One line per gap: days that are missing, not added up or may still change."""
    if source in _BOOKKEEPING:
        return
    if source.endpoints:
        used = [
            each for each in source.endpoints if environment.is_any_set(each.credentials) or each.key in landed_assets
        ]
        # If no account is in use, the days of all of them are reported as missing.
        gaps = [_gaps_of(endpoint, store, days) for endpoint in used or source.endpoints]
    else:
        commission, configured = daily_commission(store, environment)
        gaps = incomplete(commission, configured, days)
        yield from _computed_gap_lines(commission, days, has_sums=source.table != prices.TABLE)

    for gap in gaps:
        if gap.missing:
            yield f"{gap.name}: {format_days(gap.missing)} not landed, so not in this export"
        if gap.unsettled:
            yield f"{gap.name}: {format_days(gap.unsettled)} landed, but may still change"


def _gaps_of(endpoint: Endpoint, store: Store, days: list[date]) -> Incomplete:
    landed = store.ledger(endpoint, days)
    missing = [day for day in days if day not in landed]
    unsettled = [day for day, entry in landed.items() if not entry.settled]
    return Incomplete(endpoint.key, missing, unsettled)


def _computed_gap_lines(commission: Commission, days: list[date], *, has_sums: bool) -> Iterator[str]:
    """The lines about sums, if the source has any, and prices."""
    first, last = days[0], days[-1]
    if has_sums:
        stale = commission.stale(first, last)
        if stale:
            yield f"{format_days(stale)}: some landed rows or prices have not been added up yet"
    if commission.prices:
        unpriced = commission.prices.missing(first, last)
        if unpriced:
            yield f"{prices.PRICE}: {format_days(unpriced)}: some prices have not landed"
    elif not has_sums:
        yield f"{prices.PRICE}: AFFILIATE_PRICES is off, so prices of any day may be missing"
