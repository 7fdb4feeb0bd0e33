"""The sandbox's server: connections, request log, start, stop and the command."""

import http.client
import io
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from dotenv import dotenv_values

from affiliate_pipeline.app.__main__ import app
from affiliate_pipeline.app.cli import CommandError
from affiliate_pipeline.sandbox import Sandbox

EXPORT = "/sapi/v1/apiReferral/kickback/historicalRecord"
COMMAND = [sys.executable, "-W", "error", "-m", "affiliate_pipeline.app", "sandbox"]


def test_a_connection_stays_open_after_success_and_refusal(caller):
    caller.rebates()
    socket_before = caller.connection.sock
    caller.rebates(limit=501)
    caller.raw("/elsewhere")
    caller.rebates()
    assert caller.connection.sock is socket_before is not None


def test_every_request_is_logged_in_order(sandbox, caller, clock):
    caller.rebates(customerId="a+b & ü")
    clock.ms += 5
    caller.rebates(limit=501)
    caller.raw("/api/v3/time")
    first, second, third = sandbox.requests
    assert (first.received_ms, first.method, first.path) == (
        clock.ms - 5, "GET", "/sapi/v1/apiReferral/rebate/recentRecord",
    )  # fmt: skip
    assert first.params["customerId"] == "a+b & ü" and len(first.params["signature"]) == 64
    assert (first.status, first.code) == (200, None)
    assert (second.received_ms, second.status, second.code) == (clock.ms, 400, -1130)
    assert (third.path, third.params, third.status) == ("/api/v3/time", {}, 200)


def test_concurrent_callers_each_get_their_own_responses(sandbox, clock, connect):
    def row_counts(limit):
        with connect(sandbox) as caller:
            return [len(caller.rebates(startTime=clock.ms - 86_400_000, limit=limit).json) for _ in range(5)]

    with ThreadPoolExecutor(16) as pool:
        counts = list(pool.map(row_counts, range(1, 17)))
    assert counts == [[limit] * 5 for limit in range(1, 17)]
    assert len(sandbox.requests) == 80


def test_the_sandbox_listens_on_127_0_0_1_only(sandbox):
    assert sandbox.url == f"http://127.0.0.1:{sandbox.port}"
    with pytest.raises(OSError), socket.create_connection(("127.0.0.2", sandbox.port), timeout=1):
        pass


@pytest.mark.parametrize(("host", "reached_at"), [("0.0.0.0", "127.0.0.2"), ("127.0.0.3", "127.0.0.3"), ("::", "::1")])
def test_the_sandbox_serves_other_hosts_at_the_address_that_they_use(clock, connect, host, reached_at):
    with Sandbox(host=host, now=clock) as sandbox, connect(sandbox) as caller:
        caller.connection.host = reached_at
        caller.key, caller.secret = sandbox.binance.client_key, sandbox.binance.client_secret
        assert caller.call(EXPORT, "POST", startTime=clock.ms - 1000, endTime=clock.ms).status == 200
        own = f"http://[{reached_at}]" if ":" in reached_at else f"http://{reached_at}"
        assert caller.call(EXPORT).json.startswith(f"{own}:{sandbox.port}/")


def test_the_command_refuses_an_address_of_another_machine():
    with pytest.raises(CommandError, match=r"of 192\.0\.2\.1 cannot be used .*another address with --host"):
        app(["sandbox", "--host", "192.0.2.1"], standalone_mode=False)


def test_stopping_closes_open_connections_without_waiting_for_responses(clock, connect):
    sandbox = Sandbox(now=clock).start()
    with connect(sandbox) as idle, connect(sandbox) as waiting:
        idle.rebates()
        sandbox.faults.slow_s = 60
        sandbox.faults.mix(slow=1)
        failures = []

        def request_slow_response():
            try:
                waiting.rebates()
            except (ConnectionError, http.client.HTTPException) as error:
                failures.append(error)

        thread = threading.Thread(target=request_slow_response)
        thread.start()
        while len(sandbox.requests) < 2:
            time.sleep(0.001)
        started = time.monotonic()
        sandbox.stop()
        thread.join()
        assert time.monotonic() - started < 30
        assert len(failures) == 1
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            idle.rebates()


def test_a_stopped_sandbox_refuses_connections_and_restarts_at_the_same_url(clock, connect):
    sandbox = Sandbox(now=clock)
    with sandbox, connect(sandbox) as caller:
        url = sandbox.url
        assert caller.rebates().status == 200
        sandbox.stop()
        caller.connection.close()
        with pytest.raises(ConnectionRefusedError):
            caller.rebates()
        caller.connection.close()
        sandbox.start()
        assert sandbox.url == url and caller.rebates().status == 200
        assert len(sandbox.requests) == 2


def test_a_stopped_sandbox_has_no_threads(clock, connect):
    before = threading.active_count()
    with Sandbox(now=clock) as sandbox, connect(sandbox) as caller:
        caller.rebates()
        # The server's thread, and one for the connection.
        assert threading.active_count() == before + 2
    deadline = time.monotonic() + 60
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.001)
    assert threading.active_count() == before


def test_the_command_serves_until_a_stop_signal_arrives():
    options = ["--fail-day", "2020-01-01=418", "--fail-day", "2020-01-02", "--error-rate", "0"]
    options += ["--account", "acme", "--account", "b2", "--rows-per-day", "10", "--users", "5", "--rate-scale", "2.5"]
    with subprocess.Popen([*COMMAND, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        first = process.stdout.readline()
        started = re.search(r"http://127\.0\.0\.1:(\d+)\.", first)
        assert started
        variables = Sandbox(accounts=["acme", "b2"], port=int(started[1])).variables | {"AFFILIATE_RATE_SCALE": "2.5"}
        lines = [first, *(process.stdout.readline() for _ in variables)]
        assert dotenv_values(stream=io.StringIO("".join(lines))) == variables
        connection = http.client.HTTPConnection("127.0.0.1", int(started[1]), timeout=60)
        connection.request("GET", "/api/v3/time")
        assert connection.getresponse().status == 200
        process.send_signal(signal.SIGTERM)
        rest, errors = process.communicate(timeout=60)
        connection.close()
    assert (process.returncode, rest, errors) == (0, "", "")


@pytest.mark.parametrize("stop_signal", [signal.SIGINT, signal.SIGTERM])
def test_each_stop_signal_ends_the_command(monkeypatch, capsys, stop_signal):
    wait = signal.sigwait

    def receive(signals):
        signal.raise_signal(stop_signal)
        return wait(signals)

    monkeypatch.setattr(signal, "sigwait", receive)
    app(["sandbox"], standalone_mode=False)
    assert "BINANCE_BASE_URL=" in capsys.readouterr().out


def test_a_port_in_use_is_reported(sandbox):
    with pytest.raises(
        CommandError, match=f"port {sandbox.port} of 127.0.0.1 cannot be used .*Choose another one with --port"
    ):
        app(["sandbox", "--port", f"{sandbox.port}"], standalone_mode=False)


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("tomorrow", "is neither a day nor a day with"),
        ("2026-10-01=x", "is neither a day nor a day with"),
        ("2026-10-01=200", "names no error"),
    ],
)
def test_a_malformed_fail_day_option_is_refused(option, reason):
    with pytest.raises(CommandError, match=f"--fail-day {option} {reason}"):
        app(["sandbox", "--fail-day", option], standalone_mode=False)
