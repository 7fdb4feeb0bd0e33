"""Alerts are due until every target has accepted them, and open until the landing of their failed days is reported."""

import logging
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

import pytest

from affiliate_pipeline.monitoring.alerts import Alert, Kind
from affiliate_pipeline.monitoring.outbox import Outbox

REBATES = "binance/rebate_recent_record"
DAYS = (date(2026, 11, 3), date(2026, 11, 4))
FAILED = Alert("run 1", "A title", "A text", {REBATES: DAYS})
OTHER = Alert("run 2", "Another", "Text")
SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)


@pytest.fixture
def outbox(database_url) -> Iterator[Outbox]:
    with Outbox(database_url) as outbox:
        yield outbox


@pytest.fixture
def land(query):
    def land(day: date, at: datetime | None = None, asset: str = REBATES) -> None:
        query(
            "insert into affiliate.landing values (%s, %s, 1, '', true, '', 'epoch', %s, '') "
            "on conflict (asset, partition) do update set checked_at = excluded.checked_at",
            *(asset, day, at or datetime.now(UTC)),
        )

    return land


def due(outbox: Outbox, target: str = "a") -> list[Alert]:
    return [alert for alert, _ in outbox.due(target)]


def test_an_added_alert_is_due_unchanged(outbox):
    assert outbox.add(FAILED)
    assert due(outbox) == [FAILED]


def test_a_key_is_accepted_only_once(outbox):
    outbox.add(FAILED)
    outbox.complete_deliveries([])  # Without targets, every alert counts as delivered.
    assert not outbox.add(Alert(FAILED.key, "changed", "changed"))
    assert due(outbox) == []


@pytest.mark.parametrize("kind", Kind)
def test_the_kind_of_an_alert_is_stored(outbox, kind):
    alert = Alert("1", "title", "text", kind=kind)
    assert not outbox.has("1")
    outbox.add(alert)
    assert due(outbox) == [alert] and outbox.has("1")


def test_an_alert_is_logged_once(outbox, caplog):
    caplog.set_level(logging.INFO)
    outbox.add(FAILED)
    outbox.add(FAILED)
    assert caplog.record_tuples == [("affiliate_pipeline.monitoring.outbox", logging.ERROR, "A title\nA text")]


def test_no_secret_is_stored_or_logged(outbox, query, caplog):
    outbox.add(Alert("k", "secret=abcdef0123", "of jane.doe@example.com?signature=abcdef0123"))
    recorded = f"{query('select title, text from affiliate.alert')}{caplog.text}"
    assert "abcdef0123" not in recorded and "jane.doe" not in recorded


def test_the_oldest_alert_is_first(outbox):
    outbox.add(OTHER)
    outbox.add(FAILED, datetime(2026, 11, 5, tzinfo=UTC))
    assert due(outbox) == [FAILED, OTHER]


def test_each_target_has_its_own_state(outbox):
    outbox.add(FAILED)
    outbox.add(OTHER)
    outbox.record_delivery("a", [FAILED], 0 * HOUR)
    assert (due(outbox), outbox.count_undelivered("a")) == ([OTHER], 1)
    assert (due(outbox, "b"), outbox.count_undelivered("b")) == ([FAILED, OTHER], 2)


def test_a_target_gets_nothing_for_the_interval_after_an_alert(outbox):
    outbox.add(FAILED)
    outbox.add(OTHER)
    outbox.record_delivery("a", [FAILED], HOUR)
    assert (due(outbox), outbox.count_undelivered("a")) == ([], 1)


def test_an_alert_counts_as_delivered_when_every_target_has_accepted_it(outbox, query):
    outbox.add(FAILED)
    outbox.add(OTHER)
    outbox.record_delivery("a", [FAILED, OTHER], HOUR)
    outbox.record_delivery("b", [OTHER], HOUR)
    outbox.complete_deliveries(["a", "b"])
    assert query("select key from affiliate.alert where delivered_at is not null") == [(OTHER.key,)]


def test_without_targets_every_alert_counts_as_delivered(outbox, query):
    outbox.add(FAILED)
    outbox.complete_deliveries([])
    assert query("select count(*) from affiliate.alert where delivered_at is null") == [(0,)]


def fail(outbox: Outbox, query, alert: Alert, target: str = "a") -> tuple[int, int]:
    """Record a failed attempt, end its pause, and return the number of attempts and the pause in seconds."""
    attempts, until = outbox.record_failure(target, [alert], 60 * SECOND, HOUR)
    query("update affiliate.alert_delivery set next_attempt_at = now()")
    return attempts, round((until - datetime.now(UTC)) / SECOND)


