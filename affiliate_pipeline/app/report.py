"""The command `report`: the page of a day."""

from datetime import date
from typing import Annotated

import typer

from affiliate_pipeline.app.cli import Stop, app, console
from affiliate_pipeline.app.database import started
from affiliate_pipeline.commission.figures import gather
from affiliate_pipeline.commission.report import render
from affiliate_pipeline.commission.rollup import Commission
from affiliate_pipeline.domain.days import fold
from affiliate_pipeline.domain.environment import Mode
from affiliate_pipeline.environment import application
from affiliate_pipeline.exchanges.registry import EARNING
from affiliate_pipeline.landing.store import Store


@app.command()
def report(
    day: Annotated[str, typer.Argument(help="The day; by default the last one that was added up.")] = "",
    show: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Write the page of a day and of the 30 days up to it, as the figures are now, into `reports/`."""
    environment = started(application())
    with Store(environment.database_url()) as store:
        commission = Commission(store, EARNING)
        try:
            wanted = date.fromisoformat(day) if day else commission.newest()
        except ValueError:
            raise Stop(f"{day} is not a day (2026-10-01)") from None
        if wanted is None:
            raise Stop("nothing has been added up yet: land some days first (`affiliate-pipeline up`)")
        start = environment.start_date
        if wanted < start:
            raise Stop(f"{wanted} lies before AFFILIATE_START_DATE, {start}: ask for a later one, or set that earlier")
        configured = [endpoint for endpoint in EARNING if environment.is_any_set(endpoint.credentials)]
        figures = gather(commission, configured, wanted, start, made_up=environment.mode is Mode.SANDBOX)
    path = render.write(figures, environment.reports)
    console.print(f"{path}")
    if figures.stale:
        # The sensor is at most a minute or two behind while Dagster runs.
        console.print(
            "Of these days something has landed that has not been added up yet: "
            f"{fold(figures.stale)}. `affiliate-pipeline up`, while it runs, does it within two minutes, of ended days."
        )
    if show and typer.launch(path.as_uri()):
        console.print("No browser could be opened: open the file yourself.")
