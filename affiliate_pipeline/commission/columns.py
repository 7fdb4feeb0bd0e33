"""The columns of the tables of earnings and prices, and of the views: name, type and description.

The migrations create them. Dagster's catalog and the data dictionary show them.
"""

from typing import Final

PRICE: Final = (
    ("coin", "text not null", "The coin, in upper case."),
    ("day", "date not null", "The day, in UTC."),
    # Of some coins, `usdt` is a product of closes, or a quotient: see `market`.
    (
        "usdt",
        "numeric not null",
        "The close in USDT: a product of closes is exact, a quotient has 18 digits (half even).",
    ),
    (
        "market",
        "text not null",
        "How the close was computed: BTCUSDT, or XYZBTC*BTCUSDT for a coin without a market in USDT, or 1/USDTTRY for a "
        "market that is quoted the other way round.",
    ),
    ("source", "text not null", "The host that the close was requested from."),
    ("open_time", "timestamptz not null", "When the day's candle opened."),
    ("close_time", "timestamptz not null", "When the day's candle closed."),
)
DAILY: Final = (
    ("partition_date", "date not null", "The day, in `zone`."),
    ("exchange", "text not null", "The exchange that paid it."),
    ("zone", "text not null", "The zone of the exchange's days."),
    ("coin", "text not null", "The coin of `amount`, as the exchange spells it."),
    ("kind", "text not null", "rebate, kickback, commission spot or commission futures."),
    ("count", "bigint not null", "The number of records."),
    ("amount", "numeric not null", "The exact sum of the records."),
    (
        "usdt_value",
        "numeric",
        "The exact sum in USDT of the records that are in USDT or that the exchange values; null if there are none.",
    ),
    ("unvalued", "bigint not null", "The number of records that are not part of `usdt_value`."),
    ("settled", "bool not null", "Whether the day is final."),
    ("asset", "text not null", "The asset whose rows were added up."),
    ("computed_at", "timestamptz not null default now()", "When the row was computed."),
    ("run_id", "text not null", "The Dagster run that wrote the row."),
    ("account", "text not null default ''", "The alias of the account that earned it; empty: the default account."),
    (
        "market_value_usdt",
        "numeric",
        "The value of `amount` at the close of the same day in UTC, rounded once to 8 places (half even); null if there is no "
        "price.",
    ),
)
_CUSTOMER: Final = (
    ("customer", "text not null", "The customer, as the exchange names it; empty: the records name no customer."),
    (
        "identified_by",
        "text not null",
        "The column that `customer` is from: customer_id, else open_id, else email, which the exchange has masked, so that "
        "several customers may have the same one. Empty: no customer.",
    ),
)
# The customer's columns follow day, exchange and zone.
CUSTOMER_DAILY: Final = (*DAILY[:3], *_CUSTOMER, *DAILY[3:])
_VIEW_DAILY: Final = (
    ("day", "date", "The day, in `zone`."),
    ("exchange", "text", "The exchange that paid it."),
    ("account", "text", "The alias of the account that earned it; empty: the default account."),
    ("zone", "text", "The zone of the exchange's days."),
)
_VIEW_VALUES: Final = (
    ("coin", "text", "The coin of `amount`, as the exchange spells it."),
    ("kind", "text", "rebate, kickback, commission spot or commission futures."),
    ("records", "bigint", "The number of records."),
    ("amount", "numeric", "The exact sum of the records, in `coin`."),
    (
        "total_usdt",
        "numeric",
        "The value in USDT, to 8 places (half even): at the market price of the day, otherwise what the exchange states; null "
        "if there is neither.",
    ),
    ("valued_by", "text", "market or stated: which of the two `total_usdt` is."),
    ("records_without_value", "bigint", "The number of records that `total_usdt` lacks."),
    ("market_value_usdt", "numeric", "The value at the market price of the day, to 8 places."),
    (
        "stated_value_usdt",
        "numeric",
        "The exact sum in USDT of the records that are in USDT or that the exchange values.",
    ),
    ("settled", "boolean", "Whether the day is final."),
    ("computed_at", "timestamptz", "When the row was computed."),
)
V_DAILY: Final = (*_VIEW_DAILY, *_VIEW_VALUES)
V_CUSTOMER_DAILY: Final = (
    *_VIEW_DAILY,
    *((name, "text", about) for name, _, about in _CUSTOMER),
    *_VIEW_VALUES,
)
V_HEALTH: Final = (
    ("asset", "text", "The asset, as in Dagster."),
    ("first_day", "date", "The first landed day."),
    ("last_day", "date", "The last landed day."),
    ("landed_days", "bigint", "The number of landed days."),
    ("missing_days", "bigint", "The number of days between the first and the last one that have not landed."),
    ("unsettled_days", "bigint", "The number of landed days that may still change."),
    ("last_landed_at", "timestamptz", "When rows last landed."),
    ("last_checked_at", "timestamptz", "When a day last landed or was confirmed to be unchanged."),
)
VIEWS: Final = {
    "affiliate.v_daily": V_DAILY,
    "affiliate.v_customer_daily": V_CUSTOMER_DAILY,
    "affiliate.v_health": V_HEALTH,
}
