"""Alerts are delivered to a real webhook and mail server: bundled, retried, and followed by a report of the recovery."""

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from affiliate_pipeline.defs.sensors import alert_delivery as delivery
from affiliate_pipeline.defs.sensors.alert_delivery import Undelivered, build_alert_delivery
from affiliate_pipeline.defs.sensors.failures import build_failed_run_alert
from affiliate_pipeline.domain.days import format_days
from affiliate_pipeline.exchanges.registry import DEFAULT, ENDPOINTS
from affiliate_pipeline.monitoring.alerts import Alert
from affiliate_pipeline.monitoring.outbox import Outbox
from affiliate_pipeline_tests.conftest import RESOURCES
from affiliate_pipeline_tests.defs.conftest import run_rebates
from affiliate_pipeline_tests.defs.direct_runs import land
from affiliate_pipeline_tests.defs.rebates import DAYS, EMAIL, KEY, at, rebate
from affiliate_pipeline_tests.smtp import Smtp, text_of
from affiliate_pipeline_tests.webhook import Webhook

pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")
UNREACHABLE = "json://me:hunter2pass@127.0.0.1:1/hunter2pass"


@pytest.fixture(autouse=True)
def no_quiet_interval(monkeypatch) -> None:
    monkeypatch.setattr(delivery, "MIN_INTERVAL", timedelta(0))


@pytest.fixture
def outbox(instance, database_url) -> Iterator[Outbox]:
    with Outbox(database_url) as outbox:
        yield outbox


@pytest.fixture
def tick(instance, webhook, monkeypatch) -> Callable[[], None]:
    """Raises the alerts of failed runs, then delivers all alerts."""
    monkeypatch.setenv("ALERT_URLS", webhook.url)
    # One context for all ticks: it contains the cursor, so each failed run raises one alert.
    shared_context = dg.build_sensor_context(instance=instance, resources=RESOURCES)
    failed_run_alert, alert_delivery = build_failed_run_alert(DEFAULT), build_alert_delivery(ENDPOINTS)

    def tick() -> None:
        failed_run_alert(shared_context)
        alert_delivery(dg.build_sensor_context(instance=instance, resources=RESOURCES))

    return tick


@pytest.fixture
def end_pauses(query) -> Callable[[], object]:
    """Makes the alerts of every target due again."""
    return lambda: query("update affiliate.alert_delivery set next_attempt_at = now()")


def titles(webhook: Webhook) -> list[str]:
    return [message["title"] for message in webhook.messages]


def alert(number: int, text: str = "text") -> Alert:
    return Alert(f"run {number}", f"alert {number}", text)


def test_the_alert_of_a_failed_run_arrives_complete_and_without_secrets(sandbox, instance, webhook, tick, monkeypatch):
    monkeypatch.setenv("DAGSTER_UI_URL", "http://ui.example:3000")
    sandbox.binance.set_rebates(
        [rebate(at(DAYS[0])), rebate(at(DAYS[1]), income=f"much of {EMAIL}?signature=abcdef0123"), rebate(at(DAYS[2]))]
    )
    sandbox.faults.fail_day(DAYS[2], status=400, code=-1127)
    with Smtp() as smtp:
        monkeypatch.setenv("ALERT_URLS", f"{webhook.url}, {smtp.url}")
        run_id = run_rebates(instance, DAYS[:3])
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
        secrets = {*sandbox.secrets, EMAIL, "abcdef0123"}
        assert not [secret for secret in secrets if secret in everything]


def fail_run(instance: dg.DagsterInstance) -> str:
    """Add a failed run of the asset lbank/roster, and return its id."""
    asset = dg.AssetKey(["lbank", "roster"])
    run = create_run_for_test(
        instance, "__ASSET_JOB", status=dg.DagsterRunStatus.STARTED, asset_selection=frozenset([asset])
    )
    instance.report_run_failed(run)
    return run.run_id


def test_the_alerts_of_many_failed_runs_arrive_in_few_messages(instance, webhook, tick):
    runs = [fail_run(instance) for _ in range(16)]
    tick()
    tick()
    text = "".join(message["message"] for message in webhook.messages)
    assert len(webhook.messages) <= 2
    assert [text.count(run_id) for run_id in runs] == [1] * len(runs)


