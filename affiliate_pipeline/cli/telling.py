"""Commands that tell people of what has landed: `report`."""

from datetime import UTC, date, datetime
from typing import Annotated

import typer

from affiliate_pipeline import settings
from affiliate_pipeline.cli.app import Stop, app, console
from affiliate_pipeline.days import DAY
from affiliate_pipeline.exchanges.registry import EARNING
from affiliate_pipeline.postgres.commission import Commission
from affiliate_pipeline.postgres.store import Store
from affiliate_pipeline.report import page
from affiliate_pipeline.report.figures import gather
from affiliate_pipeline.settings import Project


@app.command()
def report(
    day: Annotated[str, typer.Argument(help="The day; by default the last one that was added up.")] = "",
    show: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Write the page of a day and of the 30 days up to it, as the figures are now, into `reports/`."""
    project = Project.load()
    with Store(project.database_url()) as store:
        commission = Commission(store, EARNING)
        try:
            wanted = date.fromisoformat(day) if day else commission.newest()
        except ValueError:
            raise Stop(f"{day} is not a day (2026-10-01)") from None
        if wanted is None:
            raise Stop("nothing has been added up yet: land some days first (`affiliate-pipeline up`)")
        configured = [endpoint for endpoint in EARNING if settings.is_any_set(endpoint.credentials)]
        figures = gather(commission, configured, wanted, project.affiliate_start_date)
        # The sensor is at most a minute or two behind while Dagster runs.
        late = commission.stale(figures.days[0], min(wanted, datetime.now(UTC).date() - DAY))
    path = page.write(figures, settings.reports())
    console.print(f"{path}")
    if late:
        console.print(
            "Of these days something has landed that has not been added up yet: "
            f"{', '.join(map(str, late))}. `affiliate-pipeline up`, while it runs, does it within two minutes."
        )
    if show and typer.launch(path.as_uri()):
        console.print("No browser could be opened: open the file yourself.")
