"""How the sandbox runs: connections, its log, starting, stopping, the command."""

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

COMMAND = [sys.executable, "-W", "error", "-m", "affiliate_pipeline.sandbox"]


def test_a_connection_is_kept(caller):
    caller.rebates()
    kept = caller.connection.sock
    caller.rebates(limit=501)
    caller.raw("/elsewhere")
    caller.rebates()
    assert caller.connection.sock is kept is not None


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


def test_many_callers_at_once_get_their_own_answers(sandbox, clock, caller_of):
    def ask(limit):
        with caller_of(sandbox) as caller:
            return [len(caller.rebates(startTime=clock.ms - 86_400_000, limit=limit).json) for _ in range(5)]

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(1, 33)))
    assert answers == [[limit] * 5 for limit in range(1, 33)]
    assert len(sandbox.requests) == 160


def test_it_listens_on_loopback_only(sandbox):
    assert sandbox.url == f"http://127.0.0.1:{sandbox.port}"
    with pytest.raises(OSError), socket.create_connection(("127.0.0.2", sandbox.port), timeout=1):
        pass


def test_stopping_does_not_wait_for_open_connections(clock, caller_of):
    sandbox = Sandbox(now=clock).start()
    with caller_of(sandbox) as idle, caller_of(sandbox) as waiting:
        idle.rebates()
        sandbox.faults.slow_s = 60
        sandbox.faults.mix(slow=1)
        failures = []

        def wait():
            try:
                waiting.rebates()
            except (ConnectionError, http.client.HTTPException) as error:
                failures.append(error)

        thread = threading.Thread(target=wait)
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


def test_a_stopped_sandbox_refuses_and_comes_back_at_the_same_url(clock, caller_of):
    sandbox = Sandbox(now=clock)
    with sandbox, caller_of(sandbox) as caller:
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


def test_it_leaves_no_thread_and_no_socket_behind(clock, caller_of):
    before = threading.active_count()
    with Sandbox(now=clock) as sandbox, caller_of(sandbox) as caller:
        caller.rebates()
        assert threading.active_count() == before + 2
    deadline = time.monotonic() + 2
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.001)
    assert threading.active_count() == before


@pytest.mark.parametrize("stop_signal", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_told_to_stop(stop_signal):
    options = ["--fail-day", "2020-01-01=418", "--fail-day", "2020-01-02", "--error-rate", "0"]
    options += ["--rows-per-day", "10", "--users", "5", "--rate-scale", "2.5"]
    with subprocess.Popen([*COMMAND, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        port = int(re.search(r"http://127\.0\.0\.1:(\d+)$", line.strip())[1])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/api/v3/time")
        assert connection.getresponse().status == 200
        process.send_signal(stop_signal)
        rest, errors = process.communicate(timeout=5)
        connection.close()
    assert (process.returncode, rest, errors) == (0, "", "")


def test_a_port_in_use_is_one_line(sandbox):
    command = [*COMMAND, "--port", str(sandbox.port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1 and str(sandbox.port) in done.stderr


@pytest.mark.parametrize("option", [["--fail-day", "yesterday"], ["--error-rate", "5"], ["--rate-scale", "0"]])
def test_a_senseless_option_is_refused(option):
    done = subprocess.run([*COMMAND, *option], capture_output=True, timeout=10, check=False)
    assert done.returncode == 2
