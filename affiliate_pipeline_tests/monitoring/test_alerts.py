"""The texts of alerts, and their delivery by Apprise to a real webhook and a real mail server."""

import textwrap
import threading
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from affiliate_pipeline.domain.days import days_from
from affiliate_pipeline.domain.expected_days import ExpectedDay
from affiliate_pipeline.domain.problem import Problem
from affiliate_pipeline.exchanges.endpoint import Retention
from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline.monitoring import delivery
from affiliate_pipeline.monitoring.alerts import (
    MAX_CAUSES,
    Alert,
    FailedAsset,
    Kind,
    availability,
    failed_checks,
    failed_run,
    failing_ticks,
    recovered,
)
from affiliate_pipeline.monitoring.delivery import MAX_MESSAGE_CHARACTERS, Message, messages, send
from affiliate_pipeline.monitoring.overdue import NotificationLevel, alerts_of
from affiliate_pipeline_tests import isolation
from affiliate_pipeline_tests.smtp import Smtp, text_of

# Apprise imports all of its services. One of them imports `imghdr`, which Python 3.13 removed.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")
LINK = "http://localhost:3000/runs/4711"
BY_KEY = {endpoint.key: endpoint for endpoint in ENDPOINTS}
REBATES, KICKBACKS = "binance/rebate_recent_record", "binance/kickback_recent_record"
DAYS = days_from(date(2026, 11, 3), date(2026, 11, 9))
NOW_MS = int(datetime(2026, 11, 10, 8, tzinfo=UTC).timestamp() * 1000)


def alert_for(assets: list[FailedAsset], fallback: str = "unknown") -> Alert:
    return failed_run("run 4711", assets, fallback, LINK, NOW_MS)


def test_the_title_names_the_asset_and_exactly_the_failed_days():
    assert (
        alert_for([FailedAsset(REBATES, [DAYS[0], *DAYS[2:5]], 3, {})]).title
        == f"{REBATES} failed for 2026-11-03, 05…07"
    )


def test_the_text_lists_each_cause_once_with_its_days_the_deadline_the_action_and_the_link():
    refused, other = Problem("refused", "HTTP 500", "3 rows", "Try again"), Problem("refused", "not an\namount")
    problems = {DAYS[1]: refused, DAYS[2]: replace(refused, impact="Nothing landed"), DAYS[5]: other}
    alert = alert_for([FailedAsset(REBATES, [DAYS[1], DAYS[2], DAYS[5]], 4, problems, BY_KEY[REBATES])])
    assert alert.text.splitlines() == [
        f"{REBATES}: 3 days failed, 4 landed. Rows of the failed days that had landed earlier are unchanged.",
        "2026-11-04, 05: HTTP 500. Try again.",
        "2026-11-08: not an amount.",
        "At the source: fetchable at least until 2026-11-10 23:59 UTC (2026-11-04; the later days longer).",
        "To do: fix the cause, then materialize these days again (missing and failed only).",
        f"Run: {LINK}",
    ]
    assert alert.failed == {REBATES: (DAYS[1], DAYS[2], DAYS[5])}


def test_a_day_without_its_own_problem_has_the_cause_of_the_run():
    text = alert_for([FailedAsset(REBATES, DAYS[:2], 0, {DAYS[0]: Problem("", "known")})], "The step was killed").text
    assert "2026-11-03: known" in text and "2026-11-04: The step was killed" in text


def test_only_the_first_causes_are_listed_and_the_others_are_counted():
    text = alert_for([FailedAsset(REBATES, DAYS, 0, {day: Problem("", f"of {day:%d}") for day in DAYS})]).text
    assert text.count(": of ") == MAX_CAUSES
    assert f"… and {len(DAYS) - MAX_CAUSES} other causes" in text


def test_a_long_cause_is_truncated():
    assert len(alert_for([FailedAsset(REBATES, DAYS, 0, {})], "x" * 10_000).text) < 1_000


def test_an_alert_names_every_failed_asset_of_its_run():
    failed = [FailedAsset(REBATES, DAYS[:1], 0, {}), FailedAsset(KICKBACKS, DAYS[1:2], 0, {})]
    alert = alert_for(failed)
    assert alert.title == f"{REBATES} failed for 2026-11-03; {KICKBACKS} failed for 2026-11-04"
    assert REBATES in alert.text and KICKBACKS in alert.text


