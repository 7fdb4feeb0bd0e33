"""Rate limits shared by processes through PostgreSQL: request counts, crashes, pauses."""

import math
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import psycopg
import pytest

from affiliate_pipeline.http import client
from affiliate_pipeline.http.errors import Banned
from affiliate_pipeline.landing.store import Store
from affiliate_pipeline.postgres import rate_limiter
from affiliate_pipeline.postgres.errors import StoreUnavailable
from affiliate_pipeline.postgres.rate_limiter import RateLimiter
from affiliate_pipeline_tests import child_processes

WINDOW_S = 0.2
# Long enough for a loaded machine, and much shorter than `SLOT_LEASE_S`, after which a lost slot is free again.
SOON_S = 20


@pytest.fixture
def limiter_of(database_url: str) -> Iterator[Callable[..., RateLimiter]]:
    """Creates limiters, each with its own connection, as in separate processes."""
    with Store(database_url), ExitStack() as stack:

        def make(slots: int, window_s: float = WINDOW_S, requests: int = 1, **more) -> RateLimiter:
            scope = more.pop("scope", "shared")
            limiter = RateLimiter(database_url, scope, slots, window_s, requests, too_long=Banned, **more)
            stack.callback(limiter.close)
            return limiter

        yield make


class Waits:
    """A sleep that returns at once and records its durations; raises `Endless` at the 20th."""

    class Endless(Exception):
        pass

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        if len(self.seconds) >= 20:
            raise Waits.Endless


def max_in_a_window(requests: list[tuple[float, float]], window_s: float) -> int:
    """The most requests that a server can count in one window.

    It receives each request at an unknown time between sending and response.
    """
    return max(
        sum(sent < start + window_s and responded >= start for sent, responded in requests) for _, start in requests
    )


@pytest.mark.parametrize(
    ("slots", "requests", "limiters", "threads", "each"),
    [(5, 1, 3, 2, 3), (3, 4, 2, 3, 5)],
    ids=["five slots", "three slots of four requests"],
)
def test_no_window_of_a_strict_server_has_more_requests_than_permitted(
    limiter_of, slots, requests, limiters, threads, each
):
    def send(limiter: RateLimiter) -> list[tuple[float, float]]:
        """When each request was sent and its response arrived."""
        times: list[tuple[float, float]] = []
        for _ in range(each):
            with limiter.slot():
                sent = time.monotonic()
                time.sleep(random.choice([0, 0, 0.01, 0.05]))
                times.append((sent, time.monotonic()))
        return times

    # Shorter sleeps than the limiter's own: the test is about the counts.
    all_limiters = [
        limiter_of(slots, WINDOW_S, requests, sleep=lambda s: time.sleep(min(s, 0.02))) for _ in range(limiters)
    ]
    with ThreadPoolExecutor(limiters * threads) as pool:
        times = [pair for pairs in pool.map(send, all_limiters * threads) for pair in pairs]
    assert len(times) == limiters * threads * each
    assert max_in_a_window(times, WINDOW_S) <= slots * requests


def test_max_in_a_window_counts_every_possible_arrival():
    assert max_in_a_window([(0, 0.1), (0.15, 0.2), (0.31, 0.32)], 0.2) == 2
    assert max_in_a_window([(0, 1.0), (0.1, 0.2), (1.1, 1.2)], 0.2) == 2
    assert max_in_a_window([(0, 0.1), (0.31, 0.4)], 0.2) == 1


def test_a_slot_is_free_one_window_after_the_response(limiter_of):
    one, other = limiter_of(1), limiter_of(1)
    with one.slot():
        time.sleep(0.05)
        responded = time.monotonic()
    with other.slot():
        assert time.monotonic() - responded >= WINDOW_S


def test_a_slot_in_use_is_not_taken_again(limiter_of):
    waits = Waits()
    one, other = limiter_of(1, 0.02), limiter_of(1, 0.02, sleep=waits)
    with one.slot():
        time.sleep(0.05)
        with pytest.raises(Waits.Endless), other.slot():
            pass
    assert max(waits.seconds) <= 5


