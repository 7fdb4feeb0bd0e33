"""The endpoints of Binance Link: each is one schema and one declaration, and this is the place to add one."""

from datetime import time, timedelta

from affiliate_pipeline import schema
from affiliate_pipeline.exchanges.binance.exchange import BINANCE
from affiliate_pipeline.exchanges.spec import Earnings, Endpoint, Memory
from affiliate_pipeline.exchanges.time_walk import TimeWalk
from affiliate_pipeline.schema import Amount, BigInt, Instant, Row, Text


class RebateRecentRecord(Row):
    customer_id: Text = schema.text("The id that the partner gave the client; may be empty.", nullable=True)
    email: Text = schema.text("The client's email, masked by Binance.", nullable=True)
    income: Amount = schema.amount("What the partner earns, in `asset`.")
    asset: Text = schema.text("The coin that `income` is in.")
    symbol: Text = schema.text("The market traded.")
    time: Instant = schema.instant("When the trade was made (UTC); the day is taken from it.")
    order_id: BigInt = schema.bigint("The order's id at Binance.")
    trade_id: BigInt = schema.bigint("The trade's id, unique only within `symbol`.")
    distribute_time: Instant = schema.instant("When the rebate was paid out (UTC); null until then.", newer=True)
    commission_asset: Text = schema.text("The coin of `commission`; null until the rebate was paid out.", newer=True)
    commission: Amount = schema.amount("The trading fee that the rebate is a part of.", newer=True)
    convert_price: Amount = schema.amount("The price from `commission_asset` to `asset`.", newer=True)


_REBATES = "/sapi/v1/apiReferral/rebate/recentRecord"

ENDPOINTS = (
    Endpoint(
        exchange=BINANCE,
        name="rebate_recent_record",
        path=_REBATES,
        account="partner",
        description=(
            "Rebates that the partner earns on its clients' trades, one row per trade; days in UTC. "
            "Rows gain `distribute_time` and what follows it once the rebate was paid out, so a day has settled 48 hours "
            "after its end. The exchange promises 7 days."
        ),
        schema=RebateRecentRecord,
        strategy=TimeWalk(_REBATES, limit=500, longest_days=7),
        instant="time",
        total=("income", "asset"),
        # convert_price leads from the fee's coin to that of the income: dividing by it would round, so it values nothing.
        earnings=Earnings("rebate", earners=("customer_id", "email")),
        settles_after=timedelta(hours=48),
        memory=Memory(timedelta(days=7), provable=True),
        daily_at=time(0, 15),
    ),
)
