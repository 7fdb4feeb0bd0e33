"""Requests to the sandbox's LBank, and functions to compare rows. Contains no tests."""

from collections import Counter
from datetime import date, timedelta
from decimal import Decimal

from affiliate_pipeline.sandbox.days import DAY_MS
from affiliate_pipeline.sandbox.lbank.days import start_of

TODAY = date(2025, 6, 3)
YESTERDAY = TODAY - timedelta(1)
# Seven days; the last one is the day before yesterday.
WEEK = [TODAY - timedelta(back) for back in range(8, 1, -1)]
INFO = "invite/user/info"
LISTS = ("invite/user/list", "invite/user/team/list")
AMOUNTS = ("currencyTotalFeeAmt", "currencyTotalFeeAmtUsdt", "contractTotalFeeAmt", "reserveAmt")


def window(*days):
    """From the first millisecond of the first UTC+8 day to the last millisecond of the last day."""
    return {"startTime": start_of(days[0]), "endTime": start_of(days[-1]) + DAY_MS - 1}


def paged(lbank_caller, path, **params):
    """The rows of all pages."""
    return [row for page in lbank_caller.pages(path, **params) for row in page]


def multiset(rows):
    return Counter(tuple(sorted(row.items())) for row in rows)


def total(rows, name):
    return sum(Decimal(row[name]) for row in rows)


def open_ids(lbank, is_selected):
    """The affiliate's openId and those of the selected users."""
    return [lbank.own_open_id, *(user["openId"] for user in lbank.users if is_selected(user))]


def is_agent(user):
    return 1 <= user["userLevel"] <= 21


# The parameters of a valid request, by path.
VALID_PARAMS = {
    "invite/user/list": {"startTime": 0, "endTime": 1, "start": 0, "pageSize": 1},
    "invite/user/team/list": {"startTime": 0, "endTime": 1, "start": 0, "pageSize": 1},
    "invite/user/info": {"openId": "LBA0SANDBOX"},
    "commission/stats/symbol/list": {
        "openId": "LBA0SANDBOX", "tradeType": 10, "startTime": 0, "endTime": 1, "coin": "", "start": 0, "pageSize": 1,
    },
    "trade/user": {"openId": "LBA0SANDBOX", "tradeType": 0, "startTime": 0, "endTime": 1},
    "trade/user/team": {"openId": "LBA0SANDBOX", "tradeType": 1, "startTime": 0, "endTime": 1},
    "trade/future": {"openId": "LBA0SANDBOX", "userType": "ALL", "startTime": 0, "endTime": 1},
    "money/detail/list": {
        "openId": "LBA0SANDBOX", "userType": "ALL", "startTime": 0, "endTime": 1, "subInOutType": "IN_DEPOSIT",
        "start": 0, "pageSize": 1,
    },
}  # fmt: skip
