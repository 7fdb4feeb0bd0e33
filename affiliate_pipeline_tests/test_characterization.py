"""Pins what every endpoint lands from recorded content: ledger rows, content hashes and the contents of the tables.

The content is what the sandbox of release 0.1.0 served, so that a change of its generators changes nothing here. The
expectations are in `characterization.json`. A refactoring must not change them. After an intended change of what lands,
delete the file, run the test once (it writes the file and fails), and review the difference.
"""

import gzip
import json
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from affiliate_pipeline.exchanges.endpoint import Records
from affiliate_pipeline.exchanges.registry import ENDPOINTS, endpoints_of
from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline.sandbox.exchange import Call
from affiliate_pipeline.sandbox.lbank.days import day_of
from affiliate_pipeline_tests import child_processes
from affiliate_pipeline_tests.cases.sandbox_responses import replace_bodies
from affiliate_pipeline_tests.child_processes import continue_clock_from
from affiliate_pipeline_tests.defs.direct_runs import land

EXPECTED = Path(__file__).with_name("characterization.json")
# A dump of a database whose days release 0.1.0 landed at `NOW`. One day was restated after it had settled; there are
# rejected rows.
RELEASE_0_1_0 = Path(__file__).with_name("database_0_1_0.sql.gz")
# What the exchanges of that sandbox had at `NOW`, with 300 rebates per day.
CONTENT = Path(__file__).with_name("exchange_0_1_0.json.gz")
NOW = datetime(2026, 11, 3, 6, tzinfo=UTC)
TODAY = NOW.date()
# Across the end of a month, where LBank's fan-outs are split. The last days have not settled.
DAYS = [TODAY - timedelta(days=number) for number in range(5, 0, -1)]
# Retained by the kickback export only.
EXPORT_DAYS = [TODAY - timedelta(days=number) for number in range(12, 8, -1)]
REBATES = "binance/rebate_recent_record"
EXPORT_REQUEST, EXPORT = "binance/kickback_historical_request", "binance/kickback_historical_record"
TODAY_ONLY = [endpoint.key for endpoint in ENDPOINTS if not isinstance(endpoint, Records)]
RECORDS = [endpoint.key for endpoint in ENDPOINTS if endpoint.key not in {*TODAY_ONLY, EXPORT, EXPORT_REQUEST}]
# Columns with the time of the run.
UNSTABLE = {
    EXPORT_REQUEST: ["requested_at"],
    "binance/customization_assignment": ["attempted_at"],
    "binance/user_customization_assignment": ["attempted_at"],
}


