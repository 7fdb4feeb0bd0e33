"""The kickbacks of the sandbox's Binance, and the file with their history."""

import gzip
import json
from collections import Counter
from datetime import date

import pytest

from affiliate_pipeline.sandbox.binance.kickbacks import FileForm, generated_day
from affiliate_pipeline.sandbox.days import DAY_MS, day_of, start_of

RECENT = "/sapi/v1/apiReferral/kickback/recentRecord"
HISTORY = "/sapi/v1/apiReferral/kickback/historicalRecord"
YESTERDAY = date(2025, 6, 2)


@pytest.fixture
def client(sandbox, caller):
    """Sends calls signed with the client's key."""
    caller.key, caller.secret = sandbox.binance.client_key, sandbox.binance.client_secret
    return caller.call


@pytest.fixture
def request_file(client):
    """Requests the file of the days from `first` to `last`, both counted back from 2025-06-03."""

    def post(first=2, last=1):
        end = start_of(date(2025, 6, 3))
        return client(HISTORY, "POST", startTime=end - first * DAY_MS, endTime=end - (last - 1) * DAY_MS - 1)

    return post


def fetch(caller, url):
    """The file host's response to a request without a key."""
    caller.key = None
    return caller.raw(path_of(url))


def path_of(url):
    return "/" + url.split("/", 3)[3]


def test_a_generated_day_is_reproducible_and_has_rows_in_its_first_and_last_millisecond():
    day = generated_day(YESTERDAY, 600)
    assert day == generated_day(YESTERDAY, 600)
    assert (day.times[0], day.times[-1]) == (start_of(YESTERDAY), start_of(YESTERDAY) + DAY_MS - 1)
    assert set(json.loads(day.rows[0])) == {"income", "asset", "symbol", "time"}


def test_the_limit_of_recent_records_is_500_by_default_and_at_most_1000(sandbox, client, clock):
    window = {"startTime": clock.ms - DAY_MS, "endTime": clock.ms}
    row = {"income": "1.5", "asset": "USDT", "symbol": "BTCUSDT", "time": clock.ms}
    sandbox.binance.kickbacks.set([row] * 501)
    assert len(client(RECENT, **window, limit=1000).json) == 501
    assert len(client(RECENT, **window).json) == 500
    for limit in (0, 1001):
        assert client(RECENT, **window, limit=limit).refusal == (400, -1130)


def test_recent_records_are_retained_for_7_days(client, clock):
    window = {"startTime": clock.ms - 9 * DAY_MS, "endTime": clock.ms - 7 * DAY_MS - 1}
    assert client(RECENT, **window).json == []


def test_without_a_request_there_is_no_file(client):
    assert client(HISTORY).refusal == (400, -1130)


def test_the_file_has_the_requested_rows_of_the_last_30_days(sandbox, caller, client, request_file):
    assert request_file(first=40, last=2).json == {"code": 200, "msg": "Historical data is collecting"}
    header, *lines = fetch(caller, client(HISTORY).json).body.decode().splitlines()
    assert header == "income,asset,symbol,time"
    rows_by_day = Counter(day_of(int(line.rsplit(",", 1)[1])) for line in lines)
    days = sorted(rows_by_day)
    assert (days[0], days[-1]) == (date(2025, 5, 4), date(2025, 6, 1))
    for day in days[1:]:
        assert rows_by_day[day] == len(sandbox.binance.kickbacks.of(day))


def test_a_file_takes_collect_ms_and_a_second_request_replaces_the_first(sandbox, clock, client, request_file):
    sandbox.binance.kickbacks.collect_ms = 5000
    request_file()
    clock.ms += 4999
    assert client(HISTORY).json["msg"] == "Historical data is collecting"
    request_file(first=3)
    clock.ms += 4999
    assert client(HISTORY).json["code"] == 200
    clock.ms += 1
    assert client(HISTORY).json.startswith(f"{sandbox.url}/kickback-history/")


def test_each_pending_response_is_sent_once(sandbox, client, request_file):
    request_file()
    previous = client(HISTORY).json.partition("?")[0]
    request_file()
    sandbox.faults.pending.extend(["error", "message", "previous", "empty", "null"])
    assert client(HISTORY).refusal == (400, -1130)
    assert client(HISTORY).json["code"] == 200
    assert client(HISTORY).json.partition("?")[0] == previous
    assert (client(HISTORY).body, client(HISTORY).body) == (b"", b"null")
    assert client(HISTORY).json.partition("?")[0] != previous


@pytest.mark.parametrize(
    ("form", "beginning"),
    [
        (FileForm(header=("TIME", "asset", "symbol", "income")), b"TIME,asset,symbol,income\n17"),
        (FileForm(header=("time", "asset", "symbol", "income"), time="text"), b"time,asset,symbol,income\n2025-0"),
        (FileForm(packed="gzip"), b"\x1f\x8b"),
    ],
)
def test_the_file_has_the_configured_format(sandbox, caller, client, request_file, form, beginning):
    sandbox.binance.kickbacks.form = form
    request_file()
    assert fetch(caller, client(HISTORY).json).body.startswith(beginning)


def test_a_file_gzipped_as_content_encoding_is_sent_with_that_http_header(sandbox, caller, client, request_file):
    sandbox.binance.kickbacks.form = FileForm(packed="encoding", url="text")
    request_file()
    response = fetch(caller, client(HISTORY).body.decode())
    assert response.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(response.body).startswith(b"income,")


def test_the_file_host_refuses_wrong_and_expired_urls_and_requests_with_a_key(
    sandbox, caller, clock, client, request_file
):
    request_file()
    url = client(HISTORY).json
    assert fetch(caller, url).status == 200
    assert fetch(caller, url[:-1]).status == 403
    assert fetch(caller, url.replace("part-", "part_")).status == 404
    caller.key = sandbox.binance.client_key
    assert caller.raw(path_of(url)).status == 400
    clock.ms += sandbox.binance.kickbacks.url_lifetime_ms
    assert fetch(caller, url).status == 403
