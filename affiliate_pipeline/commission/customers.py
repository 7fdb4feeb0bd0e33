"""The exact daily sums of each customer, in the table `affiliate.daily_customer_commission`, which only this module names.

`affiliate.daily_commission` is added up from it, in the same transaction, so amounts never differ. Market values
are rounded per line in both tables, so their sums may differ in the last place.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any, Final

from psycopg import Connection, sql

from affiliate_pipeline.commission.prices import with_market_values
from affiliate_pipeline.exchanges.endpoint import Money, Records
from affiliate_pipeline.landing import endpoint_tables

TABLE: Final = "affiliate.daily_customer_commission"
CUSTOMERS: Final = "affiliate/daily_customer_commission"
# The lengths of the periods of `Earned.totals` and of users' volumes, which end with the last ended day.
PERIODS_DAYS: Final = (7, 30)
# Within a transaction: enough for the sums of a month. With the default, PostgreSQL sorts the lines on disk, which takes
# several times as long.
SET_WORK_MEM: Final = "set local work_mem = '32MB'"


@dataclass(frozen=True)
class Customer:
    """What an account's records of one customer are worth in USDT, as far as they have a value."""

    exchange: str
    account: str
    customer: str
    count: int
    usdt: Decimal


@dataclass(frozen=True)
class CustomerCounts:
    """Numbers of a day: its lines, their customers, and the customers that only a masked email identifies."""

    lines: int
    customers: int
    masked_emails: int
    records_without_customer: int
    total_usdt: str


@dataclass(frozen=True)
class Total:
    """The sum of some records in USDT, as text; `lacking`: how many of the records have no value in USDT."""

    usdt: str
    records: int
    lacking: int


@dataclass(frozen=True)
class Earned:
    """What was earned with one customer, from `first` to `last`: in each of `PERIODS_DAYS`, and in all days."""

    exchange: str
    account: str
    identified_by: str
    customer: str
    first: date
    last: date
    totals: Sequence[Total]


def money_of(endpoint: Records) -> Money:
    """The endpoint's declaration of earnings; raises `ValueError` if it has none."""
    if not endpoint.money:
        raise ValueError(f"{endpoint.key} declares no earnings")
    return endpoint.money


def add_up(
    connection: Connection[Any], counted: Iterable[tuple[Records, bool]], day: date, run_id: str, *, has_prices: bool
) -> None:
    """Replace the day's lines by sums of these endpoints' rows, in the caller's transaction.

    `counted`: the endpoints whose rows count, each with whether the day is final for it.
    """
    connection.execute(f"delete from {TABLE} where partition_date = %s", (day,))
    for endpoint, is_final in counted:
        lines = with_market_values(_lines(endpoint, day), day if has_prices else None)
        # Sorted, so that each page of the index by customer is changed once, which halves the time in a large table.
        statement = sql.SQL(
            f"insert into {TABLE} (partition_date, exchange, account, zone, customer, identified_by, coin, kind, count, amount, "
            "usdt_value, unvalued, market_value_usdt, settled, asset, run_id) "
            "select %(day)s, %(exchange)s, %(account)s, %(zone)s, customer, identified_by, coin, kind, count, amount, "
            "usdt_value, unvalued, market_value_usdt, %(settled)s, %(asset)s, %(run_id)s "
            "from ({}) line "
            "order by customer"
        ).format(lines)
        values = {
            "day": day,
            "exchange": endpoint.exchange.name,
            "account": endpoint.alias,
            "zone": endpoint.exchange.zone.key,
            "settled": is_final,
            "asset": endpoint.key,
            "run_id": run_id,
        }
        connection.execute(statement, values)


def lines_of_all_customers(day: date) -> sql.Composed:
    """A query for the day's lines, each added up over all customers; without market values."""
    group = "partition_date, exchange, account, zone, coin, kind, settled, asset, run_id"
    return sql.SQL(
        f"select {group}, sum(count)::bigint as count, sum(amount) as amount, sum(usdt_value) as usdt_value, "
        "sum(unvalued)::bigint as unvalued "
        f"from {TABLE} "
        "where partition_date = {} "
        f"group by {group}"
    ).format(day)


def _lines(endpoint: Records, day: date) -> sql.Composed:
    """A query that adds up the endpoint's rows of the day by customer, coin and kind; without market values."""
    money = money_of(endpoint)
    amount, coin = map(sql.Identifier, endpoint.sum_by or ())  # earnings always declare `sum_by`
    # The customer is in the first of the columns `earners` that is not empty.
    values = [sql.SQL("when {0} <> '' then {0}").format(sql.Identifier(name)) for name in money.earners]
    names = [sql.SQL("when {} <> '' then {}").format(sql.Identifier(name), name) for name in money.earners]

    return sql.SQL(
        "with record as ("
        "select {customer} as customer, {identified_by} as identified_by, {coin} as coin, {kind} as kind, "
        "{amount} as amount, coalesce({usdt}, case upper({coin}) when 'USDT' then {amount} end) as usdt "
        "from {rows}) "
        "select customer, identified_by, coin, kind, count(*) as count, sum(amount) as amount, sum(usdt) as usdt_value, "
        "count(*) - count(usdt) as unvalued "
        "from record "
        "group by customer, identified_by, coin, kind"
    ).format(
        customer=_case(values),
        identified_by=_case(names),
        coin=coin,
        kind=_kind(money),
        amount=amount,
        usdt=sql.Identifier(money.usdt) if money.usdt else sql.SQL("null::numeric"),
        rows=endpoint_tables.rows_of(endpoint, day),
    )


