"""What the sandbox has as kickbacks, and how it offers the file of their history."""

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
    """Signed calls with the client's key."""
    caller.key, caller.secret = sandbox.binance.client_key, sandbox.binance.client_secret
    return caller.call


@pytest.fixture
def collect(client):
    def collect(first=20, last=1):
        now = start_of(date(2025, 6, 3))
        return client(HISTORY, "POST", startTime=now - first * DAY_MS, endTime=now - (last - 1) * DAY_MS - 1)

    return collect


def fetch(caller, url):
    """The file host's answer, asked without any key."""
    caller.key = None
    return caller.raw(url.partition("127.0.0.1")[2].partition("/")[2].join(["/", ""]))


def test_a_day_is_the_same_in_every_process_and_has_both_edges():
    day = generated_day(YESTERDAY, 600)
    assert day == generated_day(YESTERDAY, 600)
    assert (day.times[0], day.times[-1]) == (start_of(YESTERDAY), start_of(YESTERDAY) + DAY_MS - 1)
    assert set(json.loads(day.rows[0])) == {"income", "asset", "symbol", "time"}


@pytest.mark.parametrize("limit", [0, 1001])
def test_recent_records_come_1000_at_most(client, clock, limit):
    window = {"startTime": clock.ms - DAY_MS, "endTime": clock.ms}
    assert len(client(RECENT, **window, limit=1000).json) > 500
    assert len(client(RECENT, **window).json) == 500
    assert client(RECENT, **window, limit=limit).refusal == (400, -1130)


def test_recent_records_are_forgotten_after_7_days(client, clock):
    window = {"startTime": clock.ms - 9 * DAY_MS, "endTime": clock.ms - 7 * DAY_MS - 1}
    assert client(RECENT, **window).json == []


def test_before_anybody_asked_there_is_an_error(client):
    assert client(HISTORY).refusal == (400, -1130)


def test_the_file_has_the_rows_asked_for_that_the_last_30_days_hold(sandbox, caller, client, collect):
    assert collect(first=40, last=2).json == {"code": 200, "msg": "Historical data is collecting"}
    header, *lines = fetch(caller, client(HISTORY).json).body.decode().splitlines()
    assert header == "income,asset,symbol,time"
    times = Counter(day_of(int(line.rsplit(",", 1)[1])) for line in lines)
    days = sorted(times)
    assert (days[0], days[-1]) == (date(2025, 5, 4), date(2025, 6, 1))
    for day in days[1:]:
        assert times[day] == len(sandbox.binance.kickbacks.of(day))


def test_a_file_is_collected_for_a_while_and_the_next_request_replaces_it(sandbox, clock, client, collect):
    sandbox.binance.kickbacks.collect_ms = 5000
    collect()
    clock.ms += 4999
    assert client(HISTORY).json["msg"] == "Historical data is collecting"
    collect(first=3)
    clock.ms += 4999
    assert client(HISTORY).json["code"] == 200
    clock.ms += 1
    assert client(HISTORY).json.startswith(f"{sandbox.url}/kickback-history/")


def test_each_form_of_not_yet_is_answered_once(sandbox, client, collect):
    collect()
    previous = client(HISTORY).json.partition("?")[0]
    collect()
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
def test_the_file_comes_in_the_form_that_is_set(sandbox, caller, client, collect, form, beginning):
    sandbox.binance.kickbacks.form = form
    collect()
    assert fetch(caller, client(HISTORY).json).body.startswith(beginning)


def test_a_packed_answer_says_so(sandbox, caller, client, collect):
    sandbox.binance.kickbacks.form = FileForm(packed="encoding", url="text")
    collect()
    reply = fetch(caller, client(HISTORY).body.decode())
    assert reply.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(reply.body).startswith(b"income,")


def test_the_file_host_is_strict(sandbox, caller, clock, client, collect):
    collect()
    url = client(HISTORY).json
    assert fetch(caller, url).status == 200
    assert fetch(caller, url[:-1]).status == 403
    assert fetch(caller, url.replace("part-", "part_")).status == 404
    caller.key = sandbox.binance.client_key
    assert caller.raw("/" + url.split("/", 3)[3]).status == 400
    clock.ms += sandbox.binance.kickbacks.url_lifetime_ms
    assert fetch(caller, url).status == 403
