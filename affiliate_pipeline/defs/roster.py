"""The roster as an asset: all users under the affiliate, whose data the fan-outs request. Not partitioned."""

from typing import Any

import dagster as dg

from affiliate_pipeline.defs.resources import Installation
from affiliate_pipeline.domain.problem import AffiliateError
from affiliate_pipeline.exchanges.lbank.endpoints import TEAM_ENDPOINT
from affiliate_pipeline.exchanges.lbank.roster.store import TABLE


@dg.asset(
    key=["lbank", "roster"],
    group_name="lbank",
    kinds={"postgres", TEAM_ENDPOINT.exchange.name},
    owners=[f"team:{TEAM_ENDPOINT.exchange.name}_{TEAM_ENDPOINT.account}"],
    metadata={"dagster/table_name": TABLE},
)
def roster(
    context: dg.AssetExecutionContext, installation: dg.ResourceParam[Installation]
) -> dg.MaterializeResult[Any]:
    """Every user ever seen under the affiliate, from the team list since the beginning of time.

    Runs that request the data of single users refresh it themselves; no user is ever removed.
    """
    try:
        with (
            installation.store(context.run.run_id) as store,
            installation.session(TEAM_ENDPOINT, store) as session,
        ):
            found = session.roster(session.now_ms())
    except AffiliateError as error:
        problem = error.problem.adding(impact="The roster is as it was")
        raise dg.Failure(f"lbank/roster: {problem}.", allow_retries=False) from None
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": len(found.members),
            "agents": sum(member.is_agent for member in found.members),
            "traders": sum(member.transaction for member in found.members),
        }
    )
