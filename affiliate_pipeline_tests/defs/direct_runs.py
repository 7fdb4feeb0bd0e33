"""Runs of an endpoint without Dagster, which takes 80 % of the CPU time of an asset's run. Contains no tests.

Tests of behaviour that does not depend on Dagster use `land`; a few tests per file run the asset with `materialize`.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from uuid import uuid4

import dagster as dg

from affiliate_pipeline import definitions, environment
from affiliate_pipeline.defs.checks import evaluations
from affiliate_pipeline.defs.placement import OWN
from affiliate_pipeline.defs.resources import EnvironmentPipeline
from affiliate_pipeline.landing.pipeline import Failed, Landed, Options, Retained, land_days

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DirectRun:
    """The outcome of each day, and the evaluations of the endpoint's checks; `failed` has the reasons."""

    landed: dict[date, Landed] = field(default_factory=dict)
    retained: dict[date, Retained] = field(default_factory=dict)
    failed: dict[date, str] = field(default_factory=dict)
    checks: list[dg.AssetCheckEvaluation] = field(default_factory=list)

    @property
    def success(self) -> bool:
        """Whether no day failed."""
        return not self.failed

    @property
    def message(self) -> str:
        """The reasons of all failed days."""
        return "\n".join(self.failed.values())


def land(key: str, days: Sequence[date], **options: bool) -> DirectRun:
    """Land the days as the asset's step does; `options` are the fields of `Options`.

    Reasons and evaluations are logged too, so that `no_secret_is_recorded` checks them.
    """
    catalog = definitions.configured_catalog(environment.configured().variables)
    endpoint = next(endpoint for endpoint in catalog.endpoints if endpoint.key == key)
    pipeline, run_id, run = EnvironmentPipeline(environment.configured), str(uuid4()), DirectRun()
    with pipeline.store() as store, pipeline.session(endpoint, store) as session:
        for outcome in land_days(
            endpoint, days, session=session, store=store, run_id=run_id, options=Options(**options)
        ):
            match outcome:
                case Failed():
                    run.failed[outcome.day] = f"{outcome.problem}."
                case Retained():
                    run.retained[outcome.day] = outcome
                case Landed():
                    run.landed[outcome.day] = outcome
                    run.checks.extend(evaluations(endpoint, OWN.key(key), store, outcome))
    for text in [*run.failed.values(), *(f"{check.description}" for check in run.checks)]:
        log.debug("%s: %s", key, text)
    return run
