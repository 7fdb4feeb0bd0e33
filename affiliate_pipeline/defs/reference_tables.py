"""One asset, not partitioned, for each table that an exchange keeps in addition to those of its endpoints."""

from typing import Any

import dagster as dg

from affiliate_pipeline.defs.resources import Installation
from affiliate_pipeline.domain.problem import AffiliateError
from affiliate_pipeline.exchanges.endpoint import ReferenceTable


def build_reference_table(table: ReferenceTable) -> dg.AssetsDefinition:
    """The table as an asset, which refreshes it."""
    endpoint = table.endpoint

    @dg.asset(
        key=table.key.split("/"),
        description=table.description,
        group_name=endpoint.exchange.name,
        kinds={"postgres", endpoint.exchange.name},
        owners=[f"team:{endpoint.exchange.name}_{endpoint.account}"],
        metadata={"dagster/table_name": table.key.replace("/", ".")},
    )
    def refreshed(
        context: dg.AssetExecutionContext, installation: dg.ResourceParam[Installation]
    ) -> dg.MaterializeResult[Any]:
        try:
            with (
                installation.store(context.run.run_id) as store,
                installation.session(endpoint, store) as session,
            ):
                return dg.MaterializeResult(metadata=table.refresh(session))
        except AffiliateError as error:
            problem = error.problem.adding(impact=f"The {table.name} is as it was")
            raise dg.Failure(f"{table.key}: {problem}.", allow_retries=False) from None

    return refreshed