def test_alerts_raised_during_the_quiet_interval_are_bundled(outbox, webhook, tick, end_pauses, monkeypatch):
    monkeypatch.setattr(delivery, "MIN_INTERVAL", timedelta(hours=1))
    for number in range(5):
        outbox.add(alert(number))
        tick()
    assert titles(webhook) == ["alert 0"]
    end_pauses()
    tick()
    assert titles(webhook) == ["alert 0", "4 alerts"]


def test_a_failed_delivery_is_retried_until_it_succeeds(outbox, webhook, tick, end_pauses):
    outbox.add(alert(1))
    webhook.status = 503
    with pytest.raises(
        Undelivered, match=r"entry 1 could not be reached.* \(attempt 1: alert 1\); undelivered .*: 1; next"
    ):
        tick()
    tick()
    assert len(webhook.messages) == 1, "the delivery was retried before the end of the pause"
    end_pauses()
    with pytest.raises(Undelivered, match="attempt 2"):
        tick()
    webhook.status = 200
    end_pauses()
    tick()
    tick()
    assert titles(webhook) == ["alert 1"] * 3


def test_a_rejected_alert_does_not_delay_later_ones(outbox, webhook, tick):
    webhook.refused = "poison"
    for number, text in enumerate(["poison", "text", "text"], start=1):
        outbox.add(alert(number, text))
        with suppress(Undelivered):
            tick()
    assert titles(webhook)[:3] == ["alert 1", "alert 2", "alert 3"]


@pytest.mark.parametrize("rejected", [{5}, {1, 4}, set(range(5))])
def test_alerts_bundled_with_rejected_ones_arrive_once_without_them(outbox, webhook, tick, end_pauses, query, rejected):
    webhook.refused = "poison"
    for number in range(6):
        outbox.add(alert(number, "poison" if number in rejected else "text"))
    undelivered = "select key from affiliate.alert where delivered_at is null"
    expected = {(f"run {number}",) for number in rejected}

    def later_tick() -> None:
        end_pauses()
        with suppress(Undelivered):
            tick()

    for _ in range(30):
        later_tick()
        if set(query(undelivered)) == expected:
            break
    # Later ticks repeat no accepted alert.
    for _ in range(3):
        later_tick()
    accepted = [f"{sent['title']}\n{sent['message']}" for sent in webhook.messages if "poison" not in sent["message"]]
    arrived = [int(number) for number in re.findall(r"alert (\d)", "".join(accepted))]
    assert sorted(arrived) == sorted({*range(6)} - rejected)
    assert set(query(undelivered)) == expected

    webhook.refused = None
    for _ in range(2):
        end_pauses()
        tick()
    assert query(undelivered) == []


def test_an_unavailable_target_gets_one_attempt_per_tick_and_later_only_after_pauses(outbox, webhook, tick, end_pauses):
    webhook.status = 503
    for number in range(8):
        outbox.add(alert(number, "x" * 1000))
    for ticks in range(1, 6):
        with suppress(Undelivered):
            tick()
        assert len(webhook.messages) == min(ticks, 3), (
            "the eight alerts are sent in three messages; only the first attempt of each is made without a pause"
        )
    for attempts in (4, 5):
        end_pauses()
        with pytest.raises(Undelivered):
            tick()
        assert len(webhook.messages) == attempts


def test_after_an_outage_alerts_are_bundled_and_arrive_once(outbox, webhook, tick, end_pauses):
    webhook.status = 503
    for number in range(10, 30):
        outbox.add(alert(number))
    for _ in range(4):
        end_pauses()
        with pytest.raises(Undelivered):
            tick()
    before = len(webhook.messages)
    webhook.status = 200
    end_pauses()
    tick()
    arrived = webhook.messages[before:]
    texts = "".join(f"{sent['title']}\n{sent['message']}" for sent in arrived)
    assert len(arrived) <= 5
    assert sorted(re.findall(r"alert (\d\d)", texts)) == [f"{number}" for number in range(10, 30)]


def test_an_unreachable_target_does_not_affect_deliveries_to_the_others(
    outbox, webhook, tick, end_pauses, monkeypatch, caplog
):
    monkeypatch.setenv("ALERT_URLS", f"{UNREACHABLE}, nonsense, {webhook.url}")
    for number in (1, 2):
        outbox.add(alert(number))
        end_pauses()
        with pytest.raises(Undelivered, match="entry 1 could not be reached.*entry 2 is not an Apprise URL"):
            tick()
    assert titles(webhook) == ["alert 1", "alert 2"]
    assert "hunter2pass" not in caplog.text

    monkeypatch.setenv("ALERT_URLS", webhook.url)
    tick()
    assert titles(webhook) == ["alert 1", "alert 2"]


