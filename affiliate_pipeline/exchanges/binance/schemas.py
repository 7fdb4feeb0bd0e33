"""The rows of Binance's endpoints."""

from affiliate_pipeline.exchanges.binance.kickback_export.exports import TABLE
from affiliate_pipeline.schema import columns as schema


class RebateRecentRecord(schema.Row):
    """A rebate on one trade of a client."""

    customer_id = schema.text("The id that the partner gave the client; may be empty.", nullable=True)
    email = schema.text("The client's email, masked by Binance.", nullable=True)
    income = schema.amount("What the partner earns, in `asset`.")
    asset = schema.text("The coin that `income` is in.")
    symbol = schema.text("The market traded.")
    time = schema.instant("When the trade was made (UTC); the day is taken from it.")
    order_id = schema.bigint("The order's id at Binance.")
    trade_id = schema.bigint("The trade's id, unique only within `symbol`.")
    distribute_time = schema.instant("When the rebate was paid out (UTC); null until then.", optional=True)
    commission_asset = schema.text("The coin of `commission`; null until the rebate was paid out.", optional=True)
    commission = schema.amount("The rebate in `commission_asset`, from which `income` was converted.", optional=True)
    convert_price = schema.amount("The price from `commission_asset` to `asset`.", optional=True)


class Kickback(schema.Row):
    """A kickback on one trade of the client itself."""

    income = schema.amount("The part of the fee that the client is paid back, in `asset`.")
    asset = schema.text("The coin that `income` is in.")
    symbol = schema.text("The market traded.")
    time = schema.instant("When the trade was made (UTC); the day is taken from it.")


class KickbackHistoricalRequest(schema.Row):
    """A requested day, and the export that has it."""

    collection_id = schema.bigint(f"The id of the export in `{TABLE}`.")
    start_time = schema.instant("The first millisecond of the requested range.")
    end_time = schema.instant("The last millisecond of the requested range.")
    requested_at = schema.instant("When the export was requested (UTC); null until then.", nullable=True)
    code = schema.bigint("The code of the exchange's response: 200 if it has begun to collect.", nullable=True)
    msg = schema.text("The message of the exchange's response, or why there is none yet.")


class IfNewUser(schema.Row):
    """The state of the client with an agent."""

    api_agent_code = schema.text("The agent of the request.")
    rebate_working = schema.flag("Whether the agent's code works.")
    if_new_user = schema.flag("Whether the client is a new user to the agent.")
    referrer_id = schema.text("Who referred the client.", nullable=True)


class Customization(schema.Row):
    """An id that the partner gave to a client."""

    customer_id = schema.text("The id that the partner gave the client.")
    email = schema.text("The client's email.", nullable=True)


class UserCustomization(schema.Row):
    """The id that the client has with an agent."""

    api_agent_code = schema.text("The agent of the request.")
    customer_id = schema.text("The id that the client has with the agent; null or empty if it has none.", optional=True)


class _Attempt(schema.Row):
    customer_id = schema.text("The desired id.", nullable=True)
    before_customer_id = schema.text("The id, or ids, before the attempt.", nullable=True)
    outcome = schema.text(
        "`assigned`; `refused` (by Binance, or nothing was posted: see `message`); `failed`: not done, and tried again."
    )
    message = schema.text(
        "The reason for the outcome; after a lost response, also the result of reading the ids back.", nullable=True
    )
    attempted_at = schema.instant("When it was posted, or found to be impossible (UTC).")


class CustomizationAssignment(_Attempt):
    """An attempt to give a client of the partner an id."""

    email = schema.text("The email of the client that it is for.", nullable=True)


class UserCustomizationAssignment(_Attempt):
    """An attempt to give the client an id with its agent."""

    api_agent_code = schema.text("The agent that it is for.")
