"""The closes in USDT of earned coins, in the table `affiliate.price`. Only this module uses its tables.

A price that has landed never changes. `affiliate.priced_day` records for which landed content a day's prices were
requested: if the ledger differs, a coin may lack its price.
"""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import date
from typing import Any, Final, LiteralString
from zoneinfo import ZoneInfo

import psycopg
from psycopg import sql

from affiliate_pipeline.domain.days import DAY, start_ms
from affiliate_pipeline.domain.problem import AffiliateError, Problem
from affiliate_pipeline.exchanges.binance.klines import Klines, Quote, UnusableCandle, markets_of
from affiliate_pipeline.exchanges.endpoint import Records
from affiliate_pipeline.http.errors import ExchangeError, Fatal
from affiliate_pipeline.landing import endpoint_tables, ledger
from affiliate_pipeline.postgres.errors import as_store_unavailable

TABLE: Final = "affiliate.price"
MARKETS: Final = "affiliate.price_market"
PRICE: Final = "affiliate/price"
# For how long a coin's market, or the fact that it has none, is used without looking it up again.
MARKET_DAYS: Final = 30
USDT: Final = "USDT"
# A value with 8 places. PostgreSQL itself rounds halves away from zero.
HALF_EVEN: Final = (
    "case when abs({0} - trunc({0}, 8)) = 0.000000005 and mod(trunc({0} * 100000000), 2) = 0 "
    "then trunc({0}, 8) else round({0}, 8) end"
)
# After this number, the source is at fault: each further coin would only take the time of its retries.
MAX_FAILURES_IN_A_ROW: Final = 3
_UTC = ZoneInfo("UTC")
_IMPACT: Final = "Prices that had landed are unchanged. Coins without one have no market value yet"
_ACTION: Final = (
    "The day is requested again within the hour. Where Binance's prices cannot be reached, set AFFILIATE_PRICES=off; "
    "in your own Dagster project, set prices=False"
)
_LOCK: Final = "select pg_advisory_xact_lock(hashtext('affiliate.price'), %s - '2000-01-01'::date)"


@dataclass(frozen=True)
class PricedDay:
    """A day whose coins have been looked up: the market of each coin's price, and the coins without a price."""

    markets: Mapping[str, str]
    coins_without_price: Sequence[str]


@dataclass(frozen=True)
class _MarketLookup:
    """What a lookup of a coin's market found: `market` had a price on `since`; None: there is none from `since` on."""

    market: str | None
    since: date

    def shows_no_market_on(self, day: date) -> bool:
        """Whether the coin is known to have no market on the day, so that none is looked up again."""
        # Not on every later day: a coin that was not listed years ago may have been listed since.
        return self.market is None and self.since <= day < self.since + MARKET_DAYS * DAY