def test_a_slot_in_use_for_the_second_time_is_not_taken_again(limiter_of):
    waits = Waits()
    one, other = limiter_of(1, 0.02), limiter_of(1, 0.02, sleep=waits)
    with one.slot():
        pass
    with one.slot():
        time.sleep(0.05)
        with pytest.raises(Waits.Endless), other.slot():
            pass


def test_taking_a_slot_again_does_not_free_the_slot_of_another_limiter(limiter_of):
    waits = Waits()
    one, other, third = limiter_of(2, 0.02), limiter_of(2, 0.02), limiter_of(2, 0.02, sleep=waits)
    with one.slot():
        pass
    time.sleep(0.03)
    with other.slot(), one.slot():
        time.sleep(0.05)
        with pytest.raises(Waits.Endless), third.slot():
            pass


def test_a_response_after_the_end_of_its_slot_lease_does_not_free_the_slot_of_another_limiter(limiter_of, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(rate_limiter, "SLOT_LEASE_S", 0.05)
        one = limiter_of(1, 0.02)
    waits = Waits()
    other, third = limiter_of(1, 0.02), limiter_of(1, 0.02, sleep=waits)
    with ExitStack() as late:
        late.enter_context(one.slot())
        with other.slot():
            late.close()
            time.sleep(0.05)
            with pytest.raises(Waits.Endless), third.slot():
                pass


def test_a_failed_request_frees_its_slot(limiter_of):
    one, other = limiter_of(1, 0.02), limiter_of(1, 0.02)
    with pytest.raises(ZeroDivisionError), one.slot():
        raise ZeroDivisionError
    began = time.monotonic()
    with other.slot():
        assert time.monotonic() - began < SOON_S


def test_closing_frees_an_unfinished_slot_lease(limiter_of, database_url):
    one = RateLimiter(database_url, "shared", 1, 0.02, 5)
    with one.slot():
        pass
    one.close()
    began = time.monotonic()
    with limiter_of(1, 0.02).slot():
        assert time.monotonic() - began < SOON_S


def test_scopes_do_not_delay_each_other(limiter_of):
    waits = Waits()
    with limiter_of(1, scope="one").slot(), limiter_of(1, scope="other", sleep=waits).slot():
        pass
    assert waits.seconds == []


def test_the_slot_of_a_killed_process_becomes_free(limiter_of, database_url):
    limiter_of(1, 0.1)
    slot_lease_s = 0.4
    received, sent_by_victim = child_processes.pipe()
    victim = child_processes.start(child_processes.take_slot, database_url, slot_lease_s, sent_by_victim)
    began = received.recv()
    victim.kill()
    victim.join()
    with limiter_of(1, 0.1).slot():
        assert slot_lease_s < time.monotonic() - began < SOON_S


def test_a_slot_lease_plus_the_window_is_longer_than_any_request():
    longest_s = client.RESPONSE_LIMIT_S + (client.TIMEOUT.read or math.inf)
    # The last request of a slot lease may begin at half of its time; Binance's window is 60 s.
    assert rate_limiter.SLOT_LEASE_S / 2 + longest_s <= rate_limiter.SLOT_LEASE_S + 60
    # A slot of one request; LBank's window is 10 s.
    assert longest_s <= rate_limiter.SLOT_LEASE_S + 10


def test_a_pause_stops_all_limiters_for_its_duration(limiter_of):
    limiters = [limiter_of(10, 0.01) for _ in range(3)]
    for limiter in limiters:
        with limiter.slot():
            pass
    began = time.monotonic()
    limiters[0].pause(0.3)

    def waited_s(limiter: RateLimiter) -> float:
        with limiter.slot():
            return time.monotonic() - began

    with ThreadPoolExecutor(3) as pool:
        assert all(0.3 < seconds < SOON_S for seconds in pool.map(waited_s, limiters))


def test_a_pause_stops_limiters_with_requests_left_in_their_slot_lease(limiter_of, monkeypatch):
    monkeypatch.setattr(rate_limiter, "PAUSE_CHECK_S", 0)
    waits = Waits()
    one, other = limiter_of(3, 0.02, 5), limiter_of(3, 0.02, 5, sleep=waits)
    with other.slot():
        pass
    one.pause(60)
    with pytest.raises(Waits.Endless), other.slot():
        pass


def test_a_shorter_pause_does_not_end_a_longer_one(limiter_of):
    waits = Waits()
    one, other = limiter_of(5), limiter_of(5, sleep=waits)
    one.pause(100)
    one.pause(0)
    with pytest.raises(Waits.Endless), other.slot():
        pass
    assert 0 < max(waits.seconds) <= 5


def test_a_long_pause_is_a_ban_for_all_limiters_at_once(limiter_of):
    waits = Waits()
    one, other = limiter_of(5), limiter_of(5, sleep=waits)
    one.pause(7200)
    for limiter in (one, other):
        with pytest.raises(Banned, match=r"no request for another (11\d min|2 h)"), limiter.slot():
            pass
    assert waits.seconds == []


@pytest.mark.parametrize("seconds", [1e30, math.inf])
def test_an_endless_pause_is_a_ban(limiter_of, seconds):
    one = limiter_of(5)
    one.pause(seconds)
    with pytest.raises(Banned), one.slot():
        pass


@pytest.mark.parametrize("seconds", [0, -5, math.nan])
def test_a_pause_without_a_duration_has_no_effect(limiter_of, seconds):
    waits = Waits()
    one = limiter_of(5, sleep=waits)
    one.pause(seconds)
    with one.slot():
        pass
    assert waits.seconds == []


def test_a_slot_lease_permits_only_its_number_of_requests(limiter_of):
    waits = Waits()
    one, other = limiter_of(1, 10, 4), limiter_of(1, 10, 4, sleep=waits)
    for _ in range(4):
        with one.slot():
            pass
    with pytest.raises(Waits.Endless), other.slot():
        pass


def test_a_slot_lease_is_not_free_before_its_last_response(limiter_of):
    one, waits = limiter_of(1, 0.05, 2), Waits()
    other = limiter_of(1, 0.05, 2, sleep=waits)
    with one.slot():
        with one.slot():
            pass
        time.sleep(0.1)
        with pytest.raises(Waits.Endless), other.slot():
            pass


def test_a_slot_lease_past_half_of_its_time_is_replaced(limiter_of, monkeypatch):
    monkeypatch.setattr(rate_limiter, "SLOT_LEASE_S", 0.1)
    one = limiter_of(2, 0.02, 5)
    with one.slot():
        pass
    time.sleep(0.06)  # Longer than half of SLOT_LEASE_S: a request started now could outlast the slot lease.
    with one.slot():
        assert one._own_slot.requests_left == 4


def test_a_session_in_another_time_zone_sees_the_same_limit(limiter_of, database_url, query):
    query("alter database test set timezone = 'Pacific/Kiritimati'")
    try:
        waits = Waits()
        with limiter_of(1).slot(), pytest.raises(Waits.Endless), limiter_of(1, sleep=waits).slot():
            pass
    finally:
        query("alter database test reset timezone")


def test_unused_slots_give_finite_waits(limiter_of, database_url):
    """PostgreSQL before 17 could not subtract the current time if an unused slot returned at -infinity."""
    limiter_of(1)
    with psycopg.connect(database_url) as connection:
        [waits] = connection.execute(rate_limiter._WAIT, {"scope": "shared", "slots": 1}).fetchall()
    assert all(seconds is None or math.isfinite(seconds) for seconds in waits)


def test_a_lost_database_raises_store_unavailable(database_url, limiter_of, query):
    one = RateLimiter(database_url, "lost", 1, WINDOW_S)
    query("select pg_terminate_backend(%s)", one._connection.info.backend_pid)
    with pytest.raises(StoreUnavailable, match="the database cannot be used"), one.slot():
        pass
    one._connection.close()
