"""Exactly the exchange's rows land: each once, to the last digit, in whatever order the exchange lists them."""

from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from affiliate_pipeline.sandbox import Number
from affiliate_pipeline.sandbox.exchange import Response
from affiliate_pipeline_tests.defs.direct_runs import land
from affiliate_pipeline_tests.defs.rebates import (
    DAYS,
    KEY,
    SETTLED,
    ago,
    at,
    indices_of_requests_touching,
    landed,
    rebate,
    rebates,
    refusals,
    sent,
    with_row_limit,
)

pytestmark = pytest.mark.usefixtures("verified_keys")

EMAILS = [
    "a+b=c&d%40e@example.com",
    "50%off now@example.com",
    "用户*****@例子.公司",
    "مستخدم*****@مثال.com",
    "🙂@example.com",
    '"quoted, name"@example.com',
    "o'neil\\@example.com",
    "line\r\nbreak\t@example.com",
    "null",
    "NULL",
    "\\N",
    " ",
    "",
]
AMOUNTS = [
    "0",
    "0.0000",
    "1.10",
    "1.100",
    "-1.50",
    "0.000000000000000001",
    "123456789012345678901234567890.123456789012345678",
    Number("0.10"),
    Number("7"),
    Number("-0.000000000000000001"),
]


def test_rows_of_every_kind_land_as_they_were_sent(sandbox, query):
    paid = {"distributeTime": at(SETTLED) + 1, "commissionAsset": "BNB", "commission": "1.0", "convertPrice": "2.00"}
    twin = rebate(at(SETTLED, "01:02:03.004"))
    rows = [
        *(rebate(at(SETTLED), number, email=email) for number, email in enumerate(EMAILS)),
        *(rebate(at(SETTLED), number, income=income) for number, income in enumerate(AMOUNTS)),
        *[twin] * 3,
        rebate(at(SETTLED, "00:00:00.000"), 1),
        rebate(at(SETTLED, "23:59:59.999"), 2),
        rebate(at(SETTLED), customerId=None, email=None),
        rebate(at(SETTLED), customerId=""),
        rebate(at(SETTLED)) | paid,
        rebate(at(SETTLED)) | dict.fromkeys(paid),
        rebate(at(SETTLED)) | {"distributeTime": at(SETTLED) + 2},
        rebate(at(SETTLED), orderId=2**63 - 1, tradeId="12345678901"),
    ]
    sandbox.binance.set_rebates(rows)

    run = land(KEY, [SETTLED])

    assert run.success, run.message
    assert landed(query, SETTLED) == sent(rows)
    assert refusals(sandbox) == []


def test_an_amount_in_scientific_notation_lands_with_its_exact_value(sandbox, query):
    sandbox.binance.set_rebates([rebate(at(SETTLED), income="1.5e-8"), rebate(at(SETTLED) + 1, income=Number("12E+2"))])

    land(KEY, [SETTLED])

    assert query("select income::text from binance.rebate_recent_record order by time") == [("0.000000015",), ("1200",)]


def test_rows_of_the_neighbouring_days_do_not_land(sandbox, query):
    own = [rebate(at(DAYS[1], "00:00:00.000")), rebate(at(DAYS[1], "23:59:59.999"))]
    others = [rebate(at(DAYS[0], "23:59:59.999")), rebate(at(DAYS[2], "00:00:00.000"))]
    sandbox.binance.set_rebates([*own, *others])

    run = land(KEY, [DAYS[1]])

    assert list(run.landed) == [DAYS[1]]
    assert query("select distinct partition_date from binance.rebate_recent_record") == [(DAYS[1],)]
    assert landed(query, DAYS[1]) == sent(own)
    windows = [(int(request.params["startTime"]), int(request.params["endTime"])) for request in sandbox.requests]
    assert min(first for first, _ in windows) >= at(DAYS[1], "00:00:00.000")
    assert max(last for _, last in windows) <= at(DAYS[1], "23:59:59.999")


def test_all_days_that_the_exchange_promises_to_retain_land_in_one_run(sandbox, query, declare):
    declare(strategy=with_row_limit(50))
    days = [ago(number) for number in range(6, 0, -1)]
    sandbox.binance.set_rebates(row for day in days for row in rebates(day, 51))

    run = land(KEY, days)

    assert run.success
    assert sorted(run.landed) == days
    for day in days:
        assert landed(query, day) == sent(rebates(day, 51))


def test_a_busy_range_lands_in_few_requests(sandbox, query, declare):
    declare(strategy=with_row_limit(50))
    rows = {day: rebates(day, 250) for day in DAYS}
    rows[DAYS[1]] += rebates(DAYS[1], 2_000, "14:30:00.000", within_ms=60_000)
    rows[DAYS[2]] += [rebate(at(DAYS[2], "09:00:00.123"), number % 25) for number in range(49)]
    sandbox.binance.set_rebates(row for day in DAYS for row in rows[day])

    run = land(KEY, DAYS)

    assert run.success, run.message
    for day in DAYS:
        assert landed(query, day) == sent(rows[day])
    assert refusals(sandbox) == []
    assert len(sandbox.requests) <= 1.05 * sum(map(len, rows.values())) / 50 + 30


