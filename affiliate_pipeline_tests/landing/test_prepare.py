"""Days are decoded ahead of their reader, in order, by a thread that always ends with its reader."""

import threading
from collections.abc import Generator, Iterable, Iterator
from datetime import date, timedelta
from functools import partial

import msgspec
import pytest

from affiliate_pipeline.exchanges.fetching import DayBatch, DayError
from affiliate_pipeline.http.errors import Fatal, Refused
from affiliate_pipeline.landing import blocks, prepare
from affiliate_pipeline.landing.prepare import Block, PreparedDay, Summary, prepared
from affiliate_pipeline.schema.invalid import Invalid
from affiliate_pipeline_tests.defs.rebates import ENDPOINT, rebates

DAY = date(2026, 11, 3)
DAYS = [DAY + timedelta(days=number) for number in range(4)]
BLOCKS_AHEAD = 3
# More blocks than fit into the queue.
MANY = 5
blocks_of = partial(blocks.blocks_of, endpoint=ENDPOINT)


def batch(day: date, rows: int = 3, **changes: object) -> DayBatch:
    chunks = [msgspec.json.encode(row | changes) for row in rebates(day, rows)]
    return DayBatch(day, chunks, rows, requests=1)


def no_cancellation() -> None:
    raise AssertionError("the fetch was cancelled after its end")


@pytest.fixture(autouse=True)
def small_blocks_and_queue(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One block per row, and a queue of few blocks."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1)
    monkeypatch.setattr(prepare, "BLOCKS_AHEAD", BLOCKS_AHEAD)
    yield
    assert "prepare" not in {thread.name for thread in threading.enumerate()}


def total(blocks: Iterable[Block]) -> Summary:
    return sum((block.summary for block in blocks), Summary())


def next_day(days: Iterator[PreparedDay | DayError]) -> PreparedDay:
    day = next(days)
    assert isinstance(day, PreparedDay)
    return day


def test_days_are_in_order_and_their_blocks_add_up():
    days = [batch(DAYS[0]), DayError(DAYS[1], Refused("no")), batch(DAYS[2], 0), batch(DAYS[3], MANY)]
    read: list[DayError | tuple[date, Summary]] = []
    with prepared((day for day in days), blocks_of, no_cancellation) as found:
        for day in found:
            read.append(day if isinstance(day, DayError) else (day.batch.day, total(day.blocks)))
    assert read == [
        (DAYS[0], total(blocks_of(batch(DAYS[0])))),
        days[1],
        (DAYS[2], Summary()),
        (DAYS[3], total(blocks_of(batch(DAYS[3], MANY)))),
    ]
    assert total(blocks_of(batch(DAYS[3], MANY))).rows == MANY


def test_the_unread_blocks_of_a_day_are_skipped():
    with prepared((batch(day, MANY) for day in DAYS[:2]), blocks_of, no_cancellation) as found:
        next(next_day(found).blocks)
        assert total(next_day(found).blocks).rows == MANY


def test_an_invalid_day_reports_all_of_its_rows_and_the_next_day_is_read():
    with prepared(
        (day for day in [batch(DAYS[0], MANY, income="x"), batch(DAYS[1])]), blocks_of, no_cancellation
    ) as found:
        with pytest.raises(Invalid, match=f"not a decimal number in {MANY} rows"):
            total(next_day(found).blocks)
        assert total(next_day(found).blocks).rows == 3


def test_an_error_of_the_fetch_is_raised_after_the_days_before_it():
    def fetch() -> Generator[DayBatch]:
        yield batch(DAY, MANY)
        raise Fatal("the key is wrong")

    with pytest.raises(Fatal, match="key"), prepared(fetch(), blocks_of, lambda: None) as found:
        assert total(next_day(found).blocks).rows == MANY
        next(found)


def test_decoding_stops_when_the_queue_is_full():
    decoded: list[date] = []

    def fetch() -> Generator[DayBatch]:
        for day in [DAY] * 8:
            decoded.append(day)
            yield batch(day, 1)

    with prepared(fetch(), blocks_of, lambda: None) as found:
        next(found)
        for _ in range(100):
            if decoded:
                break
            threading.Event().wait(0.02)
        threading.Event().wait(0.1)
        assert len(decoded) <= BLOCKS_AHEAD
        for _ in found:
            pass
    assert len(decoded) == 8


@pytest.mark.parametrize("rows", [1, 2 * MANY], ids=["while waiting for the exchange", "while the queue is full"])
def test_an_error_of_the_reader_ends_the_fetch(rows):
    cancelled, closed = threading.Event(), threading.Event()

    def fetch() -> Generator[DayBatch]:
        try:
            yield batch(DAY, rows)
            if not cancelled.wait(30):
                raise AssertionError("not cancelled")
            raise RuntimeError("Cannot send a request, as the client has been closed.")
        finally:
            closed.set()

    with pytest.raises(KeyboardInterrupt), prepared(fetch(), blocks_of, cancelled.set) as found:
        next(next_day(found).blocks)
        raise KeyboardInterrupt
    assert closed.is_set()
