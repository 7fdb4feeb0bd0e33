"""The assembly as a whole."""

import dagster as dg

from affiliate_pipeline.definitions import build_definitions


def test_the_code_location_loads_as_the_daemon_loads_it():
    """Jobs are resolved only then: a sensor over assets of two time zones once broke nothing but the daemon."""
    definitions = build_definitions()
    dg.Definitions.validate_loadable(definitions)
    definitions.get_repository_def().load_all_definitions()
