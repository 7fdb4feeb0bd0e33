"""Adds up days without Dagster, which takes most of the time of a run of the assets. Contains no tests."""

from collections.abc import Iterable
from datetime import date

from affiliate_pipeline.commission.rollup import Commission
from affiliate_pipeline.environment import configured
from affiliate_pipeline.exchanges.registry import configured_catalog
from affiliate_pipeline.landing.store import Store


def add_up(days: Iterable[date]) -> None:
    """Add up these days as the assets' step does, but write no page. Something must have landed for each of them."""
    environment = configured()
    earning = configured_catalog(environment.variables).earning
    with Store(environment.database_url()) as store:
        commission = Commission(store, earning, has_prices=environment.has_prices)
        for day in days:
            assert commission.add_up(day, "run")
