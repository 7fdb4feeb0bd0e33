"""Failed days in the metadata of a failed step: written by the assets, read by the sensor that alerts of failed runs."""

from collections.abc import Mapping
from datetime import date
from typing import Any

import dagster as dg

from affiliate_pipeline.domain.problem import Problem, grouped

# By day the text for people, and by problem the same as fields.
FAILED_PARTITIONS = "failed_partitions"
PROBLEMS = "problems"


def failure_of_days(description: str, failed: Mapping[date, Problem]) -> dg.Failure:
    """The failure of a step in which these days failed."""
    texts = {f"{day}": f"{failed[day]}." for day in sorted(failed)}
    problems = [{**problem.to_json(), "days": [f"{day}" for day in days]} for problem, days in grouped(failed).items()]
    metadata = {FAILED_PARTITIONS: dg.MetadataValue.json(texts), PROBLEMS: dg.MetadataValue.json(problems)}
    return dg.Failure(description, metadata=metadata, allow_retries=False)


def problems_in(metadata: Mapping[str, Any]) -> dict[date, Problem]:
    """The failed days in the metadata of such a failure."""
    found = metadata.get(PROBLEMS)
    return {
        date.fromisoformat(day): Problem.from_json(fields)
        for fields in (found.value if found else ())
        for day in fields["days"]
    }