def reverse_each_page(sandbox, monkeypatch):
    """List each page's rows in reverse; which rows a page contains does not change."""
    respond = sandbox.binance.respond

    def reversed_page(call):
        response = respond(call)
        if not response.body.startswith(b"["):
            return response
        rows = msgspec.json.decode(response.body, type=list[msgspec.Raw])
        return replace(response, body=b"[" + b",".join(map(bytes, reversed(rows))) + b"]")

    monkeypatch.setattr(sandbox.binance, "respond", reversed_page)


# Four of the eight combinations: any two parameters have each pair of values once. `test_window_walk.py` combines the
# order and the window end in other ways.
@pytest.mark.parametrize(
    ("newest_first", "exclusive_end", "reversed_pages"),
    [(False, False, False), (True, True, False), (True, False, True), (False, True, True)],
)
def test_all_rows_land_whatever_the_order_and_the_window_end(
    sandbox, query, declare, monkeypatch, newest_first, exclusive_end, reversed_pages
):
    declare(strategy=with_row_limit(50))
    sandbox.binance.newest_first, sandbox.binance.exclusive_end = newest_first, exclusive_end
    if reversed_pages:
        reverse_each_page(sandbox, monkeypatch)
    days = DAYS[:3]
    rows = {day: rebates(day, 130) for day in days}
    # One row fewer than the limit in a single millisecond: the first of a day, where `rebates` has a row already, the
    # last of a day, and one around noon.
    rows[days[0]] += [rebate(at(days[0], "00:00:00.000"), number) for number in range(1, 49)]
    rows[days[1]] += [rebate(at(days[1], "23:59:59.999"), number) for number in range(49)]
    rows[days[2]] += [rebate(at(days[2], "12:00:00.001"), number) for number in range(49)]
    sandbox.binance.set_rebates(row for day in days for row in rows[day])

    run = land(KEY, days)

    assert run.success, run.message
    for day in days:
        assert landed(query, day) == sent(rows[day])
    assert refusals(sandbox) == []


def sort_windows_by(sandbox, monkeypatch, rows, order):
    """Make the exchange return each window's rows sorted by `order`, cut off at the limit."""
    respond = sandbox.binance.respond

    def sorted_window(call):
        response = respond(call)
        if not response.body.startswith(b"["):
            return response
        first, last, limit = (int(call.params[name]) for name in ("startTime", "endTime", "limit"))
        window = sorted((row for row in rows if first <= row["time"] <= last), key=order)
        return replace(response, body=msgspec.json.encode(window[:limit]))

    monkeypatch.setattr(sandbox.binance, "respond", sorted_window)


