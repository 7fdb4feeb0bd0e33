"""Alerts arrive, at a real webhook and by a real mail: folded, again where one could not be reached, and with a message
once what failed has landed."""

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import dagster as dg
import pytest

from affiliate_pipeline.defs.sensors import alert_delivery as delivery
from affiliate_pipeline.defs.sensors.alert_delivery import Undelivered, alert_delivery
from affiliate_pipeline.defs.sensors.failures import failed_run_alert
from affiliate_pipeline.domain.days import format_days
from affiliate_pipeline.monitoring.alerts import Alert
from affiliate_pipeline.monitoring.outbox import Outbox
from affiliate_pipeline_tests.conftest import RESOURCES
from affiliate_pipeline_tests.defs.conftest import materialized
from affiliate_pipeline_tests.defs.rebates import DAYS, EMAIL, KEY, at, rebate
from affiliate_pipeline_tests.smtp import Smtp, text_of
from affiliate_pipeline_tests.webhook import Webhook

pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")
DEAD = "json://me:hunter2pass@127.0.0.1:1/hunter2pass"


@pytest.fixture(autouse=True)
def at_once(monkeypatch) -> None:
    """Nobody is left in peace."""
    monkeypatch.setattr(delivery, "MIN_INTERVAL", timedelta(0))


@pytest.fixture
def outbox(instance, database_url) -> Iterator[Outbox]:
    with Outbox(database_url) as outbox:
        yield outbox


@pytest.fixture
def tick(instance, webhook, monkeypatch) -> Callable[[], None]:
    """What went wrong is raised, and sent."""
    monkeypatch.setenv("ALERT_URLS", webhook.url)
    heard = dg.build_sensor_context(instance=instance, resources=RESOURCES)

    def tick() -> None:
        failed_run_alert(heard)
        alert_delivery(dg.build_sensor_context(instance=instance, resources=RESOURCES))

    return tick


@pytest.fixture
def soon(query) -> Callable[[], object]:
    """Every target may be sent to again."""
    return lambda: query("update affiliate.alert_delivery set next_attempt_at = now()")


def titles(webhook: Webhook) -> list[str]:
    return [message["title"] for message in webhook.messages]


def alert(number: int, text: str = "text") -> Alert:
    return Alert(f"run {number}", f"alert {number}", text)


def test_a_failed_run_arrives_with_all_its_parts_and_nothing_secret(sandbox, instance, webhook, tick, monkeypatch):
    monkeypatch.setenv("DAGSTER_UI_URL", "http://ui.example:3000")
    sandbox.binance.set_rebates(
        [rebate(at(DAYS[0])), rebate(at(DAYS[1]), income=f"much of {EMAIL}?signature=abcdef0123"), rebate(at(DAYS[2]))]
    )
    sandbox.faults.fail_day(DAYS[2], status=400, code=-1127)
    with Smtp() as smtp:
        monkeypatch.setenv("ALERT_URLS", f"{webhook.url}, {smtp.url}")
        run_id = materialized(instance, DAYS[:3])
        tick()
        tick()
    (message,), (mail,) = webhook.messages, smtp.mails
    for title, text in [(message["title"], message["message"]), (mail["subject"], text_of(mail))]:
        assert title == f"{KEY} failed for {format_days(DAYS[1:3])}"
        assert "2 days failed, 1 landed." in text
        assert f"\n{DAYS[1]}: its rows do not fit the schema" in text and f"\n{DAYS[2]}: " in text
        assert f"fetchable at least until {DAYS[1] + timedelta(days=6)} 23:59 UTC" in text
        assert "To do: " in text
        assert f"http://ui.example:3000/runs/{run_id}" in text
        everything = f"{title}{text}"
        secrets = {*sandbox.binance.accounts, *sandbox.binance.accounts.values(), EMAIL, "abcdef0123"}
        assert not [secret for secret in secrets if secret in everything]


def test_forty_failing_runs_give_few_messages_and_lose_none(instance, webhook, tick):
    @dg.asset(key=["lbank", "roster"])
    def roster() -> None:
        raise dg.Failure("the exchange refused")

    runs = [dg.materialize([roster], instance=instance, raise_on_error=False).run_id for _ in range(40)]
    tick()
    tick()
    text = "".join(message["message"] for message in webhook.messages)
    assert len(webhook.messages) <= 5
    assert [text.count(run_id) for run_id in runs] == [1] * 40


