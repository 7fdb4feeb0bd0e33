"""What the sandbox can be told to do wrong."""

import http.client
import time
from collections import Counter
from datetime import date, timedelta

import pytest

from affiliate_pipeline.sandbox import Number
from affiliate_pipeline.sandbox.days import DAY_MS, start_of

DAY = date(2025, 6, 3)
BAD_DAY = date(2025, 6, 1)
LOST = (ConnectionError, http.client.IncompleteRead)


def status_of(caller, **params):
    """The status, or the name of the exception that lost the connection."""
    try:
        return caller.rebates(**params).status
    except LOST as error:
        caller.connection.close()
        return type(error).__name__


@pytest.mark.parametrize(("status", "code", "seen"), [(400, -1130, -1130), (500, None, -1001), (403, None, -1000)])
def test_a_failing_day_fails_every_range_that_touches_it(sandbox, caller, status, code, seen):
    sandbox.faults.fail_day(BAD_DAY, status=status, code=code)
    start = start_of(BAD_DAY)
    for window in ((start - DAY_MS, start), (start + 5, start + 5), (start + DAY_MS - 1, start + 2 * DAY_MS)):
        assert caller.rebates(startTime=window[0], endTime=window[1]).refusal == (status, seen)
    for window in ((start - DAY_MS, start - 1), (start + DAY_MS, start + 2 * DAY_MS)):
        assert caller.rebates(startTime=window[0], endTime=window[1]).status == 200
    assert caller.raw("/api/v3/time").status == 200


def test_an_exclusive_end_does_not_touch_the_next_day(sandbox, caller):
    sandbox.binance.exclusive_end = True
    sandbox.faults.fail_day(BAD_DAY)
    start = start_of(BAD_DAY)
    assert caller.rebates(startTime=start - DAY_MS, endTime=start).status == 200


def test_a_refusal_is_not_hidden_by_a_fault(sandbox, caller):
    sandbox.faults.fail_day(DAY)
    sandbox.faults.next_responses.append((200, {}, b"[]"))
    caller.secret = "another"
    assert caller.rebates().refusal == (400, -1022)
    assert len(sandbox.faults.next_responses) == 1


def test_clear_ends_all_faults(sandbox, caller):
    sandbox.faults.fail_day(DAY)
    sandbox.faults.mix(http_500=1)
    sandbox.faults.next_responses.append((500, {}, b""))
    sandbox.faults.clock_offset_ms = 90_000
    sandbox.faults.transform_row = lambda row: {}
    sandbox.faults.clear()
    assert all(caller.rebates().json)


def test_the_next_responses_are_used_up_in_order(sandbox, caller):
    sandbox.faults.path = "recentRecord"
    sandbox.faults.next_responses += [(403, {"X-Firewall": "yes"}, b"no"), (200, {}, b"[{}]")]
    assert caller.raw("/api/v3/time").status == 200
    first, second, third = caller.rebates(), caller.rebates(), caller.rebates()
    assert (first.status, first.headers["X-Firewall"], first.body) == (403, "yes", b"no")
    assert second.json == [{}] and len(third.json) > 1


def test_rows_can_be_altered_on_their_way(sandbox, caller):
    before = caller.rebates().json

    def transform(row):
        return {**{k: v for k, v in row.items() if k != "email"}, "income": Number("0.50"), "level": "new"}

    sandbox.faults.transform_row = transform
    reply = caller.rebates()
    assert b'"income":0.50,' in reply.body
    assert reply.json == [transform(row) | {"income": 0.5} for row in before]
    assert "email" in sandbox.binance.rebates(DAY)[0]


def test_a_500_is_in_the_exchanges_envelope(sandbox, caller):
    sandbox.faults.mix(http_500=1)
    assert caller.rebates().refusal == (500, -1001)


@pytest.mark.parametrize(("kind", "status"), [("http_502", 502), ("html", 200)])
def test_gateways_answer_with_a_page(sandbox, caller, kind, status):
    sandbox.faults.mix(**{kind: 1})
    reply = caller.rebates()
    assert (reply.status, reply.headers["Content-Type"]) == (status, "text/html") and b"<html>" in reply.body


def test_rate_limited_tells_how_long_to_wait(sandbox, caller):
    sandbox.faults.retry_after_s = 7
    sandbox.faults.mix(rate_limited=1)
    reply = caller.rebates()
    assert reply.refusal == (429, -1003) and reply.headers["Retry-After"] == "7"


def test_a_reset_is_a_reset(sandbox, caller):
    sandbox.faults.mix(reset=1)
    with pytest.raises(ConnectionResetError) as caught:
        caller.rebates()
    assert type(caught.value) is ConnectionResetError  # not http.client's RemoteDisconnected, an orderly end


def test_a_truncated_answer_ends_before_its_length(sandbox, caller):
    whole = caller.rebates().body
    sandbox.faults.mix(truncated=1)
    with pytest.raises(http.client.IncompleteRead) as caught:
        caller.rebates()
    assert caught.value.partial == whole[: len(whole) // 2]
    assert caught.value.expected == len(whole) - len(whole) // 2


def test_a_slow_answer_is_whole(sandbox, caller):
    whole = caller.rebates().body
    sandbox.faults.slow_s = 0.05
    sandbox.faults.mix(slow=1)
    started = time.monotonic()
    assert caller.rebates().body == whole
    assert time.monotonic() - started >= 0.05


def test_the_mix_keeps_its_rates_and_its_seed(sandbox, caller):
    def outcomes():
        sandbox.faults.mix(seed=7, http_500=0.1, http_502=0.1, reset=0.1, truncated=0.1, rate_limited=0.1)
        return [status_of(caller, limit=1) for _ in range(200)]

    first = outcomes()
    assert first == outcomes()
    counted = Counter(first)
    assert 70 < counted.pop(200) < 130
    assert counted.keys() == {500, 502, "ConnectionResetError", "IncompleteRead", 429}
    assert all(5 < times < 40 for times in counted.values())


@pytest.mark.parametrize("rates", [{"http_503": 0.1}, {"reset": 0.6, "html": 0.6}])
def test_an_impossible_mix_is_refused(sandbox, rates):
    with pytest.raises(ValueError):
        sandbox.faults.mix(**rates)


def test_faults_are_told_from_refusals_in_the_log(sandbox, caller):
    sandbox.faults.fail_day(BAD_DAY, status=400, code=-1130)
    start = start_of(BAD_DAY)
    caller.rebates(startTime=start, endTime=start)
    caller.rebates(limit=501)
    sandbox.faults.mix(reset=1)
    status_of(caller)
    seen = [(each.status, each.code, each.fault) for each in sandbox.requests]
    assert seen == [(400, -1130, "fail_day"), (400, -1130, None), (None, None, "reset")]


def test_days_can_go_on_failing_while_others_are_added(sandbox, caller):
    for back in range(3):
        sandbox.faults.fail_day(DAY - timedelta(back))
    midnights = [start_of(DAY) - back * DAY_MS for back in range(4)]
    assert [status_of(caller, startTime=at, endTime=at) for at in midnights] == [500, 500, 500, 200]
