"""What was earned, added up by day from the endpoints' tables, exactly: sums are made by PostgreSQL and leave it as text.

Days are added up as a whole and in one transaction; what of them is out of date is told by the ledger, not by events.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime

from psycopg import sql
from psycopg.rows import class_row

from affiliate_pipeline.exchanges.spec import Endpoint
from affiliate_pipeline.postgres.store import Store, unavailable

# A day added up from other content than it now has is out of date. No clock is compared: transactions overlap.
_INPUTS = "md5(string_agg(asset || ' ' || content_hash || ' ' || settled, ',' order by asset))"


@dataclass(frozen=True)
class Sum:
    """One line of `affiliate.daily_commission`; amounts are text without trailing zeros."""

    day: date
    exchange: str
    coin: str
    kind: str
    count: int
    amount: str
    usdt_value: str | None
    unvalued: int


@dataclass(frozen=True)
class Earner:
    """What somebody earned us, or earned, on one day in one coin; `rank` is their place in it."""

    exchange: str
    coin: str
    earner: str
    amount: str
    rank: int


@dataclass(frozen=True)
class LandedDay:
    """What the ledger says of an asset's day."""

    asset: str
    day: date
    settled: bool


class Commission:
    """The table `affiliate.daily_commission`, for these endpoints, all of which declare earnings."""

    def __init__(self, store: Store, endpoints: Sequence[Endpoint]):
        self._connection = store.connection
        self.endpoints = endpoints
        self._assets = [endpoint.key for endpoint in endpoints]

    def stale(self, first: date, last: date, quiet_s: float = 0) -> dict[date, str]:
        """The days whose sums are missing or out of date and for which nothing has landed for `quiet_s`, each with a
        mark of what has landed for it."""
        with unavailable(), self._connection.transaction():
            found = self._connection.execute(
                f"select partition, landed.inputs from (select partition, {_INPUTS} inputs, max(landed_at) landed_at "
                "from affiliate.landing where asset = any(%s) and partition between %s and %s group by partition) landed "
                "left join affiliate.computed_day computed using (partition) "
                "where computed.inputs is distinct from landed.inputs and landed_at <= now() - %s * interval '1 second' "
                "order by partition",
                (self._assets, first, last, quiet_s),
            )
            return dict(found.fetchall())

    def add_up(self, day: date, run_id: str) -> bool:
        """Adds up the day anew; False, with nothing changed, if nothing has landed for it."""
        with unavailable(), self._connection.transaction():
            run = self._connection.execute
            run("select pg_advisory_xact_lock(hashtext('affiliate.daily_commission'), %s - '2000-01-01'::date)", (day,))
            # Read first: should something land in between, the day counts as out of date again.
            (inputs, landed), *_ = run(
                f"select {_INPUTS}, coalesce(jsonb_object_agg(asset, settled), '{{}}') from affiliate.landing "
                "where asset = any(%s) and partition = %s",
                (self._assets, day),
            ).fetchall()
            if not landed:
                return False
            run("delete from affiliate.daily_commission where partition_date = %s", (day,))
            for endpoint in self._counting(landed):
                run(_insert(endpoint), {"day": day, "settled": landed[endpoint.key], "run_id": run_id})
            run(
                "insert into affiliate.computed_day values (%s, %s) "
                "on conflict (partition) do update set inputs = excluded.inputs",
                (day, inputs),
            )
            return True

    def _counting(self, landed: dict[str, bool]) -> list[Endpoint]:
        """Of the endpoints that tell of the same money one each: one that has settled before one that has not."""
        chosen: dict[tuple[str, str], Endpoint] = {}
        for endpoint in sorted(self.endpoints, key=lambda endpoint: not landed.get(endpoint.key)):
            if endpoint.key in landed and endpoint.earnings:
                chosen.setdefault((endpoint.exchange.name, endpoint.earnings.kind), endpoint)
        return list(chosen.values())

    def sums(self, first: date, last: date) -> list[Sum]:
        """The lines of these days."""
        with unavailable(), self._connection.transaction(), self._connection.cursor(row_factory=class_row(Sum)) as rows:
            return rows.execute(
                "select partition_date as day, exchange, coin, kind, count, trim_scale(amount)::text amount, "
                "trim_scale(usdt_value)::text usdt_value, unvalued from affiliate.daily_commission "
                "where partition_date between %s and %s order by 1, 2, 3, 4",
                (first, last),
            ).fetchall()

    def totals(self, first: date, last: date) -> list[Sum]:
        """The lines of these days added up, as of the last; coins of the greatest value first."""
        with unavailable(), self._connection.transaction(), self._connection.cursor(row_factory=class_row(Sum)) as rows:
            return rows.execute(
                "select %(last)s::date as day, exchange, coin, kind, sum(count)::bigint count, "
                "trim_scale(sum(amount))::text amount, trim_scale(sum(usdt_value))::text usdt_value, "
                "sum(unvalued)::bigint unvalued from affiliate.daily_commission "
                "where partition_date between %(first)s and %(last)s group by exchange, coin, kind "
                "order by exchange, sum(sum(usdt_value)) over (partition by exchange, coin) desc nulls last, "
                "sum(sum(count)) over (partition by exchange, coin) desc, coin, kind",
                {"first": first, "last": last},
            ).fetchall()

    def earners(self, day: date, most: int) -> list[Earner]:
        """Who earned most that day in each coin."""
        with unavailable(), self._connection.transaction():
            counted = self._connection.execute(
                "select distinct asset from affiliate.daily_commission where partition_date = %s", (day,)
            ).fetchall()
        found: list[Earner] = []
        for endpoint in self.endpoints:
            if (endpoint.key,) in counted and endpoint.earnings and endpoint.earnings.earners:
                with (
                    unavailable(),
                    self._connection.transaction(),
                    self._connection.cursor(row_factory=class_row(Earner)) as rows,
                ):
                    found += rows.execute(_earners(endpoint), {"day": day, "most": most}).fetchall()
        return found

    def landed(self, first: date, last: date) -> list[LandedDay]:
        """What of these days has landed."""
        with (
            unavailable(),
            self._connection.transaction(),
            self._connection.cursor(row_factory=class_row(LandedDay)) as rows,
        ):
            return rows.execute(
                "select asset, partition as day, settled from affiliate.landing "
                "where asset = any(%s) and partition between %s and %s order by 1, 2",
                (self._assets, first, last),
            ).fetchall()

    def newest(self) -> date | None:
        """The last day that was added up."""
        with unavailable(), self._connection.transaction():
            row = self._connection.execute("select max(partition) from affiliate.computed_day").fetchone()
        return row[0] if row else None

    def computed_at(self) -> datetime:
        """The database's clock."""
        with unavailable(), self._connection.transaction():
            row = self._connection.execute("select now()").fetchone()
        assert row
        return row[0]


