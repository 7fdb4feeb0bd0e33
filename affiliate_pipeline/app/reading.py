"""Commands that read what has landed: `export`, `report`, `plan`, `psql` and `pg_dump`."""

import os
import shutil
import sys
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer
from rich.markup import escape

from affiliate_pipeline.app.cli import CommandError, app, console, parse_days
from affiliate_pipeline.app.embedded_server.programs import program
from affiliate_pipeline.app.embedded_server.server import start_database
from affiliate_pipeline.commission.figures import Incomplete, gather, incomplete
from affiliate_pipeline.commission.report import render
from affiliate_pipeline.commission.rollup import COMMISSION, REPORT, TABLE, Commission
from affiliate_pipeline.domain.days import DAY, format_days
from affiliate_pipeline.domain.files import replacing
from affiliate_pipeline.domain.settings import Environment, Mode
from affiliate_pipeline.domain.wording import PROGRAM, command, up_command
from affiliate_pipeline.environment import application, process_environment
from affiliate_pipeline.exchanges.endpoint import Endpoint, Records
from affiliate_pipeline.exchanges.registry import configured_catalog, first_earning_day
from affiliate_pipeline.landing import ledger
from affiliate_pipeline.landing.pipeline import connected, plan_of
from affiliate_pipeline.landing.store import Store
from affiliate_pipeline.postgres.connection import connect
from affiliate_pipeline.postgres.urls import libpq_environment

if TYPE_CHECKING:
    from affiliate_pipeline.commission.export import Extract

_Days = Annotated[
    str, typer.Argument(metavar="[DAYS]", help="One day or a range, 2026-10-01...2026-10-31; none for lbank/roster")
]


class Format(StrEnum):
    """The formats of `export`."""

    csv = "csv"
    parquet = "parquet"


@contextmanager
def _open_store() -> Generator[tuple[Environment, Store], None, None]:
    environment = start_database(application())
    with Store(environment.database_url()) as store:
        yield environment, store


@app.command()
def export(
    name: Annotated[
        str,
        typer.Argument(
            metavar="TABLE",
            help="A table, binance.rebate_recent_record, or an asset, binance/acme/rebate_recent_record",
        ),
    ],
    days: _Days = "",
    kind: Annotated[Format, typer.Option("--format", help="csv or parquet.")] = Format.csv,
    output: Annotated[Path | None, typer.Option(help="The file to write; by default standard output.")] = None,
) -> None:
    """Export the rows of a range of days without rounding, as CSV or Parquet.

    A table has the rows of all accounts, which the column `account` names; an asset has those of one account. Days that
    have not landed or may still change are reported on standard error.
    """
    # Imported here: it imports pyarrow, which no other command needs.
    from affiliate_pipeline.commission.export import Extract, exists, snapshot

    if kind is Format.parquet and output is None and sys.stdout.isatty():
        raise CommandError("a terminal cannot show parquet: give a file with --output")
    if name == REPORT:
        raise CommandError(f"{REPORT} is a page and not a table", f"Write it with `{command('report')}`")
    requested = parse_days(days) if days else None
    with _open_store() as (environment, store), snapshot(store):
        landed = ledger.assets(store.connection)
        catalog = configured_catalog(environment.variables, landed)
        known = (*catalog.endpoints, *catalog.reference_tables)
        found = [each for each in known if name in (each.key, each.table)]
        if not found and name not in (TABLE, COMMISSION):
            names = (
                [each.key for each in known] + [COMMISSION] if "/" in name else [each.table for each in known] + [TABLE]
            )
            raise CommandError(f"there is no table {name}", f"There are {', '.join(dict.fromkeys(names))}")
        endpoints = [each for each in found if isinstance(each, Endpoint)]
        _require_days(name, requested, has_days=bool(endpoints or not found))
        table = found[0].table if found else TABLE
        if not exists(store, table):
            raise CommandError(f"nothing has ever landed in {table}")
        account = found[0].alias if found and name == found[0].key else None
        with _written(output) as file:
            _write(Extract(store, table, requested, account), kind, file)
        if requested:
            used = [each for each in endpoints if environment.is_any_set(each.credentials) or each.key in landed]
            # Inside the block, to read the same snapshot as the rows.
            for line in _gap_lines(store, used or endpoints, requested, environment):
                print(f"{PROGRAM}: {line}", file=sys.stderr)


def _require_days(name: str, requested: Sequence[date] | None, *, has_days: bool) -> None:
    """Raise `CommandError` if days were given for a table without days, or none for a table with days."""
    if requested and not has_days:
        raise CommandError(f"{name} is not divided into days", "Leave the days out")
    if has_days and not requested:
        raise CommandError(
            f"no days of {name} were given", "Add a day (2026-10-01) or a range (2026-10-01...2026-10-31)"
        )


def _write(found: "Extract", kind: Format, file: BinaryIO) -> None:
    if kind is Format.csv:
        found.write_csv(file)
        return
    with tempfile.TemporaryFile() as whole:  # Parquet requires a position, which a pipe does not have
        amounts = found.write_parquet(whole)
        whole.seek(0)
        shutil.copyfileobj(whole, file)
    if amounts:
        types = ", ".join(f"{name} {kind}" for name, kind in amounts.items())
        print(f"{PROGRAM}: amounts are {types}", file=sys.stderr)


