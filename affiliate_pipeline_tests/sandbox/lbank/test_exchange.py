"""The envelope, the rate limit and the faults of the sandbox's LBank."""

import pytest

from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline.sandbox.days import DAY_MS
from affiliate_pipeline.sandbox.lbank.days import start_of
from affiliate_pipeline.sandbox.lbank.money import MONEY
from affiliate_pipeline_tests.sandbox.lbank.lbank_requests import INFO, LISTS, NEEDED, WEEK, YESTERDAY, paged, window


def test_the_envelope_tells_the_time(lbank, lbank_caller, clock):
    body = lbank_caller.get("trade/future", **NEEDED["trade/future"]).body
    assert body == (
        b'{"result":"true","error_code":0,"msg":"Success","data":{"turnover":"0","fee":"0"},"ts":%d}' % clock.ms
    )
    body = lbank_caller.get("trade/future").body
    assert (
        body == b'{"result":"false","error_code":10001,"msg":"Parameter can not be null: endTime","ts":%d}' % clock.ms
    )


@pytest.mark.parametrize("code", [10601, 10022])
def test_a_path_can_be_refused_until_told_otherwise(lbank, info, lbank_caller, code):
    lbank.refused_paths["/affiliate-api/v2/invite/user/info"] = code
    assert info().error_code == code
    lbank_caller.secret, secret = "another", lbank_caller.secret
    assert info().error_code == 10007
    lbank_caller.secret = secret
    lbank.refused_paths.clear()
    assert info().data


def test_an_unknown_path_and_another_method_are_not_found(lbank_caller):
    assert lbank_caller.raw("unknown", "").status == 404
    assert lbank_caller.raw(INFO, "", method="POST").status == 404


def test_result_can_be_a_boolean(lbank, info):
    lbank.result_as_boolean = True
    assert info().body.startswith(b'{"result":true,"error_code":0,')
    assert info(openId="").body.startswith(b'{"result":false,"error_code":10001,')


# The rate limit


def test_the_sixth_request_within_ten_seconds_is_refused(lbank_caller, clock):
    codes = []
    for _ in range(6):
        codes.append(lbank_caller.get(INFO, openId="x").json["error_code"])
        clock.ms += 1999
    assert codes == [0, 0, 0, 0, 0, 10004]


def test_a_refused_request_counts_too(lbank_caller, clock):
    def ask(**params):
        return lbank_caller.get(INFO, openId="x", **params).json["error_code"]

    lbank_caller.secret, secret = "another", lbank_caller.secret
    assert [ask(), ask(timestamp=None), ask(echostr="short")] == [10007, 10001, 10031]
    lbank_caller.secret = secret
    assert [ask() for _ in range(3)] == [0, 0, 10004]
    clock.ms += 9_999
    assert ask() == 10004
    clock.ms += 1
    assert [ask() for _ in range(5)] == [0, 0, 0, 0, 10004]


def test_the_window_slides(lbank_caller, clock):
    def ask():
        return lbank_caller.get(INFO, openId="x").json["error_code"]

    assert [ask() for _ in range(4)] == [0] * 4
    clock.ms += 9_999
    assert ask() == 0
    clock.ms += 1
    assert [ask() for _ in range(4)] == [0] * 4
    assert ask() == 10004


def test_endpoints_and_keys_have_limits_of_their_own(sandbox, lbank_caller):
    sandbox.lbank.rate_limit = (1, 10_000)
    sandbox.lbank.add_account("another", lbank_caller.secret)
    window = {"startTime": 0, "endTime": 1, "pageSize": 1}
    for key in (sandbox.lbank.api_key, "another"):
        lbank_caller.stamp["api_key"] = key
        assert lbank_caller.get(INFO, openId="x").data
        assert lbank_caller.get("invite/user/list", **window).data == []
        assert lbank_caller.get(INFO, openId="x").error_code == 10004


def test_the_limits_can_be_scaled(clock):
    scaled = Sandbox(now=clock, rate_scale=50)
    assert scaled.lbank.rate_limit == (5, 200)
    assert scaled.binance.weight_window_ms == 1200


# Rows that move, and faults


def test_rows_shift_when_somebody_is_added_while_pages_are_read(lbank, lbank_caller, clock):
    asked = []

    def insert(path, params):
        asked.append((path, params["start"]))
        if len(asked) == 1:
            lbank.add_user(registered_ms=lbank.users[0]["createTime"])

    lbank.after_page = insert
    rows = paged(lbank_caller, LISTS[1], size=25, startTime=0, endTime=clock.ms)
    ids = [row["openId"] for row in rows]
    assert len(ids) == 61 and len(set(ids)) == 60 and ids[24] == ids[25]
    assert asked == [(f"/affiliate-api/v2/{LISTS[1]}", start) for start in ("0", "25", "50")]


