"""`check` reports each fault of an installation with an action, and changes nothing."""

import json
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from itertools import zip_longest
from pathlib import Path

import pytest
from amqp.exceptions import AccessRefused

from affiliate_pipeline import environment as settings
from affiliate_pipeline.app.__main__ import app
from affiliate_pipeline.app.processes import stop_processes
from affiliate_pipeline.defs import celery_executor
from affiliate_pipeline.domain.settings import known_variables
from affiliate_pipeline.environment import application
from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline.http.client import Client
from affiliate_pipeline.monitoring import doctor
from affiliate_pipeline_tests.app.dagster_processes import CODE_SERVER, DAEMON, WEBSERVER, running
from affiliate_pipeline_tests.broker import broker_in
from affiliate_pipeline_tests.defs.direct_runs import land
from affiliate_pipeline_tests.defs.rebates import DAYS, KEY, SETTLED

# Apprise imports all of its services. One of them imports `imghdr`, which Python 3.13 removed.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")
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
    query(INSERT_STATE, "SCHEDULE", "DECLARED_IN_CODE", instigator_body("binance_records_0015_utc"))
    assert land(KEY, [SETTLED]).success
    query("update affiliate.landing set settled = true")
    # Landing every day would take half of each test's time.
    query(
        "insert into affiliate.landing (select (jsonb_populate_record(l, jsonb_build_object('partition', day))).* "
        "from affiliate.landing l, unnest(%s::date[]) day)",
        DAYS[1:],
    )


@pytest.fixture
def wrong_rows(capsys):
    """Runs `check` and returns what is wrong as (subject, found, action); asserts that no row contradicts another."""

    def run(*arguments: str) -> list[tuple[str, str, str]]:
        capsys.readouterr()
        code = app(["check", *(arguments or ("--port", str(free_port())))], standalone_mode=False)
        lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
        rows = [(mark, about, found, action) for mark, about, found, action in (row for row in lines if len(row) == 4)]
        wrong = [(about, found, action) for mark, about, found, action in rows if mark == "wrong"]
        fine = [about for mark, about, _, _ in rows if mark == "ok"]
        assert len({*rows}) == len(rows)
        assert not {about for about, _, _ in wrong} & {*fine}
        assert all(action for _, _, action in wrong)
        assert code == (1 if wrong else 0)
        return wrong

    return run


@pytest.fixture
def findings(wrong_rows):
    """Runs `check` and returns what is wrong by subject."""

    def run(*arguments: str) -> dict[str, str]:
        return {about: found for about, found, _ in wrong_rows(*arguments)}

    return run


@pytest.fixture
def dagster(tmp_path: Path) -> Iterator[dict[tuple[str, ...], subprocess.Popen[bytes]]]:
    """The processes of Dagster under `up`, by their arguments."""
    with ExitStack() as stack:
        processes = {each: stack.enter_context(running(tmp_path, *each)) for each in (WEBSERVER, DAEMON, CODE_SERVER)}
        yield processes
        for process in processes.values():
            process.kill()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def instigator_body(name: str) -> str:
    return json.dumps({"origin": {"job_name": name}})


def test_a_healthy_installation_has_no_findings(healthy, findings):
    assert findings() == {}


def test_a_clock_that_differs_by_little_is_not_reported_as_minus_zero(healthy, monkeypatch):
    monkeypatch.setattr(Client, "adopt_clock", lambda _: -20)
    clocks = [each.found for each in doctor.accounts(application()) if each.about.startswith("clock of")]
    assert clocks and {*clocks} == {"+0.0 s relative to this machine's clock"}


def test_an_unreachable_database_is_reported_without_its_password(healthy, findings, monkeypatch):
    monkeypatch.setenv("AFFILIATE_DATABASE_URL", "postgresql://user:hidden-password@127.0.0.1:1/nothing")
    wrong = findings()
    assert list(wrong) == ["database"] and "cannot be used" in wrong["database"]
    assert "hidden-password" not in wrong["database"]


def test_a_malformed_database_url_is_reported(healthy, findings, monkeypatch):
    monkeypatch.setenv("AFFILIATE_DATABASE_URL", "mysql://user:hidden-password@127.0.0.1/nothing")
    assert findings() == {"AFFILIATE_DATABASE_URL": "AFFILIATE_DATABASE_URL is not a postgresql:// URL"}


def test_an_old_database_server_is_reported(healthy, findings, monkeypatch):
    monkeypatch.setattr("affiliate_pipeline.postgres.connection.MIN_SERVER_VERSION", 990000)
    wrong = findings()
    assert list(wrong) == ["database"] and "too old" in wrong["database"]


