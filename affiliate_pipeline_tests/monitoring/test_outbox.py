"""Alerts stay until every target has taken them, and their days until they have landed."""

import logging
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

import pytest

from affiliate_pipeline.monitoring.alerts import Alert
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
def lands(query):
    def lands(day: date, at: datetime | None = None, asset: str = REBATES) -> None:
        query(
            "insert into affiliate.landing values (%s, %s, 1, '', true, '', 'epoch', %s, '') "
            "on conflict (asset, partition) do update set checked_at = excluded.checked_at",
            *(asset, day, at or datetime.now(UTC)),
        )

    return lands


def test_what_was_added_waits_as_it_was(outbox):
    assert outbox.add(FAILED)
    assert outbox.waiting("a") == [FAILED]


def test_a_key_is_taken_once_for_ever(outbox):
    outbox.add(FAILED)
    outbox.settle([])
    assert not outbox.add(Alert(FAILED.key, "changed", "changed"))
    assert outbox.waiting("a") == []


def test_what_was_added_is_logged_once(outbox, caplog):
    caplog.set_level(logging.INFO)
    outbox.add(FAILED)
    outbox.add(FAILED)
    assert caplog.record_tuples == [("affiliate_pipeline.monitoring.alerts", logging.ERROR, "A title\nA text")]


def test_no_secret_is_kept_or_logged(outbox, query, caplog):
    outbox.add(Alert("k", "secret=abcdef0123", "of jane.doe@example.com?signature=abcdef0123"))
    kept = f"{query('select title, text from affiliate.alert')}{caplog.text}"
    assert "abcdef0123" not in kept and "jane.doe" not in kept


def test_the_oldest_is_first(outbox):
    outbox.add(OTHER)
    outbox.add(FAILED, datetime(2026, 11, 5, tzinfo=UTC))
    assert outbox.waiting("a") == [FAILED, OTHER]


def test_each_target_has_its_own_state(outbox):
    outbox.add(FAILED)
    outbox.add(OTHER)
    outbox.reached("a", [FAILED], HOUR)
    assert outbox.waiting("a") == [OTHER]
    assert outbox.waiting("b") == [FAILED, OTHER]


def test_delivered_is_what_every_target_has_taken(outbox, query):
    outbox.add(FAILED)
    outbox.add(OTHER)
    outbox.reached("a", [FAILED, OTHER], HOUR)
    outbox.reached("b", [OTHER], HOUR)
    outbox.settle(["a", "b"])
    assert query("select key from affiliate.alert where delivered_at is not null") == [(OTHER.key,)]


def test_without_targets_everything_is_delivered(outbox, query):
    outbox.add(FAILED)
    outbox.settle([])
    assert query("select count(*) from affiliate.alert where delivered_at is null") == [(0,)]


def test_pauses_grow_up_to_the_longest(outbox, query):
    def pause() -> int:
        _, until = outbox.missed("a", [], 60 * SECOND, HOUR)
        query("update affiliate.alert_target set next_try_at = now()")
        return round((until - datetime.now(UTC)).total_seconds())

    assert [pause() for _ in range(8)] == pytest.approx([60, 120, 240, 480, 960, 1920, 3600, 3600], abs=5)


def test_what_is_missed_within_a_pause_leaves_it_as_it_is(outbox):
    assert outbox.missed("a", [FAILED], HOUR, HOUR) == outbox.missed("a", [OTHER], HOUR, HOUR)


def test_what_was_missed_least_often_is_first(outbox):
    outbox.add(FAILED, datetime(2026, 11, 5, tzinfo=UTC))
    outbox.add(OTHER)
    for _ in range(2):
        outbox.missed("a", [FAILED], HOUR, HOUR)
    outbox.missed("b", [OTHER], HOUR, HOUR)
    assert outbox.waiting("a") == [OTHER, FAILED]
    assert outbox.waiting("b") == [FAILED, OTHER]
    assert (outbox.misses("a"), outbox.misses("b")) == ({FAILED.key: 2}, {OTHER.key: 1})


def test_a_target_that_was_reached_is_left_in_peace_only_so_long(outbox):
    for target in "ab":
        outbox.missed(target, [], HOUR, HOUR)
        outbox.reached(target, [], {"a": 0 * HOUR, "b": HOUR}[target])
    assert outbox.pauses() == {"b": 0}
    assert outbox.missed("b", [], HOUR, HOUR)[0] == 1
    assert outbox.pauses() == {"b": 1}


def test_a_target_that_is_no_longer_configured_is_forgotten(outbox):
    outbox.missed("a", [], HOUR, HOUR)
    outbox.settle(["b"])
    assert outbox.pauses() == {}


def test_only_one_delivers(outbox, database_url):
    with outbox.alone() as first, Outbox(database_url) as other, other.alone() as second:
        assert (first, second) == (True, False)
    with outbox.alone() as again:
        assert again


def test_an_alert_is_open_until_its_days_have_landed_since(outbox, lands):
    lands(DAYS[0], datetime.now(UTC) - HOUR)
    outbox.add(FAILED)
    (found,) = outbox.open()
    assert (found.alert, found.missing) == (FAILED, {REBATES: frozenset(DAYS)})

    lands(DAYS[1])
    assert outbox.open()[0].missing == {REBATES: {DAYS[0]}}
    lands(DAYS[0], asset="binance/another")
    assert outbox.open()[0].missing == {REBATES: {DAYS[0]}}
    lands(DAYS[0])
    assert outbox.open()[0].missing == {}


def test_an_asset_without_days_is_not_in_the_ledger(outbox):
    outbox.add(Alert("run 3", "title", "text", {"lbank/roster": ()}))
    assert outbox.open()[0].missing == {"lbank/roster": frozenset()}


def test_an_alert_about_no_day_is_never_open(outbox):
    outbox.add(OTHER)
    assert outbox.open() == []


def test_recovered_is_told_once(outbox):
    outbox.add(FAILED)
    good = Alert("landed", "good", "news", good_news=True)
    outbox.recover([FAILED], good)
    outbox.recover([FAILED], good)
    assert outbox.open() == []
    assert outbox.waiting("a") == [FAILED, good]


def test_a_table_from_before_alerts_could_be_missed_goes_on(outbox, database_url, query):
    outbox.add(FAILED)
    query("alter table affiliate.alert drop column missed")
    query("comment on schema affiliate is 'of an earlier version'")
    with Outbox(database_url) as later:
        assert (later.waiting("a"), later.misses("a")) == ([FAILED], {})