def _parts(endpoint: Endpoint) -> dict[str, sql.Composable]:
    earnings, total = endpoint.earnings, endpoint.total
    assert earnings and total
    amount, coin = map(sql.Identifier, total)
    kind: sql.Composable = sql.Literal(earnings.kind)
    if earnings.trade_type:
        kind = sql.SQL(
            "{kind} || case {type} when 0 then ' spot' when 1 then ' futures' else ' ' || {type} end"
        ).format(kind=kind, type=sql.Identifier(earnings.trade_type))
    return {
        "amount": amount,
        "coin": coin,
        "kind": kind,
        "exchange": sql.Literal(endpoint.exchange.name),
        "zone": sql.Literal(endpoint.exchange.zone.key),
        "asset": sql.Literal(endpoint.key),
        "table": sql.Identifier(endpoint.exchange.name, endpoint.name),
        "usdt": sql.Identifier(earnings.usdt) if earnings.usdt else sql.SQL("null::numeric"),
        "earner": sql.SQL("coalesce({}, '')").format(
            sql.SQL(", ").join(sql.SQL("nullif({}, '')").format(sql.Identifier(name)) for name in earnings.earners)
        ),
    }


def _insert(endpoint: Endpoint) -> sql.Composed:
    return sql.SQL(
        "insert into affiliate.daily_commission (partition_date, exchange, zone, coin, kind, count, amount, usdt_value, "
        "unvalued, settled, asset, run_id) "
        "select %(day)s, {exchange}, {zone}, coin, kind, count(*), sum(amount), sum(usdt), count(*) - count(usdt), "
        "%(settled)s, {asset}, %(run_id)s from (select {coin} as coin, {kind} as kind, {amount} as amount, "
        "coalesce({usdt}, case upper({coin}) when 'USDT' then {amount} end) as usdt from {table} "
        "where partition_date = %(day)s) record group by coin, kind"
    ).format(**_parts(endpoint))


def _earners(endpoint: Endpoint) -> sql.Composed:
    return sql.SQL(
        "select exchange, coin, earner, trim_scale(amount)::text amount, rank from ("
        "select {exchange} as exchange, {coin} as coin, {earner} as earner, sum({amount}) as amount, "
        "row_number() over (partition by {coin} order by sum({amount}) desc, {earner}) as rank from {table} "
        "where partition_date = %(day)s group by 2, 3) ranked where rank <= %(most)s order by coin, rank"
    ).format(**_parts(endpoint))
