"""The history of kickbacks: requested days land in spite of unusual responses, failures and killed processes."""

import gzip
from collections.abc import Callable
from dataclasses import replace

import dagster as dg
import pytest

from affiliate_pipeline.exchanges.binance.kickback_export import advance, fetch
from affiliate_pipeline.exchanges.endpoint import Records
from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline.http.retry import MAX_ATTEMPTS
from affiliate_pipeline.sandbox.binance.kickbacks import FileForm
from affiliate_pipeline_tests.code_location import loaded_definitions
from affiliate_pipeline_tests.conftest import materialize
from affiliate_pipeline_tests.defs.direct_runs import DirectRun, land
from affiliate_pipeline_tests.defs.kickbacks import (
    HISTORY,
    OLD,
    PATH,
    RECENT,
    REQUEST,
    Killed,
    exports,
    kickback,
    kickbacks,
    kill_before,
    landed,
    posts,
    sent,
)
from affiliate_pipeline_tests.defs.rebates import DAYS, SETTLED, ago, at
from affiliate_pipeline_tests.http.test_unpacking import PACKINGS, zipped

pytestmark = pytest.mark.usefixtures("verified_keys")


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Records the pauses of runs in seconds instead of sleeping; a test may replace `fetch.sleep` to act during them."""
    slept: list[float] = []
    monkeypatch.setattr(fetch, "sleep", slept.append)
    # Six times the default, so that a run polls less often; `MAX_WAIT_S` and `REQUEST_WAIT_S` are multiples of it.
    monkeypatch.setattr(fetch, "POLL_S", 30)
    return slept


@pytest.fixture
def rows(sandbox) -> dict:
    """The kickbacks of `OLD`, by day; the exchange has no others."""
    rows = {day: kickbacks(day, 5 + number) for number, day in enumerate(OLD)}
    sandbox.binance.kickbacks.set(row for day in OLD for row in rows[day])
    return rows


def assert_landed(query, rows: dict) -> None:
    for day, expected in rows.items():
        assert landed(query, HISTORY, day) == sent(expected)


# Recent records


def test_recent_kickbacks_land_with_the_clients_key(sandbox, query):
    rows = kickbacks(SETTLED, 1100)
    sandbox.binance.kickbacks.set(rows)

    run = land(RECENT, [SETTLED])

    assert run.success, run.message
    assert landed(query, RECENT, SETTLED) == sent(rows)
    assert {request.params["limit"] for request in sandbox.requests} == {"1000"}


def test_a_day_that_expired_in_the_recent_records_fails_and_names_the_history(sandbox, rows, query):
    run = land(RECENT, [OLD[0], OLD[1]])

    assert not run.success and sandbox.requests == []
    assert "binance/kickback_historical_record can still land it until" in run.failed[OLD[0]]
    assert "trust_old" not in run.failed[OLD[0]]


def test_a_day_that_expired_in_the_history_too_has_no_fallback(sandbox):
    run = land(RECENT, [ago(40)])
    assert HISTORY not in run.failed[ago(40)] and "trust_old" in run.failed[ago(40)]


def test_without_the_clients_key_only_its_assets_fail(sandbox, monkeypatch):
    monkeypatch.delenv("BINANCE_CLIENT_API_KEY")
    for key in (RECENT, REQUEST, HISTORY):
        run = materialize(key, [SETTLED])
        assert "BINANCE_CLIENT_API_KEY is not set" in run.failed[SETTLED]
    assert land("binance/rebate_recent_record", [SETTLED]).success


# Request and file


def test_29_days_land_unchanged_after_a_single_post(sandbox, query):
    days = [ago(number) for number in range(29, 0, -1)]

    sandbox.binance.kickbacks.set(row for day in days for row in kickbacks(day, 2))

    request, run = land(REQUEST, days), land(HISTORY, days)

    assert request.success and run.success, request.message + run.message
    assert list(run.landed) == days
    for day in days:
        assert landed(query, HISTORY, day) == sent(sandbox.binance.kickbacks.of(day))
    (post,) = posts(sandbox)
    assert (int(post["startTime"]), int(post["endTime"])) == (at(days[0], "00:00:00.000"), at(days[-1], "23:59:59.999"))
    assert "limit" not in post
    assert exports(query, "state, first_day, last_day") == [("landed", days[0], days[-1])]
    assert query("select count(*), count(distinct collection_id) from binance.kickback_historical_request") == [(29, 1)]


def test_the_file_host_receives_no_key_and_the_url_is_recorded_nowhere(sandbox, rows, query, caplog):
    land(REQUEST, OLD)
    run = materialize(HISTORY, OLD)

    (headers,) = sandbox.binance.kickbacks.file_headers
    secrets = {sandbox.binance.client_key, sandbox.binance.client_secret}
    assert not {"x-mbx-apikey", "authorization", "cookie"} & headers.keys()
    assert not [secret for secret in secrets if secret in str(headers)]
    everything = caplog.text + str(run.events) + str(exports(query, "*"))
    for url in sandbox.binance.kickbacks.urls:
        for part in url.partition("?")[2].split("&"):
            assert part not in everything and part.partition("=")[2] not in everything


def test_a_second_request_for_days_of_an_open_export_sends_no_post(sandbox, rows, query):
    sandbox.binance.kickbacks.collect_ms = 10**9
    for days in (OLD, OLD, OLD[1:]):
        assert land(REQUEST, days).success
    assert len(posts(sandbox)) == 1
    assert query("select distinct collection_id from binance.kickback_historical_request") == [(1,)]


def test_landed_days_can_be_requested_again(sandbox, rows):
    for key in (REQUEST, HISTORY, REQUEST, HISTORY):
        assert land(key, OLD).success
    assert len(posts(sandbox)) == 2


def test_a_second_export_waits_until_the_first_has_landed(sandbox, rows, query):
    assert land(REQUEST, OLD[:1]).success
    assert land(REQUEST, OLD[1:]).success
    assert (len(posts(sandbox)), exports(query)) == (1, [("ready",), ("waiting",)])
    ((is_waiting,),) = query(
        "select requested_at is null and msg like 'not requested yet%%' from binance.kickback_historical_request "
        "where partition_date = %s",
        OLD[1],
    )
    assert is_waiting

    assert land(HISTORY, OLD[:1]).success
    assert land(HISTORY, OLD[1:]).success

    assert exports(query) == [("landed",), ("landed",)]
    assert len(posts(sandbox)) == 2
    assert_landed(query, rows)


def test_a_run_waits_through_every_response_without_a_file(sandbox, rows, query, slept):
    land(REQUEST, OLD[:1])
    land(HISTORY, OLD[:1])
    land(REQUEST, OLD)
    forms = ["previous", "previous", "error", "message", "empty", "null", "previous"]
    sandbox.faults.pending.extend(forms)

    run = land(HISTORY, OLD)

    assert run.success, run.message
    assert len(slept) >= len(forms)
    assert_landed(query, rows)


def test_no_export_is_requested_while_the_offered_file_is_unknown(sandbox, rows, query):
    # An earlier request for the same days: its file has fewer rows, and the database has no record of it.
    sandbox.binance.kickbacks.set(rows[OLD[0]][:3])
    assert land(REQUEST, OLD).success
    query("truncate binance.kickback_historical_collection, binance.kickback_historical_request, affiliate.landing")
    sandbox.binance.kickbacks.set(row for day in OLD for row in rows[day])
    sandbox.faults.next_responses.extend([(500, {}, b"")] * MAX_ATTEMPTS)

    run = land(REQUEST, OLD)

    assert run.success, run.message
    assert len(posts(sandbox)) == 1
    ((state, note),) = exports(query, "state, note")
    assert state == "waiting" and "it is unknown which file the exchange already offers" in note
    assert land(HISTORY, OLD).success
    assert len(posts(sandbox)) == 2
    assert_landed(query, rows)


def test_a_run_waits_through_errors_of_the_exchange(sandbox, rows, query):
    land(REQUEST, OLD)
    sandbox.faults.path = PATH
    refusal = b'{"code":-9,"msg":"no"}'
    errors = [(status, {}, body) for status in (404, 500) for body in (refusal, b"")]
    sandbox.faults.next_responses.extend([*errors, (200, {}, b"<html>")])
    run = land(HISTORY, OLD)
    assert run.success, run.message
    assert not sandbox.faults.next_responses
    assert_landed(query, rows)


def csv_of(rows) -> bytes:
    """The rows as the content of a file."""
    names = ("income", "asset", "symbol", "time")
    lines = [names, *([row[name] for name in names] for row in rows)]
    return "".join(",".join(map(str, line)) + "\n" for line in lines).encode()


def offer(sandbox, *bodies: bytes) -> None:
    """Let the file host respond with these bodies, one per request."""
    sandbox.faults.path = "/kickback-history/"
    sandbox.faults.next_responses.extend((200, {}, body) for body in bodies)


# `test_unpacking.py` and `test_file_format.py` cover all packings and encodings.
FORMS: dict[str, FileForm | Callable[[str], bytes]] = {
    "encoded with gzip": FileForm(packed="encoding"),
    "columns in another order, times as text, a .gz file, the URL as plain text": FileForm(
        header=("asset", "time", "symbol", "income"), time="text", packed="gzip", url="text"
    ),
    "UTF-8 with a byte order mark, in a .tar.gz file": lambda csv: PACKINGS["tar.gz"](csv.encode("utf-8-sig")),
}


def test_the_file_lands_in_other_forms(sandbox, query):
    rows = {ago(9 + number): kickbacks(ago(9 + number), 5) for number in range(len(FORMS))}
    sandbox.binance.kickbacks.set(row for day in rows for row in rows[day])
    found = {}
    for day, (name, form) in zip(rows, FORMS.items(), strict=True):
        sandbox.binance.kickbacks.form = form if isinstance(form, FileForm) else FileForm()
        land(REQUEST, [day])
        if not isinstance(form, FileForm):
            offer(sandbox, form(csv_of(rows[day]).decode().replace(",", ";").replace("\n", "\r\n")))
        found[name] = land(HISTORY, [day]).message or landed(query, HISTORY, day)
    assert found == {name: sent(rows[day]) for name, day in zip(FORMS, rows, strict=True)}


def test_an_unreadable_archive_is_reported_and_stored_as_received(sandbox, query):
    file = zipped(("a.csv", b"1"), ("b.csv", b"2"))
    land(REQUEST, OLD)
    offer(sandbox, file)
    run = land(HISTORY, OLD)
    assert list(run.failed) == OLD and "ZIP archive with 2 files (a.csv, b.csv)" in run.failed[OLD[0]]
    assert [bytes(stored) for (stored,) in exports(query, "file")] == [file]


NOT_THE_FILE = {
    "incomplete": zipped(("x.csv", b"income,asset\n" * 100))[:-30],
    "Please wait": b"<html><title>Please wait</title></html>",
    "Please reduce": b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>",
}


def test_a_response_without_the_file_is_fetched_again_and_not_stored(sandbox, query):
    rows = {ago(9 + number): kickbacks(ago(9 + number), 5) for number in range(len(NOT_THE_FILE))}
    sandbox.binance.kickbacks.set(row for day in rows for row in rows[day])
    found, reasons = {}, {}
    for day, (quoted, body) in zip(rows, NOT_THE_FILE.items(), strict=True):
        land(REQUEST, [day])
        offer(sandbox, *[body] * fetch.MAX_DOWNLOADS)
        reasons[quoted] = land(HISTORY, [day]).failed.get(day, "")
        assert exports(query, "file")[-1] == (None,), quoted
        offer(sandbox, body)
        found[quoted] = land(HISTORY, [day]).message or landed(query, HISTORY, day)
    assert found == {quoted: sent(rows[day]) for quoted, day in zip(NOT_THE_FILE, rows, strict=True)}
    assert {quoted: reason for quoted, reason in reasons.items() if quoted not in reason} == {}


def test_a_nested_url_is_found_and_a_setting_allows_other_hosts(sandbox, rows, query, monkeypatch):
    land(REQUEST, OLD)
    original_offer = sandbox.binance.kickbacks.offer
    body = b'{"code":200,"data":{"file":[{"downloadUrl":%s}]}}'
    monkeypatch.setattr(sandbox.binance.kickbacks, "offer", lambda host: body % original_offer(host))
    assert land(HISTORY, OLD).success
    assert_landed(query, rows)

    other_host = body % b'"https://files.partner.invalid/x.csv?Signature=a-secret"'
    monkeypatch.setattr(sandbox.binance.kickbacks, "offer", lambda _: other_host)
    query("update binance.kickback_historical_collection set state = 'ready', path = '/x.csv'")
    run = land(HISTORY, OLD)
    assert "offered on files.partner.invalid" in run.failed[OLD[0]] and "BINANCE_FILE_HOSTS" in run.failed[OLD[0]]
    monkeypatch.setenv("BINANCE_FILE_HOSTS", "*.partner.invalid, other.example")
    run = land(HISTORY, OLD)
    # The host is allowed now, but does not exist.
    assert "the file host files.partner.invalid did not send the whole file" in run.failed[OLD[0]]
    assert "a-secret" not in run.message


def test_an_unknown_column_is_stored_in_extra(sandbox, rows, query):
    rows[OLD[0]][0]["tradeid"] = "77"
    sandbox.binance.kickbacks.set(rows[OLD[0]])
    sandbox.binance.kickbacks.form = FileForm(header=("income", "asset", "symbol", "time", "tradeId"))
    land(REQUEST, OLD[:1])
    assert land(HISTORY, OLD[:1]).success
    assert query("select extra ->> 'tradeId' from binance.kickback_historical_record order by 1 desc limit 1") == [
        ("77",)
    ]


def test_an_empty_file_lands_empty_days(sandbox, query):
    sandbox.binance.kickbacks.set([])
    for days, header in ((OLD[:1], ("income", "asset", "symbol", "time")), (OLD[1:], ())):
        sandbox.binance.kickbacks.form = FileForm(header=header)
        land(REQUEST, days)
        run = land(HISTORY, days)
        assert run.success, (header, run.message)
    assert query("select partition, rows from affiliate.landing where asset = %s", HISTORY) == [(day, 0) for day in OLD]


def test_an_empty_file_does_not_clear_landed_days(sandbox, rows, query):
    for key in (REQUEST, HISTORY):
        land(key, OLD)
    sandbox.binance.kickbacks.set([])
    land(REQUEST, OLD)
    run = land(HISTORY, OLD)
    assert list(run.failed) == OLD and "allow_shrink" in run.failed[OLD[0]]
    assert_landed(query, rows)


def test_an_expired_url_is_replaced_by_a_fresh_one(sandbox, rows, query):
    land(REQUEST, OLD)
    sandbox.faults.expired_urls = 2
    assert land(HISTORY, OLD).success
    assert_landed(query, rows)
    # The poll received the first expired URL, and fetched no file.
    assert [len(sandbox.binance.kickbacks.file_headers), len(posts(sandbox))] == [2, 1]


def test_an_interrupted_download_is_repeated(sandbox, rows, query, monkeypatch):
    land(REQUEST, OLD)
    faults = ["http_500", "http_502", "truncated", "reset"]
    kinds = iter(faults)
    sandbox.faults.path = "/kickback-history/"
    monkeypatch.setattr(sandbox.faults, "_draw_kind", lambda: next(kinds, None))
    run = land(HISTORY, OLD)
    assert run.success, run.message
    assert_landed(query, rows)
    assert [each.fault for each in sandbox.requests if "/kickback-history/" in each.path] == [*faults, None]
    assert len(posts(sandbox)) == 1


def test_an_incomplete_file_is_fetched_again_and_not_stored(sandbox, rows, query):
    part = gzip.compress(b"income,asset,symbol,time\n" * 1000)[:-20]
    sandbox.faults.path = "/kickback-history/"
    for number, headers in enumerate(({}, {"Content-Encoding": "gzip"})):
        land(REQUEST, [OLD[number]])
        # The last one is for the next run, which then fetches the file again.
        sandbox.faults.next_responses.extend([(200, headers, part)] * (fetch.MAX_DOWNLOADS + 1))

        run = land(HISTORY, [OLD[number]])

        assert "incomplete" in run.failed[OLD[number]], headers
        assert exports(query, "state, file")[number:] == [("ready", None)], headers
        assert land(HISTORY, [OLD[number]]).success, headers
    assert_landed(query, {day: rows[day] for day in OLD[:2]})
    assert len(posts(sandbox)) == 2


def test_an_unreadable_header_is_quoted_and_the_stored_file_can_land_later(sandbox, rows, query, monkeypatch):
    sandbox.binance.kickbacks.set(row | {"amount": row["income"]} for day in OLD for row in rows[day])
    sandbox.binance.kickbacks.form = FileForm(header=("amount", "asset", "symbol", "time"))
    land(REQUEST, OLD)

    run = land(HISTORY, OLD)

    assert list(run.failed) == OLD
    assert "lacks income: 'amount,asset,symbol,time'" in run.failed[OLD[0]]
    assert "binance.kickback_historical_collection (id 1)" in run.failed[OLD[0]]
    ((state, file),) = exports(query, "state, file")
    assert state == "ready" and bytes(file).startswith(b"amount,asset,symbol,time\n")

    # Correct the stored file instead of the code: the effect is the same. The exchange no longer offers the file.
    sandbox.faults.pending.extend(["error"] * 100)
    corrected = bytes(file).replace(b"amount", b"income", 1)
    query("update binance.kickback_historical_collection set file = %s", corrected)
    requests_before = len(sandbox.requests)
    sandbox.binance.kickbacks.form = FileForm()
    run = land(HISTORY, OLD)
    assert run.success and len(sandbox.requests) == requests_before
    assert_landed(query, rows)
    assert exports(query, "state, file") == [("landed", None)]


def test_an_unreadable_line_fails_the_days_and_the_file_is_stored(sandbox, rows, query):
    land(REQUEST, OLD)
    offer(sandbox, b"income,asset,symbol,time\n1.0,USDT,BTCUSDT,yesterday")
    run = land(HISTORY, OLD)
    assert "line 2 of the file has the time 'yesterday'" in run.failed[OLD[0]]
    assert exports(query, "file is not null") == [(True,)]


def test_an_invalid_amount_fails_only_its_day_and_the_rejected_rows_are_stored(sandbox, rows, query):
    rows[OLD[1]][3]["income"] = "much"
    sandbox.binance.kickbacks.set(row for day in OLD for row in rows[day])
    land(REQUEST, OLD)

    run = land(HISTORY, OLD)

    assert list(run.failed) == [OLD[1]] and "income: not a decimal number" in run.failed[OLD[1]]
    assert_landed(query, {day: rows[day] for day in OLD if day != OLD[1]})
    assert query("select count(*) from affiliate.rejected_row where asset = %s", HISTORY) == [(len(rows[OLD[1]]),)]
    assert exports(query) == [("landed",)]


def test_a_file_with_rows_of_other_days_is_rejected(sandbox, rows, query):
    sandbox.binance.kickbacks.stray_rows = [kickback(at(ago(20)))]
    land(REQUEST, OLD)

    run = land(HISTORY, OLD)

    assert list(run.failed) == OLD
    assert "the URL of another request's file" in run.failed[OLD[0]]
    assert query("select count(*) from binance.kickback_historical_record") == [(0,)]
    assert exports(query, "state, cardinality(other_paths)") == [("collecting", 1)]


def test_an_export_with_a_stored_file_of_another_request_expires_and_later_exports_land(sandbox, rows, query):
    sandbox.binance.kickbacks.form = FileForm(header=("amount", "asset", "symbol", "time"))
    land(REQUEST, OLD[:1])
    land(HISTORY, OLD[:1])
    sandbox.binance.kickbacks.form = FileForm()
    land(REQUEST, OLD[1:])
    stray = f"income,asset,symbol,time\n1,USDT,BTCUSDT,{at(ago(20))}\n"
    query("update binance.kickback_historical_collection set file = %s where id = 1", stray.encode())

    run = land(HISTORY, OLD)

    assert list(run.failed) == OLD[:1] and REQUEST in run.failed[OLD[0]]
    assert_landed(query, {day: rows[day] for day in OLD[1:]})
    assert exports(query) == [("expired",), ("landed",)]


def test_the_rejected_file_of_an_expired_export_does_not_affect_the_next_export(sandbox, rows, query, monkeypatch):
    land(REQUEST, OLD)
    download = fetch.download

    def expire_during_download(*_: object) -> bytes:
        monkeypatch.setattr(fetch, "download", download)
        query("update binance.kickback_historical_collection set state = 'expired'")
        land(REQUEST, OLD)
        return f"income,asset,symbol,time\n1,USDT,BTCUSDT,{at(ago(20))}\n".encode()

    monkeypatch.setattr(fetch, "download", expire_during_download)
    run = land(HISTORY, OLD)
    assert run.success, run.message
    assert_landed(query, rows)
    assert exports(query) == [("expired",), ("landed",)]


def test_the_right_file_lands_after_a_file_of_another_request(sandbox, rows, query, slept, monkeypatch):
    sandbox.binance.kickbacks.stray_rows = [kickback(at(ago(20)))]
    land(REQUEST, OLD)

    def collect_the_right_one(_: float) -> None:
        sandbox.binance.kickbacks.stray_rows = []
        if len(posts(sandbox)) == 1:
            sandbox.binance.kickbacks.collect(at(OLD[0], "00:00:00.000"), at(OLD[-1], "23:59:59.999") + 1, None)

    monkeypatch.setattr(fetch, "sleep", collect_the_right_one)
    assert land(HISTORY, OLD).success
    assert_landed(query, rows)


def test_a_file_on_an_unknown_host_is_not_fetched(sandbox, rows):
    land(REQUEST, OLD)
    sandbox.binance.kickbacks.file_base_url = "https://files.example.com"
    run = land(HISTORY, OLD)
    assert list(run.failed) == OLD and "nothing was fetched from there" in run.failed[OLD[0]]
    assert "Signature" not in str(run)


def test_a_file_that_is_too_large_is_rejected(sandbox, rows, monkeypatch):
    monkeypatch.setattr(fetch, "MAX_FILE_BYTES", 100)
    land(REQUEST, OLD)
    assert "is larger than" in land(HISTORY, OLD).failed[OLD[0]]


def test_days_without_a_request_fail_and_the_error_names_the_request(sandbox, rows, slept):
    run = land(HISTORY, OLD)
    assert REQUEST in run.failed[OLD[0]]
    assert sum(slept) <= fetch.REQUEST_WAIT_S and posts(sandbox) == []


def test_a_run_waits_ten_minutes_and_its_error_names_the_sensor_that_waits_longer(sandbox, rows, slept):
    sandbox.binance.kickbacks.collect_ms = 10**9
    land(REQUEST, OLD)
    run = land(HISTORY, OLD)
    assert sum(slept) == fetch.MAX_WAIT_S
    assert "the file is not ready after 10 minutes" in run.failed[OLD[0]]
    assert "Historical data is collecting" in run.failed[OLD[0]] and "kickback_history" in run.failed[OLD[0]]


def test_a_run_that_starts_before_the_request_waits_for_it(sandbox, rows, query, slept, monkeypatch):
    def request(_: float) -> None:
        monkeypatch.setattr(fetch, "sleep", slept.append)
        assert land(REQUEST, OLD).success

    monkeypatch.setattr(fetch, "sleep", request)
    assert land(HISTORY, OLD).success
    assert_landed(query, rows)


def test_a_rejected_key_fails_the_request_at_once(sandbox, rows, query, monkeypatch):
    monkeypatch.setenv("BINANCE_CLIENT_API_KEY", "unknown-key")
    run = land(REQUEST, OLD)
    assert "-2015" in run.failed[OLD[0]]
    assert len(sandbox.requests) <= 2


def test_a_rejected_request_fails_its_days_and_expires(sandbox, rows, query):
    sandbox.faults.fail_day(OLD[0], status=400, code=-1130)
    run = land(REQUEST, OLD)
    assert list(run.failed) == OLD and "-1130" in run.failed[OLD[0]]
    assert exports(query) == [("expired",)]
    sandbox.faults.clear()
    assert land(REQUEST, OLD).success and land(HISTORY, OLD).success


def test_if_a_day_expires_before_the_request_only_that_day_fails(sandbox, rows, query, monkeypatch):
    monkeypatch.setattr(advance, "is_retained", lambda day, at_ms: day > OLD[0])
    run = land(REQUEST, OLD)
    assert sorted(run.landed) == OLD[1:]
    assert "could not be requested within the 30 days that the exchange retains" in run.failed[OLD[0]]
    assert exports(query, "first_day, last_day, state") == [
        (OLD[0], OLD[0], "expired"),
        (OLD[1], OLD[-1], "waiting"),
    ]


def test_a_request_with_an_unknown_outcome_is_sent_once_and_its_file_lands(sandbox, rows, query):
    sandbox.faults.fail_day(OLD[0], status=500)
    assert land(REQUEST, OLD).success
    assert exports(query, "state, msg, note like 'it is not known whether the POST took effect%%'") == [
        ("collecting", None, True)
    ]
    sandbox.faults.clear()
    assert land(HISTORY, OLD).success
    assert len(posts(sandbox)) == 1
    assert_landed(query, rows)


def test_a_day_requested_in_time_lands_after_it_has_expired(sandbox, query):
    day = ago(30)
    rows = kickbacks(day, 20)
    sandbox.binance.kickbacks.set(rows)
    land(REQUEST, [ago(29)])
    # The state after a request that was sent a day ago.
    sandbox.binance.kickbacks.collect(at(day, "00:00:00.000"), at(ago(29), "23:59:59.999"), None)
    query(
        "update binance.kickback_historical_collection set first_day = %s, requested_at = requested_at - interval '1 day'",
        day,
    )
    sandbox.binance.kickbacks._collections[-1] = replace(
        sandbox.binance.kickbacks._collections[-1],
        file=b"income,asset,symbol,time\n"
        + b"".join(f"{row['income']},{row['asset']},{row['symbol']},{row['time']}\n".encode() for row in rows),
    )
    run = land(HISTORY, [day])
    assert run.success, run.message
    assert landed(query, HISTORY, day) == sent(rows)


def test_days_older_than_30_days_are_not_requested_and_landed_ones_are_retained(sandbox, rows, query):
    for key in (REQUEST, HISTORY):
        for options in ({}, {"trust_old": True}):
            reason = land(key, [ago(31)], **options).failed[ago(31)]
            assert "beyond the 30 days" in reason and "It can no longer be fetched" in reason
            assert "trust_old" not in reason
    land(REQUEST, OLD)
    land(HISTORY, OLD)
    moved = "update {} set {} = %s where {} = %s"
    query(moved.format("affiliate.landing", "partition", "partition"), ago(31), OLD[0])
    query(moved.format("binance.kickback_historical_record", "partition_date", "partition_date"), ago(31), OLD[0])
    run = land(HISTORY, [ago(31)])
    assert run.success and list(run.retained) == [ago(31)]
    assert len(posts(sandbox)) == 1


def test_landed_days_can_land_again_while_the_file_is_offered(sandbox, rows, query):
    land(REQUEST, OLD)
    land(HISTORY, OLD)
    again = land(HISTORY, OLD)
    assert again.success and not again.landed[OLD[0]].changed
    land(REQUEST, OLD[:1])
    land(HISTORY, OLD[:1])
    run = land(HISTORY, OLD[1:])
    assert "no longer offers the file" in run.failed[OLD[1]]
    assert_landed(query, rows)


def test_landed_days_land_again_in_spite_of_temporary_errors(sandbox, rows, query):
    land(REQUEST, OLD)
    land(HISTORY, OLD)
    sandbox.faults.path = PATH
    sandbox.faults.next_responses.extend([(500, {}, b"")] * 3)
    assert land(HISTORY, OLD).success

    sandbox.faults.next_responses.extend([(500, {}, b"")] * 100)
    run = land(HISTORY, OLD)
    assert "did not send the URL of the file" in run.failed[OLD[0]] and REQUEST not in run.failed[OLD[0]]


def test_the_history_has_no_upstream_asset():
    graph = loaded_definitions().resolve_asset_graph()
    assert not graph.get(dg.AssetKey(HISTORY.split("/"))).parent_keys


# Killed processes


def test_a_failed_poll_after_a_kill_leads_to_no_other_post_which_would_withdraw_the_file(
    sandbox, rows, query, monkeypatch
):
    with monkeypatch.context() as patched:
        kill_before(patched, "msg")  # after the POST, before its response is recorded
        assert not materialize(REQUEST, OLD).success
    sandbox.faults.path = PATH
    sandbox.faults.next_responses.append((500, {}, b""))

    assert land(REQUEST, OLD).success
    assert land(HISTORY, OLD).success

    assert len(posts(sandbox)) == 1
    assert_landed(query, rows)


@pytest.mark.parametrize("killed_before", ["mark_collecting", "msg"])
def test_a_run_killed_around_its_post_leads_to_at_most_one_more_post(sandbox, rows, query, monkeypatch, killed_before):
    with monkeypatch.context() as patched:
        kill_before(patched, killed_before)
        assert not materialize(REQUEST, OLD).success
    assert query("select count(*) from binance.kickback_historical_request") == [(0,)]

    assert land(REQUEST, OLD).success
    assert land(HISTORY, OLD).success
    assert len(posts(sandbox)) <= 2
    assert_landed(query, rows)


@pytest.mark.parametrize("killed_before", ["state=ready", "state=landed", "state=collecting"])
def test_a_landing_killed_in_any_state_results_in_the_same_rows(sandbox, rows, query, monkeypatch, killed_before):
    land(REQUEST, OLD)
    sandbox.faults.pending.append("message")
    with monkeypatch.context() as patched:
        kill_before(patched, killed_before)
        with pytest.raises(Killed):
            land(HISTORY, OLD)

    assert land(HISTORY, OLD).success
    assert len(posts(sandbox)) == 1
    assert exports(query) == [("landed",)]
    assert_landed(query, rows)


# Reconciliation


def same_rows(run: DirectRun) -> dict[str, dg.AssetCheckEvaluation]:
    """The evaluations of the check `same_rows`, by day."""
    return {check.partition or "": check for check in run.checks if check.check_name == "same_rows"}


def test_days_of_both_tables_are_compared_and_differences_are_listed(sandbox, query):
    equal, different, only_exported = DAYS[:3]
    rows = {day: kickbacks(day, 10) for day in DAYS[:3]}
    sandbox.binance.kickbacks.set([*rows[equal], *rows[different], *rows[only_exported]])
    land(RECENT, [equal, different])
    query(
        "delete from binance.kickback_recent_record where partition_date = %s and income = %s", different, "0.00010003"
    )
    land(REQUEST, DAYS[:3])

    run = land(HISTORY, DAYS[:3])

    assert run.success
    checks = same_rows(run)
    assert {day: check.passed for day, check in checks.items()} == {f"{equal}": True, f"{different}": False}
    assert checks[f"{different}"].severity == dg.AssetCheckSeverity.WARN
    assert "BNB: 5 rows with a total of 0.00050025, compared with 4 rows and 0.00040022" in (
        checks[f"{different}"].description or ""
    )


def test_recent_records_that_land_after_the_history_are_compared_with_it(sandbox):
    sandbox.binance.kickbacks.set(kickbacks(SETTLED, 10))
    assert land(REQUEST, [SETTLED]).success and land(HISTORY, [SETTLED]).success
    sandbox.binance.kickbacks.set(kickbacks(SETTLED, 11))

    run = land(RECENT, [SETTLED])

    assert run.success
    assert not same_rows(run)[f"{SETTLED}"].passed


def test_every_compared_endpoint_exists_with_the_same_schema():
    keys = {endpoint.key: endpoint for endpoint in ENDPOINTS}
    for endpoint in ENDPOINTS:
        if isinstance(endpoint, Records) and endpoint.compared_with:
            assert keys[endpoint.key_of(endpoint.compared_with)].schema is endpoint.schema
