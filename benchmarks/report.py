"""(g) The report of a year of both exchanges with five accounts each, 400 coins and 50,000 customers."""

import statistics
import time
from collections.abc import Callable
from datetime import date

import psycopg

from affiliate_pipeline.commission.figures import SPAN_DAYS, Figures, gather, gather_overview
from affiliate_pipeline.commission.report import render
from affiliate_pipeline.commission.rollup import Commission
from affiliate_pipeline.exchanges.registry import DEFAULT
from affiliate_pipeline.landing.store import Store
from benchmarks.harness import IsolatedProject, Table, days_back, isolated_project

DAYS, COINS, CUSTOMERS = 365, 400, 50_000
QUICK_DAYS, QUICK_COINS, QUICK_CUSTOMERS = 40, 10, 100
ALIASES = ("", "acme", "beta", "gamma", "delta")
LINES = """
insert into affiliate.daily_commission (partition_date, exchange, zone, account, coin, kind,
    count, amount, usdt_value, unvalued, market_value_usdt, settled, asset, run_id)
select %(day)s, exchange, zone, account, 'COIN' || coin, kind,
    120, (random() * 1000)::numeric(38, 18), null, 120,
    case when coin %% 50 > 0 then (random() * 100)::numeric(38, 8) end, true, asset, ''
from (values ('binance', 'UTC', 'rebate', 'rebate_recent_record'),
             ('lbank', 'Asia/Shanghai', 'commission spot', 'commission'),
             ('lbank', 'Asia/Shanghai', 'commission futures', 'commission')) kind (exchange, zone, kind, asset),
    unnest(%(accounts)s::text[]) account,
    generate_series(1, %(coins)s) coin"""
CUSTOMER_LINES = """
insert into affiliate.daily_customer_commission (partition_date, exchange, zone, account,
    customer, identified_by, coin, kind,
    count, amount, usdt_value, unvalued, market_value_usdt, settled, asset, run_id)
select %(day)s, case number %% 2 when 0 then 'binance' else 'lbank' end, 'UTC', (%(accounts)s::text[])[1 + number / 2 %% 5],
    'customer' || number, 'customer_id', 'COIN' || number %% %(coins)s, 'rebate',
    3, random()::numeric(38, 18), null, 3, random()::numeric(38, 8), true, '', ''
from generate_series(1, %(customers)s) number"""
COMPUTED_DAY = "insert into affiliate.computed_day values (%(day)s, '')"


def fill(project: IsolatedProject, days: list[date], coins: int, customers: int) -> None:
    """Add the daily sums of all days, and those of every customer on each of the last `SPAN_DAYS` days."""
    with psycopg.connect(project.url, autocommit=True) as connection:
        for number, day in enumerate(reversed(days)):
            values = {"day": day, "accounts": [*ALIASES], "coins": coins, "customers": customers}
            connection.execute(LINES.encode(), values)
            connection.execute(COMPUTED_DAY.encode(), values)
            if number < SPAN_DAYS:
                connection.execute(CUSTOMER_LINES.encode(), values)
        connection.execute("vacuum analyze")


def run(quick: bool, rounds: int) -> list[Table]:
    """Measure each page: reading its figures, rendering them, and its size."""
    number, coins, customers = (QUICK_DAYS, QUICK_COINS, QUICK_CUSTOMERS) if quick else (DAYS, COINS, CUSTOMERS)
    days = days_back(number)
    with isolated_project() as project:
        Store(project.url).close()  # creates the tables
        fill(project, days, coins, customers)
        with Store(project.url) as store:
            lines = _lines(store, days, rounds)
    return [
        Table(
            f"Pages of {number} days, {2 * len(ALIASES)} accounts, {coins} coins and {customers:,} customers, median of {rounds}",
            ["page", "reading, s", "rendering, s", "KB"],
            lines,
            [
                "Every account earns every coin every day. Each customer has one line on each of the last "
                f"{SPAN_DAYS} days, always in the same coin."
            ],
        )
    ]


def _lines(store: Store, days: list[date], rounds: int) -> list[list[str]]:
    """Measure the page of a day, of a month and of all days; return their lines of the table."""
    earning = DEFAULT.with_accounts({name: ALIASES[1:] for name in ("binance", "lbank")}).earning
    commission = Commission(store, earning, has_prices=True)
    # The names of the pages that the measured ones link to, as if all had been written.
    pages = {f"{day}" for day in days} | {f"{day:%Y-%m}" for day in days} | {render.INDEX}

    def read_day() -> Figures:
        return gather(commission, earning, days[-1], days[0])

    def read_month() -> Figures:
        # 35 days ago is in an earlier month.
        _, [month] = gather_overview(commission, earning, [days[-35]], days[0])
        return month

    def read_all_days() -> Figures:
        all_days, _ = gather_overview(commission, earning, [], days[0])
        return all_days

    return [
        measured("a day", rounds, read_day, lambda figures: render.html(figures, pages)),
        measured("a month", rounds, read_month, lambda figures: render.month_html(figures, pages)),
        measured("all days", rounds, read_all_days, lambda figures: render.index_html(figures, pages)),
    ]


def measured(name: str, rounds: int, read: Callable[[], Figures], show: Callable[[Figures], str]) -> list[str]:
    """Measure a page; return its line of the table."""
    reading_s: list[float] = []
    rendering_s: list[float] = []
    page = ""
    for _ in range(rounds):
        began = time.perf_counter()
        figures = read()
        reading_s.append(time.perf_counter() - began)
        began = time.perf_counter()
        page = show(figures)
        rendering_s.append(time.perf_counter() - began)
    return [
        name,
        f"{statistics.median(reading_s):.2f}",
        f"{statistics.median(rendering_s):.2f}",
        f"{len(page.encode()) / 1000:,.0f}",
    ]
