"""`affiliate-pipeline up`, `down`, `psql`, `pg_dump` and `sandbox`, run as on a developer's machine."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections import Counter
from datetime import date
from pathlib import Path

import httpx
import psutil
import pytest

from affiliate_pipeline.domain.days import format_days
from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline_tests.e2e.project import (
    KEY,
    PATIENCE_S,
    UI,
    Project,
    credentials,
    free_port,
    last_days,
    wait_for,
)

pytestmark = pytest.mark.e2e

COLUMNS = ("customerId", "email", "income", "asset", "symbol", "time", "orderId", "tradeId", "distributeTime")
COLUMNS += ("commissionAsset", "commission", "convertPrice")


def test_up_lands_the_last_days_exactly_and_ctrl_c_stops_every_process(landed: Project):
    port = free_port()
    before = sandbox_rows(landed.created_ms)
    with landed.up(port) as up:
        ui = UI(port)
        assert httpx.get(ui.url, timeout=30).status_code == 200
        assert ui.days() == {"MATERIALIZED": last_days()}
        on_demand = {endpoint.key for endpoint in ENDPOINTS if not endpoint.lands_at}
        assert ui.missing_partitions().keys() == on_demand

        after = sandbox_rows(time.time_ns() // 1_000_000)
        for day in last_days():
            stored = table_rows(landed, day)
            # While the days land, the sandbox adds the payout fields to some rows.
            assert stored.total() == before[day].total() == after[day].total() > 1000
            assert not stored - (before[day] | after[day])
            assert not (before[day] & after[day]) - stored

        processes = landed.processes()
        assert ("127.0.0.1", port) in listening(processes)
        assert {address for address, _ in listening(processes)} == {"127.0.0.1"}

        second = landed.run("up", "--port", str(free_port()))
        assert second.returncode != 0
        assert one_line(second.stderr) and "already running in this folder" in second.stderr

        ports = [port for _, port in listening(processes)]
        assert up.stop(signal.SIGINT) == 0
        assert landed.processes() == []
        assert [port for port in ports if is_open(port)] == []


def test_without_a_terminal_up_prints_plain_lines(landed: Project):
    landed.query("delete from affiliate.landing where asset = %s and partition = %s returning 1", KEY, last_days()[0])

    once = landed.run("up", "--once")

    assert once.returncode == 0, once.stderr
    assert "For real accounts, set BINANCE_PARTNER_API_KEY and BINANCE_PARTNER_API_SECRET" in once.stdout
    assert f"{KEY} {last_days()[0]}: 1 of 1 day landed\n" in once.stdout
    assert "\x1b" not in once.stdout and "\r" not in once.stdout


def test_a_second_up_preserves_the_data_and_sigterm_stops_it_in_the_background(landed: Project):
    written = "select xmin::text, ctid::text from binance.rebate_recent_record order by 1, 2"
    before = landed.query(written)
    landed.run("down")
    port = free_port()
    # A background job of a script, which ignores SIGINT.
    script = f"{shlex.join(landed.command('up', '--port', str(port)))} & echo pid $!; wait $!"
    with landed.started(["/bin/sh", "-c", script]) as shell:
        shell.wait_for_output("Dagster's UI is ready")
        assert UI(port).days() == {"MATERIALIZED": last_days()}
        assert landed.query(written) == before
        (pid,) = (line.split()[1] for line in shell.lines if line.startswith("pid"))
        os.kill(int(pid), signal.SIGTERM)
        assert shell.process.wait(PATIENCE_S) == 0
        assert landed.processes() == []


def test_the_next_up_and_down_stop_what_a_killed_up_left_behind(landed: Project):
    port = free_port()
    with landed.up(port) as killed:
        killed.stop(signal.SIGKILL)
        left = landed.processes()
        assert len(left) > 5

        with landed.up(port) as up:
            assert not {process.pid for process in left} & {process.pid for process in landed.processes()}
            assert UI(port).days() == {"MATERIALIZED": last_days()}

            rows = landed.query("select count(*) from binance.rebate_recent_record")
            landed.postmaster().kill()
            wait_for(lambda: landed.query("select count(*) from binance.rebate_recent_record") == rows)
            day = last_days()[-1]
            run_id = wait_for(lambda: launched(UI(port), day))
            wait_for(lambda: UI(port).run_status(run_id) == "SUCCESS")

            up.stop(signal.SIGKILL)
            assert landed.run("down").stdout == "Stopped.\n"
            assert landed.processes() == []
    assert landed.run("down").stdout == "Nothing was running.\n"


def launched(ui: UI, day: date) -> str | None:
    try:
        return ui.launch(day)
    except (httpx.HTTPError, AssertionError):
        return None


def test_up_terminated_while_it_lands_stops_every_process_and_the_next_one_lands_the_days(
    fresh: Project, exchange: Sandbox
):
    fresh.configure(**credentials(exchange))
    exchange.faults.slow_s = 15
    exchange.faults.mix(slow=1)
    with fresh.started(fresh.command("up", "--port", str(free_port()))) as up:
        wait_for(lambda: exchange.requests)
        assert up.stop(signal.SIGTERM) == 0
        assert fresh.processes() == []
    assert "failed" not in up.printed
    # A run of one request may have ended before it was cancelled.
    assert "CANCELED" in (statuses := {status for (status,) in fresh.query("select status from runs")})
    assert statuses <= {"CANCELED", "SUCCESS"}
    exchange.faults.clear()

    once = fresh.run("up", "--once")

    assert once.returncode == 0, once.stdout + once.stderr
    assert len(fresh.query("select from affiliate.landing where asset = %s", KEY)) == 6


def test_a_port_in_use_is_reported_in_one_line(fresh: Project):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = fresh.run("up", "--port", str(port))

    assert refused.returncode != 0
    assert one_line(refused.stderr) and f"port {port} cannot be used" in refused.stderr and "--port" in refused.stderr
    assert fresh.processes() == []


def test_a_disk_that_is_nearly_full_is_reported_in_one_line(fresh: Project):
    program = "from affiliate_pipeline.app import __main__ as cli, check; check.MIN_FREE_BYTES = 10**18; cli.main()"
    refused = subprocess.run(
        [sys.executable, "-c", program, "up"],
        cwd=fresh.folder,
        env=fresh.environment(),
        capture_output=True,
        text=True,
    )

    assert refused.returncode != 0
    assert one_line(refused.stderr) and "free" in refused.stderr
    assert fresh.processes() == []


def test_an_unsupported_python_is_reported_in_one_line(fresh: Project):
    for python in ("/bin/false", ""):
        refused = subprocess.run(
            ["make", "-s", "up", f"PYTHON={python}"], cwd=fresh.folder, capture_output=True, text=True
        )
        assert refused.returncode != 0
        assert "needs Python 3.11, 3.12, 3.13 or 3.14" in refused.stderr.splitlines()[0]
        assert not (fresh.folder / ".venv").exists()


def test_a_failing_exchange_and_a_failing_day_do_not_prevent_other_days_from_landing(fresh: Project, exchange: Sandbox):
    bad = last_days()[2]
    exchange.faults.fail_day(bad)
    lbank = {"LBANK_BASE_URL": exchange.url, "LBANK_API_KEY": exchange.lbank.api_key, "LBANK_OPEN_ID": "LB0001"}
    fresh.configure(**credentials(exchange) | lbank, LBANK_API_SECRET="not-the-secret-of-this-key")
    others = [day for day in last_days() if day != bad]
    port = free_port()
    with fresh.up(port) as up:
        ui = UI(port)
        assert httpx.get(ui.url, timeout=30).status_code == 200
        assert ui.days() == {"MATERIALIZED": others, "FAILED": [bad]}
        assert f"{KEY} {format_days(last_days())}: 5 of 6 days landed\n" in up.printed
        assert f"{KEY} {format_days(last_days())} failed.\n" in up.printed
        assert "check that LBANK_API_SECRET belongs to LBANK_API_KEY" in up.printed
        for unwanted in ("Traceback", "Warning", "not-the-secret"):
            assert unwanted not in up.printed
        assert {run["location"] for run in ui.runs()} == {"affiliate_pipeline.definitions"}

        exchange.faults.clear()
        done = fresh.run("land", KEY, f"{bad}")
        assert (done.returncode, done.stderr) == (0, "")
        assert f"{KEY} {bad}: 1 of 1 day landed\n" in done.stdout
        assert ui.days() == {"MATERIALIZED": last_days()}
        # `land` used the running Dagster instead of starting its own.
        assert not (fresh.home / "dagster_without_daemon").exists()

    once = fresh.run("up", "--once")
    assert once.returncode == 1
    assert "check that LBANK_API_SECRET belongs to LBANK_API_KEY" in once.stdout
    assert "Traceback" not in once.stdout + once.stderr
    assert fresh.processes() == []


def test_every_command_of_the_readme_works_as_printed(landed: Project):
    """Runs the `affiliate-pipeline` commands in code blocks while `up` runs. Other tests run the inline ones."""
    readme = (landed.folder / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^ {4}.*\n)+", readme, re.M)
    commands = [
        command
        for block in blocks
        for command in re.findall(r"^\.venv/bin/affiliate-pipeline .*(?:\n +.*)*", textwrap.dedent(block), re.M)
    ]
    assert {command.split()[1] for command in commands} == {
        "psql",
        "report",
        "who",
        "export",
        "check",
        "alert",
        "land",
        "plan",
    }
    script = landed.folder / ".venv" / "bin" / "affiliate-pipeline"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m affiliate_pipeline.app "$@"\n')
    script.chmod(0o755)
    ended: dict[str, int] = {}
    with landed.up(free_port()):
        for command in commands:
            done = landed.execute(["bash", "-c", command], {"BROWSER": "true"})
            assert "Traceback" not in done.stdout + done.stderr
            ended[command] = done.returncode
    # These two may fail, because the sandbox's project has no ALERT_URLS.
    unset = {command for command in commands if command.split()[1] in ("check", "alert")}
    assert {command for command, code in ended.items() if code} <= unset
    assert (landed.folder / "commission.csv").read_text().count("\n") > 5


def test_land_without_up_starts_what_it_needs_and_stops_it(landed: Project):
    day = last_days()[0]
    done = landed.run("land", KEY, f"{day}")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{KEY} {day}: 1 of 1 day landed\n" in done.stdout
    assert landed.processes() == []


def test_a_backup_restores_rows_that_were_deleted_later(landed: Project, tmp_path: Path):
    everything = "select md5(string_agg(r::text, '' order by r::text)), count(*) from binance.rebate_recent_record r"
    ledger = "select md5(string_agg(l::text, '' order by l::text)), count(*) from affiliate.landing l"
    before = landed.query(everything), landed.query(ledger)
    backup = tmp_path / "backup.sql"

    assert landed.run("pg_dump", "--clean", "--if-exists", "-f", str(backup)).returncode == 0
    lost = "delete from binance.rebate_recent_record; delete from affiliate.landing"
    assert landed.run("psql", "-c", lost).returncode == 0
    assert landed.query(everything)[0][1] == 0
    restored = landed.run("psql", "-q", "-v", "ON_ERROR_STOP=1", "-f", str(backup))

    assert restored.returncode == 0, restored.stderr
    assert (landed.query(everything), landed.query(ledger)) == before


def test_psql_opens_the_data(landed: Project):
    done = landed.run("psql", "-At", "-c", "select count(distinct partition_date) from binance.rebate_recent_record")

    assert (done.stdout, done.returncode) == ("6\n", 0)


def test_the_sandbox_serves_until_it_is_terminated(fresh: Project):
    port = free_port()
    with fresh.started(fresh.command("sandbox", "--port", str(port))) as sandbox:
        sandbox.wait_for_output(f"http://127.0.0.1:{port}")
        assert "serverTime" in httpx.get(f"http://127.0.0.1:{port}/api/v3/time").json()
        assert listening([psutil.Process(sandbox.process.pid)]) == {("127.0.0.1", port)}
        assert sandbox.stop(signal.SIGTERM) == 0


def sandbox_rows(at_ms: int) -> dict[date, Counter]:
    """The sandbox's rows of the last days at that moment, as text."""
    rebates = Sandbox(now=lambda: at_ms).binance.rebates
    return {
        day: Counter(
            tuple(None if row.get(name) is None else str(row[name]) for name in COLUMNS) for row in rebates(day)
        )
        for day in last_days()
    }


def table_rows(project: Project, day: date) -> Counter:
    names = [
        f"(extract(epoch from {column}) * 1000)::bigint::text" if column.endswith("time") else f"{column}::text"
        for column in ("".join(f"_{c.lower()}" if c.isupper() else c for c in name) for name in COLUMNS)
    ]
    rows = project.query(f"select {', '.join(names)} from binance.rebate_recent_record where partition_date = %s", day)
    return Counter(rows)


def listening(processes: list[psutil.Process]) -> set[tuple[str, int]]:
    found = set()
    for process in processes:
        try:
            connections = process.net_connections("inet")
        except psutil.NoSuchProcess:
            continue
        found |= {tuple(each.laddr) for each in connections if each.status == psutil.CONN_LISTEN}
    return found


def is_open(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def one_line(text: str) -> bool:
    return text.startswith("affiliate-pipeline: ") and text.count("\n") == 1
