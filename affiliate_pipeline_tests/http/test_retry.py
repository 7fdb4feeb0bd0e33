"""The retry decision by itself. `test_client.py` tests what the client does with it."""

import time

import pytest

from affiliate_pipeline.http import retry
from affiliate_pipeline.http.errors import NoResponse, RateLimited, Transient
from affiliate_pipeline.http.retry import MAX_ATTEMPTS, SILENCE_LIMIT_S, CircuitBreaker, GiveUp, Retry, retry_or_give_up


def error_with_pause(seconds: float) -> Transient:
    error = Transient("503")
    error.retry_after_s = seconds
    return error


@pytest.mark.parametrize(
    ("error", "failures", "unanswered", "silent_s", "expected"),
    [
        (Transient("500"), MAX_ATTEMPTS - 1, 0, 0, Retry),
        (Transient("500"), MAX_ATTEMPTS, 0, 0, GiveUp()),
        (NoResponse("reset"), 50, 50, SILENCE_LIMIT_S - 1, Retry),
        (NoResponse("reset"), 1, 50, SILENCE_LIMIT_S, GiveUp(is_unreachable=True)),
        # Other requests get responses, or the failures are few and far apart.
        (NoResponse("reset"), MAX_ATTEMPTS, 1, 0.1, GiveUp()),
        (NoResponse("reset"), 1, 2, 600, Retry),
        # The rate limiter enforces the exchange's pause, so the retry itself does not wait.
        (RateLimited("429"), 1, 0, 0, Retry(0)),
        (error_with_pause(7), 1, 0, 0, Retry(0)),
    ],
)
def test_a_failure_is_retried_or_given_up(error, failures, unanswered, silent_s, expected):
    decision = retry_or_give_up(error, failures, unanswered, silent_s)
    assert decision == expected or (expected is Retry and isinstance(decision, Retry))


@pytest.mark.parametrize(("failures", "min_s", "max_s"), [(1, 0.1, 0.6), (4, 0.8, 1.3), (10_000, 4.0, 4.0)])
def test_waits_grow_up_to_a_limit(monkeypatch, failures, min_s, max_s):
    monkeypatch.setattr(retry, "MAX_WAIT_S", 4.0)
    decision = retry_or_give_up(NoResponse("reset"), failures, failures, 1)
    assert isinstance(decision, Retry) and min_s <= decision.after_s <= max_s


def test_silence_begins_with_a_request_and_ends_with_a_response(monkeypatch):
    monkeypatch.setattr(retry, "MIN_UNANSWERED", 2)
    circuit, error = CircuitBreaker(), NoResponse("reset")
    circuit.responded()
    for _ in range(2):
        circuit.failed(time.monotonic() - 2 * SILENCE_LIMIT_S)
    # These were sent before the response, so the silence began at the response.
    assert isinstance(circuit.retry_or_give_up(error, 1), Retry)
    circuit = CircuitBreaker()
    monkeypatch.setattr(retry, "SILENCE_LIMIT_S", 0.01)
    for _ in range(2):
        circuit.failed(time.monotonic())
    time.sleep(0.02)
    assert circuit.retry_or_give_up(error, 1) == GiveUp(is_unreachable=True)
    circuit.responded()
    assert isinstance(circuit.retry_or_give_up(error, 1), Retry)
