"""The commands `report`, `plan`, `psql` and `pg_dump`, and what they share with `export`."""

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from affiliate_pipeline.app.cli import CommandError, app, console, parse_days
from affiliate_pipeline.app.embedded_server.programs import client_program
from affiliate_pipeline.app.embedded_server.server import start_database
from affiliate_pipeline.commission.figures import gather, gather_overview
from affiliate_pipeline.commission.prices import PRICE
from affiliate_pipeline.commission.report import render
from affiliate_pipeline.commission.rollup import Commission, derived_assets
from affiliate_pipeline.domain.days import DAY, format_days
from affiliate_pipeline.domain.settings import Environment, Mode
from affiliate_pipeline.domain.wording import up_command
from affiliate_pipeline.environment import application, process_environment
from affiliate_pipeline.exchanges.endpoint import Endpoint, Records
from affiliate_pipeline.exchanges.registry import configured_catalog, first_earning_day
from affiliate_pipeline.landing.pipeline import connected, plan_of
from affiliate_pipeline.landing.store import Store
from affiliate_pipeline.postgres.connection import connect
from affiliate_pipeline.postgres.urls import libpq_environment

Days = Annotated[
    str,
    typer.Argument(
        metavar="[DAYS]",
        help="One day or a range, 2026-10-01...2026-10-31; none for a table without days, such as lbank/roster",
    ),
]


@contextmanager
def open_store() -> Generator[tuple[Environment, Store], None, None]:
    """The environment and a connection to its database, whose server is started if necessary."""
    environment = start_database(application())
    with Store(environment.database_url()) as store:
        yield environment, store


def require_days(name: str, requested: Sequence[date] | None, *, has_days: bool) -> None:
    """Raise `CommandError` if days were given for a table without days, or none for a table with days."""
    if requested and not has_days:
        raise CommandError(f"{name} is not divided into days", "Leave the days out")
    if has_days and not requested:
        raise CommandError(
            f"no days of {name} were given", "Add a day (2026-10-01) or a range (2026-10-01...2026-10-31)"
        )


def daily_commission(store: Store, environment: Environment) -> tuple[Commission, list[Records]]:
    """The daily sums, and the configured endpoints whose days they are expected to include."""
    earning = configured_catalog(environment.variables).earning
    configured = [each for each in earning if environment.is_any_set(each.credentials)]
    return Commission(store, earning, has_prices=environment.has_prices), configured


@app.command()
def report(
    days: Annotated[str, typer.Argument(help="A day or a range; by default the last day that was added up.")] = "",
    show: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Write the report of a day, or of each day of a range, into `reports/`, with the current figures.

    Each page has the 30 days up to its day. The pages of their months and `index.html`, which lists all days, are written too.
    """
    requested = parse_days(days) if days else []
    with open_store() as (environment, store):
        commission, configured = daily_commission(store, environment)
        if not requested:
            requested = [_last_day_added_up(commission)]

        today = datetime.now(UTC).date()
        if requested[-1] >= today:
            raise CommandError(f"{requested[-1]} has not ended", f"The last day that can be reported is {today - DAY}")
        start = first_earning_day(configured_catalog(environment.variables), environment)
        if requested[0] < start:
            raise CommandError(
                f"{requested[0]} is before the first day, {start}",
                "Choose a later day, or set an earlier first day (docs/configuration.md)",
            )

        is_sandbox = environment.mode is Mode.SANDBOX
        pages: list[Path] = []
        for day in requested:
            figures = gather(commission, configured, day, start, is_sandbox=is_sandbox)
            pages.append(render.write(figures, environment.reports, requested))
        overview, months = gather_overview(commission, configured, requested, start, is_sandbox=is_sandbox)
    index = render.write_overview(overview, months, environment.reports)

    for page in [*pages, index]:
        console.print(f"{page}")
    stale = [day for day in overview.stale if day <= requested[-1]]
    if stale:
        # While Dagster runs, the sensor `stale_days` is at most a minute or two behind.
        console.print(
            f"{format_days(stale)}: some landed rows or prices have not been added up yet. While `affiliate-pipeline up` runs, it "
            "adds up ended days within two minutes."
        )
    if show:
        exit_code = typer.launch(pages[-1].as_uri())
        if exit_code:
            console.print("No browser could be opened: open the file yourself.")


def _last_day_added_up(commission: Commission) -> date:
    """The last day that was added up; raises `CommandError` if none was."""
    first_and_last = commission.added_up()
    if not first_and_last:
        raise CommandError("nothing has been added up yet", f"Land some days first: `{up_command()}`")
    _first, last = first_and_last
    return last


@app.command()
def plan(
    asset: Annotated[str, typer.Argument(help="As in Dagster: lbank/trade_user, or lbank/acme/trade_user")],
    days: Days = "",
) -> None:
    """Print the requests and the time that fetching some days takes, or what an assignment would change. Lands no days.

    If the cost depends on the users under the affiliate, LBank's roster is refreshed first if it is older than the
    end of the range.
    """
    catalog = configured_catalog(application().variables)
    known = {each.key: each for each in (*catalog.endpoints, *catalog.reference_tables)}
    declared = known.get(asset)
    derived = derived_assets(has_prices=True)
    if not declared and asset not in derived:
        raise CommandError(f"there is no asset {asset}", f"There are {', '.join((*known, *derived))}")

    requested = parse_days(days) if days else None
    if asset == PRICE:
        console.print(f"{asset}: one or two requests per coin without a price, and up to five for a coin that is new")
        return
    if not declared:
        console.print(f"{asset}: no requests, since it is computed from days that have landed")
        return

    endpoint = declared if isinstance(declared, Endpoint) else declared.endpoint
    require_days(asset, requested, has_days=isinstance(declared, Endpoint))
    with open_store() as (environment, store), connected(endpoint, store, environment.variables) as session:
        if isinstance(declared, Endpoint):
            costs = plan_of(declared, requested or (), session=session, store=store)
        else:
            costs = declared.plan(session)
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
    with connect(url) as connection:
        uses_tls = connection.pgconn.ssl_in_use
    path = str(client_program(name, with_tls=uses_tls))
    environment = process_environment(**libpq_environment(url))
    os.execve(path, [path, *arguments], environment)  # noqa: S606 - the program takes over this process
