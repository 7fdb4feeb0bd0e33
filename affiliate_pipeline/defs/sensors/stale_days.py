"""The sensor that adds a day up again once what has landed for it is no longer what it was added up from."""

from datetime import UTC, datetime
from hashlib import sha256

import dagster as dg

from affiliate_pipeline.commission.rollup import Commission
from affiliate_pipeline.defs.commission_assets import COMMISSION, REPORT
from affiliate_pipeline.defs.dagster_internals import range_tags, sensor
from affiliate_pipeline.defs.resources import Installation
from affiliate_pipeline.domain.days import DAY, runs
from affiliate_pipeline.exchanges.registry import EARNING

# Several assets land for a day one after the other.
QUIET_S = 60


@sensor(
    target=[COMMISSION, REPORT],
    minimum_interval_seconds=30,
    description="Adds up again each day for which something else has landed than it was added up from.",
)
def stale_days(
    context: dg.SensorEvaluationContext, installation: dg.ResourceParam[Installation]
) -> list[dg.RunRequest]:
    now = datetime.now(UTC)
    with installation.store() as store:
        first, last = installation.environment.start_date, now.date() - DAY
        stale = Commission(store, EARNING).stale(first, last, quiet_s=QUIET_S)
    # The run key allows the same days with the same content once an hour: a failed run is not repeated at each tick.
    return [
        dg.RunRequest(
            run_key=sha256(
                " ".join([f"{now:%Y-%m-%dT%H}", *(f"{day} {stale[day]}" for day in run)]).encode()
            ).hexdigest(),
            tags=range_tags(run),
            asset_selection=[COMMISSION, REPORT],
        )
        for run in runs(stale)
    ]
