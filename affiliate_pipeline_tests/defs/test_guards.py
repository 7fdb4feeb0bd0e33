"""Landed rows survive a source that no longer has them or returns fewer rows, and a run with another source."""

import time
from collections import Counter

import pytest

from affiliate_pipeline_tests.conftest import materialize
from affiliate_pipeline_tests.defs.direct_runs import land
from affiliate_pipeline_tests.defs.rebates import (
    DAYS,
    KEY,
    SETTLED,
    YESTERDAY,
    ago,
    at,
    indices_of_requests_touching,
    landed,
    rebate,
    rebates,
    sent,
)

pytestmark = pytest.mark.usefixtures("verified_keys")

RETENTION_MS = 7 * 86_400_000
OLD = [ago(number) for number in range(9, 4, -1)]
EXPIRED, RETAINED = OLD[:3], OLD[3:]


def superseded(query) -> Counter:
    """The superseded rows in the form of `sent`; all are of the same time, which the payload has in another form."""
    return sent(
        row | {"time": at(SETTLED)}
        for (row,) in query(
            """select jsonb_build_object('customerId', payload->'customer_id', 'email', payload->'email',
            'income', payload->>'income', 'asset', payload->'asset', 'symbol', payload->'symbol',
            'orderId', payload->'order_id', 'tradeId', payload->'trade_id') from affiliate.superseded_row"""
        )
    )


# Retention at the source


def test_expired_days_fail_and_the_others_land(sandbox, query):
    sandbox.binance.set_rebates(row for day in OLD for row in rebates(day, 20))

    run = land(KEY, OLD)

    assert sorted(run.failed) == EXPIRED
    for day in EXPIRED:
        assert "beyond the 7 days that the source promises" in run.failed[day]
        assert "trust_old" in run.failed[day]
        assert "Nothing of this day has landed" in run.failed[day]
    assert sorted(run.landed) == RETAINED
    assert query("select partition from affiliate.landing order by 1") == [(day,) for day in RETAINED]


def test_a_partly_expired_day_does_not_land(sandbox, query):
    sandbox.binance.retention_ms = RETENTION_MS
    sandbox.binance.set_rebates(rebates(ago(7), 96))

    run = land(KEY, [ago(7)])

    assert list(run.failed) == [ago(7)]
    assert query("select * from affiliate.landing") == []


def test_days_beyond_the_promised_retention_land_if_the_source_has_an_older_row(sandbox, query):
    sandbox.binance.retention_ms = None
    sandbox.binance.set_rebates([rebate(at(ago(11))), *(row for day in OLD for row in rebates(day, 20))])

    run = land(KEY, OLD)

    assert run.success, run.message
    assert sorted(run.landed) == OLD
    for day in OLD:
        assert landed(query, day) == sent(rebates(day, 20))


def test_a_day_is_not_reported_as_expired_if_the_search_for_an_older_row_fails(sandbox, query):
    sandbox.binance.retention_ms = None
    sandbox.binance.set_rebates([rebate(at(ago(11))), *rebates(ago(8), 20)])
    sandbox.faults.fail_day(ago(9), status=400, code=-1100)

    run = land(KEY, [ago(8)])

    assert (
        "it could not be determined whether the source still has the day: Binance returned HTTP 400, code -1100"
        in run.failed[ago(8)]
    )
    assert "Materialize the day again" in run.failed[ago(8)]
    assert "no older row" not in run.failed[ago(8)] and "trust_old" not in run.failed[ago(8)]
    sandbox.faults.clear()
    assert land(KEY, [ago(8)]).success
    assert landed(query, ago(8)) == sent(rebates(ago(8), 20))


def test_with_trust_old_days_beyond_the_promised_retention_land(sandbox, query):
    sandbox.binance.retention_ms = None
    sandbox.binance.set_rebates(row for day in EXPIRED for row in rebates(day, 20))

    run = materialize(KEY, EXPIRED, trust_old=True)

    assert run.success, run.message
    for day in EXPIRED:
        assert landed(query, day) == sent(rebates(day, 20))


def test_with_trust_old_an_expired_day_leaves_its_landed_rows_unchanged(sandbox, query):
    sandbox.binance.retention_ms = None
    sandbox.binance.set_rebates(rebates(OLD[0], 20))
    land(KEY, [OLD[0]], trust_old=True)

    sandbox.binance.retention_ms = RETENTION_MS
    run = land(KEY, [OLD[0]], trust_old=True)

    assert "20 rows had landed and the source now has 0" in run.failed[OLD[0]]
    assert landed(query, OLD[0]) == sent(rebates(OLD[0], 20))


