"""The command `land`: lands days of one asset, with the Dagster of a running `up` or with one of its own."""

import os
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import typer

from affiliate_pipeline import environment as settings
from affiliate_pipeline.app.cli import CommandError, app, parse_days
from affiliate_pipeline.app.dagster_client import DagsterClient, DagsterUnavailable, saved_client
from affiliate_pipeline.app.embedded_server.server import start_database
from affiliate_pipeline.app.landing import (
    Landing,
    LandingInterrupted,
    Request,
    print_failures,
    request_of,
)
from affiliate_pipeline.app.processes import DAEMON, is_locked, running_services
from affiliate_pipeline.app.up import READY_WAIT_S, running, stop_on_signals
from affiliate_pipeline.commission.rollup import derived_assets
from affiliate_pipeline.domain.days import DAY
from affiliate_pipeline.domain.settings import Environment
from affiliate_pipeline.exchanges.endpoint import Records
from affiliate_pipeline.exchanges.registry import configured_catalog, first_day, first_earning_day

POLL_S = 0.2


@app.command()
def land(
    asset: Annotated[str, typer.Argument(help="As in Dagster: lbank/trade_user, or lbank/acme/trade_user")],
    days: Annotated[
        str, typer.Argument(help="One day or a range: 2026-10-01...2026-10-31; by default the newest day.")
    ] = "",
) -> None:
    """Land days of an asset and print what has landed; the exit code is 1 if any day failed.

    The run is launched in the running `up` of this folder, else in a Dagster that is started for it.
    """
    os.chdir(settings.root())
    # Check the arguments before anything starts, and again below: `_landing` may set the first day (the earliest that
    # can land) of assets that have none yet.
    _request(asset, days, settings.application())
    stopping = stop_on_signals()
    try:
        with _landing(stopping) as landing:
            failures = landing.land([_request(asset, days, landing.environment)])
    except LandingInterrupted:
        raise typer.Exit(1) from None
    print_failures(failures)
    raise typer.Exit(1 if failures else 0)


def _request(asset: str, days: str, environment: Environment) -> Request:
    """What the asset's run is to materialize; `days` as on the command line. Raises `CommandError`."""
    catalog = configured_catalog(environment.variables)
    endpoints = {each.key: each for each in catalog.endpoints}
    tables = [each.key for each in catalog.reference_tables]
    known = [*endpoints, *tables, *derived_assets(has_prices=environment.has_prices)]
    if asset not in known:
        nearest = get_close_matches(asset, known, n=1)
        raise CommandError(
            f"there is no asset {asset}",
            f"Did you mean {nearest[0]}?" if nearest else f"There are {', '.join(known)}",
        )

    if asset in tables:
        if days:
            raise CommandError(f"{asset} has no days: it is refreshed as a whole", "Leave the days out")
        return Request(asset, (asset,))

    if asset in endpoints:
        endpoint = endpoints[asset]
        today = datetime.now(endpoint.exchange.zone).date()
        first = first_day(endpoint, environment)
        is_snapshot = not isinstance(endpoint, Records)
        return request_of([endpoint], _requested_days(asset, days, first, today, is_snapshot=is_snapshot))

    today = datetime.now(UTC).date()
    first = first_earning_day(catalog, environment)
    return Request(asset, (asset,), tuple(_requested_days(asset, days, first, today)))


def _requested_days(asset: str, text: str, first: date, today: date, *, is_snapshot: bool = False) -> list[date]:
    """The days of the text, by default the newest day that can land; raises `CommandError` if any of them cannot."""
    # Records and daily sums land only for days that have ended.
    last = today if is_snapshot else today - DAY
    requested = parse_days(text) if text else [last]
    if requested[-1] > last:
        raise CommandError(f"{asset}: {requested[-1]} has not ended", f"The last day that can land is {last}")
    if is_snapshot and requested != [today]:
        raise CommandError(
            f"{asset}: only today can land, since the exchange reports no past", f"Leave the day out, or write {today}"
        )
    if requested[0] < first:
        raise CommandError(
            f"{asset}: {requested[0]} is before the first day, {first}",
            "Set an earlier first day (docs/configuration.md) and start `up` again",
        )
    return requested


@contextmanager
def _landing(stopping: threading.Event) -> Generator[Landing]:
    """A `Landing` with the Dagster of the running `up`, else with one that is started until the end of the block."""
    dagster = _dagster_of_up(settings.home(), stopping)
    if dagster:
        yield Landing(start_database(settings.application()), dagster, stopping)
    else:
        with running(stopping, None) as project:
            yield project.landing


def _dagster_of_up(home: Path, stopping: threading.Event) -> DagsterClient | None:
    """The client of the running `up`, as soon as its Dagster is ready; None if no other command runs in the folder.

    Raises `LandingInterrupted` on a signal, and `CommandError` if within `READY_WAIT_S` there is no Dagster with a
    daemon: one without belongs to `up --once` or another `land`, and ends with that command.
    """
    deadline = time.monotonic() + READY_WAIT_S
    while is_locked(home):
        dagster = saved_client(home)
        with suppress(DagsterUnavailable):
            if dagster and dagster.is_ready() and DAEMON in running_services(home):
                return dagster
        if stopping.wait(POLL_S):
            raise LandingInterrupted
        if time.monotonic() > deadline:
            raise CommandError(
                "another `affiliate-pipeline` command is landing days in this folder, or `up` is not ready",
                "Try again when the command has ended, or `up` is ready",
            )
    return None