def test_a_title_is_short_and_the_text_names_every_asset():
    failed = [FailedAsset(endpoint.key, DAYS, 0, {}) for endpoint in ENDPOINTS]
    alert = alert_for(failed)
    assert alert.title.endswith(f"; and {len(ENDPOINTS) - 3} more") and len(alert.title) < 200
    recovery = recovered([alert])
    assert recovery.title.endswith(f"; and {len(ENDPOINTS) - 3} more")
    for endpoint in ENDPOINTS:
        assert endpoint.key in alert.text
        assert endpoint.key in recovery.title + recovery.text


def test_a_failed_run_without_a_failed_day_has_an_alert():
    alert = alert_for([], "The run could not start")
    assert alert.title == "A run failed"
    assert alert.text.splitlines() == ["The run could not start", f"Run: {LINK}"]


def test_an_asset_without_days_is_reported_with_an_action():
    alert = alert_for([FailedAsset("lbank/roster", [], 0, {})], "refused")
    assert alert.title == "lbank/roster failed"
    assert alert.text.splitlines()[:2] == [
        "lbank/roster: refused",
        "To do: fix the cause, then materialize it again.",
    ]
    assert alert.failed == {"lbank/roster": ()}


@pytest.mark.parametrize(
    ("key", "days", "at", "expected"),
    [
        ("lbank/trade_user", DAYS, NOW_MS, "it is not known how long the exchange retains them"),
        (REBATES, [date(2026, 11, 16)], NOW_MS, "fetchable at least until 2026-11-22 23:59 UTC"),
        (REBATES, DAYS[:1], NOW_MS, "it no longer promises 2026-11-03"),
        (
            REBATES,
            DAYS[:3],
            NOW_MS,
            "fetchable at least until 2026-11-10 23:59 UTC (2026-11-04; the later days longer); "
            "it no longer promises 2026-11-03",
        ),
        (
            KICKBACKS,
            [date(2026, 11, 2), date(2026, 11, 4)],
            NOW_MS,
            "fetchable until 2026-11-10 23:59 UTC; it no longer has 2026-11-02; as a fallback, "
            "binance/kickback_historical_record: fetchable until 2026-12-01 23:59 UTC (2026-11-02; the later days longer)",
        ),
        # The current day of a zone that is 8 hours ahead of UTC.
        ("lbank/invite_user_info", [date(2026, 11, 10)], NOW_MS, "fetchable until 2026-11-10 15:59 UTC"),
        ("lbank/invite_user_info", [date(2026, 11, 9)], NOW_MS, "it no longer has 2026-11-09"),
    ],
)
def test_the_availability_states_until_when_the_source_has_the_days(key, days, at, expected):
    assert availability(BY_KEY[key], days, at) == expected


def test_a_retention_without_proof_is_not_reported_as_a_minimum():
    endpoint = replace(BY_KEY[REBATES], retention=Retention(timedelta(days=7)))
    assert availability(endpoint, [date(2026, 11, 16)], NOW_MS) == "fetchable until 2026-11-22 23:59 UTC"


def test_the_source_promises_the_day_until_the_reported_minute_and_no_longer():
    endpoint, day = BY_KEY[REBATES], date(2026, 11, 16)
    minute = int(datetime(2026, 11, 22, 23, 59, tzinfo=UTC).timestamp() * 1000)
    assert endpoint.timetable.is_retained(day, minute)
    assert not endpoint.timetable.is_retained(day, minute + 60_001)


def test_failed_checks_are_reported_with_their_days():
    failed: dict[tuple[str, str], dict[date | None, str]] = {
        (REBATES, "day_is_sound"): {DAYS[0]: "a new field", DAYS[1]: "a new field", DAYS[3]: "restated"}
    }
    alert = failed_checks("checks", failed, LINK)
    assert alert.title == f"{REBATES}: check day_is_sound failed for 2026-11-03, 04, 06"
    assert alert.text.splitlines()[:2] == [
        f"{REBATES}, day_is_sound, 2026-11-03, 04: a new field",
        f"{REBATES}, day_is_sound, 2026-11-06: restated",
    ]
    assert alert.text.endswith(f"Run: {LINK}")


