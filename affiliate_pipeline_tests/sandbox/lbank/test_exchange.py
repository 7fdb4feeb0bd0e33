"""The envelope, the rate limit and the faults of the sandbox's LBank."""

import pytest

from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline.sandbox.days import DAY_MS
from affiliate_pipeline.sandbox.lbank.days import start_of
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


def test_the_envelope_has_result_code_message_and_time(lbank, lbank_caller, clock):
    success = b'{"result":"true","error_code":0,"msg":"Success","data":{"turnover":"0","fee":"0"},"ts":%d}'
    refusal = b'{"result":"false","error_code":10001,"msg":"Parameter can not be null: endTime","ts":%d}'
    assert lbank_caller.get("trade/future", **VALID_PARAMS["trade/future"]).body == success % clock.ms
    assert lbank_caller.get("trade/future").body == refusal % clock.ms


@pytest.mark.parametrize("code", [10601, 10022])
def test_a_refused_path_returns_its_code_after_the_signature_check_until_cleared(lbank, info, lbank_caller, code):
    lbank.refused_paths["/affiliate-api/v2/invite/user/info"] = code
    assert info().error_code == code
    lbank_caller.secret, secret = "another", lbank_caller.secret
    assert info().error_code == 10007
    lbank_caller.secret = secret
    lbank.refused_paths.clear()
    assert info().data


def test_an_unknown_path_and_a_post_are_not_found(lbank_caller):
    assert lbank_caller.raw("unknown", "").status == 404
    assert lbank_caller.raw(INFO, "", method="POST").status == 404


def test_result_can_be_a_boolean(lbank, info):
    lbank.result_as_boolean = True
    assert info().body.startswith(b'{"result":true,"error_code":0,')
    assert info(openId="").body.startswith(b'{"result":false,"error_code":10001,')


def test_the_sixth_request_within_ten_seconds_is_refused(lbank_caller, clock):
    codes = []
    for _ in range(6):
        codes.append(lbank_caller.get(INFO, openId="x").json["error_code"])
        clock.ms += 1999
    assert codes == [0, 0, 0, 0, 0, 10004]


def test_refused_requests_count_against_the_rate_limit(lbank_caller, clock):
    def code(**params):
        return lbank_caller.get(INFO, openId="x", **params).json["error_code"]

    lbank_caller.secret, secret = "another", lbank_caller.secret
    assert [code(), code(timestamp=None), code(echostr="short")] == [10007, 10001, 10031]
    lbank_caller.secret = secret
    assert [code() for _ in range(3)] == [0, 0, 10004]
    clock.ms += 9_999
    assert code() == 10004
    clock.ms += 1
    assert [code() for _ in range(5)] == [0, 0, 0, 0, 10004]


def test_the_rate_limit_window_slides(lbank_caller, clock):
    def code():
        return lbank_caller.get(INFO, openId="x").json["error_code"]

    assert [code() for _ in range(4)] == [0] * 4
    clock.ms += 9_999
    assert code() == 0
    clock.ms += 1
    assert [code() for _ in range(4)] == [0] * 4
    assert code() == 10004


def test_each_endpoint_and_key_has_its_own_rate_limit(sandbox, lbank_caller):
    sandbox.lbank.rate_limit = (1, 10_000)
    sandbox.lbank.add_key("another", lbank_caller.secret)
    window = {"startTime": 0, "endTime": 1, "pageSize": 1}
    for key in (sandbox.lbank.api_key, "another"):
        lbank_caller.stamp["api_key"] = key
        assert lbank_caller.get(INFO, openId="x").data
        assert lbank_caller.get("invite/user/list", **window).data == []
        assert lbank_caller.get(INFO, openId="x").error_code == 10004


def test_rate_scale_shortens_the_rate_limit_windows(clock):
    scaled = Sandbox(now=clock, rate_scale=50)
    assert scaled.lbank.rate_limit == (5, 200)
    assert scaled.binance.weight.window_ms == 1200


def test_rows_shift_when_a_user_is_added_between_two_pages(lbank, lbank_caller, clock):
    pages = []

    def insert(path, params):
        pages.append((path, params["start"]))
        if len(pages) == 1:
            lbank.add_user(registered_ms=lbank.users[0]["createTime"])

    lbank.after_page = insert
    rows = paged(lbank_caller, LISTS[1], size=25, startTime=0, endTime=clock.ms)
    ids = [row["openId"] for row in rows]
    assert len(ids) == 61 and len(set(ids)) == 60 and ids[24] == ids[25]
    assert pages == [(f"/affiliate-api/v2/{LISTS[1]}", start) for start in ("0", "25", "50")]


