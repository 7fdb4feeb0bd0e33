"""How a downstream asset that takes one of these assets as its argument (`AssetIn`) gets the landed rows."""

from typing import Any

import dagster as dg

from affiliate_pipeline.defs.day_outcomes import keys_to_days
from affiliate_pipeline.defs.placement import Placement
from affiliate_pipeline.defs.resources import PipelineResource


class LandedRows(dg.IOManager):
    """Loads the days that have landed; assets write their rows themselves."""

    def __init__(self, placement: Placement, pipeline: PipelineResource):
        self._placement, self._pipeline = placement, pipeline

    def handle_output(self, context: dg.OutputContext, obj: object) -> None:
        """Write nothing: the asset has committed the rows day by day."""

    def load_input(self, context: dg.InputContext) -> Any:
        """The frame of `load_days` for the input's partitions; raises the same errors as `load_days`."""
        # Imported here: only projects that use inputs pay for it.
        from affiliate_pipeline.landing.frames import load_days

        days = keys_to_days(context.asset_partition_keys if context.has_asset_partitions else ())
        return load_days(self._placement.asset(context.asset_key), days, database=self._pipeline.database_url())


def landed_rows(placement: Placement) -> dg.IOManagerDefinition:
    """The IO manager of the assets of endpoints and reference tables."""

    def create(context: dg.InitResourceContext) -> LandedRows:
        return LandedRows(placement, getattr(context.resources, placement.resource))

    return dg.IOManagerDefinition(
        create,
        required_resource_keys=placement.required,
        description="Loads landed days as pandas frames for downstream assets.",
    )
