"""The rows of LBank's endpoints."""

from affiliate_pipeline.schema import columns as schema

_TRADE_TYPE = "0 spot, 1 futures."


class User(schema.Row):
    """The fields that all endpoints about users have."""

    open_id = schema.text("The user's openId.")
    code = schema.text("The referral code used.", nullable=True)
    create_time = schema.instant("When the user registered.", nullable=True)
    direct_invitation = schema.flag("Whether we invited the user ourselves.", nullable=True)
    deposit = schema.flag("Whether the user has ever deposited.", nullable=True)
    transaction = schema.flag("Whether the user has ever traded.", nullable=True)
    kyc_status = schema.smallint("0 not verified, 1 verified.", nullable=True)
    user_level = schema.smallint("1 to 21 agents, 0 invitee, 99 regular user.", nullable=True)
    currency_fee_amt = schema.amount("Spot commission rate, if an agent.", nullable=True)
    contract_fee_amt = schema.amount("Contract commission rate, if an agent.", nullable=True)
    currency_total_fee_amt = schema.amount("Spot assets.", optional=True)
    contract_total_fee_amt = schema.amount("Futures assets.", optional=True)
    reserve_amt = schema.amount("Reserve.", optional=True)
    currency_total_fee_amt_usdt = schema.amount("Spot assets in USDT (since v1.6).", optional=True)


class InviteUserList(User):
    """A user in the deprecated list of users."""

    id = schema.text("The record's id, by which the endpoint pages.")


class InviteUserInfo(User):
    """The current state of a user."""

    invite_result = schema.flag("Whether the user is under us; if not, nothing else is known.")


class CommissionStatsSymbolList(schema.Row):
    """A receiver's commission of a day in one coin and trade type."""

    open_id = schema.text("Who receives the commission.")
    coin_symbol = schema.text("The coin that `amount` is in.")
    amount = schema.amount("The day's commission.")
    trade_type = schema.smallint(_TRADE_TYPE)
    stats_date = schema.instant("The day of the trades, as its first instant in UTC+8.")
    usdt_amount = schema.amount("`amount` converted to USDT.", nullable=True)


class TradeUser(schema.Row):
    """A user's trades of a day in one trade type."""

    open_id = schema.text("The user of the trades.")
    trade_type = schema.smallint(f"{_TRADE_TYPE} The type of the request.")
    stats_date = schema.instant("The day, as its first instant in UTC+8.")
    trade_amt = schema.amount("The trading volume. (The v1.5 document swaps the two amounts; v1.7 corrects it.)")
    fee_amt = schema.amount("The fee.")


class TradeUserTeam(TradeUser):
    """A team's trades of a day in one trade type."""

    open_id = schema.text("The agent of the team.")


class TradeFuture(schema.Row):
    """The futures trades of a day in one scope."""

    open_id = schema.text("Our own openId.")
    user_type = schema.text("The scope of the request: SELF, SUB (direct), SELF_SUB or ALL.")
    turnover = schema.amount("The day's futures volume.")
    fee = schema.amount("The day's futures fee.")


class MoneyDetailList(schema.Row):
    """A deposit or withdrawal."""

    open_id = schema.text("Who deposited or withdrew.")
    user_type = schema.text("The scope of the request: ALL.")
    requested_sub_in_out_type = schema.text("The type of the request, as the API spells it.")
    sub_in_out_type = schema.text("The type in the response, as text.", nullable=True)
    user_level = schema.smallint("1 to 21 agents, 0 invitee, 99 regular user.", nullable=True)
    asset_code = schema.text("The coin that `asset_num` is in.")
    asset_num = schema.amount("The amount.")
    status = schema.text("The status, as text.", nullable=True)
    sub_status = schema.text("The more exact status, as text.", nullable=True)
    create_time = schema.instant("When it was begun; the day is taken from it.")
    update_time = schema.instant("When it last changed.", nullable=True)
    withdraw_order_id = schema.text("The withdrawal's id (since v1.7).", optional=True)
