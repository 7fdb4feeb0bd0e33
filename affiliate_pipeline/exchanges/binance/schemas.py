"""The rows of Binance's endpoints."""

from affiliate_pipeline.exchanges.binance.kickback_export.exports import TABLE
from affiliate_pipeline.schema import columns as schema
from affiliate_pipeline.schema.columns import Amount, BigInt, Flag, Instant, Row, Text


class RebateRecentRecord(Row):
    """A rebate on one trade of a client."""

    customer_id: Text = schema.text("The id that the partner gave the client; may be empty.", nullable=True)
    email: Text = schema.text("The client's email, masked by Binance.", nullable=True)
    income: Amount = schema.amount("What the partner earns, in `asset`.")
    asset: Text = schema.text("The coin that `income` is in.")
    symbol: Text = schema.text("The market traded.")
    time: Instant = schema.instant("When the trade was made (UTC); the day is taken from it.")
    order_id: BigInt = schema.bigint("The order's id at Binance.")
    trade_id: BigInt = schema.bigint("The trade's id, unique only within `symbol`.")
    distribute_time: Instant = schema.instant("When the rebate was paid out (UTC); null until then.", optional=True)
    commission_asset: Text = schema.text("The coin of `commission`; null until the rebate was paid out.", optional=True)
    commission: Amount = schema.amount("The trading fee that the rebate is a part of.", optional=True)
    convert_price: Amount = schema.amount("The price from `commission_asset` to `asset`.", optional=True)


class Kickback(Row):
    """A kickback on one trade of the client itself."""

    income: Amount = schema.amount("The part of the fee that the client is paid back, in `asset`.")
    asset: Text = schema.text("The coin that `income` is in.")
    symbol: Text = schema.text("The market traded.")
    time: Instant = schema.instant("When the trade was made (UTC); the day is taken from it.")


class KickbackHistoricalRequest(Row):
    """A requested day, and the export that has it."""

    collection_id: BigInt = schema.bigint(f"The id of the export in `{TABLE}`.")
    start_time: Instant = schema.instant("The first millisecond of the requested range.")
    end_time: Instant = schema.instant("The last millisecond of the requested range.")
    requested_at: Instant = schema.instant("When the export was requested (UTC); null until then.", nullable=True)
    code: BigInt = schema.bigint("The code of the exchange's response: 200 if it has begun to collect.", nullable=True)
    msg: Text = schema.text("The message of the exchange's response, or why there is none yet.")


class IfNewUser(Row):
    """The state of the client with an agent."""

    api_agent_code: Text = schema.text("The agent of the request.")
    rebate_working: Flag = schema.flag("Whether the agent's code works.")
    if_new_user: Flag = schema.flag("Whether the client is a new user to the agent.")
    referrer_id: Text = schema.text("Who referred the client.", nullable=True)


class Customization(Row):
    """An id that the partner gave to a client."""

    customer_id: Text = schema.text("The id that the partner gave the client.")
    email: Text = schema.text("The client's email.", nullable=True)


class UserCustomization(Row):
    """The id that the client has with an agent."""

    api_agent_code: Text = schema.text("The agent of the request.")
    customer_id: Text = schema.text(
        "The id that the client has with the agent; null or empty if it has none.", optional=True
    )


class _Attempt(Row):
    customer_id: Text = schema.text("The desired id.", nullable=True)
    before_customer_id: Text = schema.text("The id, or ids, before the attempt.", nullable=True)
    outcome: Text = schema.text(
        "`assigned`; `refused` (by Binance, or nothing was posted: see `message`); `failed`: not done, and tried again."
    )
    message: Text = schema.text(
        "The reason for the outcome; after a lost response, also the result of reading the ids back.", nullable=True
    )
    attempted_at: Instant = schema.instant("When it was posted, or found to be impossible (UTC).")


class CustomizationAssignment(_Attempt):
    """An attempt to give a client of the partner an id."""

    email: Text = schema.text("The email of the client that it is for.", nullable=True)


class UserCustomizationAssignment(_Attempt):
    """An attempt to give the client an id with its agent."""

    api_agent_code: Text = schema.text("The agent that it is for.")
