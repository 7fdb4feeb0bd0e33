"""The definitions that the tests use, built once per settings: building them takes longer than a run of an asset."""

from datetime import date
from functools import cache

import dagster as dg

from affiliate_pipeline import definitions, environment
from affiliate_pipeline.exchanges.registry import Catalog


def loaded_definitions() -> dg.Definitions:
    """The definitions that a code location would load with the settings of the test."""
    settings = environment.of_process()
    return _loaded(definitions.configured_catalog(settings.variables), settings.start_date, settings.runs_schedules)


@cache
def _loaded(_catalog: Catalog, _start: date, _runs_schedules: bool) -> dg.Definitions:
    return definitions.build_definitions()