def test_the_pauses_of_a_target_grow_to_the_maximum_whichever_alert_fails(outbox, query):
    outbox.add(FAILED)
    outbox.add(OTHER)
    outbox.record_failure("a", [FAILED, OTHER], 0 * SECOND, HOUR)
    found = [fail(outbox, query, alert) for alert in [FAILED, OTHER] * 4]
    assert [attempts for attempts, _ in found] == list(range(2, 10))
    expected = [120, 240, 480, 960, 1920, 3600, 3600, 3600]
    assert [pause for _, pause in found] == pytest.approx(expected, abs=5)


def test_during_a_pause_only_alerts_without_an_attempt_are_due_and_do_not_extend_it(outbox):
    outbox.add(FAILED)
    _, until = outbox.record_failure("a", [FAILED], HOUR, HOUR)
    assert due(outbox) == []
    outbox.add(OTHER)
    assert due(outbox) == [OTHER]
    assert outbox.record_failure("a", [OTHER], HOUR, HOUR) == (1, until)
    assert (due(outbox), outbox.count_undelivered("a")) == ([], 2)
    assert (outbox.failing_targets(), due(outbox, "b")) == ({"a"}, [FAILED, OTHER])


def test_alerts_with_the_fewest_failures_are_first(outbox, query):
    outbox.add(FAILED, datetime(2026, 11, 5, tzinfo=UTC))
    outbox.add(OTHER)
    for _ in range(2):
        fail(outbox, query, FAILED)
    fail(outbox, query, OTHER, "b")
    assert outbox.due("a") == [(OTHER, 0), (FAILED, 2)]
    assert outbox.due("b") == [(FAILED, 0), (OTHER, 1)]


def test_a_failed_alert_is_due_again_once_the_target_has_accepted_another(outbox):
    outbox.add(FAILED)
    outbox.add(OTHER)
    outbox.record_failure("a", [FAILED], HOUR, HOUR)
    outbox.record_delivery("a", [OTHER], 0 * HOUR)
    assert outbox.due("a") == [(FAILED, 1)]


def test_the_failures_of_a_target_that_is_no_longer_configured_are_dropped(outbox):
    outbox.add(FAILED)
    outbox.record_failure("a", [FAILED], HOUR, HOUR)
    outbox.complete_deliveries(["b"])
    assert outbox.failing_targets() == set()


def test_only_one_process_delivers_at_a_time(outbox, database_url):
    with outbox.try_exclusive() as first, Outbox(database_url) as other, other.try_exclusive() as second:
        assert (first, second) == (True, False)
    with outbox.try_exclusive() as again:
        assert again


def test_a_failed_day_is_missing_until_it_has_landed_after_the_alert(outbox, land):
    land(DAYS[0], datetime.now(UTC) - HOUR)
    outbox.add(FAILED)
    (found,) = outbox.open_alerts()
    assert (found.alert, found.missing) == (FAILED, {REBATES: frozenset(DAYS)})

    land(DAYS[1])
    assert outbox.open_alerts()[0].missing == {REBATES: {DAYS[0]}}
    land(DAYS[0], asset="binance/another")
    assert outbox.open_alerts()[0].missing == {REBATES: {DAYS[0]}}
    land(DAYS[0])
    assert outbox.open_alerts()[0].missing == {}


def test_an_alert_about_an_asset_without_days_is_open_with_no_missing_day(outbox):
    outbox.add(Alert("run 3", "title", "text", {"lbank/roster": ()}))
    assert outbox.open_alerts()[0].missing == {"lbank/roster": frozenset()}


def test_an_alert_about_no_asset_is_never_open(outbox):
    outbox.add(OTHER)
    assert outbox.open_alerts() == []


def test_a_recovery_is_reported_once(outbox):
    outbox.add(FAILED)
    recovery = Alert("landed", "good", "news", kind=Kind.RECOVERY)
    outbox.recover([FAILED], recovery)
    outbox.recover([FAILED], recovery)
    assert outbox.open_alerts() == []
    assert due(outbox) == [FAILED, recovery]


def test_definitions_that_share_a_database_deliver_only_their_own_alerts(outbox, database_url):
    with Outbox(database_url, "desk_") as other:
        outbox.add(FAILED)
        other.add(FAILED)
        outbox.record_failure("a", [FAILED], HOUR, HOUR)

        other.record_delivery("b", due(other, "b"), SECOND)
        other.complete_deliveries(["b"])

        assert (due(other, "b"), other.count_undelivered_after(timedelta())) == ([], 0)
        assert other.add(OTHER) and not outbox.has(OTHER.key)
        assert (outbox.count_undelivered("a"), outbox.failing_targets()) == (1, {"a"})
        other.recover([each.alert for each in other.open_alerts()], OTHER)
        assert [each.alert for each in outbox.open_alerts()] == [FAILED]
        with outbox.try_exclusive() as first, other.try_exclusive() as second:
            assert (first, second) == (True, True)