def test_a_burst_that_lasts_is_folded_too(outbox, webhook, tick, soon, monkeypatch):
    monkeypatch.setattr(delivery, "MIN_INTERVAL", timedelta(hours=1))
    for number in range(5):
        outbox.add(alert(number))
        tick()
    assert titles(webhook) == ["alert 0"]
    soon()
    tick()
    assert titles(webhook) == ["alert 0", "4 alerts"]


def test_a_delivery_that_failed_is_tried_again_until_it_arrives_and_then_no_more(outbox, webhook, tick, soon):
    outbox.add(alert(1))
    webhook.status = 503
    with pytest.raises(Undelivered, match=r"entry 1 could not be reached.* \(try 1: alert 1\); 1 alerts wait"):
        tick()
    tick()
    assert len(webhook.messages) == 1, "tried again before the pause was over"
    soon()
    with pytest.raises(Undelivered, match="try 2"):
        tick()
    webhook.status = 200
    soon()
    tick()
    tick()
    assert titles(webhook) == ["alert 1"] * 3


def test_a_refused_alert_holds_up_no_later_one(outbox, webhook, tick):
    webhook.refused = "poison"
    for number, text in enumerate(["poison", "text", "text"], start=1):
        outbox.add(alert(number, text))
        with suppress(Undelivered):
            tick()
    assert titles(webhook)[:3] == ["alert 1", "alert 2", "alert 3"]


@pytest.mark.parametrize("refused", [{0}, {4}, {9}, {0, 1, 2, 3}, {1, 4, 8}, set(range(9))])
def test_what_was_folded_with_refused_alerts_arrives_once_without_them(outbox, webhook, tick, soon, query, refused):
    webhook.refused = "poison"
    for number in range(10):
        outbox.add(alert(number, "poison" if number in refused else "text"))
    for _ in range(30):
        soon()
        with suppress(Undelivered):
            tick()
    taken = [f"{sent['title']}\n{sent['message']}" for sent in webhook.messages if "poison" not in sent["message"]]
    arrived = [int(number) for number in re.findall(r"alert (\d)", "".join(taken))]
    assert sorted(arrived) == sorted({*range(10)} - refused)
    assert {key for (key,) in query("select key from affiliate.alert where delivered_at is null")} == {
        f"run {number}" for number in refused
    }

    webhook.refused = None
    for _ in range(2):
        soon()
        tick()
    assert query("select key from affiliate.alert where delivered_at is null") == []


def test_a_target_that_is_down_is_asked_once_a_tick_at_most_and_then_only_after_pauses(outbox, webhook, tick, soon):
    webhook.status = 503
    for number in range(8):
        outbox.add(alert(number, "x" * 1000))
    for ticks in range(1, 12):
        with suppress(Undelivered):
            tick()
        assert len(webhook.messages) == min(ticks, 3), "each of the three messages is tried at once, and then none"
    for tries in (4, 5):
        soon()
        with pytest.raises(Undelivered):
            tick()
        assert len(webhook.messages) == tries


def test_after_an_outage_alerts_are_folded_again_and_arrive_once(outbox, webhook, tick, soon):
    webhook.status = 503
    for number in range(10, 50):
        outbox.add(alert(number))
    for _ in range(8):
        soon()
        with pytest.raises(Undelivered):
            tick()
    before = len(webhook.messages)
    webhook.status = 200
    soon()
    tick()
    arrived = webhook.messages[before:]
    told = "".join(f"{sent['title']}\n{sent['message']}" for sent in arrived)
    assert len(arrived) <= 5
    assert sorted(re.findall(r"alert (\d\d)", told)) == [f"{number}" for number in range(10, 50)]


def test_a_dead_target_neither_stops_nor_repeats_the_others(outbox, webhook, tick, soon, monkeypatch, caplog):
    monkeypatch.setenv("ALERT_URLS", f"{DEAD}, nonsense, {webhook.url}")
    for number in (1, 2):
        outbox.add(alert(number))
        soon()
        with pytest.raises(Undelivered, match="entry 1 could not be reached.*entry 2 is not an Apprise URL"):
            tick()
    assert titles(webhook) == ["alert 1", "alert 2"]
    assert "hunter2pass" not in caplog.text

    monkeypatch.setenv("ALERT_URLS", webhook.url)
    tick()
    assert titles(webhook) == ["alert 1", "alert 2"]