def _kind(money: Money) -> sql.Composable:
    """An expression for a row's kind of earnings; with `kind_by`, the name of the row's code is appended."""
    kind = sql.Literal(money.kind)
    if not money.kind_by:
        return kind
    code_column, names_by_code = money.kind_by
    branches = [sql.SQL("when {} then {}").format(code, name) for code, name in names_by_code]
    return sql.SQL("{kind} || ' ' || case {code} {branches} else {code}::text end").format(
        kind=kind, code=sql.Identifier(code_column), branches=sql.SQL(" ").join(branches)
    )


def _case(branches: list[sql.Composed]) -> sql.Composable:
    """An expression for the value of the first branch that applies, or for an empty text if none applies."""
    if not branches:
        return sql.SQL("''::text")
    return sql.SQL("case {} else '' end").format(sql.SQL(" ").join(branches))


def top(connection: Connection[Any], first: date, last: date, max_rank: int) -> list[Customer]:
    """The `max_rank` customers of each account with the highest value in USDT on these days.

    The customers of all accounts are in one list, highest value first. Sets `work_mem` until the transaction ends.
    """
    connection.execute(SET_WORK_MEM)
    rows = connection.execute(
        "with ranked as ("
        "select exchange, account, customer, sum(records)::bigint as records, sum(total_usdt) as usdt, "
        "row_number() over (partition by exchange, account order by sum(total_usdt) desc, customer) as rank "
        "from affiliate.v_customer_daily "
        "where day between %s and %s and customer <> '' "
        "group by exchange, account, customer "
        "having sum(total_usdt) is not null) "
        "select exchange, account, customer, records, usdt "
        "from ranked "
        "where rank <= %s "
        "order by usdt desc, exchange, account, customer",
        (first, last, max_rank),
    )
    return [Customer(*row) for row in rows]


def counts(connection: Connection[Any], day: date) -> CustomerCounts:
    """How many lines, customers, customers named by an email and records without a customer the day has; the total."""
    [row] = connection.execute(
        "with by_customer as ("
        "select customer, identified_by, count(*) as lines, sum(records) as records, sum(total_usdt) as total_usdt "
        "from affiliate.v_customer_daily "
        "where day = %s "
        "group by exchange, account, customer, identified_by) "
        "select coalesce(sum(lines), 0)::bigint, "
        "count(*) filter (where customer <> ''), "
        "count(*) filter (where identified_by = 'email'), "
        "coalesce(sum(records) filter (where customer = ''), 0)::bigint, "
        "coalesce(sum(total_usdt), 0)::text "
        "from by_customer",
        (day,),
    ).fetchall()
    return CustomerCounts(*row)


def earned(connection: Connection[Any], customers: Sequence[str], kinds: Sequence[str] | None = None) -> list[Earned]:
    """What was earned with each of these customers: one item per account and `identified_by`.

    `identified_by` is the column that the customer's name is from. With `kinds`, only earnings of these kinds.
    """
    is_in_period = sql.SQL("day >= (now() at time zone zone)::date - {}")
    conditions: list[sql.Composable] = [is_in_period.format(days) for days in PERIODS_DAYS]
    conditions.append(sql.SQL("true"))  # all days
    sums_if = sql.SQL(
        "array[coalesce(trim_scale(sum(total_usdt) filter (where {0})), 0)::text, "
        "coalesce(sum(records) filter (where {0}), 0)::text, "
        "coalesce(sum(records_without_value) filter (where {0}), 0)::text]"
    )
    query = sql.SQL(
        "select exchange, account, identified_by, customer, min(day), max(day), {} "
        "from affiliate.v_customer_daily "
        "where customer = any(%s) and (%s::text[] is null or kind = any(%s)) "
        "group by exchange, account, identified_by, customer "
        "order by exchange, account, identified_by, customer"
    ).format(sql.SQL(", ").join(map(sums_if.format, conditions)))

    rows = connection.execute(query, ([*customers], kinds, kinds))
    items: list[Earned] = []
    for exchange, account, identified_by, customer, first, last, *sums in rows:
        totals = [Total(usdt, int(records), int(lacking)) for usdt, records, lacking in sums]
        items.append(Earned(exchange, account, identified_by, customer, first, last, totals))
    return items


def fitting_emails(connection: Connection[Any], email: str) -> list[str]:
    """The customers whose name is an email that `fits` this one."""
    # Each step of the recursion reads the next customer from the index; `select distinct` would read every line.
    query = sql.SQL(
        "with recursive distinct_customer as ("
        f"(select customer from {TABLE} order by customer limit 1) "
        "union all "
        f"select (select customer from {TABLE} where customer > before.customer order by customer limit 1) "
        "from distinct_customer before "
        "where customer is not null) "
        "select customer from distinct_customer where {}"
    ).format(fits(sql.SQL("customer"), email))
    return [customer for (customer,) in connection.execute(query)]


def fits(column: sql.Composable, text: str) -> sql.Composed:
    """A condition: the column equals the text or, if both are emails, differs from it only where either is masked."""
    equal = sql.SQL("{} = {}").format(column, text)
    if "@" not in text:
        return equal
    return sql.SQL(
        "({equal} or {column} like '%@%' "
        "and (lower({column}) like {text_pattern} or lower({text}) like {column_pattern}))"
    ).format(
        equal=equal,
        column=column,
        text=text,
        text_pattern=_pattern(sql.Literal(text)),
        column_pattern=_pattern(column),
    )


def _pattern(email: sql.Composable) -> sql.Composed:
    """The email in lower case as a pattern for `like`, in which the asterisks of a mask match any characters."""
    escaped = sql.SQL(r"regexp_replace({}, '([\\%_])', '\\\1', 'g')").format(email)
    return sql.SQL(r"lower(regexp_replace({}, '\*+', '%', 'g'))").format(escaped)
