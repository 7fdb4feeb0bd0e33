"""The faults that tests configure in the sandbox, seen through Binance."""

import http.client
import time
from collections import Counter
from datetime import date, timedelta

import pytest

from affiliate_pipeline.sandbox import Number
from affiliate_pipeline.sandbox.days import DAY_MS, start_of

DAY = date(2025, 6, 3)
BAD_DAY = date(2025, 6, 1)


def status_of(caller, **params):
    """The status, or the name of the exception if the connection failed."""
    try:
        return caller.rebates(**params).status
    except (ConnectionError, http.client.IncompleteRead) as error:
        caller.connection.close()
        return type(error).__name__


@pytest.mark.parametrize(
    ("status", "code", "expected_code"), [(400, -1130, -1130), (500, None, -1001), (403, None, -1000)]
)
def test_a_failing_day_fails_every_window_that_overlaps_it(sandbox, caller, status, code, expected_code):
    sandbox.faults.fail_day(BAD_DAY, status=status, code=code)
    start = start_of(BAD_DAY)
    for first, last in ((start - DAY_MS, start), (start + 5, start + 5), (start + DAY_MS - 1, start + 2 * DAY_MS)):
        assert caller.rebates(startTime=first, endTime=last).refusal == (status, expected_code)
    for first, last in ((start - DAY_MS, start - 1), (start + DAY_MS, start + 2 * DAY_MS)):
        assert caller.rebates(startTime=first, endTime=last).status == 200
    assert caller.raw("/api/v3/time").status == 200


def test_a_window_with_an_exclusive_end_at_midnight_does_not_overlap_the_next_day(sandbox, caller):
    sandbox.binance.exclusive_end = True
    sandbox.faults.fail_day(BAD_DAY)
    start = start_of(BAD_DAY)
    assert caller.rebates(startTime=start - DAY_MS, endTime=start).status == 200


def test_a_fault_does_not_replace_a_refusal(sandbox, caller):
    sandbox.faults.fail_day(DAY)
    sandbox.faults.next_responses.append((200, {}, b"[]"))
    caller.secret = "another"
    assert caller.rebates().refusal == (400, -1022)
    assert len(sandbox.faults.next_responses) == 1


def test_clear_removes_all_faults(sandbox, caller):
    sandbox.faults.fail_day(DAY)
    sandbox.faults.mix(http_500=1)
    sandbox.faults.next_responses.append((500, {}, b""))
    sandbox.faults.clock_offset_ms = 90_000
    sandbox.faults.transform_row = lambda row: {}
    sandbox.faults.clear()
    response = caller.rebates()
    assert response.status == 200 and response.json and all(response.json)


def test_canned_responses_are_sent_once_each_in_order(sandbox, caller):
    sandbox.faults.path = "recentRecord"
    sandbox.faults.next_responses += [(403, {"X-Firewall": "yes"}, b"no"), (200, {}, b"[{}]")]
    assert caller.raw("/api/v3/time").status == 200
    first, second, third = caller.rebates(), caller.rebates(), caller.rebates()
    assert (first.status, first.headers["X-Firewall"], first.body) == (403, "yes", b"no")
    assert second.json == [{}] and len(third.json) > 1


def test_rows_are_sent_as_transform_row_returns_them(sandbox, caller):
    before = caller.rebates().json

    def transform(row):
        return {**{k: v for k, v in row.items() if k != "email"}, "income": Number("0.50"), "level": "new"}

    sandbox.faults.transform_row = transform
    response = caller.rebates()
    assert b'"income":0.50,' in response.body
    assert response.json == [transform(row) | {"income": 0.5} for row in before]
    assert "email" in sandbox.binance.rebates(DAY)[0]


def test_a_500_has_the_exchanges_envelope(sandbox, caller):
    sandbox.faults.mix(http_500=1)
    assert caller.rebates().refusal == (500, -1001)


@pytest.mark.parametrize(("kind", "status"), [("http_502", 502), ("html", 200)])
def test_gateway_faults_send_an_html_page(sandbox, caller, kind, status):
    sandbox.faults.mix(**{kind: 1})
    response = caller.rebates()
    assert (response.status, response.headers["Content-Type"]) == (status, "text/html")
    assert b"<html>" in response.body


def test_a_rate_limited_response_has_retry_after(sandbox, caller):
    sandbox.faults.retry_after_s = 7
    sandbox.faults.mix(rate_limited=1)
    response = caller.rebates()
    assert response.refusal == (429, -1003) and response.headers["Retry-After"] == "7"


def test_a_reset_aborts_the_connection(sandbox, caller):
    sandbox.faults.mix(reset=1)
    with pytest.raises(ConnectionResetError) as caught:
        caller.rebates()
    # Its subclass RemoteDisconnected would mean that the server closed the connection in an orderly way.
    assert type(caught.value) is ConnectionResetError


def test_a_truncated_response_is_shorter_than_its_content_length(sandbox, caller):
    complete = caller.rebates().body
    sandbox.faults.mix(truncated=1)
    with pytest.raises(http.client.IncompleteRead) as caught:
        caller.rebates()
    assert caught.value.partial == complete[: len(complete) // 2]
    assert caught.value.expected == len(complete) - len(complete) // 2


def test_a_slow_response_is_delayed_and_complete(sandbox, caller):
    complete = caller.rebates().body
    sandbox.faults.slow_s = 0.05
    sandbox.faults.mix(slow=1)
    started = time.monotonic()
    assert caller.rebates().body == complete
    assert time.monotonic() - started >= 0.05


def test_a_mix_has_the_given_rates_and_repeats_with_the_same_seed(sandbox, caller):
    def outcomes():
        sandbox.faults.mix(seed=7, http_500=0.1, http_502=0.1, reset=0.1, truncated=0.1, rate_limited=0.1)
        return [status_of(caller, limit=1) for _ in range(120)]

    first = outcomes()
    assert first == outcomes()
    counted = Counter(first)
    assert 35 < counted.pop(200) < 85
    assert counted.keys() == {500, 502, "ConnectionResetError", "IncompleteRead", 429}
    assert all(2 < times < 30 for times in counted.values())


@pytest.mark.parametrize("rates", [{"http_503": 0.1}, {"reset": 0.6, "html": 0.6}])
def test_a_mix_with_an_unknown_fault_or_rates_above_1_is_refused(sandbox, rates):
    with pytest.raises(ValueError):
        sandbox.faults.mix(**rates)


def test_the_request_log_distinguishes_faults_from_refusals(sandbox, caller):
    sandbox.faults.fail_day(BAD_DAY, status=400, code=-1130)
    start = start_of(BAD_DAY)
    caller.rebates(startTime=start, endTime=start)
    caller.rebates(limit=501)
    sandbox.faults.mix(reset=1)
    status_of(caller)
    logged = [(request.status, request.code, request.fault) for request in sandbox.requests]
    assert logged == [(400, -1130, "fail_day"), (400, -1130, None), (None, None, "reset")]


def test_several_days_can_fail(sandbox, caller):
    for back in range(3):
        sandbox.faults.fail_day(DAY - timedelta(back))
    midnights = [start_of(DAY) - back * DAY_MS for back in range(4)]
    assert [status_of(caller, startTime=at, endTime=at) for at in midnights] == [500, 500, 500, 200]
