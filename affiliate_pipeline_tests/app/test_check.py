"""`check` reports each fault of an installation with an action, and changes nothing."""

import json
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from affiliate_pipeline.app.__main__ import app
from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline_tests.defs.direct_runs import land
from affiliate_pipeline_tests.defs.rebates import DAYS, KEY, SETTLED, at, rebate

# The columns of Dagster's tables that `check` reads. The end-to-end tests run it on the real tables.
DAGSTER_TABLES = """
create table daemon_heartbeats (daemon_type text, timestamp timestamp);
create table instigators (instigator_type text, status text, instigator_body text);
create table job_ticks (id serial, selector_id text, status text, tick_body text);
insert into daemon_heartbeats values ('SENSOR', now() at time zone 'utc'), ('SCHEDULER', now() at time zone 'utc');
"""
INSERT_STATE = "insert into instigators values (%s, %s, %s)"


@pytest.fixture
def healthy(both_exchanges, query, monkeypatch) -> None:
    """Both exchanges are configured, days have landed, and Dagster's daemon runs."""
    monkeypatch.setenv("COLUMNS", "1000")
    for statement in DAGSTER_TABLES.strip().split(";\n"):
        query(statement)
    query(INSERT_STATE, "SCHEDULE", "DECLARED_IN_CODE", instigator_body("binance_records_0015"))
    both_exchanges.binance.set_rebates([rebate(at(day)) for day in DAYS])
    assert land(KEY, DAYS).success
    query("update affiliate.landing set settled = true")


@pytest.fixture
def findings(capsys):
    """Runs `check` and returns its findings by subject; asserts that each has an action."""

    def run(*arguments: str) -> dict[str, str]:
        capsys.readouterr()
        code = app(["check", *(arguments or ("--port", str(free_port())))], standalone_mode=False)
        rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
        wrong = {row[1]: row[2] for row in rows if len(row) == 4 and row[0] == "wrong"}
        assert all(row[3] for row in rows if len(row) == 4 and row[0] == "wrong")
        assert code == (1 if wrong else 0)
        return wrong

    return run


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def instigator_body(name: str) -> str:
    return json.dumps({"origin": {"job_name": name}})


def test_a_healthy_installation_has_no_findings(healthy, findings):
    assert findings() == {}


def test_an_unreachable_database_is_reported_without_its_password(healthy, findings, monkeypatch):
    monkeypatch.setenv("AFFILIATE_DATABASE_URL", "postgresql://user:hidden-password@127.0.0.1:1/nothing")
    wrong = findings()
    assert list(wrong) == ["database"] and "cannot be used" in wrong["database"]
    assert "hidden-password" not in wrong["database"]


def test_a_malformed_database_url_is_reported(healthy, findings, monkeypatch):
    monkeypatch.setenv("AFFILIATE_DATABASE_URL", "mysql://user:hidden-password@127.0.0.1/nothing")
    assert findings() == {"database": "AFFILIATE_DATABASE_URL is not a postgresql:// URL"}


def test_an_old_database_server_is_reported(healthy, findings, monkeypatch):
    monkeypatch.setattr("affiliate_pipeline.postgres.connection.MIN_SERVER_VERSION", 990000)
    wrong = findings()
    assert list(wrong) == ["database"] and "too old" in wrong["database"]


def test_a_stopped_embedded_server_is_reported_and_not_started(healthy, findings, monkeypatch, tmp_path):
    monkeypatch.delenv("AFFILIATE_DATABASE_URL")
    assert findings() == {"database": "the embedded PostgreSQL is not running"}
    assert [path.name for path in tmp_path.iterdir()] == ["workspace.yaml"]


def test_a_nearly_full_disk_is_reported(healthy, findings, monkeypatch):
    monkeypatch.setattr("affiliate_pipeline.app.check.MIN_FREE_BYTES", 10**18)
    wrong = findings()
    assert list(wrong) == ["disk"] and "are free on the disk" in wrong["disk"]


def test_a_port_in_use_is_reported(healthy, findings):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        wrong = findings("--port", str(port))
    assert list(wrong) == ["port"] and f"port {port} cannot be used" in wrong["port"]


def test_a_wrong_clock_is_reported_for_each_exchange(healthy, findings, both_exchanges):
    both_exchanges.faults.clock_offset_ms = 70_000
    wrong = findings()
    assert set(wrong) == {"clock of binance", "clock of lbank"}
    assert {offset[:4] for offset in wrong.values()} <= {"+70.", "+69."}


