"""The rebates of the sandbox's Binance, and the windows and limits of its endpoint."""

import hashlib
import json
from collections import Counter
from datetime import date, timedelta
from decimal import Decimal

import pytest

from affiliate_pipeline.sandbox import Number, Sandbox
from affiliate_pipeline.sandbox.binance.rebates import generated_day
from affiliate_pipeline.sandbox.days import DAY_MS, HOUR_MS, start_of

DAY = date(2025, 6, 3)
YESTERDAY = date(2025, 6, 2)
PAYOUT_FIELDS = {"distributeTime", "commissionAsset", "commission", "convertPrice"}


def row(time, **fields):
    return {
        "customerId": "abd433", "email": "abcd*****@gmail.com", "income": "1.2063898", "asset": "USDT",
        "symbol": "BTCUSDT", "time": time, "orderId": 10500242, "tradeId": 612323,
    } | fields  # fmt: skip


def walk(caller, start, end):
    """All rows of [start, end], page by page, oldest first. No millisecond may have 500 rows."""
    rows = []
    while len(page := caller.rebates(startTime=start, endTime=end).json) == 500:
        start = page[-1]["time"]
        rows += [each for each in page if each["time"] < start]
    return rows + page


@pytest.fixture(scope="module")
def busy_day():
    return [json.loads(each) for each in generated_day(DAY, 10_000).rows]


@pytest.mark.parametrize("missing", ["startTime", "endTime"])
def test_a_window_with_one_end_only_is_refused(caller, missing):
    assert caller.rebates(**{missing: None}).refusal == (400, -1102)


def test_the_default_window_is_the_last_7_days(sandbox, caller, clock):
    oldest, newest = row(clock.ms - 7 * DAY_MS), row(clock.ms)
    sandbox.binance.set_rebates([newest, oldest, row(clock.ms - 7 * DAY_MS - 1)])
    assert caller.rebates(startTime=None, endTime=None).json == [oldest, newest]


def test_a_window_longer_than_7_days_is_refused(caller, clock):
    assert caller.rebates(startTime=clock.ms - 7 * DAY_MS).status == 200
    assert caller.rebates(startTime=clock.ms - 7 * DAY_MS - 1).refusal == (400, -1127)


def test_a_window_that_ends_before_it_starts_is_refused(caller, clock):
    assert caller.rebates(startTime=clock.ms + 1).refusal == (400, -1128)


@pytest.mark.parametrize(("limit", "code"), [(None, -1102), (0, -1130), (501, -1130), ("all", -1100)])
def test_a_limit_from_1_to_500_is_required(caller, limit, code):
    response = caller.rebates(limit=limit)
    assert response.refusal == (400, code) and "'limit'" in response.json["msg"]


def test_both_ends_are_inclusive_by_default(sandbox, caller):
    start, end = start_of(YESTERDAY), start_of(YESTERDAY) + 10
    rows = [row(at) for at in (start - 1, start, end - 1, end, end + 1)]
    sandbox.binance.set_rebates(rows)
    assert caller.rebates(startTime=start, endTime=end).json == rows[1:4]
    sandbox.binance.exclusive_end = True
    assert caller.rebates(startTime=start, endTime=end).json == rows[1:3]
    assert caller.rebates(startTime=start, endTime=start).json == []