def test_an_expired_landed_day_is_retained_without_a_request(sandbox, query):
    days = [EXPIRED[-1], RETAINED[0]]
    sandbox.binance.retention_ms = None
    sandbox.binance.set_rebates([rebate(at(ago(11))), *(row for day in days for row in rebates(day, 20))])
    first = materialize(KEY, days)
    ledger = query("select * from affiliate.landing where partition = %s", days[0])

    sandbox.binance.retention_ms = RETENTION_MS
    sandbox.requests.clear()
    again = materialize(KEY, days)

    assert again.success, again.message
    assert [again.materialized[day]["kept"] for day in days] == [True, False]
    assert indices_of_requests_touching(sandbox, days[0]) == []
    assert landed(query, days[0]) == sent(rebates(days[0], 20))
    for name in "dagster/partition_row_count", "sums", "content_hash", "first", "last":
        assert again.materialized[days[0]][name] == first.materialized[days[0]][name]
    assert query("select * from affiliate.landing where partition = %s", days[0]) == ledger


def set_clock_at_the_first_row(sandbox, monkeypatch, now_ms: int) -> None:
    """Set the clock of this process and of the sandbox to `now_ms` when the sandbox sends its first row."""
    clock, offset_ns = time.time_ns, 0

    def transform(row):
        nonlocal offset_ns
        offset_ns = offset_ns or now_ms * 1_000_000 - clock()
        return row

    monkeypatch.setattr(time, "time_ns", lambda: clock() + offset_ns)
    sandbox.faults.transform_row = transform


def test_a_day_that_expires_while_it_is_fetched_does_not_land(sandbox, query, monkeypatch):
    sandbox.binance.set_rebates(rebates(SETTLED, 700, "12:00:00.000", within_ms=36_000_000))
    set_clock_at_the_first_row(sandbox, monkeypatch, at(SETTLED, "10:00:00.000") + RETENTION_MS)

    run = land(KEY, [SETTLED])

    assert "the day expired while it was being fetched: the day is beyond the 7 days" in run.failed[SETTLED]
    assert query("select * from affiliate.landing") == []


@pytest.mark.parametrize("expired_until", ["10:00:00.000", "14:00:00.000"])
def test_a_landed_day_that_expires_while_it_is_fetched_is_retained(sandbox, query, monkeypatch, expired_until):
    rows = rebates(SETTLED, 700, "12:00:00.000", within_ms=36_000_000)
    sandbox.binance.set_rebates(rows)
    land(KEY, [SETTLED])
    set_clock_at_the_first_row(sandbox, monkeypatch, at(SETTLED, expired_until) + RETENTION_MS)

    run = land(KEY, [SETTLED])

    assert landed(query, SETTLED) == sent(rows)
    assert run.success, run.message
    assert list(run.retained) == [SETTLED]


def test_a_day_proven_to_be_retained_that_expires_while_it_is_fetched_never_lands_in_part(sandbox, query, monkeypatch):
    day = ago(8)
    sandbox.binance.retention_ms = int(time.time() * 1000) - at(ago(9), "23:00:00.000")
    sandbox.binance.set_rebates([rebate(at(ago(9), "23:30:00.000")), *rebates(day, 96)])
    set_clock_at_the_first_row(sandbox, monkeypatch, int(time.time() * 1000) + 6 * 3_600_000)

    run = land(KEY, [day])

    assert day in run.failed or landed(query, day) == sent(rebates(day, 96))


# The exchange's clock


def test_a_day_that_has_not_ended_by_the_exchanges_clock_does_not_land(sandbox, query):
    rows = rebates(YESTERDAY, 700)
    sandbox.binance.set_rebates(rows)
    # The exchange's clock shows noon of yesterday.
    sandbox.faults.clock_offset_ms = at(YESTERDAY) - int(time.time() * 1000)

    run = land(KEY, DAYS)

    assert sorted(run.landed) == DAYS[:-1]
    assert "has not ended yet by the exchange's clock" in run.failed[YESTERDAY]
    assert query("select 1 from affiliate.landing where partition = %s", YESTERDAY) == []


def test_a_day_settles_by_the_exchanges_clock(sandbox, query):
    sandbox.binance.set_rebates(rebates(SETTLED, 20))
    # By the exchange's clock the day ended a day and a half ago.
    sandbox.faults.clock_offset_ms = at(DAYS[2]) - int(time.time() * 1000)

    run = land(KEY, [SETTLED])

    assert run.success, run.message
    assert query("select settled from affiliate.landing") == [(False,)]


# Fewer rows and restatements


def test_a_settled_day_with_fewer_rows_is_refused(sandbox, query):
    rows = rebates(SETTLED, 10)
    sandbox.binance.set_rebates(rows)
    land(KEY, [SETTLED])

    sandbox.binance.set_rebates(rows[1:])
    run = land(KEY, [SETTLED])

    assert list(run.failed) == [SETTLED]
    assert "10 rows had landed and the source now has 9" in run.failed[SETTLED]
    assert "allow_shrink" in run.failed[SETTLED]
    assert "What landed at" in run.failed[SETTLED] and "(10 rows) is unchanged" in run.failed[SETTLED]
    assert landed(query, SETTLED) == sent(rows)
    assert query("select count(*) from affiliate.superseded_row") == [(0,)]


