"""The second stage of landing: decode, validate and hash fetched days ahead of the writer.

Has the only thread and queue between the stages. The thread also drives the fetch, so that a day is fetched and decoded
while PostgreSQL loads the previous one.
"""

import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from queue import Empty, Queue

from affiliate_pipeline.exchanges.fetching import DayBatch, DayError
from affiliate_pipeline.schema.fingerprint import Fingerprint
from affiliate_pipeline.schema.invalid import Invalid

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


@dataclass(frozen=True)
class PreparedDay:
    """A fetched day and its blocks, readable once; reading them raises `Invalid` if a row is invalid."""

    batch: DayBatch
    blocks: Iterator[Block]


# None marks the end of a day's blocks, and the end of all days.
_Item = DayBatch | DayError | Block | BaseException | None


class _Cancelled(Exception):
    """The reader has stopped reading."""


@contextmanager
def prepared(
    batches: Generator[DayBatch | DayError],
    blocks_of: Callable[[DayBatch], Iterator[Block]],
    cancel_fetch: Callable[[], None],
) -> Generator[Iterator[PreparedDay | DayError]]:
    """The fetched days in order, prepared by a thread up to `BLOCKS_AHEAD` blocks ahead of their reader.

    An error of the fetch is raised after the days before it. If the reader stops early, `cancel_fetch` has to make a
    waiting fetch fail soon.
    """
    queue = _BlockQueue(batches, blocks_of)
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

    def __init__(
        self, batches: Generator[DayBatch | DayError], blocks_of: Callable[[DayBatch], Iterator[Block]]
    ) -> None:
        self.cancelled = threading.Event()
        self._batches, self._blocks_of = batches, blocks_of
        self._queue: Queue[_Item] = Queue(BLOCKS_AHEAD)

    def prepare(self) -> None:
        """Queue each fetched day and its blocks, then the end or the error that ended the fetch."""
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
        """Queue the day's blocks, then their end or, in its place, the error about invalid rows."""
        try:
            for block in self._blocks_of(batch):
                self._put(block)
            self._put(None)
        except Invalid as invalid:
            self._put(invalid)

    def _put(self, item: _Item) -> None:
        """Queue the item once there is room; raises `_Cancelled` if the reader has stopped reading."""
        if self.cancelled.is_set():
            raise _Cancelled
        self._queue.put(item)

    def days(self) -> Iterator[PreparedDay | DayError]:
        """The fetched days in order; raises the error that ended the fetch."""
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
        """The next item; raises it if it is an error."""
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def make_room(self) -> None:
        """Empty the queue, so that a thread blocked on it notices the cancellation."""
        with suppress(Empty):
            while True:
                self._queue.get_nowait()