def test_a_missing_variable_is_reported(healthy, findings, monkeypatch):
    monkeypatch.delenv("LBANK_API_SECRET")
    assert findings() == {"lbank affiliate": "LBANK_API_SECRET is not set"}


def test_the_lack_of_any_exchange_is_reported(healthy, findings, monkeypatch):
    for name in {name for endpoint in ENDPOINTS for name in endpoint.credentials}:
        monkeypatch.delenv(name, raising=False)
    assert findings() == {"accounts": "no exchange is configured"}


def test_a_malformed_secret_is_reported(healthy, findings, monkeypatch, tmp_path):
    monkeypatch.setenv("BINANCE_PARTNER_API_SECRET", str(tmp_path / "no-such-key.pem"))
    wrong = findings()
    assert list(wrong) == ["binance partner"] and "file that does not exist" in wrong["binance partner"]


def test_a_rejected_secret_is_reported(healthy, findings, monkeypatch):
    monkeypatch.setenv("BINANCE_PARTNER_API_SECRET", "not-the-secret-of-this-key")
    wrong = findings()
    assert list(wrong) == ["binance partner"] and "secret does not belong to the API key" in wrong["binance partner"]


def test_a_rejected_key_is_reported_with_every_possible_cause(healthy, findings, monkeypatch):
    monkeypatch.setenv("BINANCE_PARTNER_API_KEY", "x" * 64)
    wrong = findings()
    assert set(wrong) == {"binance partner", f"source of {KEY}"}
    for cause in ("API key (BINANCE_PARTNER_API_KEY) is wrong", "IP address is not on", "lacks the permission"):
        assert cause in wrong["binance partner"]


def test_a_wrong_open_id_is_reported(healthy, findings, monkeypatch):
    monkeypatch.setenv("LBANK_OPEN_ID", "LBAUNKNOWN")
    wrong = findings()
    assert list(wrong) == ["LBANK_OPEN_ID"] and "10022" in wrong["LBANK_OPEN_ID"]


def test_an_unreachable_exchange_is_reported(healthy, findings, monkeypatch):
    monkeypatch.setenv("LBANK_BASE_URL", "http://127.0.0.1:1")
    wrong = findings()
    assert list(wrong) == ["lbank affiliate"] and "127.0.0.1" in wrong["lbank affiliate"]


def test_a_stopped_daemon_is_reported(healthy, findings, query):
    query("update daemon_heartbeats set timestamp = timestamp - interval '1 hour' where daemon_type = 'SENSOR'")
    assert findings() == {"daemon": "Dagster's daemon is not running (sensor)"}


def test_stopped_or_failing_schedules_and_sensors_are_reported(healthy, findings, query):
    query("delete from instigators")
    assert findings() == {"schedules": "none is running"}

    query(INSERT_STATE, "SCHEDULE", "DECLARED_IN_CODE", instigator_body("binance_records_0015"))
    query(INSERT_STATE, "SENSOR", "STOPPED", instigator_body("stale_days"))
    assert findings() == {"sensors": "stopped: stale_days"}

    query("update instigators set status = 'DECLARED_IN_CODE'")
    query("insert into job_ticks (selector_id, status, tick_body) values ('x', 'FAILURE', %s)", '{"job_name": "other"}')
    assert findings() == {"sensors": "the last tick failed: other"}


def test_days_at_risk_are_reported(healthy, findings, query):
    query("delete from affiliate.landing where partition = %s", DAYS[2])
    wrong = findings()
    assert list(wrong) == [f"days of {KEY}"]
    assert f"{DAYS[2]}" in wrong[f"days of {KEY}"] and "fetchable until" in wrong[f"days of {KEY}"]


def test_days_that_only_the_history_has_landed_are_not_reported(healthy, findings, query):
    last = datetime.now(UTC).date() - timedelta(days=1)
    landed = "insert into affiliate.landing values (%s, %s, 0, 'hash', true, 'source', now(), now(), 'run')"
    for number in range(20):
        asset = "recent" if number != 15 else "historical"
        query(landed, f"binance/kickback_{asset}_record", last - timedelta(days=number))
    assert [subject for subject in findings() if subject.startswith("days")] == []

    query("delete from affiliate.landing where asset = 'binance/kickback_historical_record'")
    assert [subject for subject in findings() if subject.startswith("days")] == [
        "days of binance/kickback_recent_record"
    ]


