"""The rate limit over all processes, on a real PostgreSQL: what a strict server would count, kills, pauses."""

import math
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import psycopg
import pytest

from affiliate_pipeline.http.errors import Banned
from affiliate_pipeline.landing.store import Store
from affiliate_pipeline.postgres import rate_limiter
from affiliate_pipeline.postgres.rate_limiter import RateLimiter

WINDOW_S = 0.2
# Long enough for a loaded machine, and much shorter than a slot that is never returned is lost for.
SOON_S = 20

# Forks so many processes, each with so many threads that send so many requests of a random duration, and prints when
# each request was sent and its response arrived, on the machine's clock.
HOLDERS = """
import os, random, sys, threading, time
from affiliate_pipeline.postgres.rate_limiter import RateLimiter
url, slots, window_s, requests, processes, threads, each = sys.argv[1], *map(float, sys.argv[2:])
children = []
for _ in range(int(processes)):
    if child := os.fork():
        children.append(child)
        continue
    # A shorter sleep: the test is about the count, not the waiting.
    lease = RateLimiter(url, "shared", int(slots), window_s, int(requests), sleep=lambda s: time.sleep(min(s, 0.02)))
    def send():
        for _ in range(int(each)):
            with lease.slot():
                sent = time.monotonic()
                time.sleep(random.choice([0, 0, 0.01, 0.05]))
                os.write(1, f"{sent!r} {time.monotonic()!r}\\n".encode())
    workers = [threading.Thread(target=send) for _ in range(int(threads))]
    for worker in workers: worker.start()
    for worker in workers: worker.join()
    lease.close()
    os._exit(0)
sys.exit(any([os.waitpid(child, 0)[1] for child in children]))
"""
# Takes a slot and is killed while its request is under way.
VICTIM = """
import sys, time
from affiliate_pipeline.postgres import rate_limiter
rate_limiter.SLOT_LEASE_S = float(sys.argv[2])
limit = rate_limiter.RateLimiter(sys.argv[1], "shared", 1, 0.1)
with limit.slot():
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def lease_of(database_url: str) -> Iterator[Callable[..., RateLimiter]]:
    """Makes leases as that many processes would, each with a connection of its own."""
    with Store(database_url), ExitStack() as stack:

        def make(slots: int, window_s: float = WINDOW_S, requests: int = 1, **more) -> RateLimiter:
            lease = RateLimiter(
                database_url, more.pop("scope", "shared"), slots, window_s, requests, too_long=Banned, **more
            )
            stack.callback(lease.close)
            return lease

        yield make


class Waits:
    """A sleep that returns at once and records its durations; it raises after `most` of them."""

    class Endless(Exception):
        pass

    def __init__(self, most: int = 20) -> None:
        self.seconds: list[float] = []
        self.most = most

    def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        if len(self.seconds) >= self.most:
            raise Waits.Endless


def most_in_a_window(requests: list[tuple[float, float]], window_s: float) -> int:
    """The most requests that a server can have counted in one window, whenever between sending and response each
    reached it."""
    return max(
        sum(sent < start + window_s and responded >= start for sent, responded in requests) for _, start in requests
    )


@pytest.mark.parametrize(
    ("slots", "requests", "processes", "threads", "each"),
    [(5, 1, 3, 2, 6), (3, 4, 2, 3, 10)],
    ids=["five slots", "three slots of four requests"],
)
def test_no_window_of_a_strict_server_sees_more_than_is_permitted(
    database_url, slots, requests, processes, threads, each
):
    with Store(database_url):
        pass
    numbers = map(str, (slots, WINDOW_S, requests, processes, threads, each))
    output = subprocess.run(
        [sys.executable, "-c", HOLDERS, database_url, *numbers], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    sent = [tuple(map(float, line.split())) for line in output.splitlines()]
    assert len(sent) == processes * threads * each
    assert most_in_a_window(sent, WINDOW_S) <= slots * requests
    # And what is permitted is used: at least half of it.
    took_s = max(responded for _, responded in sent) - min(start for start, _ in sent)
    assert len(sent) >= slots * requests * took_s / WINDOW_S / 2


def test_most_in_a_window_counts_what_a_server_may_count():
    assert most_in_a_window([(0, 0.1), (0.15, 0.2), (0.31, 0.32)], 0.2) == 2
    assert most_in_a_window([(0, 1.0), (0.1, 0.2), (1.1, 1.2)], 0.2) == 2
    assert most_in_a_window([(0, 0.1), (0.31, 0.4)], 0.2) == 1


def test_a_slot_returns_one_window_after_the_response(lease_of):
    one, other = lease_of(1), lease_of(1)
    with one.slot():
        time.sleep(0.05)
        responded = time.monotonic()
    with other.slot():
        assert time.monotonic() - responded >= WINDOW_S


def test_a_slot_with_a_request_under_way_is_not_leased_to_another(lease_of):
    waits = Waits()
    one, other = lease_of(1, 0.02), lease_of(1, 0.02, sleep=waits)
    with one.slot():
        time.sleep(0.05)
        with pytest.raises(Waits.Endless), other.slot():
            pass
    assert max(waits.seconds) <= 5


def test_a_slot_leased_for_the_second_time_is_not_leased_to_another(lease_of):
    waits = Waits()
    one, other = lease_of(1, 0.02), lease_of(1, 0.02, sleep=waits)
    with one.slot():
        pass
    with one.slot():
        time.sleep(0.05)
        with pytest.raises(Waits.Endless), other.slot():
            pass


def test_a_slot_that_another_has_leased_since_is_not_returned(lease_of):
    waits = Waits()
    one, other, third = lease_of(2, 0.02), lease_of(2, 0.02), lease_of(2, 0.02, sleep=waits)
    with one.slot():
        pass
    time.sleep(0.03)
    with other.slot(), one.slot():
        time.sleep(0.05)
        with pytest.raises(Waits.Endless), third.slot():
            pass


def test_a_failed_request_returns_its_slot(lease_of):
    one, other = lease_of(1, 0.02), lease_of(1, 0.02)
    with pytest.raises(ZeroDivisionError), one.slot():
        raise ZeroDivisionError
    began = time.monotonic()
    with other.slot():
        assert time.monotonic() - began < SOON_S


def test_closing_returns_the_rest_of_a_block(lease_of, database_url):
    one = RateLimiter(database_url, "shared", 1, 0.02, 5)
    with one.slot():
        pass
    one.close()
    began = time.monotonic()
    with lease_of(1, 0.02).slot():
        assert time.monotonic() - began < SOON_S


def test_scopes_do_not_delay_each_other(lease_of):
    waits = Waits()
    with lease_of(1, scope="one").slot(), lease_of(1, scope="other", sleep=waits).slot():
        pass
    assert waits.seconds == []


def test_the_slot_of_a_killed_holder_returns(lease_of, database_url):
    lease_of(1, 0.1)
    victim = subprocess.Popen([sys.executable, "-c", VICTIM, database_url, "0.4"], stdout=subprocess.PIPE, text=True)
    assert victim.stdout.readline() == "held\n"
    began = time.monotonic()
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    with lease_of(1, 0.1).slot():
        assert 0.2 < time.monotonic() - began < SOON_S


def test_a_hold_outlasts_every_request():
    from affiliate_pipeline.http import client

    longest_s = client.RESPONSE_LIMIT_S + client.TIMEOUT.read
    assert (
        rate_limiter.SLOT_LEASE_S / 2 + longest_s <= rate_limiter.SLOT_LEASE_S + 60
    )  # a block's last request; Binance's window
    assert longest_s <= rate_limiter.SLOT_LEASE_S + 10  # a slot of one request; LBank's window


def test_a_pause_stops_every_process_for_its_duration(lease_of):
    leases = [lease_of(10, 0.01) for _ in range(3)]
    for lease in leases:
        with lease.slot():
            pass
    leases[0].pause(0.3)
    began, waited = time.monotonic(), []

    def send(lease: RateLimiter) -> None:
        with lease.slot():
            waited.append(time.monotonic() - began)

    threads = [threading.Thread(target=send, args=(lease,)) for lease in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(waited) == 3
    assert all(0.25 < seconds < 1.5 for seconds in waited)


def test_a_pause_stops_processes_with_permitted_requests_left(lease_of, monkeypatch):
    monkeypatch.setattr(rate_limiter, "PAUSE_CHECK_S", 0)
    waits = Waits()
    one, other = lease_of(3, 0.02, 5), lease_of(3, 0.02, 5, sleep=waits)
    with other.slot():
        pass
    one.pause(60)
    with pytest.raises(Waits.Endless), other.slot():
        pass


def test_a_shorter_pause_does_not_end_a_longer_one(lease_of):
    waits = Waits()
    one, other = lease_of(5), lease_of(5, sleep=waits)
    one.pause(100)
    one.pause(0)
    with pytest.raises(Waits.Endless), other.slot():
        pass
    assert 0 < max(waits.seconds) <= 5


def test_a_long_pause_is_a_ban_for_every_process_at_once(lease_of):
    waits = Waits()
    one, other = lease_of(5), lease_of(5, sleep=waits)
    one.pause(7200)
    for lease in (one, other):
        with pytest.raises(Banned, match="no request for another 7[12][0-9][0-9] s"), lease.slot():
            pass
    assert waits.seconds == []


@pytest.mark.parametrize("seconds", [1e30, math.inf])
def test_an_endless_pause_is_a_ban(lease_of, seconds):
    one = lease_of(5)
    one.pause(seconds)
    with pytest.raises(Banned), one.slot():
        pass


@pytest.mark.parametrize("seconds", [0, -5, math.nan])
def test_a_pause_without_a_duration_has_no_effect(lease_of, seconds):
    waits = Waits()
    one = lease_of(5, sleep=waits)
    one.pause(seconds)
    with one.slot():
        pass
    assert waits.seconds == []


def test_a_block_permits_its_requests_and_no_more(lease_of):
    waits = Waits()
    one, other = lease_of(1, 10, 4), lease_of(1, 10, 4, sleep=waits)
    for _ in range(4):
        with one.slot():
            pass
    with pytest.raises(Waits.Endless), other.slot():
        pass


def test_a_block_returns_only_after_its_last_response(lease_of):
    one, waits = lease_of(1, 0.05, 2), Waits()
    other = lease_of(1, 0.05, 2, sleep=waits)
    slow = one.slot()
    slow.__enter__()
    with one.slot():
        pass
    time.sleep(0.1)
    with pytest.raises(Waits.Endless), other.slot():
        pass
    slow.__exit__(None, None, None)


def test_an_unused_block_is_dropped(lease_of, monkeypatch):
    monkeypatch.setattr(rate_limiter, "SLOT_LEASE_S", 0.1)
    one = lease_of(2, 0.02, 5)
    with one.slot():
        pass
    time.sleep(0.06)  # half a hold: the rest of the block may not be used any more
    with one.slot():
        assert one._block.left == 4


def test_a_session_in_another_time_zone_sees_the_same_limit(lease_of, database_url, query):
    query("alter database test set timezone = 'Pacific/Kiritimati'")
    try:
        waits = Waits()
        with lease_of(1).slot(), pytest.raises(Waits.Endless), lease_of(1, sleep=waits).slot():
            pass
    finally:
        query("alter database test reset timezone")


def test_waits_are_finite_since_postgresql_before_17_has_no_infinite_interval(lease_of, database_url):
    lease_of(1, scope="shared")
    with psycopg.connect(database_url) as connection:
        (found,) = connection.execute(rate_limiter._WAIT, {"scope": "shared", "slots": 1}).fetchall()
    assert all(seconds is None or math.isfinite(seconds) for seconds in found)


def test_a_lost_database_is_store_unavailable(database_url, lease_of, query):
    from affiliate_pipeline.postgres.errors import StoreUnavailable

    one = RateLimiter(database_url, "lost", 1, WINDOW_S)
    query("select pg_terminate_backend(%s)", one._connection.info.backend_pid)
    with pytest.raises(StoreUnavailable, match="the database cannot be used"), one.slot():
        pass
    one._connection.close()
