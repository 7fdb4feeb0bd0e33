"""The sandbox's server: connections, request log, start, stop and the command."""

import http.client
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline.sandbox.__main__ import main

COMMAND = [sys.executable, "-W", "error", "-m", "affiliate_pipeline.sandbox"]


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
        counts = list(pool.map(row_counts, range(1, 33)))
    assert counts == [[limit] * 5 for limit in range(1, 33)]
    assert len(sandbox.requests) == 160


def test_the_sandbox_listens_on_127_0_0_1_only(sandbox):
    assert sandbox.url == f"http://127.0.0.1:{sandbox.port}"
    with pytest.raises(OSError), socket.create_connection(("127.0.0.2", sandbox.port), timeout=1):
        pass


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
        assert threading.active_count() == before + 2
    deadline = time.monotonic() + 60
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.001)
    assert threading.active_count() == before


@pytest.mark.parametrize("stop_signal", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_a_stop_signal_arrives(stop_signal):
    options = ["--fail-day", "2020-01-01=418", "--fail-day", "2020-01-02", "--error-rate", "0"]
    options += ["--account", "acme", "--account", "b2", "--rows-per-day", "10", "--users", "5", "--rate-scale", "2.5"]
    with subprocess.Popen([*COMMAND, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        started = re.search(r"http://127\.0\.0\.1:(\d+)$", process.stdout.readline().strip())
        assert started
        variables = Sandbox(accounts=["acme", "b2"], port=int(started[1])).variables
        printed = [process.stdout.readline().strip() for _ in variables]
        assert printed == [f"{name}={value}" for name, value in variables.items()]
        connection = http.client.HTTPConnection("127.0.0.1", int(started[1]), timeout=60)
        connection.request("GET", "/api/v3/time")
        assert connection.getresponse().status == 200
        process.send_signal(stop_signal)
        rest, errors = process.communicate(timeout=60)
        connection.close()
    assert (process.returncode, rest, errors) == (0, "", "")


def test_a_port_in_use_is_reported_in_one_line(sandbox):
    command = [*COMMAND, "--port", str(sandbox.port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1 and str(sandbox.port) in done.stderr


@pytest.mark.parametrize("option", [["--fail-day", "yesterday"], ["--error-rate", "5"], ["--rate-scale", "0"]])
def test_an_invalid_option_value_is_refused(option, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(option)
    assert f"argument {option[0]}: invalid" in capsys.readouterr().err
