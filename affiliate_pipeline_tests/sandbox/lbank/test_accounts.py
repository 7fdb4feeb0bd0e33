"""Several accounts at the sandbox's LBank: the data of each key, and strangers' openIds."""

import pytest

from affiliate_pipeline.sandbox.lbank.money import MONEY
from affiliate_pipeline_tests.sandbox.lbank.lbank_requests import (
    INFO,
    LISTS,
    VALID_PARAMS,
    WEEK,
    YESTERDAY,
    paged,
    window,
)


@pytest.fixture
def acme_caller(lbank, acme, lbank_caller):
    """A caller with the second account's key."""
    lbank_caller.stamp["api_key"], lbank_caller.secret = acme.lbank.api_key, acme.lbank.api_secret
    return lbank_caller


def test_a_key_returns_the_users_of_its_account(lbank, acme, acme_caller, clock):
    rows = paged(acme_caller, LISTS[1], startTime=0, endTime=clock.ms)
    assert rows == [{k: v for k, v in user.items() if k != "id"} for user in acme.lbank.users]
    for name in ("id", "openId", "createTime"):
        assert not {row[name] for row in acme.lbank.users} & {row[name] for row in lbank.users}


def test_no_row_of_an_account_is_of_a_user_of_another(lbank, acme):
    def open_ids(exchange):
        rows = [exchange.trades(day) + exchange.commissions(day) for day in WEEK]
        rows += [exchange.money(day, kind) for day in WEEK for kind in MONEY]
        return {row["openId"] for each in rows for row in each}

    assert open_ids(lbank) and open_ids(acme.lbank) and not open_ids(lbank) & open_ids(acme.lbank)
    added = [exchange.add_user() for exchange in (lbank, acme.lbank)]
    assert len(set(added)) == 2


@pytest.mark.parametrize("path", [path for path in VALID_PARAMS if "openId" in VALID_PARAMS[path] and path != INFO])
def test_the_open_id_of_another_account_is_refused(lbank, acme, acme_caller, path):
    params = VALID_PARAMS[path] | window(YESTERDAY)
    assert acme_caller.get(path, **params | {"openId": lbank.own_open_id}).error_code == 10022
    assert acme_caller.get(path, **params | {"openId": acme.lbank.own_open_id}).json["error_code"] == 0


def test_the_info_of_a_user_of_another_account_is_empty(lbank, acme_caller):
    assert acme_caller.get(INFO, openId=lbank.own_open_id).data["inviteResult"] is False
