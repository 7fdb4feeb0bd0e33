"""When a request is sent again, by the decision alone. What the client does with it is in `test_client.py`."""

import time

import pytest

from affiliate_pipeline.http.errors import RateLimited, Transient, Unanswered
from affiliate_pipeline.http.retry import (
    MAX_ATTEMPTS,
    SILENCE_LIMIT_S,
    CircuitBreaker,
    GiveUp,
    Retry,
    Silence,
    decide,
)

NONE, SHORT, LONG = Silence(), Silence(50, SILENCE_LIMIT_S - 1), Silence(50, SILENCE_LIMIT_S)


@pytest.mark.parametrize(
    ("error", "failures", "silence", "decision"),
    [
        (Transient("500"), MAX_ATTEMPTS - 1, NONE, Retry),
        (Transient("500"), MAX_ATTEMPTS, NONE, GiveUp()),
        (Unanswered("reset"), 2 * MAX_ATTEMPTS, SHORT, Retry),
        (Unanswered("reset"), 1, LONG, GiveUp(is_unreachable=True)),
        # Other requests are answered, or the first of few failures is long ago.
        (Unanswered("reset"), MAX_ATTEMPTS, Silence(1, 0.1), GiveUp()),
        (Unanswered("reset"), 1, Silence(2, 600), Retry),
        (RateLimited("429", retry_after_s=60), 1, NONE, Retry(0)),
        (Transient("503", retry_after_s=7), 1, NONE, Retry(0)),
    ],
)
def test_a_failure_is_retried_or_given_up(error, failures, silence, decision):
    decided = decide(error, failures, silence)
    assert decided == decision or (decision is Retry and isinstance(decided, Retry))


def test_waits_grow_and_end_somewhere(monkeypatch):
    monkeypatch.setattr("affiliate_pipeline.http.retry.MAX_WAIT_S", 4.0)
    waits = [decide(Unanswered("reset"), failures, Silence(failures, 1)).after_s for failures in (1, 4, 10_000)]
    assert 0.1 <= waits[0] <= 0.6 < waits[1] <= 1.3 and waits[2] == 4.0


def test_silence_ends_with_a_response_and_begins_with_a_request():
    circuit = CircuitBreaker()
    assert circuit.silence == NONE
    before_the_response = time.monotonic() - 1000
    circuit.responded()
    circuit.failed(before_the_response)
    circuit.failed(time.monotonic())
    assert circuit.silence.requests == 2 and circuit.silence.seconds < 1
    circuit.responded()
    assert circuit.silence == NONE