def test_a_recovery_names_all_days_once():
    one, other = Alert("1", "first", "", {REBATES: DAYS[:3]}), Alert("2", "second", "", {REBATES: [DAYS[2], DAYS[6]]})
    alert = recovered([one, other])
    assert alert.title == f"{REBATES}: 2026-11-03…05, 09 have landed since"
    assert "first" in alert.text and "second" in alert.text
    assert alert.kind is Kind.RECOVERY


def test_a_single_alert_is_sent_unchanged():
    alert = Alert("1", "title", "text")
    assert messages([alert]) == [Message("title", "text", [alert])]


def test_a_burst_of_alerts_is_bundled_into_few_messages_without_losing_any():
    burst = [
        alert_for([FailedAsset(REBATES, [day], 0, {}, BY_KEY[REBATES])], f"cause {i}") for i in range(8) for day in DAYS
    ]
    sent = messages(burst)
    assert len(sent) <= 7
    assert [alert for message in sent for alert in message.alerts] == burst
    assert all(alert.text in message.text for message in sent for alert in message.alerts)
    assert all(len(message.text) <= MAX_MESSAGE_CHARACTERS for message in sent)


def test_the_title_of_a_bundle_counts_its_alerts():
    failure, recovery = Alert("1", "bad", ""), Alert("2", "good", "", kind=Kind.RECOVERY)
    bundles = [failure, failure], [failure, recovery], [recovery, recovery]
    titles = [messages(bundle)[0].title for bundle in bundles]
    assert titles == ["2 alerts", "1 alert and 1 recovery", "2 recoveries"]


def test_a_digest_is_sent_alone_under_its_own_title():
    failure, digest = Alert("1", "bad", ""), Alert("2", "9.00 USDT earned", "text", kind=Kind.DIGEST)
    found = [(message.title, message.alerts) for message in messages([failure, digest, failure])]
    assert found == [("2 alerts", [failure, failure]), ("9.00 USDT earned", [digest])]


def test_an_alert_longer_than_a_message_is_sent_alone():
    long, short = Alert("1", "long", "x" * (MAX_MESSAGE_CHARACTERS + 1)), Alert("2", "short", "")
    assert [message.alerts for message in messages([short, long, short])] == [[short], [long], [short]]


def examples() -> list[Alert]:
    """Alerts that the runbook quotes; `test_overdue.py` has the other ones."""
    rebates = BY_KEY[REBATES]
    cause = Problem(
        "refused",
        "Binance returned HTTP 400, code -1127: More than 7 days between startTime and endTime",
        action="Materialize the day again; if it fails again, see the runbook",
    )
    failed = alert_for(
        [FailedAsset(REBATES, [*DAYS[1:4], DAYS[5]], 10, dict.fromkeys(DAYS, cause), rebates)],
        "unknown",
    )
    days = [ExpectedDay(day, None, rebates.timetable.deadline_ms(day)) for day in DAYS]
    new_field = "the responses have fields that are not in the schema, stored in column extra: tier"
    return [
        failed,
        failed_checks("checks", {(REBATES, "day_is_sound"): {DAYS[1]: new_field}}, LINK),
        failing_ticks(
            "ticks",
            "sensor",
            "watch",
            "StoreUnavailable: the database cannot be used",
            "http://localhost:3000/automation",
        ),
        *alerts_of(rebates, NotificationLevel.BELOW_48_HOURS, days[1:2], NOW_MS),
        *alerts_of(rebates, NotificationLevel.LOST, days[:1], NOW_MS),
        recovered([failed]),
    ]


@pytest.mark.parametrize("alert", examples(), ids=lambda alert: alert.key.split(",")[0])
def test_the_runbook_quotes_the_alerts(alert):
    runbook = (Path(__file__).parents[2] / "docs" / "runbook.md").read_text()
    assert textwrap.indent(f"{alert.title}\n{alert.text}\n", "    ") in runbook