def test_without_urls_alerts_are_logged_and_count_as_delivered(outbox, webhook, tick, monkeypatch, caplog):
    monkeypatch.delenv("ALERT_URLS")
    outbox.add(alert(1))
    tick()
    assert "alert 1\ntext" in caplog.messages
    monkeypatch.setenv("ALERT_URLS", webhook.url)
    tick()
    assert webhook.messages == []


def test_a_tick_stops_at_its_time_limit_and_the_next_one_continues(outbox, webhook, tick, monkeypatch):
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


def test_a_recovery_is_reported_once_when_the_last_day_has_landed(sandbox, instance, webhook, tick):
    for day in DAYS[1:3]:
        sandbox.faults.fail_day(day, status=400, code=-1127)
    run_rebates(instance, DAYS[:4])
    run_rebates(instance, DAYS[1:3])
    tick()
    sandbox.faults.clear()
    assert land(KEY, DAYS[1:2]).success
    tick()
    assert len(webhook.messages) == 1

    assert land(KEY, DAYS[2:3]).success
    tick()
    tick()
    (_, recovery) = webhook.messages
    assert (recovery["title"], recovery["type"]) == (f"{KEY}: {format_days(DAYS[1:3])} have landed since", "success")


def test_a_day_that_fails_again_is_reported_again(sandbox, instance, webhook, tick):
    day = DAYS[0]
    for _ in range(2):
        sandbox.faults.fail_day(day, status=400, code=-1127)
        run_rebates(instance, [day])
        tick()
        sandbox.faults.clear()
        assert land(KEY, [day]).success
        tick()
    assert titles(webhook) == [f"{KEY} failed for {day}", f"{KEY}: {day} has landed since"] * 2


def test_recoveries_that_are_not_in_the_ledger_are_read_from_dagsters_events(
    instance, outbox, webhook, tick, monkeypatch
):
    monkeypatch.setattr("affiliate_pipeline.defs.sensors.alert_delivery.MATERIALIZATIONS_READ", 1)
    since = datetime.now(UTC)
    outbox.add(Alert("1", "days", "", {"asset_not_in_ledger": DAYS[:2]}), since)
    outbox.add(Alert("2", "roster", "", {"lbank/roster": ()}), since)
    tick()
    instance.report_runless_asset_event(dg.AssetMaterialization("asset_not_in_ledger", partition=f"{DAYS[0]}"))
    instance.report_runless_asset_event(dg.AssetMaterialization(["lbank", "roster"]))
    tick()
    instance.report_runless_asset_event(dg.AssetMaterialization("asset_not_in_ledger", partition=f"{DAYS[1]}"))
    tick()
    assert titles(webhook)[1:] == [
        "lbank/roster has been materialized since",
        f"asset_not_in_ledger: {format_days(DAYS[:2])} have landed since",
    ]


def test_a_day_that_the_kickback_history_has_landed_instead_is_recovered(instance, outbox, webhook, tick):
    outbox.add(Alert("1", "days", "", {"binance/kickback_recent_record": DAYS[:1]}), datetime.now(UTC))
    instance.report_runless_asset_event(
        dg.AssetMaterialization(["binance", "kickback_historical_record"], partition=f"{DAYS[0]}")
    )
    tick()
    tick()
    assert "1 alert and 1 recovery" in titles(webhook)


def test_alerts_that_recover_together_are_reported_in_one_message(instance, outbox, webhook, tick):
    for _ in range(20):
        outbox.add(Alert(f"run {uuid4()}", "days", "", {"asset_not_in_ledger": DAYS[:1]}), datetime.now(UTC))
    tick()
    instance.report_runless_asset_event(dg.AssetMaterialization("asset_not_in_ledger", partition=f"{DAYS[0]}"))
    tick()
    tick()
    assert [title for title in titles(webhook) if "landed" in title] == [
        f"asset_not_in_ledger: {DAYS[0]} has landed since"
    ]


def test_alerts_are_sent_even_if_the_search_for_recoveries_fails(instance, outbox, webhook, tick, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise ValueError("Dagster's storage failed")

    monkeypatch.setattr(dg.DagsterInstance, "fetch_materializations", fail)
    outbox.add(Alert("1", "days", "text", {"asset_not_in_ledger": DAYS[:1]}))
    with pytest.raises(ValueError, match="storage failed"):
        tick()
    assert titles(webhook) == ["days"]
