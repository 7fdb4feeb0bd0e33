"""The second stage of landing: decode, validate and hash fetched days ahead of the writer.

Has landing's only thread and queue. The thread also drives the fetch, so that a day is fetched and decoded while
PostgreSQL loads the previous one.
"""

import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from queue import Empty, Queue

from affiliate_pipeline.exchanges.endpoint import Endpoint, Records
from affiliate_pipeline.exchanges.fetching import DayBatch, DayError
from affiliate_pipeline.http.bodies import REPLACEMENT
from affiliate_pipeline.schema.decode import ColumnProblem, Invalid, batches, damaged, parse
from affiliate_pipeline.schema.fingerprint import Fingerprint, copy_text, fingerprint
from affiliate_pipeline.schema.raw_row import split

BLOCK_BYTES = 4 << 20
BLOCKS_AHEAD = 8


@dataclass(frozen=True)
class Summary:
    """Row count, fingerprint and irregularities of rows; summaries of disjoint rows add up.

    The counters have the number of rows by unknown field, and by column with U+FFFD.
    """

    rows: int = 0
    fingerprint: Fingerprint = Fingerprint()
    unknown_fields: Counter[str] = field(default_factory=Counter[str])
    damaged: Counter[str] = field(default_factory=Counter[str])

    def __add__(self, other: "Summary") -> "Summary":
        return Summary(
            self.rows + other.rows,
            self.fingerprint + other.fingerprint,
            self.unknown_fields + other.unknown_fields,
            self.damaged + other.damaged,
        )


@dataclass(frozen=True)
class Block:
    """Some rows of a day as COPY text."""

    copy_text: bytes
    summary: Summary


def blocks_of(batch: DayBatch, endpoint: Endpoint) -> Iterator[Block]:
    """The day's rows; raises `Invalid` at the end, with the problems of all of them."""
    instant = endpoint.time_column if isinstance(endpoint, Records) else None
    within = (instant, endpoint.start_ms(batch.day), endpoint.end_ms(batch.day)) if instant else None
    problems: list[ColumnProblem] = []
    rows = 0
    for chunks in batches(batch.chunks, BLOCK_BYTES):
        try:
            parsed = parse(endpoint.schema, chunks, within)
        except Invalid as invalid:
            problems += (replace(each, row=rows + each.row) for each in invalid.problems)
            rows += sum(1 for _ in split(chunks))
            continue
        rows += len(parsed.table)
        if not problems:
            text = copy_text(parsed.table)
            # Searching for a single byte first is much faster.
            is_damaged = REPLACEMENT[:1] in text and REPLACEMENT in text
            found = damaged(parsed.table) if is_damaged else Counter[str]()
            yield Block(text, Summary(len(parsed.table), fingerprint(parsed.table, text), parsed.unknown, found))
    if problems:
        raise Invalid(problems)


@dataclass(frozen=True)
class PreparedDay:
    """A fetched day and its blocks, readable once; reading them raises `Invalid` if any row is."""

    batch: DayBatch
    blocks: Iterator[Block]


# None marks the end of a day's blocks, and the end of all days.
_Item = DayBatch | DayError | Block | BaseException | None


class _Cancelled(Exception):
    """The reader has stopped reading."""


@contextmanager
def prepared(
    batches: Generator[DayBatch | DayError], endpoint: Endpoint, cancel_fetch: Callable[[], None]
) -> Generator[Iterator[PreparedDay | DayError]]:
    """The fetched days in order, up to `BLOCKS_AHEAD` blocks ahead of their reader.

    An error of the fetch is raised after the days before it. If the reader stops early, `cancel_fetch` has to make a
    waiting fetch fail soon.
    """
    queue = _BlockQueue(batches, endpoint)
    thread = threading.Thread(target=queue.prepare, name="prepare", daemon=True)
    thread.start()
    try:
        yield queue.days()
    except BaseException:
        queue.cancelled.set()
        cancel_fetch()
        queue.make_room()
        raise
    finally:
        thread.join()


class _BlockQueue:
    """The queue between the thread, which calls `prepare`, and the reader of `days`."""

    def __init__(self, batches: Generator[DayBatch | DayError], endpoint: Endpoint) -> None:
        self.cancelled = threading.Event()
        self._batches, self._endpoint = batches, endpoint
        self._queue: Queue[_Item] = Queue(BLOCKS_AHEAD)

    def prepare(self) -> None:
        try:
            with closing(self._batches):
                for batch in self._batches:
                    self._put(batch)
                    if isinstance(batch, DayBatch):
                        self._put_blocks(batch)
            self._put(None)
        except BaseException as error:
            with suppress(_Cancelled):
                self._put(error)

    def _put_blocks(self, batch: DayBatch) -> None:
        try:
            for block in blocks_of(batch, self._endpoint):
                self._put(block)
            self._put(None)
        except Invalid as invalid:
            self._put(invalid)

    def _put(self, item: _Item) -> None:
        if self.cancelled.is_set():
            raise _Cancelled
        self._queue.put(item)

    def days(self) -> Iterator[PreparedDay | DayError]:
        while (item := self._take()) is not None:
            if isinstance(item, DayError):
                yield item
            elif isinstance(item, DayBatch):
                day = PreparedDay(item, self._blocks())
                yield day
                # Skip the blocks that were not read, so that the next item is a day.
                with suppress(Invalid):
                    for _ in day.blocks:
                        pass

    def _blocks(self) -> Iterator[Block]:
        while isinstance(block := self._take(), Block):
            yield block

    def _take(self) -> _Item:
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def make_room(self) -> None:
        """Empty the queue, so that a thread blocked on it notices the cancellation."""
        with suppress(Empty):
            while True:
                self._queue.get_nowait()