class Prices:
    """The prices of the coins that `endpoints` have landed."""

    def __init__(self, connection: psycopg.Connection[Any], endpoints: Sequence[Records]) -> None:
        self._connection, self._endpoints = connection, endpoints
        self._ledger = ledger.by_day([each.key for each in endpoints])

    def missing(self, first: date, last: date, quiet_s: float = 0) -> dict[date, str]:
        """The days with landed rows whose prices may be incomplete, in order, each with a fingerprint of these rows.

        Days for which something has landed within the last `quiet_s` are omitted.
        """
        query = sql.SQL(
            "select partition, landed.inputs "
            "from ({}) landed left join affiliate.priced_day priced using (partition) "
            "where partition between %s and %s and priced.inputs is distinct from landed.inputs "
            "and landed_at <= now() - %s * interval '1 second' "
            "order by partition"
        ).format(self._ledger)
        return dict(self._rows(query, first, last, quiet_s))

    def land(
        self, days: Sequence[date], open_klines: Callable[[date, date], AbstractContextManager[Klines]]
    ) -> dict[date, PricedDay | Problem]:
        """Land the missing prices of these days; return the outcome of each day.

        The prices of one coin are committed together, before the next coin is requested.
        """
        query = sql.SQL("select partition, inputs, settled from ({}) landed where partition = any(%s)")
        landed = self._rows(query.format(self._ledger), [*days])
        inputs_by_day: dict[date, str] = {day: inputs for day, inputs, _ in landed}
        # The keys of `settled` are the assets that have landed the day.
        coins = {day: self._coins(day, settled.keys()) for day, _, settled in landed}

        what = f"no rows of {', '.join(each.key for each in self._endpoints)} have landed for this day"
        nothing_landed = Problem("nothing_landed", what, action="Materialize one of them first")
        failed = dict.fromkeys({*days} - inputs_by_day.keys(), nothing_landed)
        failed |= _not_ended(inputs_by_day, time.time_ns() // 10**6)

        unpriced = self._unpriced({day: day_coins for day, day_coins in coins.items() if day not in failed})
        if unpriced:
            failed |= self._land_unpriced(unpriced, open_klines)

        outcomes: dict[date, PricedDay | Problem] = {}
        for day, inputs in inputs_by_day.items():
            # Failed days are recorded too: if any of their prices have landed, the day's prices have a new fingerprint,
            # by which the day's sums become stale. Empty `inputs`: some prices may be missing.
            outcomes[day] = self._record(day, "" if day in failed else inputs, coins[day])
        outcomes |= failed
        return {day: outcomes[day] for day in days}

    def _coins(self, day: date, assets: Collection[str]) -> list[str]:
        """The coins of the rows that these assets have landed, in upper case and without USDT."""
        coins: set[str] = set()
        for endpoint in self._endpoints:
            if endpoint.key not in assets or not endpoint.sum_by:
                continue
            _, coin_column = endpoint.sum_by
            query = sql.SQL("select distinct upper({}) from {}").format(
                sql.Identifier(coin_column), endpoint_tables.rows_of(endpoint, day)
            )
            coins.update(coin for (coin,) in self._rows(query) if coin and coin != USDT)
        return sorted(coins)

    def _unpriced(self, coins: Mapping[date, Sequence[str]]) -> dict[str, list[date]]:
        """By coin, the days whose price has to be requested."""
        priced = {*self._rows(f"select coin, day from {TABLE} where day = any(%s)", [*coins])}
        lookups = self._market_lookups()
        unpriced: dict[str, list[date]] = {}
        for day in sorted(coins):
            for coin in coins[day]:
                lookup = lookups.get(coin)
                has_no_market = lookup is not None and lookup.shows_no_market_on(day)
                if (coin, day) not in priced and not has_no_market:
                    unpriced.setdefault(coin, []).append(day)
        return unpriced

    def _market_lookups(self) -> dict[str, _MarketLookup]:
        """By coin, the lookups of the last `MARKET_DAYS`."""
        query = f"select coin, market, since from {MARKETS} where checked_at > now() - %s * interval '1 day'"
        return {coin: _MarketLookup(market, since) for coin, market, since in self._rows(query, MARKET_DAYS)}

    def _land_unpriced(
        self,
        unpriced: Mapping[str, Sequence[date]],
        open_klines: Callable[[date, date], AbstractContextManager[Klines]],
    ) -> dict[date, Problem]:
        """Land these coins' prices; return the problem of each day that failed or has not ended."""
        all_days = sorted({day for days in unpriced.values() for day in days})
        lookups = self._market_lookups()
        remaining = {coin: unpriced[coin] for coin in sorted(unpriced)}
        failed: dict[date, Problem] = {}
        try:
            with open_klines(all_days[0], all_days[-1]) as klines:
                # By the exchange's clock: a closing price that is fetched before the day has ended would be wrong, and
                # stored prices never change.
                not_ended = _not_ended(all_days, klines.now_ms)
                failed |= not_ended
                ended = {coin: [day for day in days if day not in not_ended] for coin, days in remaining.items()}
                for coin, problems in self._land_each_coin(klines, ended, lookups):
                    failed |= problems
                    del remaining[coin]
        except AffiliateError as error:
            for days in remaining.values():
                for day in days:
                    failed.setdefault(day, error.problem)
        return {day: problem.adding(impact=_IMPACT, action=_ACTION) for day, problem in failed.items()}

    def _land_each_coin(
        self, klines: Klines, unpriced: Mapping[str, Sequence[date]], lookups: Mapping[str, _MarketLookup]
    ) -> Iterator[tuple[str, dict[date, Problem]]]:
        """Land one coin after the other; yield each coin, once committed, with the problems of its failed days.

        Raises:
            ExchangeError: A fatal one, or the last of `MAX_FAILURES_IN_A_ROW`.
        """
        failures_in_a_row = 0
        for coin, days in unpriced.items():
            lookup = lookups.get(coin)
            try:
                quotes, problems = _quotes(klines, coin, days, lookup.market if lookup else None)
                failures_in_a_row = 0
            except ExchangeError as error:
                failures_in_a_row += 1
                if isinstance(error, Fatal) or failures_in_a_row == MAX_FAILURES_IN_A_ROW:
                    raise
                quotes, problems = {}, dict.fromkeys(days, error.problem)
            self._save_prices(coin, quotes, klines.source)
            self._save_market(coin, days, quotes, problems, lookup)
            yield coin, problems

    def _save_prices(self, coin: str, quotes: Mapping[date, Quote], source: str) -> None:
        with as_store_unavailable(), self._connection.transaction(), self._connection.cursor() as cursor:
            cursor.executemany(
                f"insert into {TABLE} (coin, day, usdt, market, source, open_time, close_time) "
                "values (%s, %s, %s, %s, %s, %s, %s) on conflict do nothing",
                [
                    (coin, day, each.usdt, each.market, source, each.open_time, each.close_time)
                    for day, each in quotes.items()
                ],
            )

    def _save_market(
        self,
        coin: str,
        days: Sequence[date],
        quotes: Mapping[date, Quote],
        failed_days: Collection[date],
        lookup: _MarketLookup | None,
    ) -> None:
        """Record the coin's market on the newest of `days` or, if there is none, since which of them there is none.

        `failed_days` have an unusable candle, or are all of `days` if a request failed. `lookup` is what was recorded
        before. Nothing is recorded if the newest of `days` failed. If `lookup` has a market, nothing is recorded either
        where the newest of `days` has the same market, or is before `lookup.since`, a day on which that market had a
        price.
        """
        if not days or days[-1] in failed_days:
            return
        newest = days[-1]
        market = quotes[newest].market if newest in quotes else None
        if lookup and lookup.market:
            # The recorded market had a price on `lookup.since`. Days before that day show nothing about later ones.
            is_before_recorded_price = newest < lookup.since
            if market == lookup.market or is_before_recorded_price:
                return

        since = newest
        if market is None:  # there is none since the first day after the last one that had a candle
            last_with_candle = max((day for day in days if day in quotes or day in failed_days), default=date.min)
            since = next(day for day in days if day > last_with_candle)
        # `returning`, because `_rows` fetches rows.
        self._rows(
            f"insert into {MARKETS} values (%s, %s, %s, now()) on conflict (coin) do update set "
            "market = excluded.market, since = excluded.since, checked_at = excluded.checked_at returning coin",
            coin,
            market,
            since,
        )

    def _record(self, day: date, inputs: str, coins: Sequence[str]) -> PricedDay:
        """Record a fingerprint of the day's prices, and `inputs`; return which of the coins have a price.

        `inputs` identifies the landed content for which no price is missing; empty: some may be missing.
        """
        with as_store_unavailable(), self._connection.transaction():
            # Otherwise a concurrent run could record the fingerprint of fewer prices.
            self._connection.execute(_LOCK, (day,))
            self._connection.execute(
                "insert into affiliate.priced_day "
                "select %s, %s, coalesce(md5(string_agg(coin || ' ' || usdt, ',' order by coin)), '') "
                f"from {TABLE} "
                "where day = %s "
                "on conflict (partition) do update set inputs = excluded.inputs, prices = excluded.prices",
                (day, inputs, day),
            )
        markets = dict(self._rows(f"select coin, market from {TABLE} where day = %s and coin = any(%s)", day, [*coins]))
        return PricedDay(markets, coins_without_price=[coin for coin in coins if coin not in markets])

    def _rows(self, query: LiteralString | sql.Composed, *values: object) -> list[tuple[Any, ...]]:
        with as_store_unavailable(), self._connection.transaction():
            return self._connection.execute(query, values).fetchall()


def with_prices(landed: sql.Composed) -> sql.Composed:
    """The query `landed` of `ledger.by_day`; `inputs` also identifies the landed prices and whether any is missing."""
    return sql.SQL(
        "select partition, "
        "concat_ws(' ', landed.inputs, priced.prices, case when priced.inputs = landed.inputs then 'complete' end) as inputs, "
        "landed_at, settled "
        "from ({}) landed left join affiliate.priced_day priced using (partition)"
    ).format(landed)


def with_market_values(lines: sql.Composed, day: date | None) -> sql.Composed:
    """The query `lines` with `market_value_usdt`: the value of `amount` of `coin` at the price of the day.

    The value is null if the coin has no price; with `day` None, it is null in all lines.
    """
    if day is None:
        return sql.SQL("select line.*, null::numeric as market_value_usdt from ({}) line").format(lines)
    return sql.SQL(
        "with price as ("
        f"select coin, usdt from {TABLE} where day = {{day}} "
        "union all select {usdt}, 1), "
        "valued as ("
        "select line.*, line.amount * price.usdt as exact "
        "from ({lines}) line left join price on price.coin = upper(line.coin)) "
        f"select valued.*, {HALF_EVEN.format('exact')} as market_value_usdt "
        "from valued"
    ).format(lines=lines, day=day, usdt=USDT)


def _not_ended(days: Iterable[date], now_ms: int) -> dict[date, Problem]:
    """The problem of each of the days that has not ended in UTC."""
    problem = Problem(
        "not_ended", "this day has not ended in UTC, so it has no close", action="Materialize it tomorrow"
    )
    return {day: problem for day in days if start_ms(day + DAY, _UTC) > now_ms}


def _quotes(
    klines: Klines, coin: str, days: Sequence[date], known_market: str | None
) -> tuple[dict[date, Quote], dict[date, Problem]]:
    """The quotes by day, and the problems of days with an unusable candle; raises `ExchangeError`.

    `known_market` is tried before the coin's other markets.
    """
    markets = markets_of(coin)
    if known_market:
        markets = [known_market, *(market for market in markets if market != known_market)]
    quotes: dict[date, Quote] = {}
    unusable: dict[date, Problem] = {}
    for market in markets:
        for day in days:
            if day in quotes or day in unusable:
                continue
            try:
                quote = klines.quote(market, day)
                if quote:
                    quotes[day] = quote
            except UnusableCandle as error:
                unusable[day] = error.problem
    return quotes, unusable
