"""Window walks over the sandbox with small pages: every row once, or a failed day."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from affiliate_pipeline.domain.days import start_ms
from affiliate_pipeline.exchanges.binance import responses
from affiliate_pipeline.exchanges.binance.signing import BinanceAuth
from affiliate_pipeline.exchanges.fetching import DayBatch, Session
from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline.exchanges.window_walk import WindowWalk
from affiliate_pipeline.http.client import Client, Clock, Unlimited
from affiliate_pipeline.sandbox import Sandbox

ENDPOINT = next(endpoint for endpoint in ENDPOINTS if endpoint.key == "binance/rebate_recent_record")
ZONE = ENDPOINT.exchange.zone
YESTERDAY = datetime.now(UTC).date() - timedelta(days=1)
DAYS = [YESTERDAY - timedelta(days=1), YESTERDAY]
DAY_MS = 86_400_000
START, END = start_ms(DAYS[0], ZONE), start_ms(YESTERDAY, ZONE) + DAY_MS

# Many rows share a millisecond, are in adjacent ones, or are at the ends of the days.
instants = st.one_of(
    st.sampled_from([START, START + 1, START + DAY_MS - 1, START + DAY_MS, START + DAY_MS + 1, END - 2, END - 1]),
    st.sampled_from([START + DAY_MS // 3 + ms for ms in (0, 1, 2, 50)]),
    st.integers(START, END - 1),
)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    """The sandbox with neither a database nor a weight limit that the walks could reach."""
    with Sandbox() as sandbox:
        sandbox.binance.weight_limit = 1_000_000
        yield sandbox


@pytest.fixture(scope="module")
def session(sandbox: Sandbox) -> Iterator[Session]:
    """A session without a rate limit, which would take most of the time."""
    clock, binance = Clock(), sandbox.binance
    auth = BinanceAuth(binance.partner_key, binance.partner_secret, clock.now_ms)
    with Client(
        sandbox.url, auth, clock, Unlimited(), read=lambda response: responses.read(response, "KEY", "SECRET")
    ) as client:
        yield Session(client, "sandbox")


@settings(max_examples=150)
@given(
    times=st.lists(instants, max_size=40),
    limit=st.integers(2, 6),
    max_days=st.integers(1, 2),
    newest_first=st.booleans(),
    exclusive_end=st.booleans(),
)
@example([START + DAY_MS // 2] * 3, 3, 2, False, False)
@example([END - 1] * 2 + [START] * 2, 3, 2, True, True)
# The first window seems empty until the second one proves that ends are exclusive.
@example([START + DAY_MS - 1, START + DAY_MS], 3, 1, False, True)
def test_a_walk_yields_every_row_or_fails_days_with_a_millisecond_that_fills_a_page(
    sandbox, session, times, limit, max_days, newest_first, exclusive_end
):
    # If no row is received, the ends of windows cannot be proven: see test_completeness.
    ends = {END - 1, *([START + DAY_MS - 1] if max_days == 1 else [])}
    assume(not (exclusive_end and times and {*times} <= ends))
    sandbox.binance.newest_first, sandbox.binance.exclusive_end = newest_first, exclusive_end
    sandbox.binance.set_rebates({"time": time, "number": number} for number, time in enumerate(times))
    assert isinstance(ENDPOINT.strategy, WindowWalk)
    walk = replace(ENDPOINT.strategy, row_limit=limit, max_days=max_days)

    outcomes = list(walk.fetch(session, DAYS, ZONE))

    failed = {utc_day(time) for time, count in Counter(times).items() if count >= limit}
    fetched = {
        outcome.day: Counter(row["number"] for chunk in outcome.chunks for row in json.loads(b"[" + chunk + b"]"))
        for outcome in outcomes
        if isinstance(outcome, DayBatch)
    }
    assert sorted(outcome.day for outcome in outcomes) == DAYS
    assert fetched == {
        day: Counter(number for number, time in enumerate(times) if utc_day(time) == day)
        for day in DAYS
        if day not in failed
    }


def utc_day(ms: int) -> date:
    return datetime.fromtimestamp(ms // 1000, UTC).date()
