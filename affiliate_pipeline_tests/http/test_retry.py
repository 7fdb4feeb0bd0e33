"""When a request is sent again, by the decision alone. What the client does with it is in `test_client.py`."""

import time

import pytest

from affiliate_pipeline.http import retry
from affiliate_pipeline.http.errors import RateLimited, Transient, Unanswered
from affiliate_pipeline.http.retry import MAX_ATTEMPTS, SILENCE_LIMIT_S, CircuitBreaker, GiveUp, Retry, decide


def pausing(text: str, seconds: float) -> Transient:
    error = Transient(text)
    error.retry_after_s = seconds
    return error


@pytest.mark.parametrize(
    ("error", "failures", "unanswered", "silent_s", "decision"),
    [
        (Transient("500"), MAX_ATTEMPTS - 1, 0, 0, Retry),
        (Transient("500"), MAX_ATTEMPTS, 0, 0, GiveUp()),
        (Unanswered("reset"), 50, 50, SILENCE_LIMIT_S - 1, Retry),
        (Unanswered("reset"), 1, 50, SILENCE_LIMIT_S, GiveUp(is_unreachable=True)),
        # Other requests are answered, or the first of few failures is long ago.
        (Unanswered("reset"), MAX_ATTEMPTS, 1, 0.1, GiveUp()),
        (Unanswered("reset"), 1, 2, 600, Retry),
        (RateLimited("429"), 1, 0, 0, Retry(0)),
        (pausing("503", 7), 1, 0, 0, Retry(0)),
    ],
)
def test_a_failure_is_retried_or_given_up(error, failures, unanswered, silent_s, decision):
    decided = decide(error, failures, unanswered, silent_s)
    assert decided == decision or (decision is Retry and isinstance(decided, Retry))


def test_waits_grow_and_end_somewhere(monkeypatch):
    monkeypatch.setattr(retry, "MAX_WAIT_S", 4.0)
    waits = [decide(Unanswered("reset"), failures, failures, 1).after_s for failures in (1, 4, 10_000)]
    assert 0.1 <= waits[0] <= 0.6 < waits[1] <= 1.3 and waits[2] == 4.0


def test_silence_begins_with_a_request_and_ends_with_a_response(monkeypatch):
    monkeypatch.setattr(retry, "MIN_UNANSWERED", 2)
    circuit, error = CircuitBreaker(), Unanswered("reset")
    circuit.responded()
    for _ in range(2):
        circuit.failed(time.monotonic() - 2 * SILENCE_LIMIT_S)
    # These were sent before the response: the silence is younger.
    assert isinstance(circuit.decide(error, 1), Retry)
    circuit = CircuitBreaker()
    monkeypatch.setattr(retry, "SILENCE_LIMIT_S", 0.01)
    for _ in range(2):
        circuit.failed(time.monotonic())
    time.sleep(0.02)
    assert circuit.decide(error, 1) == GiveUp(is_unreachable=True)
    circuit.responded()
    assert isinstance(circuit.decide(error, 1), Retry)