def test_a_stopped_embedded_server_is_reported_and_not_started(healthy, findings, monkeypatch, tmp_path):
    monkeypatch.delenv("AFFILIATE_DATABASE_URL")
    assert findings() == {"database": "the embedded PostgreSQL is not running"}
    assert [path.name for path in tmp_path.iterdir()] == ["workspace.yaml"]


def test_a_wrong_clock_is_reported_for_each_exchange(healthy, findings, both_exchanges):
    both_exchanges.faults.clock_offset_ms = 70_000
    wrong = findings()
    assert set(wrong) == {"clock of binance", "clock of lbank"}
    assert {offset[:4] for offset in wrong.values()} <= {"+70.", "+69."}


def test_the_lack_of_any_exchange_is_reported(healthy, findings, monkeypatch):
    for name in {name for endpoint in ENDPOINTS for name in endpoint.credentials}:
        monkeypatch.delenv(name, raising=False)
    assert findings() == {"accounts": "no exchange is configured"}


def test_a_missing_variable_and_a_rejected_secret_are_reported(healthy, findings, monkeypatch):
    monkeypatch.delenv("LBANK_API_SECRET")
    monkeypatch.setenv("BINANCE_PARTNER_API_SECRET", "not-the-secret-of-this-key")
    monkeypatch.setenv("AFFILIATE_EXECUTOR", "celery")
    monkeypatch.setenv("AFFILIATE_CELERY_BROKER", "redis://127.0.0.1/0")
    wrong = findings()
    assert wrong.keys() == {"LBANK_API_SECRET", "binance partner", "AFFILIATE_CELERY_BACKEND"}
    assert wrong["LBANK_API_SECRET"] == "LBANK_API_SECRET is not set"
    assert "secret does not belong to the API key" in wrong["binance partner"]


@pytest.mark.skipif(not shutil.which("redis-server"), reason="needs redis-server")
def test_a_broker_without_workers_is_reported(healthy, findings, monkeypatch, tmp_path):
    monkeypatch.setattr(celery_executor, "LATE_RESPONSE_S", 0.1)
    broker = broker_in(tmp_path)
    monkeypatch.setenv("AFFILIATE_EXECUTOR", "celery")
    monkeypatch.setenv("AFFILIATE_CELERY_BROKER", broker.url)
    monkeypatch.setenv("AFFILIATE_CELERY_BACKEND", broker.url)
    with broker.running():
        assert findings() == {"executor": "celery: no worker responds, so every step waits"}


def test_a_broker_and_a_result_backend_that_cannot_be_used_are_reported(healthy, findings, monkeypatch):
    monkeypatch.setattr(celery_executor, "RESPONSE_S", 0.2)
    monkeypatch.setenv("AFFILIATE_EXECUTOR", "celery")
    variables = ("AFFILIATE_CELERY_BROKER", "AFFILIATE_CELERY_BACKEND")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for url, problem in {
            "redis://127.0.0.1:1": "refused",
            f"redis://127.0.0.1:{silent.getsockname()[1]}": "timeout",
            "redis://:hid/den@127.0.0.1:1": "percent-encode",
            "redis://127.0.0.1:1/hidden": "malformed",
        }.items():
            for variable in variables:
                monkeypatch.setenv(variable, url)
            wrong = findings()
            assert wrong.keys() == {*variables}, url
            assert all(problem in found.lower() for found in wrong.values()), wrong
            assert not any("hid" in found for found in wrong.values())


def test_a_broker_that_refuses_the_credentials_is_reported(healthy, findings, monkeypatch):
    def refuse(*_arguments: object, **_more: object) -> None:
        raise AccessRefused(403, "Login was refused using authentication mechanism PLAIN")

    monkeypatch.setattr("celery.app.control.Inspect.ping", refuse)
    monkeypatch.setenv("AFFILIATE_EXECUTOR", "celery")
    monkeypatch.setenv("AFFILIATE_CELERY_BROKER", "amqp://guest@127.0.0.1")
    monkeypatch.setenv("AFFILIATE_CELERY_BACKEND", "redis://127.0.0.1:1")
    assert "Login was refused" in findings()["AFFILIATE_CELERY_BROKER"]


def test_a_malformed_secret_and_an_unreachable_exchange_are_reported(healthy, findings, monkeypatch, tmp_path):
    monkeypatch.setenv("BINANCE_PARTNER_API_SECRET", str(tmp_path / "no-such-key.pem"))
    monkeypatch.setenv("LBANK_BASE_URL", "http://127.0.0.1:1")
    wrong = findings()
    assert wrong.keys() == {"BINANCE_PARTNER_API_SECRET", "lbank affiliate"}
    assert "file that does not exist" in wrong["BINANCE_PARTNER_API_SECRET"]
    assert "127.0.0.1" in wrong["lbank affiliate"]


