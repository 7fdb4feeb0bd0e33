"""What a failed run says, and that it arrives: at a real webhook, through Apprise."""

import logging
from datetime import date

import pytest

from affiliate_pipeline.alerts import CAUSES_SHOWN, FailedAsset, failed_run, send
from affiliate_pipeline.days import days_from

# Apprise imports all its services at once, one of which asks for a module that Python 3.13 has no more.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")
LINK = "http://localhost:3000/runs/4711"
REBATES, KICKBACKS = "binance/rebate_recent_record", "binance/kickback_recent_record"
DAYS = days_from(date(2026, 11, 3), date(2026, 11, 9))


def test_the_title_names_the_asset_and_exactly_the_failed_days():
    title, _ = failed_run([FailedAsset(REBATES, [DAYS[0], *DAYS[2:5]], 3, {})], "unknown", LINK)
    assert title == f"{REBATES} failed for 2026-11-03, 05…07"


def test_the_text_gives_each_cause_once_with_its_days_and_the_link():
    reasons = {DAYS[0]: "HTTP 500. Try again", DAYS[2]: "HTTP 500. Try again", DAYS[3]: "not an amount"}
    _, text = failed_run([FailedAsset(REBATES, [DAYS[0], DAYS[2], DAYS[3]], 4, reasons)], "unknown", LINK)
    assert text.splitlines() == [
        f"{REBATES}: 3 days failed, 4 landed.",
        "2026-11-03, 05: HTTP 500. Try again",
        "2026-11-06: not an amount",
        f"Run: {LINK}",
    ]


def test_a_day_without_a_reason_has_the_runs_own():
    _, text = failed_run([FailedAsset(REBATES, DAYS[:2], 0, {DAYS[0]: "known"})], "The step was killed", LINK)
    assert "2026-11-03: known" in text and "2026-11-04: The step was killed" in text


def test_many_causes_are_cut_and_counted():
    reasons = {day: f"cause {day:%d}" for day in DAYS}
    _, text = failed_run([FailedAsset(REBATES, DAYS, 0, reasons)], "unknown", LINK)
    assert text.count("cause ") == CAUSES_SHOWN
    assert f"… and {len(DAYS) - CAUSES_SHOWN} other causes" in text


def test_every_asset_of_a_run_is_named():
    failed = [FailedAsset(REBATES, DAYS[:1], 0, {}), FailedAsset(KICKBACKS, DAYS[1:2], 0, {})]
    title, text = failed_run(failed, "unknown", LINK)
    assert title == f"{REBATES} failed for 2026-11-03; {KICKBACKS} failed for 2026-11-04"
    assert REBATES in text and KICKBACKS in text


def test_a_run_without_a_failed_day_is_told_all_the_same():
    title, text = failed_run([], "The run could not start", LINK)
    assert title == "A run failed"
    assert text.splitlines() == ["The run could not start", f"Run: {LINK}"]


def test_neither_title_nor_text_shows_a_secret():
    reasons = {DAYS[0]: "GET /x?signature=abcdef0123 of jane.doe@example.com"}
    told = failed_run([FailedAsset(REBATES, DAYS[:2], 0, reasons)], "the secret=abcdef0123", LINK)
    assert "abcdef0123" not in "".join(told) and "jane.doe" not in "".join(told)


def test_a_message_arrives_whole(webhook):
    text = "ünï…\n2026-11-03…05: <b>a & b</b> %d {x} *y* \\n"
    assert send([webhook.url], "A title; ü", text)
    (message,) = webhook.messages
    assert (message["title"], message["message"], message["type"]) == ("A title; ü", text, "failure")


def test_every_url_gets_it(webhook):
    assert send([webhook.url, webhook.url.replace("/hook", "/other")], "title", "text")
    assert sorted(webhook.paths) == ["/hook", "/other"]


def test_without_urls_it_is_logged(caplog):
    assert send([], "A title", "A text")
    (record,) = caplog.records
    assert record.levelno == logging.ERROR and record.getMessage() == "A title\nA text"


def test_what_is_sent_is_logged_as_well(webhook, caplog):
    send([webhook.url], "A title", "A text")
    assert "A title\nA text" in caplog.messages


@pytest.mark.parametrize("status", [400, 401, 404, 500, 503])
def test_a_delivery_that_fails_is_false(webhook, status):
    webhook.status = status
    assert not send([webhook.url], "title", "text")
    assert len(webhook.messages) == 1


def test_nobody_there_is_false(webhook):
    webhook.stop()
    assert not send([webhook.url], "title", "text")


def test_one_that_fails_does_not_keep_it_from_the_others(webhook):
    assert not send(["json://127.0.0.1:1/gone", webhook.url], "title", "text")
    assert len(webhook.messages) == 1


@pytest.mark.parametrize("wrong", ["nonsense", "slakc://tokenA/tokenB/tokenC", "://", "https//x"])
def test_a_url_that_apprise_does_not_know_is_told_by_its_place(webhook, caplog, wrong):
    assert not send([webhook.url, wrong], "title", "text")
    assert len(webhook.messages) == 1
    assert "ALERT_URLS: entry 2 is not an Apprise URL" in caplog.messages


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
def test_no_log_shows_what_is_secret_in_a_url(caplog, url):
    caplog.set_level(logging.INFO)
    assert not send([url], "title", "text")
    assert "hunter2pass" not in caplog.text
