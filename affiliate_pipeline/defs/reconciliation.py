"""A check where two assets tell of the same rows: that a day has as many in both, with the same exact sums."""

from collections.abc import Iterator

import dagster as dg

from affiliate_pipeline.exchanges.spec import Endpoint
from affiliate_pipeline.landing.day_writer import Store
from affiliate_pipeline.landing.pipeline import Landed

SAME_ROWS = "same_rows"
MOST_DIFFERENCES = 100


def check_specs(endpoint: Endpoint) -> list[dg.AssetCheckSpec]:
    """The check, if the endpoint has another one to be compared with."""
    if endpoint.same_rows_as is None:
        return []
    return [
        dg.AssetCheckSpec(
            SAME_ROWS,
            asset=endpoint.key.split("/"),
            description=f"Days that {endpoint.same_rows_as} has landed too: as many rows and the same exact sum per coin.",
        )
    ]


def reconciled(endpoint: Endpoint, store: Store, landed: Landed) -> Iterator[dg.AssetCheckEvaluation]:
    """One evaluation of a day that both have landed, none of any other."""
    other = endpoint.same_rows_as
    differences = store.differences(endpoint, other, landed.day) if other else None
    if differences is None:
        return
    yield dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey(endpoint.key.split("/")),
        check_name=SAME_ROWS,
        partition=landed.day.isoformat(),
        passed=not differences,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"differs from {other}: {'; '.join(map(str, differences[:MOST_DIFFERENCES]))}"
        if differences
        else f"the same rows and sums as {other}",
        metadata={"compared_with": f"{other}", "differences": len(differences)},
    )
