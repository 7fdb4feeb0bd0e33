"""The sums per customer: exact, the same in total as those per day, and added up again after an upgrade."""

import gzip
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import MAX_PREC, ROUND_HALF_EVEN, Context, Decimal, localcontext
from typing import Any

import psycopg
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from affiliate_pipeline.commission.rollup import Commission
from affiliate_pipeline.exchanges.registry import DEFAULT
from affiliate_pipeline.landing.store import Store
from affiliate_pipeline_tests.test_characterization import RELEASE_0_1_0

DAYS = [date(2026, 10, 30) + timedelta(days=number) for number in range(3)]
REBATES, KICKBACKS = "binance/{}rebate_recent_record", "binance/{}kickback_recent_record"
COMMISSIONS = "lbank/{}commission_stats_symbol_list"
COINS = ["USDT", "usdt", "BTC", "btc", "Odd"]
# Written independently of the code: each record with its customer.
RECORDS = """
select partition_date, 'binance' as exchange, account, 'rebate' as kind, asset as coin, income as amount,
    case when asset ilike 'usdt' then income end as usdt,
    coalesce(nullif(customer_id, ''), nullif(email, ''), '') as customer,
    case when coalesce(customer_id, '') <> '' then 'customer_id' when coalesce(email, '') <> '' then 'email' else '' end
        as identified_by
    from binance.rebate_recent_record
union all select partition_date, 'binance', account, 'kickback', asset, income, case when asset ilike 'usdt' then income end, '', ''
    from binance.kickback_recent_record
union all select partition_date, 'lbank', account, 'commission ' || case trade_type when 0 then 'spot' else 'futures' end,
    coin_symbol, amount, coalesce(usdt_amount, case when coin_symbol ilike 'usdt' then amount end), open_id, 'open_id'
    from lbank.commission_stats_symbol_list"""
LINE = "partition_date, exchange, account, kind, coin"
CUSTOMER = f"{LINE}, customer, identified_by"
SUMS = "count, amount, usdt_value, unvalued"
# The last column is the exact value.
OF_RECORDS = """
select {group}, count(*), sum(amount), sum(usdt), count(*) filter (where usdt is null),
    sum(amount) * case when coin ilike 'usdt' then 1 else max(price) end
from ({records}) record left join (select coin as priced, day, usdt as price from affiliate.price) price
    on priced = upper(coin) and day = partition_date
group by {group} order by {group}"""

texts = st.sampled_from(["", "a", "b", "ab***@x.com"])
# Halves of the 8th place are rounded to even.
amounts = st.one_of(
    st.decimals(-(10**12), 10**12, places=18),
    st.decimals(0, 10, places=2),
    st.sampled_from([Decimal("0.000000005"), Decimal("0.000000015"), Decimal("-0.000000025")]),
)


@dataclass(frozen=True)
class LandedDay:
    """A day of one of the three tables in one account."""

    table: str
    account: str
    day: date

    def replace(self, cursor: psycopg.Cursor, rows: Iterable["Record"]) -> None:
        """Land exactly these rows."""
        asset = self.table.format(f"{self.account}/" if self.account else "")
        exchange, _, name = self.table.replace("{}", "").partition("/")
        statement = f"delete from {exchange}.{name} where account = %s and partition_date = %s"
        cursor.execute(statement.encode(), (self.account, self.day))
        cursor.execute(
            "insert into affiliate.landing values (%s, %s, 0, gen_random_uuid(), true, 's', now(), now(), 'r') "
            "on conflict (asset, partition) do update set content_hash = excluded.content_hash",
            (asset, self.day),
        )
        for row in rows:
            values = {"account": self.account, "partition_date": self.day, "run_id": "r", **row.values(exchange, name)}
            marks = ", ".join(["%s"] * len(values))
            statement = f"insert into {exchange}.{name} ({', '.join(values)}) values ({marks})"
            cursor.execute(statement.encode(), [*values.values()])


@dataclass(frozen=True)
class Record:
    """A record of any of the three tables; `values` omits what its table has no column for."""

    landed: LandedDay
    coin: str
    amount: Decimal
    customer_id: str | None
    email: str | None
    trade_type: int
    usdt_amount: Decimal | None

    def values(self, exchange: str, name: str) -> dict[str, Any]:
        """The values by column."""
        if exchange == "lbank":
            return {
                "open_id": self.customer_id or "own",
                "coin_symbol": self.coin,
                "amount": self.amount,
                "trade_type": self.trade_type,
                "usdt_amount": self.usdt_amount,
            }
        trader = {"customer_id": self.customer_id, "email": self.email} if name.startswith("rebate") else {}
        return {"income": self.amount, "asset": self.coin, **trader}