def test_days_of_another_source_are_reported(healthy, findings, query):
    query("update affiliate.landing set source = 'api.binance.com partner 0123456789ab' where partition = %s", SETTLED)
    wrong = findings()
    assert list(wrong) == [f"source of {KEY}"] and "api.binance.com partner 0123456789ab" in wrong[f"source of {KEY}"]


def test_check_changes_nothing(healthy, findings, both_exchanges, query, monkeypatch, tmp_path):
    def state():
        tables = query(
            "select quote_ident(schemaname) || '.' || quote_ident(tablename) from pg_tables "
            "where schemaname not in ('pg_catalog', 'information_schema') order by 1"
        )
        rows = [(name, query(f"select t::text, xmin::text from {name} t order by 1")) for (name,) in tables]
        return rows, sorted(path.name for path in tmp_path.rglob("*"))

    before, requests_before = state(), len(both_exchanges.requests)
    assert findings() == {}
    assert state() == before
    assert len(both_exchanges.requests) - requests_before <= 8

    query("drop schema affiliate cascade; drop schema binance cascade")
    empty = state()
    assert set(findings()) == {"days"}
    assert state() == empty


def test_an_installation_without_any_settings_is_reported_and_unchanged(findings, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "1000")
    assert set(findings()) == {"accounts", "database"}
    assert [path.name for path in Path(tmp_path).iterdir()] == ["workspace.yaml"]


def test_days_before_the_start_date_are_not_reported(healthy, findings, query, monkeypatch):
    query("delete from affiliate.landing where partition = %s", DAYS[0])
    monkeypatch.setenv("AFFILIATE_START_DATE", f"{DAYS[0] + timedelta(days=1)}")
    assert findings() == {}


def test_every_role_has_a_probe():
    roles = {(endpoint.exchange.name, endpoint.role) for endpoint in ENDPOINTS}
    assert {(endpoint.exchange.name, endpoint.role) for endpoint in ENDPOINTS if endpoint.probe} == roles


def test_the_clients_account_needs_its_agent_code(healthy, findings, both_exchanges, monkeypatch):
    monkeypatch.setenv("BINANCE_CLIENT_API_KEY", both_exchanges.binance.client_key)
    monkeypatch.setenv("BINANCE_CLIENT_API_SECRET", both_exchanges.binance.client_secret)
    monkeypatch.delenv("BINANCE_API_AGENT_CODE", raising=False)
    assert findings() == {"binance client": "BINANCE_API_AGENT_CODE is not set"}

    monkeypatch.setenv("BINANCE_API_AGENT_CODE", both_exchanges.binance.api_agent_code)
    assert findings() == {}


def test_a_further_account_is_checked_like_the_default_one(healthy, findings, two_accounts, monkeypatch):
    assert findings() == {}
    monkeypatch.setenv("BINANCE_PARTNER_API_SECRET__ACME", "not-the-secret-of-this-key")
    monkeypatch.setenv("LBANK_OPEN_ID__ACME", "LBAUNKNOWN")
    monkeypatch.delenv("BINANCE_CLIENT_API_SECRET__ACME")
    wrong = findings()
    assert set(wrong) == {"binance acme partner", "LBANK_OPEN_ID__ACME", "binance acme client"}
    assert "BINANCE_PARTNER_API_SECRET__ACME" in wrong["binance acme partner"]
    assert wrong["binance acme client"] == "BINANCE_CLIENT_API_SECRET__ACME is not set"


def test_variables_that_belong_to_no_account_are_reported(healthy, findings, monkeypatch):
    monkeypatch.setenv("LBANK_API_KEY__2ND", "key")
    monkeypatch.setenv("LBANK_API_KEY__Acme", "key")
    monkeypatch.setenv("LBANK_BASE_URL__ACME", "https://example.com")
    monkeypatch.setenv("BINANCE_CUSTOMER_IDS__OTHER", "file.csv")
    monkeypatch.setenv("BINANCE_CUSTOMER_IDS__EMPTY", " ")
    assert findings() == {
        "LBANK_API_KEY__2ND": "2ND is not the alias of an account",
        "LBANK_API_KEY__Acme": "Acme is not the alias of an account",
        "LBANK_BASE_URL__ACME": "LBANK_BASE_URL is not a variable of an account",
        "binance other partner": "the account has variables, but no credentials",
        "binance other client": "the account has variables, but no credentials",
    }
