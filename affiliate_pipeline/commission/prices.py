"""The closes in USDT of earned coins, in the table `affiliate.price`. Only this module uses its tables.

A price that has landed never changes. `affiliate.priced_day` records for which landed content a day's prices were
requested: if the ledger differs, a coin may lack its price.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
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
    unvalued: Sequence[str]


@dataclass(frozen=True)
class _Market:
    """A coin's market, which had a price on `since`; None: there is none from `since` on, for `MARKET_DAYS`."""

    market: str | None
    since: date

    def is_missing_on(self, day: date) -> bool:
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
            "select partition, landed.inputs from ({}) landed left join affiliate.priced_day priced using (partition) "
            "where partition between %s and %s and priced.inputs is distinct from landed.inputs "
            "and landed_at <= now() - %s * interval '1 second' order by partition"
        )
        return dict(self._rows(query.format(self._ledger), first, last, quiet_s))

    def land(
        self, days: Sequence[date], open_klines: Callable[[date, date], AbstractContextManager[Klines]]
    ) -> dict[date, PricedDay | Problem]:
        """Land the missing prices of these days; return the outcome of each day.

        The prices of one coin are committed together, before the next coin is requested.
        """
        query = sql.SQL("select partition, inputs, settled from ({}) landed where partition = any(%s)")
        # The keys of `settled` are the assets that have landed the day.
        landed = {day: (inputs, {*settled}) for day, inputs, settled in self._rows(query.format(self._ledger), [*days])}
        coins = {day: self._coins(day, assets) for day, (_, assets) in landed.items()}
        what = f"no rows of {', '.join(each.key for each in self._endpoints)} have landed for this day"
        nothing_landed = Problem("nothing_landed", what, action="Materialize one of them first")
        failed = dict.fromkeys({*days} - landed.keys(), nothing_landed) | _not_ended(landed, time.time_ns() // 10**6)
        unpriced = self._unpriced({day: each for day, each in coins.items() if day not in failed})
        if unpriced:
            failed |= self._land_unpriced(unpriced, open_klines)
        # Failed days are recorded too: prices that landed make their sums stale. Empty `inputs`: some are missing.
        priced = {day: self._record(day, "" if day in failed else landed[day][0], coins[day]) for day in landed}
        return {day: failed.get(day) or priced[day] for day in days}

    def _coins(self, day: date, assets: Collection[str]) -> list[str]:
        """The coins of the rows that these assets have landed, in upper case and without USDT."""
        found: set[str] = set()
        for each in self._endpoints:
            if each.key in assets and each.sum_by:
                query = sql.SQL("select distinct upper({}) from {}")
                rows = self._rows(query.format(sql.Identifier(each.sum_by[1]), endpoint_tables.rows_of(each, day)))
                found.update(coin for (coin,) in rows if coin and coin != USDT)
        return sorted(found)

    def _unpriced(self, coins: Mapping[date, Sequence[str]]) -> dict[str, list[date]]:
        """By coin, the days whose price has to be requested."""
        priced = {*self._rows(f"select coin, day from {TABLE} where day = any(%s)", [*coins])}
        markets = self._markets()
        unpriced: dict[str, list[date]] = {}
        for day in sorted(coins):
            for coin in coins[day]:
                market = markets.get(coin)
                if (coin, day) not in priced and not (market and market.is_missing_on(day)):
                    unpriced.setdefault(coin, []).append(day)
        return unpriced

    def _markets(self) -> dict[str, _Market]:
        query = f"select coin, market, since from {MARKETS} where checked_at > now() - %s * interval '1 day'"
        return {coin: _Market(market, since) for coin, market, since in self._rows(query, MARKET_DAYS)}

    def _land_unpriced(
        self,
        unpriced: Mapping[str, Sequence[date]],
        open_klines: Callable[[date, date], AbstractContextManager[Klines]],
    ) -> dict[date, Problem]:
        """Land these coins' prices; return the problem of each day that failed or has not ended."""
        failed: dict[date, Problem] = {}
        todo = {coin: [*unpriced[coin]] for coin in sorted(unpriced)}
        all_days = sorted({day for days in unpriced.values() for day in days})
        markets = self._markets()
        try:
            with open_klines(all_days[0], all_days[-1]) as klines:
                # By the exchange's clock: a stored price never changes, so a close before the day's end would remain.
                not_ended = _not_ended(all_days, klines.now_ms)
                failed |= not_ended
                failures_in_a_row = 0
                for coin in [*todo]:
                    days, known_market = [day for day in todo[coin] if day not in not_ended], markets.get(coin)
                    try:
                        quotes, unusable = _quotes(klines, coin, days, known_market.market if known_market else None)
                        failures_in_a_row = 0
                    except ExchangeError as error:
                        failures_in_a_row += 1
                        if isinstance(error, Fatal) or failures_in_a_row == MAX_FAILURES_IN_A_ROW:
                            raise
                        quotes, unusable = {}, dict.fromkeys(days, error.problem)
                    self._save_prices(coin, quotes, klines.source)
                    self._save_market(coin, days, quotes, unusable, known_market)
                    failed |= unusable
                    del todo[coin]
        except AffiliateError as error:
            failed |= dict.fromkeys((day for days in todo.values() for day in days if day not in failed), error.problem)
        return {day: problem.adding(impact=_IMPACT, action=_ACTION) for day, problem in failed.items()}

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
        unusable: Collection[date],
        known_market: _Market | None,
    ) -> None:
        """Record the coin's market on the newest day, or since when there is none, unless that shows nothing new."""
        newest = days[-1] if days else None
        if newest is None or newest in unusable:
            return
        market = quotes[newest].market if newest in quotes else None
        # Days before the known market was found show nothing about later ones.
        if known_market and known_market.market and (market == known_market.market or newest < known_market.since):
            return
        with_candle = [day for day in days if day in quotes or day in unusable]
        # Without a market, the first day after the last one that had a candle.
        since = newest if market else next(day for day in days if not with_candle or day > with_candle[-1])
        # `returning`, because `_rows` fetches rows.
        self._rows(
            f"insert into {MARKETS} values (%s, %s, %s, now()) on conflict (coin) do update set "
            "market = excluded.market, since = excluded.since, checked_at = excluded.checked_at returning coin",
            coin,
            market,
            since,
        )

    def _record(self, day: date, inputs: str, coins: Sequence[str]) -> PricedDay:
        """Record a fingerprint of the day's prices, and `inputs`; return the coins' markets.

        `inputs` identifies the landed content for which no price is missing; empty: some may be missing.
        """
        with as_store_unavailable(), self._connection.transaction():
            # Otherwise a concurrent run could record the fingerprint of fewer prices.
            self._connection.execute(_LOCK, (day,))
            self._connection.execute(
                f"insert into affiliate.priced_day select %s, %s, coalesce(md5(string_agg(coin || ' ' || usdt, ',' order by coin)), '') "
                f"from {TABLE} where day = %s on conflict (partition) do update set inputs = excluded.inputs, "
                "prices = excluded.prices",
                (day, inputs, day),
            )
        markets = dict(self._rows(f"select coin, market from {TABLE} where day = %s and coin = any(%s)", day, [*coins]))
        return PricedDay(markets, [coin for coin in coins if coin not in markets])

    def _rows(self, query: LiteralString | sql.Composed, *values: object) -> list[tuple[Any, ...]]:
        with as_store_unavailable(), self._connection.transaction():
            return self._connection.execute(query, values).fetchall()