@pytest.fixture
def exchange(both_exchanges: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Sandbox:
    """Both exchanges at `NOW` with the content of release 0.1.0, and with assignments configured."""
    # So that it is restored after the test: `continue_clock_from` replaces it for the process.
    monkeypatch.setattr(time, "time_ns", time.time_ns)
    continue_clock_from(NOW)
    customers = tmp_path / "customers.csv"
    customers.write_text("customerId,email\nnew1,jane.doe1@example.com\nnew2,jane.doe2@example.com\n")
    monkeypatch.setenv("BINANCE_CUSTOMER_IDS", str(customers))
    monkeypatch.setenv("BINANCE_USER_CUSTOMER_ID", "myself")
    serve_recorded_content(both_exchanges, monkeypatch)
    return both_exchanges


def serve_recorded_content(exchange: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the default accounts serve the recorded rows.

    The sandbox still generates the users and customers of release 0.1.0: only the amounts in users' rows are recorded.
    """
    content = json.loads(gzip.decompress(CONTENT.read_bytes()))
    exchange.binance.set_rebates(content["rebates"])
    exchange.binance.kickbacks.set(content["kickbacks"])
    exchange.lbank.set_money(content["money"])
    exchange.lbank.set_commissions(content["commissions"])

    def with_recorded_data(call: Call, body: bytes) -> bytes:
        response, params = json.loads(body), call.params
        path = call.path.removeprefix("/affiliate-api/v2/")
        match path.split("/"):
            case ["invite", "user", *_]:
                users = response["data"] if isinstance(response["data"], list) else [response["data"]]
                for row in users:
                    row |= content["users"][row["openId"]]
            case ["trade", "user", *_]:
                response["data"] = [
                    row
                    for trade_type in ("0", "1")
                    for row in content[path][trade_type]
                    if params["tradeType"] in (trade_type, "10")
                    and row["openId"] == params["openId"]
                    and int(params["startTime"]) <= row["statsDate"] <= int(params["endTime"])
                ]
            case ["trade", "future"]:
                first, last = (day_of(int(params[name])) for name in ("startTime", "endTime"))
                assert first == last, "the endpoint returns one sum, and those of days are recorded"
                response["data"] = content[path][f"{first}"][params["userType"]]
        return json.dumps(response).encode()

    replace_bodies(exchange.lbank, monkeypatch, with_recorded_data)


def kill_while_landing(exchange: Sandbox, landed: Callable[[], int], key: str, days: Sequence[date]) -> None:
    """Kill a process that lands these days, after the first day has landed and before the last one can land."""
    killed = threading.Event()

    def withhold_last_day(row: dict[str, Any]) -> dict[str, Any]:
        if row["time"] >= datetime(days[-1].year, days[-1].month, days[-1].day, tzinfo=UTC).timestamp() * 1000:
            killed.wait(60)
        return row

    exchange.faults.transform_row = withhold_last_day
    landing = child_processes.start(child_processes.land_at, NOW, key, days)
    deadline = time.monotonic() + 120
    while not landed():
        assert landing.is_alive() and time.monotonic() < deadline
        landing.join(0.05)
    landing.kill()
    landing.join()
    killed.set()
    exchange.faults.transform_row = None


def test_every_endpoint_lands_what_the_file_expects(exchange, query):
    def landed_days() -> int:
        return query("select count(*) from affiliate.landing")[0][0] if _exists(query, "affiliate.landing") else 0

    kill_while_landing(exchange, landed_days, REBATES, DAYS)
    assert 0 < landed_days() < len(DAYS)

    runs = {key: land(key, DAYS) for key in RECORDS}
    runs |= {key: land(key, [TODAY]) for key in TODAY_ONLY}
    runs |= {key: land(key, EXPORT_DAYS) for key in (EXPORT_REQUEST, EXPORT)}
    assert {key: run.message for key, run in runs.items() if not run.success} == {}
    assert {endpoint.key for endpoint in ENDPOINTS} == runs.keys()
    landed = _dump(query)

    exchange.binance.set_rebates(row for row in exchange.binance.rebates(DAYS[0])[5:])
    shrunk = land(REBATES, DAYS[:1])
    assert not shrunk.success and _dump(query) == landed
    assert land(REBATES, DAYS[:1], allow_shrink=True).success
    shrunken = _dump(query)[REBATES]

    found = {
        "landed": landed,
        "shrunken": {day: row for day, row in shrunken.items() if row != landed[REBATES][day]},
        "superseded": query(
            "select asset, partition::text, count(*), sum((payload->>'income')::numeric)::text "
            "from affiliate.superseded_row group by 1, 2"
        ),
    }
    found = json.loads(json.dumps(found))
    if not EXPECTED.exists():
        EXPECTED.write_text(json.dumps(found, indent=1) + "\n")
        pytest.fail(f"{EXPECTED.name} was missing and has been written: review and commit it")
    expected = json.loads(EXPECTED.read_text())
    # An endpoint that is newer than the file is pinned when the file is written again.
    found["landed"] = {key: days for key, days in found["landed"].items() if key in expected["landed"]}
    assert found == expected


@pytest.mark.empty_database
def test_a_database_of_release_0_1_0_lands_the_same_days_unchanged(exchange, query, database_url, monkeypatch):
    with psycopg.connect(database_url) as connection:
        connection.execute(gzip.decompress(RELEASE_0_1_0.read_bytes()))
    before = _dump(query)

    # The last day of a month and the first one of the next.
    runs = {key: land(key, DAYS[2:4]) for key in RECORDS if key in before}

    assert {key: run.message for key, run in runs.items() if not run.success} == {}
    assert not [key for key, run in runs.items() for day in run.landed.values() if day.changed]
    assert _dump(query) == before
    # The first run with each key has recorded its account.
    uids = {role: f"{uid}" for role, uid in exchange.binance.uids.items()}
    accounts = {**uids, "affiliate": exchange.lbank.own_open_id}
    assert dict(query("select role, identity from affiliate.account where last_seen is not null")) == accounts
    # The day that was restated and has rejected rows: landing it removes them.
    assert land(REBATES, DAYS[:1]).success
    expected = json.loads(EXPECTED.read_text())
    assert _dump(query)[REBATES] == expected["landed"][REBATES]
    superseded = query("select partition::text, count(*)::int from affiliate.superseded_row group by 1")
    assert superseded == [(f"{DAYS[0]}", 5)]
    assert query("select count(*) from affiliate.rejected_row") == [(0,)]

    before = _dump(query)
    for name, value in exchange.variables.items():
        monkeypatch.setenv(name, value)
    second = {key.replace("/", "/acme/") for key in (REBATES, "lbank/invite_user_list")}
    messages = {key: land(key, DAYS[:2]).message for key in second}
    assert messages == dict.fromkeys(second, "")
    after = _dump(query)
    assert after.keys() == before.keys() | second
    assert {key: after[key] for key in before} == before


def _exists(query: Callable[..., list[tuple]], table: str) -> bool:
    return query("select to_regclass(%s) is not null", table)[0][0]


def _dump(query: Callable[..., list[tuple]]) -> dict[str, dict[str, dict[str, Any]]]:
    """By asset and day: the ledger's row without times and run, and a hash of the table's rows regardless of their order."""
    ledger = query("select asset, partition, rows, content_hash, settled from affiliate.landing order by 1, 2")
    dump: dict[str, dict[str, dict[str, Any]]] = {}
    for asset, day, rows, content_hash, settled in ledger:
        [endpoint] = endpoints_of([asset])
        left_out = ["landed_at", "run_id", "account", *UNSTABLE.get(asset, [])]
        [(table_hash,)] = query(
            "select md5(string_agg(line, '\n' order by line collate \"C\")) from "
            f"(select (to_jsonb(t) - %s::text[])::text line from {endpoint.table} t where partition_date = %s "
            # A database of release 0.1.0 has no accounts yet.
            "and coalesce(to_jsonb(t)->>'account', '') = %s) l",
            left_out,
            day,
            endpoint.alias,
        )
        stable_hash = None if asset in UNSTABLE else content_hash
        dump.setdefault(asset, {})[f"{day}"] = {
            "rows": rows,
            "content_hash": stable_hash,
            "settled": settled,
            "table_md5": table_hash,
        }
    return dump
