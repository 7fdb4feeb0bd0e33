"""What an endpoint's table holds for a day, and where it differs from another asset's."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime

import psycopg
from psycopg import sql

from affiliate_pipeline.exchanges.endpoint import Endpoint, Records
from affiliate_pipeline.landing import endpoint_tables, ledger
from affiliate_pipeline.postgres.errors import unavailable


@dataclass(frozen=True)
class DayStats:
    """What a table holds for a day: exact sums (text) by group, and the first and last instant (UTC)."""

    rows: int
    first: datetime | None
    last: datetime | None
    sums: Mapping[str, str]
    rows_with_fee_above_volume: int = 0


@dataclass(frozen=True)
class Difference:
    """Where two assets that have the same rows differ: number of rows and exact sum (text) in each."""

    name: str | None
    rows: int
    total: str
    other_rows: int
    other_total: str

    def __str__(self) -> str:
        return f"{self.name}: {self.rows} rows, {self.total} in all, against {self.other_rows} rows, {self.other_total}"


def stats_of(connection: psycopg.Connection, endpoint: Endpoint, day: date) -> DayStats:
    """What the table holds for the day, in the caller's transaction."""
    group, amount = sql.SQL("null"), sql.SQL("null::numeric")
    instant, excess = sql.SQL("null::timestamptz"), sql.SQL("false")
    if isinstance(endpoint, Records):
        if endpoint.sum_by:
            amount, group = map(sql.Identifier, endpoint.sum_by)
        if endpoint.day_of:
            instant = sql.Identifier(endpoint.day_of)
        if endpoint.volume_and_fee:
            excess = sql.SQL("{1} > {0}").format(*map(sql.Identifier, endpoint.volume_and_fee))
    statement = sql.SQL(
        "select {group}::text, sum({amount})::text, count(*), count(*) filter (where {excess}), min({instant}), "
        "max({instant}) from {table} where partition_date = {day} group by 1 order by 1"
    ).format(group=group, amount=amount, excess=excess, instant=instant, table=endpoint_tables.table(endpoint), day=day)
    groups = connection.execute(statement).fetchall()
    return DayStats(
        rows=sum(count for _, _, count, *_ in groups),
        first=min((first for *_, first, _ in groups if first), default=None),
        last=max((last for *_, last in groups if last), default=None),
        sums={name: total for name, total, *_ in groups if total is not None},
        rows_with_fee_above_volume=sum(excess for *_, excess, _, _ in groups),
    )


def differences(connection: psycopg.Connection, endpoint: Records, other: str, day: date) -> list[Difference] | None:
    """Where the day's rows differ in number or exact sum, by what they are summed by, from those of the asset `other`; None
    if that has not landed the day."""
    if not endpoint.sum_by or not ledger.entries(connection, other, [day]):
        return None
    amount, group = map(sql.Identifier, endpoint.sum_by)
    sums = sql.SQL("select {} name, count(*) rows, sum({}) total from {} where partition_date = {} group by 1")
    own, others = (sums.format(group, amount, sql.Identifier(*key.split("/")), day) for key in (endpoint.key, other))
    statement = sql.SQL(
        "select name, coalesce(own.rows, 0), coalesce(own.total, 0)::text, "
        "coalesce(others.rows, 0), coalesce(others.total, 0)::text from ({}) own full join ({}) others using (name) "
        "where (own.rows, own.total) is distinct from (others.rows, others.total) order by 1"
    ).format(own, others)
    with unavailable(), connection.transaction():
        return [Difference(*row) for row in connection.execute(statement)]
