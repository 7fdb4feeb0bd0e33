"""The data dictionary, generated from the endpoints' schemas and declarations.

`make docs` writes docs/data_dictionary.md; a test fails if that file is outdated.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from affiliate_pipeline.commission import columns as derived
from affiliate_pipeline.commission.customers import TABLE as CUSTOMER_TABLE
from affiliate_pipeline.commission.prices import TABLE as PRICE_TABLE
from affiliate_pipeline.commission.rollup import TABLE as COMMISSION_TABLE
from affiliate_pipeline.exchanges.endpoint import Endpoint, Records
from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline.schema.columns import columns

TEMPLATE = Path(__file__).with_suffix(".md.j2")


def markdown() -> str:
    """The content of docs/data_dictionary.md."""
    environment = Environment(undefined=StrictUndefined, trim_blocks=True)  # noqa: S701 - Markdown, not HTML
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        endpoints=ENDPOINTS,
        columns_of=_columns,
        retention=_retention,
        commission=(COMMISSION_TABLE, _derived_columns(derived.DAILY)),
        customer=(CUSTOMER_TABLE, _derived_columns(derived.CUSTOMER_DAILY)),
        price=(PRICE_TABLE, _derived_columns(derived.PRICE)),
        views={view: _view_columns(declared) for view, declared in derived.VIEWS.items()},
    )


def _view_columns(declared: Sequence[tuple[str, str, str]]) -> list[tuple[str, str, str, str]]:
    # Columns of views have no constraints, so none is marked as nullable.
    return [(name, kind, "", about) for name, kind, about in declared]


def _derived_columns(declared: Sequence[tuple[str, str, str]]) -> list[tuple[str, str, str, str]]:
    rows: list[tuple[str, str, str, str]] = []
    for name, definition, about in declared:
        kind = definition.split()[0]
        nullable = "" if "not null" in definition else "null"
        rows.append((name, kind, nullable, about))
    return rows


def _columns(endpoint: Endpoint) -> list[tuple[str, str, str, str]]:
    found = columns(endpoint.schema)
    return [(each.name, each.kind.sql, "null" if each.nullable else "", each.description) for each in found]


def _retention(endpoint: Endpoint) -> str:
    if not isinstance(endpoint, Records):
        return "rows of today only"
    if endpoint.retention is None:
        return "how long the exchange retains them is not known"
    return f"the exchange promises {endpoint.retention.promised.days} days"


if __name__ == "__main__":
    sys.stdout.write(markdown())