def test_a_wrong_open_id_is_reported_and_a_rejected_key_with_every_possible_cause(healthy, findings, monkeypatch):
    monkeypatch.setenv("BINANCE_PARTNER_API_KEY", "x" * 64)
    monkeypatch.setenv("LBANK_OPEN_ID", "LBAUNKNOWN")
    wrong = findings()
    assert wrong.keys() == {"binance partner", f"source of {KEY}", "LBANK_OPEN_ID"}
    for cause in ("API key (BINANCE_PARTNER_API_KEY) is wrong", "IP address is not on", "lacks the permission"):
        assert cause in wrong["binance partner"]
    assert "10022" in wrong["LBANK_OPEN_ID"]


def test_stopped_or_failing_schedules_and_sensors_are_reported(healthy, findings, query):
    query("delete from instigators")
    assert findings() == {"schedules": "none is running"}

    query(INSERT_STATE, "SCHEDULE", "DECLARED_IN_CODE", instigator_body("binance_records_0015_utc"))
    query(INSERT_STATE, "SENSOR", "STOPPED", instigator_body("stale_days"))
    assert findings() == {"schedules and sensors": "stopped: stale_days"}

    query("update instigators set status = 'DECLARED_IN_CODE'")
    query("insert into job_ticks (selector_id, status, tick_body) values ('x', 'FAILURE', %s)", '{"job_name": "other"}')
    assert findings() == {"schedules and sensors": "the last tick failed: other"}


def test_schedules_that_the_daemon_is_about_to_start_are_not_reported(healthy, findings, query, monkeypatch):
    query("delete from instigators")
    monkeypatch.setenv("AFFILIATE_SCHEDULES", "true")
    assert findings() == {}


def test_the_disk_the_port_the_daemon_and_days_are_reported(healthy, findings, query, monkeypatch):
    monkeypatch.setattr("affiliate_pipeline.app.check.MIN_FREE_BYTES", 10**18)
    query("update daemon_heartbeats set timestamp = timestamp - interval '1 hour' where daemon_type = 'SENSOR'")
    query("delete from affiliate.landing where partition = %s", DAYS[2])
    query("update affiliate.landing set source = 'api.binance.com partner 0123456789ab' where partition = %s", SETTLED)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        wrong = findings("--port", str(port))
    assert wrong.keys() == {"disk", "port", "daemon", f"days of {KEY}", f"source of {KEY}"}
    assert "are free on the disk" in wrong["disk"]
    assert f"port {port} cannot be used" in wrong["port"]
    assert wrong["daemon"] == "Dagster's daemon is not running (sensor)"
    assert f"{DAYS[2]}" in wrong[f"days of {KEY}"] and "fetchable until" in wrong[f"days of {KEY}"]
    assert "api.binance.com partner 0123456789ab" in wrong[f"source of {KEY}"]


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
    assert len(both_exchanges.requests) - requests_before <= 10

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


def test_the_clients_account_needs_its_agent_code(healthy, findings, monkeypatch):
    monkeypatch.delenv("BINANCE_API_AGENT_CODE")
    assert findings() == {"BINANCE_API_AGENT_CODE": "BINANCE_API_AGENT_CODE is not set"}

    monkeypatch.setenv("BINANCE_API_AGENT_CODE", "WRONG1")
    wrong = findings()
    assert list(wrong) == ["BINANCE_API_AGENT_CODE"]
    assert "Binance returned rebateWorking false" in wrong["BINANCE_API_AGENT_CODE"]


def test_a_further_account_is_checked_like_the_default_one(healthy, findings, two_accounts, monkeypatch):
    assert findings() == {}
    monkeypatch.setenv("BINANCE_PARTNER_API_SECRET__ACME", "not-the-secret-of-this-key")
    monkeypatch.setenv("LBANK_OPEN_ID__ACME", "LBAUNKNOWN")
    monkeypatch.delenv("BINANCE_CLIENT_API_SECRET__ACME")
    wrong = findings()
    assert set(wrong) == {"binance acme partner", "LBANK_OPEN_ID__ACME", "BINANCE_CLIENT_API_SECRET__ACME"}
    assert "BINANCE_PARTNER_API_SECRET__ACME" in wrong["binance acme partner"]
    assert wrong["BINANCE_CLIENT_API_SECRET__ACME"] == "BINANCE_CLIENT_API_SECRET__ACME is not set"


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


