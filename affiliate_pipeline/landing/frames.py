"""Landed days as pandas frames, for the assets of another project and for notebooks."""

from collections.abc import Iterable, Sequence
from datetime import date
from typing import Any

import pandas as pd  # pyright: ignore[reportMissingTypeStubs]  # pandas has none
from psycopg import Connection, sql

from affiliate_pipeline.domain.days import format_days
from affiliate_pipeline.domain.problem import AffiliateError
from affiliate_pipeline.domain.settings import database_url_in
from affiliate_pipeline.exchanges.registry import DEFAULT, endpoints_of
from affiliate_pipeline.landing import endpoint_tables, ledger
from affiliate_pipeline.postgres.connection import connect
from affiliate_pipeline.postgres.errors import as_store_unavailable

# The types of columns by PostgreSQL's type; others are objects: exact `Decimal` for amounts, `date`, text, JSON.
_TYPES = {"int2": "Int64", "int4": "Int64", "int8": "Int64", "bool": "boolean", "timestamptz": "datetime64[us, UTC]"}


class NotLanded(AffiliateError):
    """Days that were requested have not landed: a frame would silently lack their rows."""


def load_days(asset: str, days: Iterable[str | date], *, database: str) -> pd.DataFrame:
    """The rows of an asset's landed days, in order of the days: exact `Decimal` amounts, times in UTC.

    Args:
        asset: `<exchange>[/<alias>]/<endpoint>`, without a prefix of the Dagster project.
        days: As dates or ISO texts.
        database: A `postgresql://` URL.

    Raises:
        NotLanded: Any of the days has not landed, or `asset` is not the name of an asset with days.
    """
    endpoint = next(iter(endpoints_of([asset])), None)
    if endpoint is None:
        known = ", ".join(each.key for each in DEFAULT.endpoints)
        raise NotLanded(f"{asset} is not an asset with days", f"Use one of {known}, or <exchange>/<alias>/<endpoint>")
    dates = {date.fromisoformat(day) if isinstance(day, str) else day for day in days}
    requested = sorted(dates)

    with (
        connect(database_url_in("database", database)) as connection,
        as_store_unavailable(),
        connection.transaction(),
    ):
        connection.execute("set transaction isolation level repeatable read, read only")
        _require_landed(connection, asset, requested)
        query = sql.SQL("select * from {} where partition_date = any(%s) and account = %s order by partition_date")
        cursor = connection.execute(query.format(endpoint_tables.table(endpoint)), (requested, endpoint.alias))
        rows = cursor.fetchall()
        columns = cursor.description or []
        type_of = {column.name: connection.adapters.types[column.type_code].name for column in columns}

    series_of: dict[str, Any] = {}
    for position, (name, type_name) in enumerate(type_of.items()):
        values = [row[position] for row in rows]
        # With inferred types, integers with nulls would become floats.
        series_of[name] = pd.Series(values, dtype=_TYPES.get(type_name, "object"))
    return pd.DataFrame(series_of)


def _require_landed(connection: Connection[Any], asset: str, days: Sequence[date]) -> None:
    landed = set(ledger.entries(connection, asset, days)) if ledger.exists(connection) else set[date]()
    missing = [day for day in days if day not in landed]
    if missing:
        raise NotLanded(f"{asset} has not landed {format_days(missing)}", "Materialize these days first")