landed_days = st.builds(
    LandedDay,
    table=st.sampled_from([REBATES, REBATES, KICKBACKS, COMMISSIONS]),
    account=st.sampled_from(["", "acme"]),
    day=st.sampled_from(DAYS),
)
records = st.builds(
    Record,
    landed=landed_days,
    coin=st.sampled_from(COINS),
    amount=amounts,
    customer_id=st.none() | texts,
    email=st.none() | texts,
    trade_type=st.integers(0, 1),
    usdt_amount=st.none() | amounts,
)


def rounded(rows: list[tuple]) -> list[tuple]:
    """The rows with the last column, if it has a value, rounded to 8 places."""
    with localcontext(Context(prec=MAX_PREC)):
        return [
            (*row, None if value is None else value.quantize(Decimal("1e-8"), ROUND_HALF_EVEN)) for *row, value in rows
        ]


# Without shrinking, which takes minutes with a database.
@settings(phases=[Phase.generate], max_examples=12)
@given(
    first=st.lists(records, min_size=20, max_size=40),
    restated=st.lists(records, min_size=10, max_size=40),
    emptied=st.sets(landed_days, max_size=3),
    prices=st.dictionaries(
        st.tuples(st.sampled_from(["BTC", "ODD"]), st.sampled_from(DAYS)), st.decimals("0.00000001", 10**6, places=8)
    ),
)
def test_sums_over_customers_equal_those_of_the_day_and_of_the_raw_tables(
    session_database, first, restated, emptied, prices
):
    session_database.reset()
    query = session_database.query
    with (
        psycopg.connect(session_database.url, autocommit=True) as connection,
        connection.cursor() as cursor,
        Store(session_database.url) as store,
    ):
        for (coin, day), usdt in prices.items():
            query("insert into affiliate.price values (%s, %s, %s, 'm', 's', now(), now())", coin, day, usdt)
        for rows, without_rows in ((first, set[LandedDay]()), (restated, emptied)):
            for landed in {*(each.landed for each in rows), *without_rows}:
                landed.replace(cursor, [each for each in rows if each.landed == landed])
            commission = Commission(store, DEFAULT.earning, has_prices=True)
            for day in commission.stale(DAYS[0], DAYS[-1]):
                assert commission.add_up(day, "run")
            assert not commission.stale(DAYS[0], DAYS[-1])

    totals = query(f"select {LINE}, {SUMS} from affiliate.daily_commission order by {LINE}")
    assert totals == query(
        f"select {LINE}, sum(count)::bigint, sum(amount), sum(usdt_value), sum(unvalued)::bigint "
        f"from affiliate.daily_customer_commission group by {LINE} order by {LINE}"
    )
    for table, group in (("daily_commission", LINE), ("daily_customer_commission", CUSTOMER)):
        lines = query(f"select {group}, {SUMS}, market_value_usdt from affiliate.{table} order by {group}")
        assert lines == rounded(query(OF_RECORDS.format(group=group, records=RECORDS)))


@pytest.mark.empty_database
def test_days_that_an_earlier_release_added_up_are_stale_until_their_customers_are_added_up(database_url, query):
    with psycopg.connect(database_url) as connection:
        connection.execute(gzip.decompress(RELEASE_0_1_0.read_bytes()))
    # The statement by which release 0.1.0 recorded the inputs of a day's sums.
    query(
        "insert into affiliate.computed_day "
        "select partition, md5(string_agg(asset || ' ' || content_hash || ' ' || settled, ',' order by asset)) "
        "from affiliate.landing where asset = any(%s) group by partition on conflict do nothing",
        [each.key for each in DEFAULT.earning],
    )
    with Store(database_url) as store:
        commission = Commission(store, DEFAULT.earning)
        stale = commission.stale(date.min, date.max)
        assert [*stale] == [day for (day,) in query("select partition from affiliate.computed_day order by 1")] != []
        assert commission.added_up() == ([*stale][0], [*stale][-1])
        for day in stale:
            assert commission.add_up(day, "run")
        assert not commission.stale(date.min, date.max)
    totals = query(f"select {LINE}, {SUMS} from affiliate.daily_commission order by {LINE}")
    assert (
        totals
        == query(
            f"select {LINE}, sum(count)::bigint, sum(amount), sum(usdt_value), sum(unvalued)::bigint "
            f"from affiliate.daily_customer_commission group by {LINE} order by {LINE}"
        )
        != []
    )


def test_a_query_for_a_customer_reads_only_the_customers_lines(query):
    query("set enable_seqscan = off")
    [(plan,)] = query("explain (format json) select * from affiliate.v_customer_daily where customer = 'a'")
    query("reset enable_seqscan")

    assert plan[0]["Plan"]["Index Cond"] == "(customer = 'a'::text)"