def with_prices(landed: sql.Composed) -> sql.Composed:
    """The query `landed` of `ledger.by_day`; `inputs` also identifies the landed prices and whether any is missing."""
    return sql.SQL(
        "select partition, concat_ws(' ', landed.inputs, priced.prices, case when priced.inputs = landed.inputs then 'complete' end) "
        "as inputs, landed_at, settled from ({}) landed "
        "left join affiliate.priced_day priced using (partition)"
    ).format(landed)


def with_market_values(lines: sql.Composed, day: date | None) -> sql.Composed:
    """The query `lines` with `market_value_usdt`: the value of `amount` of `coin` at the price of the day.

    The value is null without a price and, in all lines, without a day.
    """
    if day is None:
        return sql.SQL("select line.*, null::numeric as market_value_usdt from ({}) line").format(lines)
    return sql.SQL(
        f"select line.*, {HALF_EVEN.format('exact')} as market_value_usdt from (select line.*, amount * usdt as exact from "
        f"({{lines}}) line left join (select coin as priced, usdt from {TABLE} where day = {{day}} union all select {{usdt}}, 1) "
        "price on priced = upper(coin)) line"
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
    quotes: dict[date, Quote] = {}
    unusable: dict[date, Problem] = {}
    markets = markets_of(coin)
    for market in dict.fromkeys([known_market, *markets] if known_market else markets):
        for day in days:
            if day in quotes or day in unusable:
                continue
            try:
                if found := klines.quote(market, day):
                    quotes[day] = found
            except UnusableCandle as error:
                unusable[day] = error.problem
    return quotes, unusable