# The second page has `before` rows and then the first 60 of the 120 rows of one second, or so few of them (3, 2 or 1)
# that they may be in order by chance.
@pytest.mark.parametrize("before", [440, 497, 498, 499])
def test_an_exchange_that_sorts_by_the_second_loses_no_row(sandbox, query, monkeypatch, before):
    # The first page is full as well, but in order: no two of its rows share a second. Its last row is also the first of
    # the second page.
    rows = rebates(SETTLED, 499 + before, within_ms=12 * 3_600_000)
    # The exchange returns the later half of each second first.
    rows += [rebate(at(SETTLED) + (number * 7 + 500) % 1000, number) for number in range(120)]
    rows += rebates(SETTLED, 600, "13:00:00.000", within_ms=3_600_000)
    sort_windows_by(sandbox, monkeypatch, rows, lambda row: (row["time"] // 1000, -(row["time"] % 1000 // 500)))

    run = land(KEY, [SETTLED])

    assert run.success, run.message
    assert landed(query, SETTLED) == sent(rows)


def test_a_window_of_two_milliseconds_is_requested_if_one_of_a_single_millisecond_is_refused(
    sandbox, query, monkeypatch
):
    respond = sandbox.binance.respond

    def requires_a_later_end(call):
        if call.params.get("startTime") == call.params.get("endTime"):
            return Response(400, b'{"code":-1128,"msg":"endTime must be after startTime."}')
        return respond(call)

    monkeypatch.setattr(sandbox.binance, "respond", requires_a_later_end)
    rows = rebates(SETTLED, 1_300)
    sandbox.binance.set_rebates(rows)

    run = land(KEY, [SETTLED])

    assert run.success, run.message
    assert landed(query, SETTLED) == sent(rows)


@pytest.mark.parametrize("split_by", ["an error", "the longest span"])
def test_a_single_full_page_does_not_prove_an_order(sandbox, query, monkeypatch, split_by):
    # One worker, so that the full page comes first.
    monkeypatch.setattr("affiliate_pipeline.exchanges.window_walk.WORKERS", 1)
    # A page has the newest rows of its window, oldest first. One with all rows of its window looks like a page of
    # an exchange that sends the oldest rows.
    sandbox.binance.newest_first = True
    reverse_each_page(sandbox, monkeypatch)
    if split_by == "an error":
        days, others = DAYS[:4], DAYS[1:3]
        full = DAYS[0]
        sandbox.faults.fail_day(DAYS[3], status=400, code=-1100)
    else:
        sandbox.binance.retention_ms = None
        days = [ago(number) for number in range(10, 0, -1)]
        full, others = days[0], days[7:]
    rows = {full: rebates(full, 500)} | {day: rebates(day, 600) for day in others}
    sandbox.binance.set_rebates(row for day in rows for row in rows[day])

    run = land(KEY, days, trust_old=True)

    for day in rows:
        assert day in run.failed or landed(query, day) == sent(rows[day])


@pytest.mark.parametrize(("count", "newest_first"), [(100, True), (101, False)])
def test_a_millisecond_that_fills_a_page_fails_its_day_alone(sandbox, query, declare, count, newest_first):
    declare(strategy=with_row_limit(100))
    sandbox.binance.newest_first = newest_first
    full_ms = at(DAYS[1], "09:08:07.654")
    rows = {day: rebates(day, 160) for day in DAYS[:3]}
    rows[DAYS[1]] += [rebate(full_ms, number) for number in range(count)]
    sandbox.binance.set_rebates(row for day in DAYS[:3] for row in rows[day])

    run = land(KEY, DAYS[:3])

    assert not run.success
    assert list(run.failed) == [DAYS[1]]
    assert f"{DAYS[1]} 09:08:07.654 UTC ({full_ms})" in run.failed[DAYS[1]]
    assert "has 100 rows or more in a single millisecond" in run.failed[DAYS[1]]
    assert run.failed[DAYS[1]] in run.message
    assert set(run.landed) == {DAYS[0], DAYS[2]}
    for day in DAYS[0], DAYS[2]:
        assert landed(query, day) == sent(rows[day])
    assert landed(query, DAYS[1]) == sent([])
    assert query("select count(*) from affiliate.landing where partition = %s", DAYS[1]) == [(0,)]


def test_a_day_known_to_be_bad_is_not_requested_again(sandbox, declare, monkeypatch):
    declare(strategy=with_row_limit(100))
    monkeypatch.setattr("affiliate_pipeline.exchanges.window_walk.WORKERS", 1)
    sandbox.binance.newest_first = True
    full_ms = at(DAYS[1], "03:00:00.000")
    full = [rebate(full_ms, number) for number in range(100)]
    sandbox.binance.set_rebates([*full, *(row for day in DAYS[:3] for row in rebates(day, 300))])

    run = land(KEY, DAYS[:3])

    assert list(run.failed) == [DAYS[1]]
    windows = [(request.params["startTime"], request.params["endTime"]) for request in sandbox.requests]
    known_at = windows.index((str(full_ms), str(full_ms)))
    assert indices_of_requests_touching(sandbox, DAYS[1])[-1] == known_at
    assert len(windows) > known_at + 1


def pem(key) -> tuple[str, str]:
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(), public.decode()


# `exchanges/binance/test_signing.py` and `sandbox/binance/test_signing.py` cover RSA, which differs in the signature only.
def test_a_private_key_signs_requests(sandbox, query, monkeypatch):
    private, public = pem(ed25519.Ed25519PrivateKey.generate())
    sandbox.binance.add_key("key-of-a-pair", public)
    monkeypatch.setenv("BINANCE_PARTNER_API_KEY", "key-of-a-pair")
    monkeypatch.setenv("BINANCE_PARTNER_API_SECRET", private)
    sandbox.binance.set_rebates(rebates(SETTLED, 9))

    run = land(KEY, [SETTLED])

    assert run.success, run.message
    assert landed(query, SETTLED) == sent(rebates(SETTLED, 9))
    assert refusals(sandbox) == []


def test_days_on_both_sides_of_a_gap_are_fetched(sandbox, query, monkeypatch):
    class Sequential(ThreadPoolExecutor):
        """Each job ends before its submitter continues; this must not end the walk early."""

        def submit(self, *args, **kwargs):
            future = super().submit(*args, **kwargs)
            wait([future])
            return future

    monkeypatch.setattr("affiliate_pipeline.exchanges.window_walk.ThreadPoolExecutor", Sequential)
    sandbox.binance.set_rebates(row for day in DAYS[:3] for row in rebates(day, 9))
    land(KEY, [DAYS[1]])
    query("update affiliate.landing set source = 'another account'")

    run = land(KEY, DAYS[:3])

    assert list(run.failed) == [DAYS[1]]
    assert sorted(run.landed) == [DAYS[0], DAYS[2]]
    assert landed(query, DAYS[2]) == sent(rebates(DAYS[2], 9))


def test_no_request_touches_a_day_outside_the_run(sandbox, declare):
    declare(strategy=with_row_limit(100))
    sandbox.binance.set_rebates(row for day in DAYS for row in rebates(day, 240))

    land(KEY, DAYS[1:3])

    assert [len(indices_of_requests_touching(sandbox, day)) for day in (DAYS[0], DAYS[3], DAYS[4])] == [0, 0, 0]