def test_adding_somebody_changes_nobody_elses_past(lbank, clock):
    def told():
        return [[lbank.trades(day), lbank.commissions(day), [lbank.money(day, kind) for kind in MONEY]] for day in WEEK]

    before = told()
    lbank.add_user(registered_ms=start_of(WEEK[0]), level=3)
    after = told()
    assert [each[::2] for each in after] == [each[::2] for each in before]
    lbank.add_user(registered_ms=start_of(WEEK[0]), first_trade_ms=start_of(WEEK[0]))
    later = told()
    assert all(set(map(str, old[0])) < set(map(str, new[0])) for old, new in zip(after[:1], later, strict=False))
    fresh = Sandbox(now=clock).lbank  # has not read any money before
    fresh.add_user(registered_ms=start_of(WEEK[0]), first_trade_ms=start_of(WEEK[0]))
    assert [[fresh.money(day, kind) for kind in MONEY] for day in WEEK] == [each[2] for each in before]


def test_a_failing_day_fails_every_range_that_touches_it(sandbox, lbank, lbank_caller):
    bad = WEEK[3]
    sandbox.faults.fail_day(bad)
    start = start_of(bad)
    asked = {"openId": lbank.own_open_id, "tradeType": 0}
    for ends in ((start - DAY_MS, start), (start + 5, start + 5), (start + DAY_MS - 1, start + 2 * DAY_MS)):
        reply = lbank_caller.get("trade/user", startTime=ends[0], endTime=ends[1], **asked)
        assert reply.error_code == 10000 and sandbox.requests[-1].fault == "fail_day"
    for ends in ((start - DAY_MS, start - 1), (start + DAY_MS, start + 2 * DAY_MS)):
        assert lbank_caller.get("trade/user", startTime=ends[0], endTime=ends[1], **asked).data
    assert lbank_caller.get("invite/user/info", openId=lbank.own_open_id).data
    sandbox.faults.fail_day(bad, code=10003)
    assert lbank_caller.get("trade/user", startTime=start, endTime=start, **asked).error_code == 10003


def test_a_failing_day_can_be_that_of_one_endpoint(sandbox, lbank, lbank_caller):
    sandbox.faults.path = "trade/user/team"
    sandbox.faults.fail_day(WEEK[3])
    asked = {"openId": lbank.own_open_id, "tradeType": 0, **window(*WEEK)}
    assert lbank_caller.get("trade/user", **asked).data
    assert lbank_caller.get("trade/user/team", **asked).error_code == 10000


@pytest.mark.parametrize(("kind", "code"), [("http_500", 10000), ("rate_limited", 10004)])
def test_troubles_of_the_exchange_come_in_its_envelope(sandbox, lbank, lbank_caller, kind, code):
    sandbox.faults.mix(**{kind: 1})
    assert lbank_caller.get("trade/future", **NEEDED["trade/future"]).error_code == code
    assert (sandbox.requests[-1].code, sandbox.requests[-1].fault) == (code, kind)


def test_rows_can_be_altered_on_their_way(sandbox, lbank, lbank_caller):
    def transform(row):
        return {name.lower(): value // 1000 if name == "statsDate" else value for name, value in row.items()} | {
            "new": 1
        }

    sandbox.faults.transform_row = transform
    row = lbank_caller.get("trade/user", openId=lbank.own_open_id, tradeType=0, **window(YESTERDAY)).data[0]
    assert row.keys() == {"openid", "statsdate", "tradeamt", "feeamt", "new"}
    assert row["statsdate"] == start_of(YESTERDAY) // 1000
    futures = lbank_caller.get("trade/future", **NEEDED["trade/future"]).data
    assert futures == {"turnover": "0", "fee": "0", "new": 1}
    assert "statsDate" in lbank.trades(YESTERDAY)[0]


def test_refusals_are_in_the_log_and_not_spoiled(sandbox, lbank, lbank_caller):
    sandbox.faults.next_responses.append((503, {}, b""))
    assert lbank_caller.get("trade/future").error_code == 10001
    assert lbank_caller.get("trade/future", **NEEDED["trade/future"]).status == 503
    seen = [(each.path, each.status, each.code, each.fault) for each in sandbox.requests]
    path = "/affiliate-api/v2/trade/future"
    assert seen == [(path, 200, 10001, None), (path, 503, None, "next_responses")]
