"""Window walks over the sandbox with small pages: every row once, or a failed day."""

import hmac
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from email.message import Message
from typing import TypeVar

import httpx
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from affiliate_pipeline.domain.days import start_ms
from affiliate_pipeline.exchanges.fetching import DayBatch, DayError, Session
from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline.exchanges.shared_state import SharedState
from affiliate_pipeline.exchanges.window_walk import WindowWalk
from affiliate_pipeline.http.client import Client, Clock, Unlimited
from affiliate_pipeline.http.encoding import encode
from affiliate_pipeline.http.errors import Refused
from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline.sandbox.binance.exchange import Binance
from affiliate_pipeline.sandbox.exchange import Call

T = TypeVar("T")

ENDPOINT = next(endpoint for endpoint in ENDPOINTS if endpoint.key == "binance/rebate_recent_record")
ZONE = ENDPOINT.exchange.zone
YESTERDAY = datetime.now(UTC).date() - timedelta(days=1)
DAYS = [YESTERDAY - timedelta(days=1), YESTERDAY]
DAY_MS = 86_400_000
START, END = start_ms(DAYS[0], ZONE), start_ms(YESTERDAY, ZONE) + DAY_MS
NOON = START + DAY_MS // 2

# Many rows share a millisecond, are in adjacent ones, or are at the ends of the days.
instants = st.one_of(
    st.sampled_from([START, START + 1, START + DAY_MS - 1, START + DAY_MS, START + DAY_MS + 1, END - 2, END - 1]),
    st.sampled_from([START + DAY_MS // 3 + ms for ms in (0, 1, 2, 50)]),
    st.integers(START, END - 1),
)


class InProcessClient(Client):
    """A client that calls the sandbox's Binance without HTTP, which would take most of the time."""

    def __init__(self, binance: Binance) -> None:
        super().__init__("http://127.0.0.1", httpx.Auth(), Clock(), Unlimited(), read=lambda response: response.content)
        self.binance, self.headers, self.max_refused_ms = binance, Message(), 0
        self.headers["X-MBX-APIKEY"] = binance.partner_key

    def get(self, path: str, params: Mapping[str, object], decode: Callable[[bytes], T], *, retries: bool = True) -> T:
        first, last = params["startTime"], params["endTime"]
        assert isinstance(first, int) and isinstance(last, int)
        if last - first < self.max_refused_ms:
            raise Refused("endTime must be after startTime")
        query = encode({**params, "timestamp": time.time_ns() // 1_000_000})
        signature = hmac.new(self.binance.partner_secret.encode(), query.encode(), "sha256").hexdigest()
        response = self.binance.respond(Call("GET", path, f"{query}&signature={signature}", "", self.headers))
        if response.status != 200:
            raise Refused(response.body.decode())
        return decode(response.body)


@pytest.fixture(scope="module")
def binance() -> Binance:
    """The sandbox's Binance with a weight limit that the walks cannot reach."""
    binance = Sandbox().binance
    binance.weight.limit = 1_000_000
    return binance


@pytest.fixture(scope="module")
def session(binance: Binance) -> Iterator[Session]:
    with InProcessClient(binance) as client:
        yield Session(client, ENDPOINTS[0].key_identity(SharedState(), "sandbox", "key"))


@settings(max_examples=75)
@given(
    times=st.lists(instants, max_size=40),
    limit=st.integers(2, 6),
    max_days=st.integers(1, 2),
    newest_first=st.booleans(),
    exclusive_end=st.booleans(),
)
@example([NOON] * 3, 3, 2, False, False)
@example([END - 1] * 2 + [START] * 2, 3, 2, True, True)
# A page ends between two rows of the same millisecond, whose time is a whole number of seconds.
@example([NOON - 2000, NOON - 1000, *[NOON] * 3, NOON + 1000], 4, 2, False, False)
# The first window seems empty until the second one proves that ends are exclusive.
@example([START + DAY_MS - 1, START + DAY_MS], 3, 1, False, True)
def test_a_walk_yields_every_row_or_fails_days_with_a_millisecond_that_fills_a_page(
    binance, session, times, limit, max_days, newest_first, exclusive_end
):
    # Without a received row, nothing proves whether the ends of windows are exclusive.
    ends = {END - 1, *([START + DAY_MS - 1] if max_days == 1 else [])}
    assume(not (exclusive_end and times and {*times} <= ends))
    binance.newest_first, binance.exclusive_end = newest_first, exclusive_end

    fetched = walked(binance, session, times, limit, max_days)

    failed = {utc_day(ms) for ms, count in Counter(times).items() if count >= limit}
    assert fetched == {day: None if day in failed else numbers(times, day) for day in DAYS}


@given(times=st.lists(instants, max_size=40), limit=st.integers(2, 6), newest_first=st.booleans())
# The first day's window extends into the second day: its first page has `limit` rows, one of them of the second day.
@example([NOON, NOON + 1000, NOON + 2000, START + DAY_MS], 2, True)
def test_a_walk_is_exact_if_the_exchange_refuses_windows_of_one_millisecond(
    binance, session, times, limit, newest_first
):
    binance.newest_first, binance.exclusive_end = newest_first, False
    with refusing_instants(session):
        fetched = walked(binance, session, times, limit, max_days=1)

    # Every window extends into the next millisecond.
    counts = Counter(times)
    may_fail = {utc_day(first) for ms in counts for first in (ms - 1, ms) if counts[first] + counts[first + 1] >= limit}
    assert {day for day, found in fetched.items() if found is None} <= may_fail
    assert all(found in (None, numbers(times, day)) for day, found in fetched.items())


def test_days_without_rows_fail_if_the_ends_of_windows_cannot_be_proven_by_the_row_of_another_day(binance, session):
    binance.set_rebates([{"time": START + DAY_MS + 5, "number": 0}])
    assert isinstance(ENDPOINT.strategy, WindowWalk)
    walk = replace(ENDPOINT.strategy, max_days=1)
    with refusing_instants(session, max_ms=3):
        outcomes = list(walk.fetch(session, DAYS, ZONE))

    problems = {outcome.day: str(outcome.error) for outcome in outcomes if isinstance(outcome, DayError)}
    unproven = "the response had no rows, but it is not proven that it covers the whole day"
    assert {day: unproven in text for day, text in problems.items()} == {day: day != DAYS[1] for day in DAYS}


@contextmanager
def refusing_instants(session: Session, max_ms: int = 1) -> Iterator[None]:
    """The exchange refuses windows of at most `max_ms` milliseconds."""
    client = session.client
    assert isinstance(client, InProcessClient)
    client.max_refused_ms = max_ms
    try:
        yield
    finally:
        client.max_refused_ms = 0


def walked(binance: Binance, session: Session, times: list[int], limit: int, max_days: int) -> dict[date, object]:
    """Walk over the days while the exchange has rows of these times; return each day's `numbers`, None if it failed."""
    binance.set_rebates({"time": ms, "number": number} for number, ms in enumerate(times))
    assert isinstance(ENDPOINT.strategy, WindowWalk)
    walk = replace(ENDPOINT.strategy, row_limit=limit, max_days=max_days)
    outcomes = list(walk.fetch(session, DAYS, ZONE))
    assert sorted(outcome.day for outcome in outcomes) == DAYS
    return {
        outcome.day: Counter(row["number"] for chunk in outcome.chunks for row in json.loads(b"[" + chunk + b"]"))
        if isinstance(outcome, DayBatch)
        else None
        for outcome in outcomes
    }


def numbers(times: list[int], day: date) -> Counter[int]:
    """The numbers of the day's rows: their positions in `times`, each counted once."""
    return Counter(number for number, ms in enumerate(times) if utc_day(ms) == day)


def utc_day(ms: int) -> date:
    return datetime.fromtimestamp(ms // 1000, UTC).date()