# Values that cannot be used. BAD_START_DATES are those of every variable that ends with _START_DATE.
BAD_START_DATES = ("soon", "2999-01-01")
BAD_VALUES = {
    "AFFILIATE_DATABASE_URL": ("mysql://h/x", "postgresql://user:hidden@127.0.0.1:1/x"),
    "AFFILIATE_SCHEDULES": ("maybe",),
    "AFFILIATE_PRICES": ("maybe",),
    "AFFILIATE_DIGEST": ("hourly",),
    "AFFILIATE_RATE_SCALE": ("0",),
    "AFFILIATE_EXECUTOR": ("threads",),
    "AFFILIATE_CELERY_BROKER": ("hidden@control:6379",),
    "AFFILIATE_CELERY_BACKEND": ("rpc://hidden",),
    "ALERT_URLS": ("json://127.0.0.1:1/x, hunter2",),
    "HEARTBEAT_URL": ("hc-ping.com/hidden",),
    "DAGSTER_UI_URL": ("localhost:3000",),
    "BINANCE_BASE_URL": ("api.binance.com", "http://127.0.0.1:1"),
    "BINANCE_FILE_HOSTS": ("https://files.example.com",),
    "BINANCE_WEIGHT_PER_MINUTE": ("many",),
    "BINANCE_PARTNER_API_KEY": ("two words",),
    "BINANCE_PARTNER_API_SECRET": ("/no/such/key.pem",),
    "BINANCE_CLIENT_API_KEY": ("two words",),
    "BINANCE_CLIENT_API_SECRET": ("/no/such/key.pem",),
    "BINANCE_API_AGENT_CODE": ("WRONG1",),
    "BINANCE_CUSTOMER_IDS": ("/no/such/file.csv",),
    "BINANCE_USER_CUSTOMER_ID": ("'id",),
    "LBANK_BASE_URL": ("lbank.com", "http://127.0.0.1:1"),
    "LBANK_API_KEY": ("two words",),
    "LBANK_API_SECRET": ("/no/such/key.pem",),
    "LBANK_SIGNATURE_METHOD": ("MD5",),
    "LBANK_OPEN_ID": ("LBAUNKNOWN",),
}  # fmt: skip


def bad_values(name: str) -> tuple[str, ...]:
    if name.endswith("_FILE"):
        return ("/no/such/hidden",)
    return BAD_START_DATES if name.endswith("_START_DATE") else BAD_VALUES[name]


def variables_of_runs() -> list[dict[str, str]]:
    """The variables to set for each run of `check`.

    Every bad value occurs once; a run has at most one of Binance's variables, one of LBank's and one other.
    """
    cases: dict[str, list[tuple[str, str]]] = {}
    for name in sorted(known_variables()):
        prefix = name.partition("_")[0]
        family = cases.setdefault(prefix if prefix in ("BINANCE", "LBANK") else "", [])
        family += [(name, value) for value in bad_values(name)]
    return [dict(filter(None, each)) for each in zip_longest(*cases.values())]


def test_every_variable_with_a_bad_value_is_reported_and_no_other_one_is_blamed(healthy, wrong_rows, monkeypatch):
    variables = known_variables()
    wrongly_blamed = []
    for values in variables_of_runs():
        with monkeypatch.context() as patch:
            for name, value in values.items():
                patch.delenv(name.removesuffix("_FILE"), raising=False)
                patch.setenv(name, value)
            wrong = wrong_rows()
        assert not re.search("hidden|hunter2", f"{wrong}")
        blamed = {each for _, _, action in wrong for each in re.findall("[A-Z_]+", action)} & variables
        if blamed != values.keys():
            wrongly_blamed.append((values, blamed))
    assert wrongly_blamed == []


def test_a_digest_without_a_target_is_reported(healthy, findings, webhook, monkeypatch):
    monkeypatch.setenv("AFFILIATE_DIGEST", "daily")
    assert findings() == {"AFFILIATE_DIGEST": "the daily digest is only logged: ALERT_URLS is not set"}
    monkeypatch.setenv("ALERT_URLS", webhook.url)
    assert findings() == {}
    monkeypatch.delenv("ALERT_URLS")
    monkeypatch.setenv("AFFILIATE_DIGEST", "off")
    assert findings() == {}