def test_a_full_page_has_the_oldest_rows_unless_newest_first_is_set(sandbox, caller):
    rows = [row(start_of(YESTERDAY) + i // 2, tradeId=i) for i in range(10)]
    sandbox.binance.set_rebates(rows)
    params = {"startTime": start_of(YESTERDAY), "endTime": start_of(YESTERDAY) + 100}
    assert caller.rebates(**params, limit=7).json == rows[:7]
    sandbox.binance.newest_first = True
    assert caller.rebates(**params, limit=7).json == rows[::-1][:7]


@pytest.mark.parametrize("newest_first", [False, True])
def test_a_page_can_have_rows_of_several_days(sandbox, caller, newest_first):
    midnight = start_of(DAY)
    rows = [row(midnight + offset) for offset in (-DAY_MS, -1, 0, 1)]
    sandbox.binance.set_rebates(rows)
    sandbox.binance.newest_first = newest_first
    expected = rows[::-1] if newest_first else rows
    params = {"startTime": midnight - DAY_MS, "endTime": midnight + 1}
    assert caller.rebates(**params).json == expected
    assert caller.rebates(**params, limit=2).json == expected[:2]
    assert len(caller.rebates(startTime=midnight - 1, endTime=midnight + 1).json) == 3


def test_rebates_are_filtered_by_customer(sandbox, caller):
    at = start_of(YESTERDAY)
    rows = [row(at + i, customerId="a+b&c" if i % 3 == 0 else "x") for i in range(9)]
    sandbox.binance.set_rebates(rows)
    params = {"startTime": at, "endTime": at + 100, "customerId": "a+b&c"}
    assert caller.rebates(**params).json == rows[::3]
    assert caller.rebates(**params, limit=2).json == rows[:6:3]
    assert caller.rebates(**params | {"customerId": "unknown"}).json == []


def test_the_maximum_limit_can_be_lowered(sandbox, caller):
    sandbox.binance.max_limit = 5
    assert caller.rebates(limit=6).refusal == (400, -1130)
    assert len(caller.rebates(startTime=start_of(YESTERDAY), limit=5).json) == 5


def test_rows_after_the_current_time_are_not_returned(sandbox, caller, clock):
    sandbox.binance.set_rebates([row(clock.ms), row(clock.ms + 1)])
    params = {"startTime": clock.ms - 1, "endTime": clock.ms + DAY_MS}
    assert caller.rebates(**params).json == [row(clock.ms)]
    clock.ms += 1
    assert len(caller.rebates(**params).json) == len(sandbox.binance.rebates(DAY)) == 2


def test_rows_older_than_7_days_are_omitted_without_an_error(sandbox, caller, clock):
    long_ago = start_of(DAY - timedelta(20))
    assert caller.rebates(startTime=long_ago, endTime=long_ago + DAY_MS).body == b"[]"
    last_week = {"startTime": clock.ms - 7 * DAY_MS - HOUR_MS, "endTime": clock.ms - 7 * DAY_MS + HOUR_MS}
    assert min(each["time"] for each in caller.rebates(**last_week).json) >= clock.ms - 7 * DAY_MS
    assert sandbox.binance.rebates(DAY - timedelta(8)) == []
    sandbox.binance.retention_ms = None
    assert caller.rebates(startTime=long_ago, endTime=long_ago + DAY_MS, limit=1).json[0]["time"] == long_ago


def test_a_row_gets_its_payout_fields_20_hours_later(sandbox, caller, clock):
    at = start_of(YESTERDAY)
    params = {"startTime": at, "endTime": at, "limit": 1}
    clock.ms = at + 20 * HOUR_MS - 1
    early = caller.rebates(**params).json[0]
    clock.ms += 1
    late = caller.rebates(**params).json[0]
    assert late.keys() - early.keys() == PAYOUT_FIELDS and early == {k: late[k] for k in early}
    assert late["distributeTime"] == clock.ms


def test_payout_times_are_past_and_only_recent_rows_have_none(sandbox, clock):
    clock.ms += HOUR_MS // 2
    rows = [*sandbox.binance.rebates(YESTERDAY), *sandbox.binance.rebates(DAY)]
    paid = [each for each in rows if "distributeTime" in each]
    assert all(each["distributeTime"] <= clock.ms for each in paid)
    assert all(each["time"] > clock.ms - 21 * HOUR_MS for each in rows if "distributeTime" not in each)
    assert 0 < len(paid) < len(rows)


def test_the_rebates_of_a_day_equal_those_of_the_endpoint(clock, connect):
    with Sandbox(now=clock, rows_per_day=1500) as sandbox, connect(sandbox) as caller:
        expected = sandbox.binance.rebates(YESTERDAY)
        start = start_of(YESTERDAY)
        assert walk(caller, start, start + DAY_MS - 1) == expected
        assert len(expected) > 1000
        sandbox.binance.newest_first = sandbox.binance.exclusive_end = True
        assert sandbox.binance.rebates(YESTERDAY) == expected[::-1]


def test_rows_set_by_a_test_are_sent_unchanged(sandbox, caller, clock):
    odd = row(clock.ms, income=Number("0.10"), commission=Decimal("1.500"), email='"ü"*&=%+\\@例.com', new=None)
    sandbox.binance.set_rebates([odd, odd])
    body = caller.rebates().body
    assert body.count(b'"income":0.10,') == body.count(b'"commission":1.500,') == 2
    assert 'email":"\\"ü\\"*&=%+\\\\@例.com"' in body.decode() and b'"new":null' in body
    rebates = sandbox.binance.rebates(DAY)
    assert rebates == [odd | {"commission": "1.500"}] * 2 and isinstance(rebates[0]["income"], Number)


def test_rows_set_by_a_test_replace_all_rows(sandbox):
    assert sandbox.binance.rebates(YESTERDAY)
    sandbox.binance.set_rebates([row(start_of(DAY))])
    assert (len(sandbox.binance.rebates(YESTERDAY)), len(sandbox.binance.rebates(DAY))) == (0, 1)


def test_a_generated_day_is_the_same_in_every_process():
    # Python's `hash()` of a text differs between processes: this test fails if the rows depend on it.
    rows = generated_day(DAY, 3000).rows
    assert (len(rows), hashlib.sha256(b"".join(rows)).hexdigest()[:16]) == (3511, "17eeea547381f18d")


def test_generated_days_differ_and_weekends_are_smaller():
    days = [generated_day(DAY + timedelta(i), 3000) for i in range(7)]
    assert len({day.rows[5] for day in days}) == len({len(day.rows) for day in days}) == 7
    assert max(map(len, (days[4].rows, days[5].rows))) < min(len(days[i].rows) for i in (0, 1, 2, 3, 6))
    assert 0.85 * 21_000 < sum(len(day.rows) for day in days) < 1.15 * 21_000


@pytest.mark.parametrize("rows_per_day", [0, 1, 2, 10, 100])
def test_a_small_day_has_about_rows_per_day_rows(rows_per_day):
    rows = generated_day(DAY, rows_per_day).rows
    assert len(rows) == pytest.approx(rows_per_day, rel=0.3, abs=1)


def test_a_busy_day_is_ordered_from_its_first_to_its_last_millisecond(busy_day):
    times = [each["time"] for each in busy_day]
    assert (times[0], times[-1]) == (start_of(DAY), start_of(DAY) + DAY_MS - 1)
    assert times == sorted(times)


def test_a_busy_day_has_bursts(busy_day):
    per_minute = Counter(each["time"] // 60_000 for each in busy_day).most_common(2)
    per_ms = Counter(each["time"] for each in busy_day).most_common(1)
    assert all(rows > 300 for _, rows in per_minute)
    assert 35 <= per_ms[0][1] <= 50


def test_a_busy_day_has_pairs_of_equal_rows(busy_day):
    counts = Counter(map(json.dumps, busy_day))
    assert len([count for count in counts.values() if count == 2]) > 20


def test_a_busy_day_has_amounts_of_varied_scales_and_sizes(busy_day):
    incomes = [each["income"] for each in busy_day]
    scales = Counter(len(income.partition(".")[2]) for income in incomes)
    amounts = [Decimal(income) for income in incomes]
    assert scales[18] > 500 and scales[2] > 50 and scales.most_common(1)[0][0] == 8
    assert Decimal(0) in amounts and min(filter(None, amounts)) == Decimal("1e-18") and max(amounts) > 10**6
    assert sum(income.endswith("00000") for income in incomes) > 100
    assert len({each["asset"] for each in busy_day}) >= 12


def test_a_busy_day_has_varied_emails_and_ids(busy_day):
    emails = {each["email"] for each in busy_day}
    assert 250 < len(emails) < 350
    assert all(any(sign in email for email in emails) for sign in "+&=%'\"\\用م")
    assert any("*" not in email for email in emails)
    assert {each["customerId"] for each in busy_day} > {"", "007"}
    assert max(each["orderId"] for each in busy_day) > 2**40 < max(each["tradeId"] for each in busy_day)
