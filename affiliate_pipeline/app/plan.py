"""The command `plan`: what a landing would cost."""

from typing import Annotated

import typer
from rich.markup import escape

from affiliate_pipeline.app.cli import Stop, app, console, parse_days
from affiliate_pipeline.app.database import started
from affiliate_pipeline.domain.days import fold
from affiliate_pipeline.environment import application
from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline.landing.pipeline import connected, plan_of
from affiliate_pipeline.landing.store import Store


@app.command()
def plan(
    asset: Annotated[str, typer.Argument(help="As in Dagster: lbank/trade_user")],
    days: Annotated[str, typer.Argument(help="One day or a range: 2026-10-01...2026-10-31")],
) -> None:
    """What fetching a range of days costs, in requests and minutes, and what an assignment would change; lands nothing.

    If the cost depends on the users under the affiliate, LBank's roster is refreshed first if it is older than the range.
    """
    endpoint = next((endpoint for endpoint in ENDPOINTS if endpoint.key == asset), None)
    if endpoint is None:
        raise Stop(f"there is no asset {asset}; there are {', '.join(endpoint.key for endpoint in ENDPOINTS)}")
    wanted = parse_days(days)
    environment = started(application())
    with (
        Store(environment.database_url()) as store,
        connected(endpoint, store, environment.variables) as session,
    ):
        costs = plan_of(endpoint, wanted, session=session, store=store)
        console.print(escape(f"{endpoint.key} {fold(wanted)}: {costs}"))