def test_unknown_variables_are_reported_with_the_nearest_name(healthy, wrong_rows, monkeypatch):
    monkeypatch.setenv("LBANK_API_KEI__ACME", "key")
    monkeypatch.setenv("binance_customer_ids", "file.csv")
    monkeypatch.setenv("AFFILIATE_PLUGINS_FOLDER", "x")
    monkeypatch.setenv("ALERT_URL", "json://example.com")
    monkeypatch.setenv("LBNK_OPEN_ID", "LBA1")
    for name in ("DATABASE_URL", "ALERT_EMAIL", "DAGSTER_HOME", "API_KEY"):
        monkeypatch.setenv(name, "of another program")
    assert {about: action for about, _, action in wrong_rows()} == {
        "LBANK_API_KEI__ACME": "Rename LBANK_API_KEI__ACME to LBANK_API_KEY__ACME, or remove it",
        "binance_customer_ids": "Rename binance_customer_ids to BINANCE_CUSTOMER_IDS, or remove it",
        "AFFILIATE_PLUGINS_FOLDER": "Remove AFFILIATE_PLUGINS_FOLDER",
        "ALERT_URL": "Rename ALERT_URL to ALERT_URLS, or remove it",
        "LBNK_OPEN_ID": "Rename LBNK_OPEN_ID to LBANK_OPEN_ID, or remove it",
    }


def test_an_env_file_that_cannot_be_read_is_reported(findings, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    Path(".env").mkdir()
    wrong = findings()
    assert list(wrong) == [".env"] and "cannot be read (Is a directory)" in wrong[".env"]


def test_lines_of_files_that_cannot_be_used_are_reported_without_their_text(healthy, findings, monkeypatch, tmp_path):
    Path(".env").write_text("# comment\n\nexport A=1\nLBANK_API_SECRET: hidden\nB\n")
    file = tmp_path / "ids.csv"
    file.write_text("customerId,email\na1,person.one@example.com\na2,no-email\na1,person.two@example.com\n")
    monkeypatch.setenv("BINANCE_CUSTOMER_IDS", str(file))
    wrong = findings()
    assert wrong.keys() == {".env", "BINANCE_CUSTOMER_IDS"}
    assert "hidden" not in wrong[".env"] and "line 5, is not NAME=value, and is ignored" in wrong[".env"]
    assert "3 lines cannot be used" in wrong["BINANCE_CUSTOMER_IDS"]
    assert "person.one" not in wrong["BINANCE_CUSTOMER_IDS"]


def test_a_sandbox_that_is_not_running_is_reported_once(wrong_rows, both_exchanges, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    variables = both_exchanges.variables
    for name in (*variables, "AFFILIATE_DATABASE_URL", "AFFILIATE_RATE_SCALE"):
        monkeypatch.delenv(name, raising=False)
    settings.home().mkdir()
    settings.save_sandbox_variables(variables)
    both_exchanges.stop()
    actions = {about: action for about, _, action in wrong_rows()}
    assert actions.keys() == {"sandbox", "database"}
    assert all("affiliate-pipeline up`" in action for action in actions.values())


def test_schedules_that_up_is_about_to_start_are_not_reported(healthy, findings, query, dagster):
    query("delete from instigators")
    assert findings() == {}


def test_a_stopped_service_of_dagster_is_reported_at_once(healthy, findings, dagster):
    assert findings() == {}

    dagster[DAEMON].send_signal(signal.SIGSTOP)
    assert findings() == {"daemon": "Dagster's daemon is not running (scheduler, sensor)"}

    dagster[DAEMON].send_signal(signal.SIGCONT)
    for each in (WEBSERVER, CODE_SERVER):
        dagster[each].kill()
        dagster[each].wait()
    assert findings() == {
        "webserver": "Dagster's webserver is not running",
        "code server": "Dagster's code server is not running",
    }


def test_heartbeats_from_before_the_end_of_up_do_not_count(healthy, findings, tmp_path, dagster, query):
    (tmp_path / ".affiliate").mkdir(exist_ok=True)
    stop_processes(tmp_path / ".affiliate")
    assert list(findings()) == ["daemon"]

    # The daemon may run elsewhere.
    query("update daemon_heartbeats set timestamp = timestamp + interval '1 minute'")
    assert findings() == {}


def test_while_land_runs_its_own_dagster_the_daemon_may_run_elsewhere(healthy, findings, tmp_path, query):
    folder = f"{tmp_path / '.affiliate' / 'dagster_without_daemon'}"
    with ExitStack() as stack:
        for each in (WEBSERVER, CODE_SERVER):
            stack.enter_context(running(tmp_path, *each, DAGSTER_HOME=folder))
        assert findings() == {}
        query("delete from instigators")
        assert findings() == {"schedules": "none is running"}
