"""The definitions that the tests use, built once per settings: building them takes longer than a run of an asset."""

from datetime import date
from functools import cache

import dagster as dg

from affiliate_pipeline import definitions, environment
from affiliate_pipeline.exchanges.registry import Catalog, first_day


def loaded_definitions() -> dg.Definitions:
    """The definitions that a code location would load with the settings of the test."""
    settings = environment.of_process()
    catalog = definitions.configured_catalog(settings.variables)
    first_days = tuple(first_day(each, settings) for each in catalog.endpoints)
    return _loaded(catalog, first_days, settings.runs_schedules, settings.has_prices, settings.digest)


@cache
def _loaded(
    _catalog: Catalog, _first_days: tuple[date, ...], _runs_schedules: bool, _has_prices: bool, _digest: str
) -> dg.Definitions:
    return definitions.build_definitions()