def test_a_settled_day_without_rows_is_refused(sandbox, query):
    sandbox.binance.set_rebates(rebates(SETTLED, 10))
    land(KEY, [SETTLED])

    sandbox.binance.set_rebates([])
    run = land(KEY, [SETTLED])

    assert list(run.failed) == [SETTLED]
    assert landed(query, SETTLED) == sent(rebates(SETTLED, 10))


def test_with_allow_shrink_a_settled_day_with_fewer_rows_lands(sandbox, query):
    twin = rebate(at(SETTLED), 1)
    sandbox.binance.set_rebates([twin, twin, rebate(at(SETTLED), 2)])
    land(KEY, [SETTLED])

    sandbox.binance.set_rebates([twin, rebate(at(SETTLED), 2)])
    run = materialize(KEY, [SETTLED], allow_shrink=True)

    assert run.success, run.message
    assert landed(query, SETTLED) == sent([twin, rebate(at(SETTLED), 2)])
    assert superseded(query) == sent([twin])


def test_with_allow_shrink_the_removed_rows_of_a_day_that_landed_before_it_settled_are_stored(sandbox, query):
    sandbox.binance.set_rebates([rebate(at(SETTLED), 1), rebate(at(SETTLED), 2)])
    land(KEY, [SETTLED])
    query("update affiliate.landing set settled = false")
    sandbox.binance.set_rebates([rebate(at(SETTLED), 2)])
    assert "2 rows had landed and the source now has 1" in land(KEY, [SETTLED]).failed[SETTLED]

    assert land(KEY, [SETTLED], allow_shrink=True).success

    assert landed(query, SETTLED) == sent([rebate(at(SETTLED), 2)])
    assert superseded(query) == sent([rebate(at(SETTLED), 1)])


def test_an_unsettled_day_with_fewer_rows_lands(sandbox, query):
    sandbox.binance.set_rebates(rebates(YESTERDAY, 10))
    land(KEY, [YESTERDAY])

    sandbox.binance.set_rebates(rebates(YESTERDAY, 10)[3:])
    run = land(KEY, [YESTERDAY])

    assert run.success, run.message
    assert landed(query, YESTERDAY) == sent(rebates(YESTERDAY, 10)[3:])


def test_a_restatement_after_settling_stores_only_the_superseded_rows(sandbox, query):
    twin, other = rebate(at(SETTLED), 1), rebate(at(SETTLED), 2)
    sandbox.binance.set_rebates([twin, twin, other])
    land(KEY, [SETTLED])

    restated = [twin, twin | {"income": "9.00"}, other, rebate(at(SETTLED) + 1, 3)]
    sandbox.binance.set_rebates(restated)
    run = land(KEY, [SETTLED])

    assert run.success, run.message
    assert run.landed[SETTLED].changed is True
    assert landed(query, SETTLED) == sent(restated)
    assert superseded(query) == sent([twin])
    [(partition, run_id)] = query("select partition, run_id from affiliate.superseded_row")
    assert partition == SETTLED
    assert query("select run_id from affiliate.landing") == [(run_id,)]


def test_a_restatement_before_settling_stores_no_superseded_rows(sandbox, query):
    sandbox.binance.set_rebates(rebates(YESTERDAY, 3))
    land(KEY, [YESTERDAY])

    sandbox.binance.set_rebates([row | {"income": "9.00"} for row in rebates(YESTERDAY, 3)])
    run = land(KEY, [YESTERDAY])

    assert run.landed[YESTERDAY].changed is True
    assert query("select count(*) from affiliate.superseded_row") == [(0,)]


def test_an_amount_sent_with_another_scale_is_written_again(sandbox, query):
    sandbox.binance.set_rebates([rebate(at(SETTLED), income="1.0")])
    land(KEY, [SETTLED])

    sandbox.binance.set_rebates([rebate(at(SETTLED), income="1.00")])
    land(KEY, [SETTLED])

    assert query("select income::text from binance.rebate_recent_record") == [("1.00",)]


# Another source


def test_landed_days_of_another_source_are_refused(sandbox, query):
    sandbox.binance.set_rebates(row for day in DAYS[:3] for row in rebates(day, 5))
    own = land(KEY, DAYS[:2]).landed[DAYS[0]].source
    # The same key at another host.
    other = own.replace("127.0.0.1", "api.example.com")
    query("update affiliate.landing set source = %s", other)
    sandbox.binance.set_rebates(row for day in DAYS[:3] for row in rebates(day, 7))
    sandbox.requests.clear()

    run = land(KEY, DAYS[:3])

    assert sorted(run.failed) == DAYS[:2]
    assert run.landed[DAYS[2]].source == own
    for day in DAYS[:2]:
        assert f"its source is {other}, and the source of this run is {own}" in run.failed[day]
        assert indices_of_requests_touching(sandbox, day) == []
        assert landed(query, day) == sent(rebates(day, 5))
    assert landed(query, DAYS[2]) == sent(rebates(DAYS[2], 7))