def test_adding_a_user_does_not_change_the_trades_and_money_of_others(lbank, clock):
    def trades():
        return [lbank.trades(day) for day in WEEK]

    def money(exchange):
        return [[exchange.money(day, kind) for kind in MONEY] for day in WEEK]

    def add_trader(exchange):
        exchange.add_user(registered_ms=start_of(WEEK[0]), first_trade_ms=start_of(WEEK[0]))

    trades_before, money_before = trades(), money(lbank)
    lbank.add_user(registered_ms=start_of(WEEK[0]), level=3)
    assert (trades(), money(lbank)) == (trades_before, money_before)
    add_trader(lbank)
    assert set(map(str, trades_before[0])) < set(map(str, lbank.trades(WEEK[0])))
    # A new LBank generates its money after the user is added.
    fresh = Sandbox(now=clock).lbank
    add_trader(fresh)
    assert money(fresh) == money_before


def test_a_failing_day_fails_every_window_that_overlaps_it(sandbox, lbank, lbank_caller):
    bad = WEEK[3]
    sandbox.faults.fail_day(bad)
    start = start_of(bad)
    params = {"openId": lbank.own_open_id, "tradeType": 0}
    for first, last in ((start - DAY_MS, start), (start + 5, start + 5), (start + DAY_MS - 1, start + 2 * DAY_MS)):
        response = lbank_caller.get("trade/user", startTime=first, endTime=last, **params)
        assert response.error_code == 10000 and sandbox.requests[-1].fault == "fail_day"
    for first, last in ((start - DAY_MS, start - 1), (start + DAY_MS, start + 2 * DAY_MS)):
        assert lbank_caller.get("trade/user", startTime=first, endTime=last, **params).data
    assert lbank_caller.get("invite/user/info", openId=lbank.own_open_id).data
    sandbox.faults.fail_day(bad, code=10003)
    assert lbank_caller.get("trade/user", startTime=start, endTime=start, **params).error_code == 10003


def test_a_day_can_fail_for_one_path_only(sandbox, lbank, lbank_caller):
    sandbox.faults.path = "trade/user/team"
    sandbox.faults.fail_day(WEEK[3])
    params = {"openId": lbank.own_open_id, "tradeType": 0, **window(*WEEK)}
    assert lbank_caller.get("trade/user", **params).data
    assert lbank_caller.get("trade/user/team", **params).error_code == 10000


@pytest.mark.parametrize(("kind", "code"), [("http_500", 10000), ("rate_limited", 10004)])
def test_error_faults_have_lbanks_envelope(sandbox, lbank, lbank_caller, kind, code):
    sandbox.faults.mix(**{kind: 1})
    assert lbank_caller.get("trade/future", **VALID_PARAMS["trade/future"]).error_code == code
    assert (sandbox.requests[-1].code, sandbox.requests[-1].fault) == (code, kind)


def test_rows_are_sent_as_transform_row_returns_them(sandbox, lbank, lbank_caller):
    def transform(row):
        renamed = {name.lower(): value // 1000 if name == "statsDate" else value for name, value in row.items()}
        return renamed | {"new": 1}

    sandbox.faults.transform_row = transform
    row = lbank_caller.get("trade/user", openId=lbank.own_open_id, tradeType=0, **window(YESTERDAY)).data[0]
    assert row.keys() == {"openid", "statsdate", "tradeamt", "feeamt", "new"}
    assert row["statsdate"] == start_of(YESTERDAY) // 1000
    futures = lbank_caller.get("trade/future", **VALID_PARAMS["trade/future"]).data
    assert futures == {"turnover": "0", "fee": "0", "new": 1}
    assert "statsDate" in lbank.trades(YESTERDAY)[0]


def test_a_canned_response_does_not_replace_a_refusal(sandbox, lbank, lbank_caller):
    sandbox.faults.next_responses.append((503, {}, b""))
    assert lbank_caller.get("trade/future").error_code == 10001
    assert lbank_caller.get("trade/future", **VALID_PARAMS["trade/future"]).status == 503
    logged = [(request.path, request.status, request.code, request.fault) for request in sandbox.requests]
    path = "/affiliate-api/v2/trade/future"
    assert logged == [(path, 200, 10001, None), (path, 503, None, "next_responses")]