def test_without_urls_alerts_are_delivered_by_being_logged(outbox, webhook, tick, monkeypatch, caplog):
    monkeypatch.delenv("ALERT_URLS")
    outbox.add(alert(1))
    tick()
    assert "alert 1\ntext" in caplog.messages
    monkeypatch.setenv("ALERT_URLS", webhook.url)
    tick()
    assert webhook.messages == []


def test_a_tick_ends_in_time_and_the_next_goes_on(outbox, webhook, tick, monkeypatch):
    for number in range(3):
        outbox.add(alert(number, "x" * 3000))
    monkeypatch.setattr(delivery, "MAX_SENDING_S", -1)
    tick()
    assert webhook.messages == []
    monkeypatch.setattr(delivery, "MAX_SENDING_S", 25)
    tick()
    assert titles(webhook) == ["alert 0", "alert 1", "alert 2"]


def test_only_one_process_delivers(outbox, webhook, tick):
    outbox.add(alert(1))
    with outbox.try_exclusive():
        tick()
        assert webhook.messages == []
    tick()
    assert titles(webhook) == ["alert 1"]


def test_a_recovery_is_told_once_when_the_last_day_has_landed(sandbox, instance, webhook, tick):
    for day in DAYS[1:3]:
        sandbox.faults.fail_day(day, status=400, code=-1127)
    materialized(instance, DAYS[:4])
    materialized(instance, DAYS[1:3])
    tick()
    sandbox.faults.clear()
    materialized(instance, DAYS[1:2])
    tick()
    assert len(webhook.messages) == 1

    materialized(instance, DAYS[2:3])
    tick()
    tick()
    (_, recovery) = webhook.messages
    assert (recovery["title"], recovery["type"]) == (f"{KEY}: {format_days(DAYS[1:3])} have landed since", "success")


def test_a_day_that_fails_again_is_told_again(sandbox, instance, webhook, tick):
    day = DAYS[0]
    for _ in range(2):
        sandbox.faults.fail_day(day, status=400, code=-1127)
        materialized(instance, [day])
        tick()
        sandbox.faults.clear()
        materialized(instance, [day])
        tick()
    assert titles(webhook) == [f"{KEY} failed for {day}", f"{KEY}: {day} has landed since"] * 2


def test_what_the_ledger_does_not_tell_is_told_by_dagster(instance, outbox, webhook, tick):
    since = datetime.now(UTC)
    outbox.add(Alert("1", "days", "", {"kept": DAYS[:2]}), since)
    outbox.add(Alert("2", "roster", "", {"lbank/roster": ()}), since)
    tick()
    instance.report_runless_asset_event(dg.AssetMaterialization("kept", partition=f"{DAYS[0]}"))
    instance.report_runless_asset_event(dg.AssetMaterialization(["lbank", "roster"]))
    tick()
    instance.report_runless_asset_event(dg.AssetMaterialization("kept", partition=f"{DAYS[1]}"))
    tick()
    assert titles(webhook)[1:] == [
        "lbank/roster has been materialized since",
        f"kept: {format_days(DAYS[:2])} have landed since",
    ]


def test_a_day_that_its_second_chance_has_landed_is_recovered(instance, outbox, webhook, tick):
    outbox.add(Alert("1", "days", "", {"binance/kickback_recent_record": DAYS[:1]}), datetime.now(UTC))
    instance.report_runless_asset_event(
        dg.AssetMaterialization(["binance", "kickback_historical_record"], partition=f"{DAYS[0]}")
    )
    tick()
    tick()
    assert "1 alert and 1 recovery" in titles(webhook)


def test_however_many_recover_together_one_message_says_so_once(instance, outbox, webhook, tick):
    for _ in range(200):
        outbox.add(Alert(f"run {uuid4()}", "days", "", {"kept": DAYS[:1]}), datetime.now(UTC))
    tick()
    instance.report_runless_asset_event(dg.AssetMaterialization("kept", partition=f"{DAYS[0]}"))
    tick()
    tick()
    assert [title for title in titles(webhook) if "landed" in title] == [f"kept: {DAYS[0]} has landed since"]


def test_what_waits_is_sent_even_if_recoveries_cannot_be_told(instance, outbox, webhook, tick, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("Dagster's storage refused")

    monkeypatch.setattr(dg.DagsterInstance, "fetch_materializations", refuse)
    outbox.add(Alert("1", "days", "text", {"kept": DAYS[:1]}))
    with pytest.raises(ValueError, match="storage refused"):
        tick()
    assert titles(webhook) == ["days"]
