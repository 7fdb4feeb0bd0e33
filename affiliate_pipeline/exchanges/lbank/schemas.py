"""The rows of LBank's endpoints."""

from affiliate_pipeline.schema import columns as schema
from affiliate_pipeline.schema.columns import Amount, Flag, Instant, Row, SmallInt, Text

_TRADE_TYPE = "0 spot, 1 futures."


class User(Row):
    """The fields that all endpoints about users have."""

    open_id: Text = schema.text("The user's openId.")
    code: Text = schema.text("The referral code used.", nullable=True)
    create_time: Instant = schema.instant("When the user registered.", nullable=True)
    direct_invitation: Flag = schema.flag("Whether we invited the user ourselves.", nullable=True)
    deposit: Flag = schema.flag("Whether the user has ever deposited.", nullable=True)
    transaction: Flag = schema.flag("Whether the user has ever traded.", nullable=True)
    kyc_status: SmallInt = schema.smallint("0 not verified, 1 verified.", nullable=True)
    user_level: SmallInt = schema.smallint("1 to 21 agents, 0 invitee, 99 regular user.", nullable=True)
    currency_fee_amt: Amount = schema.amount("Spot commission rate, if an agent.", nullable=True)
    contract_fee_amt: Amount = schema.amount("Contract commission rate, if an agent.", nullable=True)
    currency_total_fee_amt: Amount = schema.amount("Spot assets.", optional=True)
    contract_total_fee_amt: Amount = schema.amount("Futures assets.", optional=True)
    reserve_amt: Amount = schema.amount("Reserve.", optional=True)
    currency_total_fee_amt_usdt: Amount = schema.amount("Spot assets in USDT (since v1.6).", optional=True)


class InviteUserList(User):
    id: Text = schema.text("The record's id, by which the endpoint pages.")


class InviteUserInfo(User):
    invite_result: Flag = schema.flag("Whether the user is under us; if not, nothing else is known.")


class CommissionStatsSymbolList(Row):
    open_id: Text = schema.text("Who receives the commission.")
    coin_symbol: Text = schema.text("The coin that `amount` is in.")
    amount: Amount = schema.amount("The day's commission.")
    trade_type: SmallInt = schema.smallint(_TRADE_TYPE)
    stats_date: Instant = schema.instant("The day of the trades, as its first instant in UTC+8.")
    usdt_amount: Amount = schema.amount("`amount` converted to USDT.", nullable=True)


class TradeUser(Row):
    open_id: Text = schema.text("Whose trades.")
    trade_type: SmallInt = schema.smallint(f"{_TRADE_TYPE} As asked for.")
    stats_date: Instant = schema.instant("The day, as its first instant in UTC+8.")
    trade_amt: Amount = schema.amount(
        "The trading volume. (The v1.5 document has the two amounts swapped; v1.7 says this.)"
    )
    fee_amt: Amount = schema.amount("The fee.")


class TradeUserTeam(TradeUser):
    open_id: Text = schema.text("Whose team's trades.")


class TradeFuture(Row):
    open_id: Text = schema.text("Whose trades: our own openId.")
    user_type: Text = schema.text("SELF, SUB (direct), SELF_SUB or ALL, as asked for.")
    turnover: Amount = schema.amount("The day's futures volume.")
    fee: Amount = schema.amount("The day's futures fee.")


class MoneyDetailList(Row):
    open_id: Text = schema.text("Who deposited or withdrew.")
    user_type: Text = schema.text("The scope asked for: ALL.")
    requested_sub_in_out_type: Text = schema.text("The type asked for, as the API spells it.")
    sub_in_out_type: Text = schema.text("The type as answered, in words.", nullable=True)
    user_level: SmallInt = schema.smallint("1 to 21 agents, 0 invitee, 99 regular user.", nullable=True)
    asset_code: Text = schema.text("The coin that `asset_num` is in.")
    asset_num: Amount = schema.amount("How much.")
    status: Text = schema.text("Status in words.", nullable=True)
    sub_status: Text = schema.text("More exact status in words.", nullable=True)
    create_time: Instant = schema.instant("When it was begun; the day is taken from it.")
    update_time: Instant = schema.instant("When it last changed.", nullable=True)
    withdraw_order_id: Text = schema.text("The withdrawal's id (since v1.7).", optional=True)
