"""Exact daily sums of earnings, in the table `affiliate.daily_commission`.

PostgreSQL adds amounts up; they are read as texts or decimals, never as floats. A day is added up as a whole, in one
transaction, and `affiliate.computed_day` records which landed rows and prices were used: if these have changed since,
the day is stale.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any, Final, LiteralString

from psycopg import sql

from affiliate_pipeline.commission import customers
from affiliate_pipeline.commission.customers import CUSTOMERS, money_of
from affiliate_pipeline.commission.prices import HALF_EVEN, PRICE, Prices, with_market_values, with_prices
from affiliate_pipeline.exchanges.endpoint import Records
from affiliate_pipeline.exchanges.registry import DEFAULT, endpoints_of
from affiliate_pipeline.landing import ledger
from affiliate_pipeline.landing.store import Store
from affiliate_pipeline.postgres.errors import as_store_unavailable

TABLE = "affiliate.daily_commission"
# Two of the assets computed from landed rows; `derived_assets` returns all of them.
COMMISSION, REPORT = "affiliate/daily_commission", "affiliate/daily_report"
_STATED: Final = f"(case when market_value_usdt is null then {HALF_EVEN.format('usdt_value')} end)"
_COLUMNS: Final = (
    "partition_date, exchange, account, zone, coin, kind, count, amount, usdt_value, unvalued, market_value_usdt, settled, "
    "asset, run_id"
)


@dataclass(frozen=True)
class Sum:
    """One line of `affiliate.daily_commission`; `amount` and `usdt_value` have no trailing zeros."""

    day: date
    exchange: str
    account: str
    coin: str
    kind: str
    count: int
    amount: str
    usdt_value: str | None
    # The number of records that are not part of `usdt_value`: neither in USDT nor valued by the exchange. They may have
    # a market value.
    unvalued: int
    market_value_usdt: str | None = None
    # What the exchange states, to 8 places (half even), where there is no market value.
    stated_value_usdt: str | None = None
    # The number of records with neither of the two values.
    without_value: int = 0

    @property
    def payer(self) -> str:
        """The exchange, and the alias of a further account."""
        return f"{self.exchange} {self.account}" if self.account else self.exchange


@dataclass(frozen=True)
class DayTotal:
    """What an account earned on a day in USDT: at market prices, or else as stated by the exchange."""

    day: date
    exchange: str
    account: str
    count: int
    usdt: Decimal
    # The part of `usdt` that the exchange states, because the coin has no market price; USDT needs none.
    stated_usdt: Decimal
    # The coins of records without either value.
    coins_without_value: Sequence[str] = ()


def derived_assets(*, has_prices: bool) -> tuple[str, ...]:
    """The assets computed from landed rows, each after those that it depends on."""
    if has_prices:
        return (PRICE, COMMISSION, CUSTOMERS, REPORT)
    return (COMMISSION, CUSTOMERS, REPORT)


class Commission:
    """The table `affiliate.daily_commission`: what `endpoints` and all accounts with landed days earned.

    Accounts that are no longer configured, or are only configured elsewhere, are included: a day is added up as a whole.
    Without `has_prices`, there are no market values.
    """

    def __init__(self, store: Store, endpoints: Sequence[Records], *, has_prices: bool = False):
        self._connection = store.connection
        of_default_accounts = DEFAULT.earning
        landed = endpoints_of(ledger.assets(self._connection), [*of_default_accounts, *endpoints])
        by_key = {each.key: each for each in (*of_default_accounts, *landed, *endpoints) if isinstance(each, Records)}

        self.prices = Prices(self._connection, list(by_key.values())) if has_prices else None
        query = ledger.by_day(list(by_key))
        self._ledger = with_prices(query) if has_prices else query

        by_money: dict[tuple[str, str, str], list[Records]] = {}
        for endpoint in by_key.values():
            money = endpoint.exchange.name, endpoint.alias, money_of(endpoint).kind
            by_money.setdefault(money, []).append(endpoint)
        # Groups of endpoints that report the same money: only one of each group counts for a day.
        self.alternative_groups = list(by_money.values())

    def landed(self, first: date, last: date) -> dict[date, dict[str, bool]]:
        """By day, the assets that have landed it, each with whether the day has settled."""
        query = sql.SQL("select partition, settled from ({}) ledger where partition between %s and %s")
        return dict(self._fetch(query.format(self._ledger), [first, last]))

    def stale(self, first: date, last: date, quiet_s: float = 0) -> dict[date, str]:
        """The landed days whose sums are missing or outdated, in order, each with a fingerprint of its landed content.

        Days for which something has landed within the last `quiet_s` are omitted.
        """
        query = sql.SQL(
            "select partition, ledger.inputs "
            "from ({}) ledger left join affiliate.computed_day computed using (partition) "
            "where partition between %s and %s and computed.inputs is distinct from ledger.inputs "
            "and landed_at <= now() - %s * interval '1 second' "
            "order by partition"
        ).format(self._ledger)
        return dict(self._fetch(query, [first, last, quiet_s]))

    def stale_or_unpriced(self, first: date, last: date, quiet_s: float = 0) -> dict[date, str]:
        """The days of `stale` and of `Prices.missing`, in order, each with a fingerprint of its landed content."""
        unpriced = self.prices.missing(first, last, quiet_s) if self.prices else {}
        stale = self.stale(first, last, quiet_s)
        return {day: stale.get(day) or f"prices {unpriced[day]}" for day in sorted({*stale, *unpriced})}

    def add_up(self, day: date, run_id: str) -> bool:
        """Add up the day again; return False, with nothing changed, if nothing has landed for it."""
        with as_store_unavailable(), self._connection.transaction():
            execute = self._connection.execute
            execute(
                "select pg_advisory_xact_lock(hashtext('affiliate.daily_commission'), %s - '2000-01-01'::date)", (day,)
            )
            # Read before the sums: if anything lands in between, the day counts as stale again.
            query = sql.SQL("select inputs, settled from ({}) ledger where partition = %s").format(self._ledger)
            landed: tuple[str, dict[str, bool]] | None = execute(query, (day,)).fetchone()
            if landed is None:
                return False

            inputs, settled = landed
            customers.add_up(self._connection, self._counted(settled), day, run_id, has_prices=self.prices is not None)
            lines = with_market_values(customers.lines_of_all_customers(day), day if self.prices else None)
            insert = sql.SQL(f"insert into affiliate.daily_commission ({_COLUMNS}) select {_COLUMNS} from ({{}}) line")
            execute("delete from affiliate.daily_commission where partition_date = %s", (day,))
            execute(insert.format(lines))
            execute(
                "insert into affiliate.computed_day values (%s, %s) "
                "on conflict (partition) do update set inputs = excluded.inputs",
                (day, inputs),
            )
            return True

    def _counted(self, settled: Mapping[str, bool]) -> list[tuple[Records, bool]]:
        """The endpoints whose rows count for a day, each with whether the day is final for it.

        `settled`: the assets that have landed the day, each with whether the day has settled.
        """
        counted: list[tuple[Records, bool]] = []
        for alternatives in self.alternative_groups:
            landed = [endpoint for endpoint in alternatives if endpoint.key in settled]
            final = [endpoint for endpoint in landed if settled[endpoint.key]]
            # Only one of the alternatives counts, preferably one whose day has settled.
            if final:
                counted.append((final[0], True))
            elif landed:
                counted.append((landed[0], False))
        return counted

    def sums(self, first: date, last: date) -> list[Sum]:
        """The lines of these days."""
        rows = self._fetch(
            "select partition_date, exchange, account, coin, kind, count, trim_scale(amount)::text, "
            f"trim_scale(usdt_value)::text, unvalued, market_value_usdt::text, {_STATED}::text, "
            "case when market_value_usdt is null then unvalued else 0 end "
            "from affiliate.daily_commission "
            "where partition_date between %s and %s "
            "order by partition_date, exchange, account, coin, kind",
            [first, last],
        )
        return [Sum(*row) for row in rows]

    def totals(self, first: date, last: date) -> list[Sum]:
        """The lines of these days added up and dated `last`."""
        rows = self._fetch(
            "select exchange, account, coin, kind, sum(count)::bigint, trim_scale(sum(amount))::text, "
            "trim_scale(sum(usdt_value))::text, sum(unvalued)::bigint, sum(market_value_usdt)::text, "
            f"sum({_STATED})::text, coalesce(sum(unvalued) filter (where market_value_usdt is null), 0)::bigint "
            "from affiliate.daily_commission "
            "where partition_date between %s and %s "
            "group by exchange, account, coin, kind "
            "order by exchange, account, coin, kind",
            [first, last],
        )
        return [Sum(last, *row) for row in rows]

    def by_day(self, first: date, last: date) -> list[DayTotal]:
        """The total in USDT of each account on each of these days that has any lines."""
        rows = self._fetch(
            "select day, exchange, account, sum(records)::bigint, coalesce(sum(total_usdt), 0), "
            "coalesce(sum(total_usdt) filter (where valued_by = 'stated' and upper(coin) <> 'USDT'), 0), "
            "coalesce(array_agg(distinct coin) filter (where records_without_value > 0), '{}') "
            "from affiliate.v_daily "
            "where day between %s and %s "
            "group by day, exchange, account "
            "order by day, exchange, account",
            [first, last],
        )
        return [DayTotal(*row) for row in rows]

    def top_customers(self, first: date, last: date, max_rank: int) -> list[customers.Customer]:
        """The `max_rank` customers of each account with the highest value on these days, in one list, highest first."""
        with as_store_unavailable(), self._connection.transaction():
            return customers.top(self._connection, first, last, max_rank)

    def customer_counts(self, day: date) -> customers.CustomerCounts:
        """The numbers of the day's lines and customers, and their total."""
        with as_store_unavailable(), self._connection.transaction():
            return customers.counts(self._connection, day)

    def added_up(self) -> tuple[date, date] | None:
        """The first and the last day that were added up; None if none was."""
        [(first, last)] = self._fetch("select min(partition), max(partition) from affiliate.computed_day")
        return (first, last) if first else None

    def _fetch(
        self, query: LiteralString | sql.Composed, values: Sequence[object] | Mapping[str, object] = ()
    ) -> list[tuple[Any, ...]]:
        """The rows of the query, executed in its own transaction with `SET_WORK_MEM`."""
        with as_store_unavailable(), self._connection.transaction():
            self._connection.execute(customers.SET_WORK_MEM)
            return self._connection.execute(query, values).fetchall()
