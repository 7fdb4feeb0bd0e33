"""Exact daily sums of earnings, in the table `affiliate.daily_commission`.

PostgreSQL adds amounts up and returns them as text. A day is added up as a whole, in one transaction, and
`affiliate.computed_day` records which landed content was added up: if the ledger differs, the day is stale.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import chain
from typing import Any, LiteralString

from psycopg import sql

from affiliate_pipeline.exchanges.endpoint import Money, Records
from affiliate_pipeline.exchanges.registry import DEFAULT, endpoints_of
from affiliate_pipeline.landing import endpoint_tables, ledger
from affiliate_pipeline.landing.store import Store
from affiliate_pipeline.postgres.errors import as_store_unavailable

TABLE = "affiliate.daily_commission"
# The assets computed from the landed rows.
COMMISSION, REPORT = "affiliate/daily_commission", "affiliate/daily_report"
# The columns that the migrations create: name, type, and description in the data dictionary.
COLUMNS = (
    ("partition_date", "date not null", "The day, in `zone`."),
    ("exchange", "text not null", "The exchange that paid it."),
    ("zone", "text not null", "The zone of the exchange's days."),
    ("coin", "text not null", "The coin of `amount`, as the exchange spells it."),
    ("kind", "text not null", "rebate, kickback, commission spot or commission futures."),
    ("count", "bigint not null", "The number of records."),
    ("amount", "numeric not null", "The exact sum of the records."),
    (
        "usdt_value",
        "numeric",
        "The exact sum in USDT of the records that are in USDT or that the exchange values; null if there are none.",
    ),
    ("unvalued", "bigint not null", "The number of records without a value in USDT."),
    ("settled", "bool not null", "Whether the day is final."),
    ("asset", "text not null", "The asset whose rows were added up."),
    ("computed_at", "timestamptz not null default now()", "When the row was computed."),
    ("run_id", "text not null", "The Dagster run that wrote the row."),
    ("account", "text not null default ''", "The alias of the account that earned it; empty: the default account."),
)


@dataclass(frozen=True)
class Sum:
    """One line of `affiliate.daily_commission`; amounts are text without trailing zeros."""

    day: date
    exchange: str
    account: str
    coin: str
    kind: str
    count: int
    amount: str
    usdt_value: str | None
    unvalued: int

    @property
    def payer(self) -> str:
        """The exchange, and the alias of a further account."""
        return _payer(self.exchange, self.account)


@dataclass(frozen=True)
class Earner:
    """The commission on one customer's trades in a coin on a day; `rank` is per coin, from 1."""

    exchange: str
    account: str
    coin: str
    earner: str
    amount: str
    rank: int

    @property
    def payer(self) -> str:
        """The exchange, and the alias of a further account."""
        return _payer(self.exchange, self.account)


class Commission:
    """The table `affiliate.daily_commission`: what `endpoints` and all accounts with landed days earned.

    Accounts that are no longer configured, or are only configured elsewhere, are included: a day is added up as a whole.
    """

    def __init__(self, store: Store, endpoints: Sequence[Records]):
        self._connection = store.connection
        landed = endpoints_of(ledger.assets(self._connection), [*DEFAULT.earning, *endpoints])
        known = {each.key: each for each in (*DEFAULT.earning, *landed, *endpoints) if isinstance(each, Records)}
        self._ledger = ledger.by_day(list(known))
        by_money: dict[tuple[str, str, str], list[Records]] = {}
        for endpoint in known.values():
            earned_from = endpoint.exchange.name, endpoint.alias, _money(endpoint).kind
            by_money.setdefault(earned_from, []).append(endpoint)
        # Groups of endpoints that report the same money: only one of each group counts for a day.
        self.alternatives = list(by_money.values())

    def landed(self, first: date, last: date) -> dict[date, dict[str, bool]]:
        """By day, the assets that have landed it and whether it has settled there."""
        query = sql.SQL("select partition, settled from ({}) ledger where partition between %s and %s")
        return dict(self._fetch(query.format(self._ledger), [first, last]))

    def stale(self, first: date, last: date, quiet_s: float = 0) -> dict[date, str]:
        """The days with missing or outdated sums, each with a fingerprint of its landed content.

        In order, and only those for which nothing has landed for `quiet_s`.
        """
        query = sql.SQL(
            "select partition, ledger.inputs from ({}) ledger left join affiliate.computed_day computed using (partition) "
            "where partition between %s and %s and computed.inputs is distinct from ledger.inputs "
            "and landed_at <= now() - %s * interval '1 second' order by partition"
        )
        return dict(self._fetch(query.format(self._ledger), [first, last, quiet_s]))

    def add_up(self, day: date, run_id: str) -> bool:
        """Add up the day again; return False, with nothing changed, if nothing has landed for it."""
        with as_store_unavailable(), self._connection.transaction():
            run = self._connection.execute
            run("select pg_advisory_xact_lock(hashtext('affiliate.daily_commission'), %s - '2000-01-01'::date)", (day,))
            # Read before the sums: if anything lands in between, the day counts as stale again.
            query = sql.SQL("select inputs, settled from ({}) ledger where partition = %s").format(self._ledger)
            landed: tuple[str, dict[str, bool]] | None = run(query, (day,)).fetchone()
            if landed is None:
                return False
            inputs, settled = landed
            run("delete from affiliate.daily_commission where partition_date = %s", (day,))
            for alternatives in self.alternatives:
                present = [endpoint for endpoint in alternatives if endpoint.key in settled]
                # Prefer an endpoint whose day has settled.
                for endpoint in sorted(present, key=lambda each: not settled[each.key])[:1]:
                    run(_insert(endpoint, day), {"day": day, "settled": settled[endpoint.key], "run_id": run_id})
            run(
                "insert into affiliate.computed_day values (%s, %s) "
                "on conflict (partition) do update set inputs = excluded.inputs",
                (day, inputs),
            )
            return True

    def sums(self, first: date, last: date) -> list[Sum]:
        """The lines of these days."""
        rows = self._fetch(
            "select partition_date, exchange, account, coin, kind, count, trim_scale(amount)::text, "
            "trim_scale(usdt_value)::text, unvalued from affiliate.daily_commission "
            "where partition_date between %s and %s order by 1, 2, 3, 4, 5",
            [first, last],
        )
        return [Sum(*row) for row in rows]

    def totals(self, first: date, last: date) -> list[Sum]:
        """The lines of these days added up and dated `last`; coins of the greatest value first."""
        rows = self._fetch(
            "select exchange, account, coin, kind, sum(count)::bigint, trim_scale(sum(amount))::text, "
            "trim_scale(sum(usdt_value))::text, sum(unvalued)::bigint from affiliate.daily_commission "
            "where partition_date between %s and %s group by exchange, account, coin, kind "
            "order by exchange, account, "
            "sum(sum(usdt_value)) over (partition by exchange, account, coin) desc nulls last, "
            "sum(sum(count)) over (partition by exchange, account, coin) desc, coin, kind",
            [first, last],
        )
        return [Sum(last, *row) for row in rows]

    def earners(self, day: date, max_rank: int) -> list[Earner]:
        """The `max_rank` customers of each coin whose trades earned most that day."""
        counted = self._fetch("select distinct asset from affiliate.daily_commission where partition_date = %s", [day])
        return [
            Earner(*row)
            for endpoint in chain.from_iterable(self.alternatives)
            if (endpoint.key,) in counted and _money(endpoint).earners
            for row in self._fetch(_earners(endpoint, day), {"max_rank": max_rank})
        ]

    def newest(self) -> date | None:
        """The last day that was added up."""
        [(newest,)] = self._fetch("select max(partition) from affiliate.computed_day")
        return newest

    def _fetch(
        self, query: LiteralString | sql.Composed, values: Sequence[object] | Mapping[str, object] = ()
    ) -> list[tuple[Any, ...]]:
        with as_store_unavailable(), self._connection.transaction():
            return self._connection.execute(query, values).fetchall()