@contextmanager
def _written(output: Path | None) -> Generator[BinaryIO, None, None]:
    """Standard output, or a file that appears only after all of it has been written."""
    if output is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with replacing(output) as file:
        yield file


def _gap_lines(
    store: Store, endpoints: Sequence[Endpoint], days: list[date], environment: Environment
) -> Iterator[str]:
    """One line per gap: days that are missing, not added up or may still change."""
    if not endpoints:
        commission, configured = _commission(store, environment)
        gaps = incomplete(commission, configured, days)
        if stale := commission.stale(days[0], days[-1]):
            yield f"{format_days(stale)}: some landed rows have not been added up yet"
    else:
        gaps = [_gaps_of(endpoint, store, days) for endpoint in endpoints]
    for each in gaps:
        if each.missing:
            yield f"{each.name}: {format_days(each.missing)} not landed, so not in this export"
        if each.unsettled:
            yield f"{each.name}: {format_days(each.unsettled)} landed, but may still change"


def _gaps_of(endpoint: Endpoint, store: Store, days: list[date]) -> Incomplete:
    landed = store.ledger(endpoint, days)
    missing = [day for day in days if day not in landed]
    return Incomplete(endpoint.key, missing, [day for day, row in landed.items() if not row.settled])


def _commission(store: Store, environment: Environment) -> tuple[Commission, list[Records]]:
    """The daily sums, and the configured endpoints that they are expected from."""
    earning = configured_catalog(environment.variables).earning
    return Commission(store, earning), [each for each in earning if environment.is_any_set(each.credentials)]


@app.command()
def report(
    day: Annotated[str, typer.Argument(help="The day; by default the last one that was added up.")] = "",
    show: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Write the report of a day and the 30 days up to it into `reports/`, with the current figures."""
    with _open_store() as (environment, store):
        commission, configured = _commission(store, environment)
        try:
            reported = date.fromisoformat(day) if day else commission.newest()
        except ValueError:
            raise CommandError(f"{day} is not a day (2026-10-01)") from None
        if reported is None:
            raise CommandError("nothing has been added up yet", f"Land some days first: `{up_command()}`")
        today = datetime.now(UTC).date()
        if reported >= today:
            raise CommandError(f"{reported} has not ended", f"The last day that can be reported is {today - DAY}")
        start = first_earning_day(configured_catalog(environment.variables), environment)
        if reported < start:
            raise CommandError(
                f"{reported} is before the first day, {start}",
                "Choose a later day, or set an earlier first day (docs/configuration.md)",
            )
        figures = gather(commission, configured, reported, start, is_sandbox=environment.mode is Mode.SANDBOX)
    path = render.write(figures, environment.reports)
    console.print(f"{path}")
    if figures.stale:
        # The sensor is at most a minute or two behind while Dagster runs.
        console.print(
            f"{format_days(figures.stale)}: some landed rows have not been added up yet. While `affiliate-pipeline up` runs, it "
            "adds up ended days within two minutes."
        )
    exit_code = typer.launch(path.as_uri()) if show else 0
    if exit_code:
        console.print("No browser could be opened: open the file yourself.")


@app.command()
def plan(
    asset: Annotated[str, typer.Argument(help="As in Dagster: lbank/trade_user, or lbank/acme/trade_user")],
    days: _Days = "",
) -> None:
    """Print the requests and the time that fetching some days takes, or what an assignment would change. Lands nothing.

    If the cost depends on the users under the affiliate, LBank's roster is refreshed first if it is older than the range.
    """
    catalog = configured_catalog(application().variables)
    known = {each.key: each for each in (*catalog.endpoints, *catalog.reference_tables)}
    derived, found = (COMMISSION, REPORT), known.get(asset)
    if not found and asset not in derived:
        raise CommandError(f"there is no asset {asset}", f"There are {', '.join((*known, *derived))}")
    requested = parse_days(days) if days else None
    if not found:
        console.print(f"{asset}: no requests, since it is computed from days that have landed")
        return
    endpoint = found if isinstance(found, Endpoint) else found.endpoint
    _require_days(asset, requested, has_days=found is endpoint)
    with _open_store() as (environment, store), connected(endpoint, store, environment.variables) as session:
        if isinstance(found, Endpoint):
            costs = plan_of(found, requested or (), session=session, store=store)
        else:
            costs = found.plan(session)
        about = f"{asset} {format_days(requested)}" if requested else asset
        console.print(escape(f"{about}: {costs}"))


_PASS_ARGUMENTS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command(context_settings=_PASS_ARGUMENTS_THROUGH)
def psql(context: typer.Context) -> None:
    """Open the database in psql; further arguments are psql's."""
    _replace_process("psql", context.args)


@app.command("pg_dump", context_settings=_PASS_ARGUMENTS_THROUGH)
def pg_dump(context: typer.Context) -> None:
    """Back the database up with pg_dump; further arguments are pg_dump's (see the runbook)."""
    _replace_process("pg_dump", context.args)


def _replace_process(name: str, arguments: Sequence[str]) -> None:
    """Replace this process by the program, connected to the database."""
    url = start_database(application()).database_url()
    # Connect first: PostgreSQL's programs detect no pooler, and their errors suggest no fix for a wrong address.
    connect(url).close()
    path = str(program(name))
    environment = process_environment(**libpq_environment(url))
    os.execve(path, [path, *arguments], environment)  # noqa: S606 - the program takes over this process
