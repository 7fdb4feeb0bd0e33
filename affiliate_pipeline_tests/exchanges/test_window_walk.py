"""Walks over a real sandbox with small pages: every row once, or a day that says why not."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from affiliate_pipeline.domain.days import start_ms
from affiliate_pipeline.environment import configured
from affiliate_pipeline.exchanges.fetching import DayBatch, Session
from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline.exchanges.window_walk import WindowWalk
from affiliate_pipeline.landing.pipeline import connected
from affiliate_pipeline.landing.store import Store

ENDPOINT = next(endpoint for endpoint in ENDPOINTS if endpoint.key == "binance/rebate_recent_record")
ZONE = ENDPOINT.exchange.zone
YESTERDAY = datetime.now(UTC).date() - timedelta(days=1)
DAYS = [YESTERDAY - timedelta(days=1), YESTERDAY]
DAY_MS = 86_400_000
START, END = start_ms(DAYS[0], ZONE), start_ms(YESTERDAY, ZONE) + DAY_MS

# Rows crowd into few milliseconds: at both ends of the days, side by side, and anywhere.
instants = st.one_of(
    st.sampled_from([START, START + 1, START + DAY_MS - 1, START + DAY_MS, START + DAY_MS + 1, END - 2, END - 1]),
    st.sampled_from([START + DAY_MS // 3 + ms for ms in (0, 1, 2, 50)]),
    st.integers(START, END - 1),
)


@pytest.fixture
def session(sandbox, database_url, monkeypatch) -> Iterator[Session]:
    # Some thousands of requests within seconds are this test's matter, and not the rate limit's.
    monkeypatch.setenv("AFFILIATE_RATE_SCALE", "1000")
    sandbox.binance.weight_limit = 1_000_000
    with Store(database_url) as store, connected(ENDPOINT, store, configured().variables) as session:
        yield session


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    times=st.lists(instants, max_size=40),
    limit=st.integers(2, 6),
    max_days=st.integers(1, 2),
    newest_first=st.booleans(),
    exclusive_end=st.booleans(),
)
@example([START + DAY_MS // 2] * 3, 3, 2, False, False)
@example([END - 1] * 2 + [START] * 2, 3, 2, True, True)
# The first window is empty until the second one proves that its end is exclusive.
@example([START + DAY_MS - 1, START + DAY_MS], 3, 1, False, True)
def test_a_walk_gives_every_row_or_fails_the_days_with_an_overfull_millisecond(
    sandbox, session, times, limit, max_days, newest_first, exclusive_end
):
    # With nothing received the ends cannot be proven: see test_completeness.
    ends = {END - 1, *([START + DAY_MS - 1] if max_days == 1 else [])}
    assume(not (exclusive_end and times and {*times} <= ends))
    sandbox.binance.newest_first, sandbox.binance.exclusive_end = newest_first, exclusive_end
    sandbox.binance.set_rebates({"time": time, "number": number} for number, time in enumerate(times))
    walk = replace(ENDPOINT.strategy, row_limit=limit, max_days=max_days)
    assert isinstance(walk, WindowWalk)

    outcomes = list(walk.fetch(session, DAYS, ZONE))

    overfull = {day_of(time) for time, count in Counter(times).items() if count >= limit}
    got = {
        outcome.day: Counter(row["number"] for chunk in outcome.chunks for row in json.loads(b"[" + chunk + b"]"))
        for outcome in outcomes
        if isinstance(outcome, DayBatch)
    }
    assert sorted(outcome.day for outcome in outcomes) == DAYS
    assert got == {
        day: Counter(number for number, time in enumerate(times) if day_of(time) == day)
        for day in DAYS
        if day not in overfull
    }


def day_of(ms: int) -> date:
    return datetime.fromtimestamp(ms // 1000, UTC).date()