def _money(endpoint: Records) -> Money:
    if not endpoint.money:
        raise ValueError(f"{endpoint.key} declares no earnings")
    return endpoint.money


def _payer(exchange: str, account: str) -> str:
    return f"{exchange} {account}" if account else exchange


def _parts(endpoint: Records, day: date) -> dict[str, sql.Composable]:
    money = _money(endpoint)
    amount, coin = map(sql.Identifier, endpoint.sum_by or ())
    names = [sql.SQL("nullif({}, '')").format(sql.Identifier(name)) for name in money.earners]
    kind: sql.Composable = sql.Literal(money.kind)
    if money.kind_by:  # append the name of the record's code
        code, known = sql.Identifier(money.kind_by[0]), money.kind_by[1]
        named = sql.SQL(" ").join(sql.SQL("when {} then {}").format(*each) for each in known)
        kind = sql.SQL("{} || ' ' || case {code} {} else {code}::text end").format(kind, named, code=code)
    return {
        "amount": amount,
        "coin": coin,
        "kind": kind,
        "exchange": sql.Literal(endpoint.exchange.name),
        "account": sql.Literal(endpoint.alias),
        "zone": sql.Literal(endpoint.exchange.zone.key),
        "asset": sql.Literal(endpoint.key),
        "rows": endpoint_tables.rows_of(endpoint, day),
        "usdt": sql.Identifier(money.usdt) if money.usdt else sql.SQL("null::numeric"),
        "earner": sql.SQL("coalesce({})").format(sql.SQL(", ").join([*names, sql.Literal("")])),
    }


def _insert(endpoint: Records, day: date) -> sql.Composed:
    return sql.SQL(
        "insert into affiliate.daily_commission (partition_date, exchange, account, zone, coin, kind, count, amount, "
        "usdt_value, unvalued, settled, asset, run_id) "
        "select %(day)s, {exchange}, {account}, {zone}, coin, kind, count(*), sum(amount), sum(usdt), count(*) - count(usdt), "
        "%(settled)s, {asset}, %(run_id)s from (select {coin} as coin, {kind} as kind, {amount} as amount, "
        "coalesce({usdt}, case upper({coin}) when 'USDT' then {amount} end) as usdt from {rows}) record "
        "group by coin, kind"
    ).format(**_parts(endpoint, day))


def _earners(endpoint: Records, day: date) -> sql.Composed:
    return sql.SQL(
        "select exchange, account, coin, earner, trim_scale(amount)::text, rank from ("
        "select {exchange} as exchange, {account} as account, {coin} as coin, {earner} as earner, sum({amount}) as amount, "
        "row_number() over (partition by {coin} order by sum({amount}) desc, {earner}) as rank from {rows} "
        "group by 3, 4) ranked where rank <= %(max_rank)s order by coin, rank"
    ).format(**_parts(endpoint, day))