MESSAGE = Message("A title; ü", "ünï…\n2026-11-03…05: <b>a & b</b> %d {x} *y* \\n", [Alert("1", "", "")])


def test_a_message_arrives_unchanged(webhook):
    assert send(webhook.url, MESSAGE) is None
    (message,) = webhook.messages
    assert (message["title"], message["message"], message["type"]) == (MESSAGE.title, MESSAGE.text, "failure")


@pytest.mark.parametrize(
    ("kinds", "type_"),
    [
        ([Kind.RECOVERY], "success"),
        ([Kind.RECOVERY, Kind.FAILURE], "failure"),
        ([Kind.DIGEST], "info"),
    ],
)
def test_a_message_has_the_type_of_its_most_urgent_alert(webhook, kinds, type_):
    send(webhook.url, Message("t", "t", [Alert("1", "", "", kind=kind) for kind in kinds]))
    assert webhook.messages[0]["type"] == type_


def test_a_mail_arrives_unchanged():
    with Smtp() as smtp:
        assert send(smtp.url, MESSAGE) is None
    (mail,) = smtp.mails
    assert mail["subject"] == MESSAGE.title
    assert text_of(mail).rstrip("\r\n").splitlines() == MESSAGE.text.splitlines()


def test_a_message_too_long_for_a_service_arrives_in_parts(webhook, monkeypatch):
    from apprise.plugins.custom_json import NotifyJSON

    monkeypatch.setattr(NotifyJSON, "body_maxlen", 100)
    text = "\n".join(f"line {i}" for i in range(50))
    assert send(webhook.url, Message("title", text, [])) is None
    assert len(webhook.messages) > 1
    assert "\n".join(message["message"] for message in webhook.messages).split() == text.split()


@pytest.mark.parametrize("status", [400, 401, 404, 500, 503])
def test_a_failed_delivery_is_reported(webhook, status):
    webhook.status = status
    assert send(webhook.url, MESSAGE) == "could not be reached, or did not accept the message"
    assert len(webhook.messages) == 1


@pytest.mark.parametrize("parameters", ["", "?rto=10"])
def test_a_late_response_is_accepted(webhook, monkeypatch, parameters):
    from apprise import URLBase

    monkeypatch.setattr(URLBase, "socket_read_timeout", 0.01)
    webhook.may_respond.clear()
    late = threading.Timer(0.2, webhook.may_respond.set)
    late.start()
    assert send(f"{webhook.url}{parameters}", MESSAGE) is None
    late.join()


def test_a_url_may_set_a_shorter_timeout(webhook):
    webhook.may_respond.clear()
    assert send(f"{webhook.url}?rto=0.01", MESSAGE) == "could not be reached, or did not accept the message"
    webhook.may_respond.set()


def test_an_unreachable_target_is_reported(webhook):
    webhook.stop()
    assert send(webhook.url, MESSAGE) == "could not be reached, or did not accept the message"


@pytest.mark.parametrize("url", ["nonsense", "slakc://tokenA/tokenB/tokenC", "://", "https//x"])
def test_a_url_that_apprise_does_not_know_is_reported(url):
    assert send(url, MESSAGE) == "is not an Apprise URL"


@pytest.mark.parametrize(
    "url",
    [
        "json://me:hunter2pass@127.0.0.1:1/hunter2pass?+token=hunter2pass",
        "json://me:hunter2pass@:::/x",
        "hunter2pass",
        "publ://hunter2pass",
        "slakc://T1JJ3T3L2/A1BRTD4JD/hunter2pass",
    ],
)
def test_the_secrets_of_a_url_are_not_logged(caplog, url):
    caplog.set_level("INFO")
    assert "hunter2pass" not in str(send(url, MESSAGE))
    assert "hunter2pass" not in caplog.text


def test_a_fingerprint_distinguishes_urls_without_revealing_them():
    fingerprints = {delivery.fingerprint(f"json://me:hunter{i}@host") for i in range(50)}
    assert len(fingerprints) == 50 and not any("hunter" in each for each in fingerprints)


def test_the_code_location_loads_without_apprise():
    assert "affiliate_pipeline.definitions" in isolation.LOADED_AT_START
    assert "apprise" not in isolation.LOADED_AT_START
