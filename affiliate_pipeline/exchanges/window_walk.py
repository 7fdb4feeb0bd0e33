"""Fetching endpoints that take a time range and a row limit but do not page, without losing a record.

A full page may be cut off silently. So every day is covered, millisecond by millisecond, by answers that are proven
complete: an answer shorter than the limit is; of a full page that holds the *oldest* rows of its window, everything
before its last millisecond is. That the oldest come first, and that both ends of a window belong to it, nobody
promises: both are tried out once per walk, on data received. Who sorts by the second may have cut off any rows of a
page's last one: a full page out of order is not trusted, and the last second only once a whole one came in order.
"""

import queue
import threading
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date
from operator import itemgetter
from zoneinfo import ZoneInfo

import msgspec

from affiliate_pipeline.domain.days import DAY, day_of, days_from, instant, runs, spans, start_ms
from affiliate_pipeline.exchanges.spec import DayError, DayRows, Plan, Session
from affiliate_pipeline.exchanges.spool import Spool
from affiliate_pipeline.http.bodies import may_hold_rows
from affiliate_pipeline.http.error_body import quote
from affiliate_pipeline.http.errors import ExchangeError, Fatal, Refused
from affiliate_pipeline.schema.columns import LEAST_MS
from affiliate_pipeline.schema.decode import instants_ms

WORKERS = 4
# A busy window is halved for an idle worker only if that costs few requests beside what is left of it.
PAGES_WORTH_HALVING = 16
MOST_HALVINGS = 12
# Both ends should belong to a window asked for; if they do not, it is widened by a millisecond (before, after).
_WIDENINGS = ((0, 0), (0, 1), (1, 0), (1, 1))
# So many instants of one second do not stand in order by chance.
INSTANTS_IN_ORDER = 8

_split = msgspec.json.Decoder(list[msgspec.Raw])


class _Timed(msgspec.Struct, gc=False):
    time: int


_times = msgspec.json.Decoder(list[_Timed])


@dataclass(frozen=True)
class Page:
    """An answer: the rows' instants (ms) and their JSON texts, in the order received."""

    times: list[int]
    rows: list[msgspec.Raw]

    def __len__(self) -> int:
        return len(self.times)

    def between(self, first: int, last: int) -> "Page":
        times, rows = self.times, self.rows
        if times != sorted(times):
            ordered = sorted(zip(times, rows, strict=True), key=itemgetter(0))
            times, rows = [time for time, _ in ordered], [row for _, row in ordered]
        kept = slice(bisect_left(times, first), bisect_right(times, last))
        return Page(times[kept], rows[kept])


@dataclass(frozen=True)
class TimeWalk:
    """Asks `path` with `startTime`, `endTime` and `limit`, in windows of `longest_days` at most."""

    path: str
    limit: int
    longest_days: int

    def fetch(self, session: Session, days: Sequence[date], zone: ZoneInfo) -> Iterator[DayRows | DayError]:
        widening = None
        while True:
            walk = _Walk(self, session, days, zone, widening)
            yield from walk.outcomes()
            if walk.widening in (widening, _WIDENINGS[0], None):
                return
            # The first windows were asked without knowing this; nothing of them was yielded. Once more, wider.
            widening = walk.widening

    def oldest_before(self, session: Session, day: date, zone: ZoneInfo) -> int | None:
        page = self.ask(session, start_ms(day - self.longest_days * DAY, zone), start_ms(day, zone) - 1)
        return min(page.times, default=None)

    def requests(self, rows: int) -> int:
        """About how many requests a day with so many rows takes."""
        return rows // self.limit + 1

    def plan(self, session: Session, days: Sequence[date], zone: ZoneInfo) -> Plan:
        return Plan(least=len(spans(days, self.longest_days)), most=None, seconds=0)

    def ask(self, session: Session, first: int, last: int) -> Page:
        """The rows of the closed window of milliseconds, `limit` of them at most."""
        params = {"startTime": first, "endTime": last, "limit": self.limit}
        page = session.client.get(self.path, params, _page)
        if page.times and not first <= min(page.times) <= max(page.times) <= last:
            raise Refused(
                f"{session.client.host} was asked for {instant(first)} to {instant(last)} and answered rows outside"
            ).about(map(bytes, page.rows))
        return page


def _page(body: bytes) -> Page:
    try:
        rows = _split.decode(body)
    except msgspec.ValidationError as error:
        kept = [body] if may_hold_rows(body) else []
        raise Refused(f"the response is not a list of rows ({error}). It was: {quote(body)}").about(kept) from None
    try:
        times = [row.time for row in _times.decode(body)]
    except msgspec.ValidationError:
        times = []
    if rows and min(times, default=0) < LEAST_MS:
        # The times have an unusual form: text, or seconds.
        try:
            times = instants_ms(map(bytes, rows), "time")
        except (ValueError, msgspec.DecodeError) as error:
            raise Refused(f"a row's `time` is missing or not in milliseconds ({error})").about(
                map(bytes, rows)
            ) from None
    return Page(times, rows)


class _Walk:
    """One walk over some days: windows side by side, each day's rows gathered until its last millisecond is covered."""

    def __init__(
        self,
        endpoint: TimeWalk,
        session: Session,
        days: Sequence[date],
        zone: ZoneInfo,
        widening: tuple[int, int] | None,
    ):
        self._endpoint, self._session, self._zone = endpoint, session, zone
        self._start = {day: start_ms(day, zone) for day in days}
        self._end = {day: start_ms(day + DAY, zone) for day in days}
        self._left = {day: self._end[day] - self._start[day] for day in days}
        self._chunks: dict[date, Spool] = defaultdict(Spool)
        self._rows: Counter[date] = Counter()
        self._requests: Counter[date] = Counter()
        self._bad: set[date] = set()
        self.widening = widening
        self._oldest_first: bool | None = None
        self._orders_milliseconds = False
        self._halvings = 0
        self._open = 0
        # Landing one day while the next ones arrive, and no more of them than a few in memory.
        self._done: queue.Queue[DayRows | DayError | BaseException | None] = queue.Queue(maxsize=WORKERS)
        self._lock = threading.Lock()
        self._proving = threading.Lock()
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="time-walk")

    def outcomes(self) -> Iterator[DayRows | DayError]:
        # Until the ends are proven nothing is yielded, so that the walk can be begun again.
        held: list[DayRows | DayError] | None = None if self.widening else []
        try:
            self._submit(
                *(
                    (self._start[span[0]], self._end[span[-1]] - 1)
                    for span in spans(list(self._left), self._endpoint.longest_days)
                )
            )
            while (item := self._done.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                if held is None:
                    yield self._with_following(item)
                    continue
                held.append(item)
                if self.widening == _WIDENINGS[0]:
                    yield from held
                    held = None
            if held and self.widening in (None, _WIDENINGS[0]):
                yield from held
        finally:
            self._stop.set()
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _with_following(self, item: DayRows | DayError) -> DayRows | DayError:
        if isinstance(item, DayError):
            return item
        with self._done.mutex:
            return replace(item, following=next((each for each in self._done.queue if isinstance(each, DayRows)), None))

    def _submit(self, *windows: tuple[int, int]) -> None:
        # All are counted before the first one may end: the walk ends with the last open window.
        with self._lock:
            self._open += len(windows)
        for first, last in windows:
            self._pool.submit(self._work, first, last)

    def _work(self, first: int, last: int) -> None:
        try:
            self._walk(first, last)
        except BaseException as error:
            self._put(error)
        with self._lock:
            self._open -= 1
            finished = self._open == 0
        if finished:
            self._put(None)

    def _put(self, item: DayRows | DayError | BaseException | None) -> None:
        while not self._stop.is_set():
            try:
                return self._done.put(item, timeout=0.1)
            except queue.Full:
                continue

    def _walk(self, first: int, last: int) -> None:
        """Covers the closed window, or fails the days of it that cannot be covered."""
        while first <= last and not self._stop.is_set():
            days = self._days(first, last)
            if self._bad.intersection(days):
                self._submit_apart(runs(set(days) - self._bad), first, last)
                return
            page: Page | None = None
            try:
                page = self._ask(first, last)
                if page is None:
                    return
                if len(page) < self._endpoint.limit:
                    self._accept(first, last, page)
                    return
                if first == last:
                    self._fail(days[0], self._overfull(first, page))
                    return
                newest = max(page.times)
                if self._is_oldest_first(first, last, page):
                    if newest == first:
                        bad = day_of(first, self._zone)
                        self._fail(bad, self._overfull(first, page.between(first, self._end[bad] - 1)))
                        first = self._end[bad]
                        continue
                    start = self._proven_end(first, page)
                    if start <= first:
                        last = self._halve(first, last)
                        continue
                    self._accept(first, start - 1, page.between(first, start - 1))
                    pages_left = (last - start) / (start - first)
                    first = start
                    if self._may_halve(pages_left):
                        last = self._halve(first, last)
                else:
                    last = self._halve(first, last)
            except Fatal:
                raise
            except ExchangeError as error:
                if len(days) == 1:
                    # The failed request may be the one that was to prove the page: keep the page that was received.
                    held = list(map(bytes, page.rows)) if page else []
                    more = Counter(error.received) - Counter(held)
                    self._fail(days[0], error.about([*held, *more.elements()]))
                else:
                    self._submit_apart([[day] for day in days], first, last)
                return

    def _ask(self, first: int, last: int) -> Page | None:
        """The window's rows; None when the walk has to begin again."""
        before, after = self.widening or _WIDENINGS[0]
        with self._lock:
            self._requests.update(self._days(first, last))
        page = self._endpoint.ask(self._session, first - before, last + after)
        if self.widening is None and page.times:
            with self._proving:
                if self.widening is None:
                    self.widening = self._prove_ends(page.times[0])
        if (before, after) != (self.widening or _WIDENINGS[0]):
            self._put(None)
            self._stop.set()
            return None
        return (
            page if (before, after) == _WIDENINGS[0] or len(page) >= self._endpoint.limit else page.between(first, last)
        )

    def _prove_ends(self, time: int) -> tuple[int, int]:
        """How much a window has to be widened for both its ends to belong to it."""
        for before, after in _WIDENINGS:
            # Some may want the end of a window to come after its start.
            with suppress(Refused):
                if time in self._endpoint.ask(self._session, time - before, time + after).times:
                    return before, after
        raise Refused(f"{self._session.client.host} does not return a row of {instant(time)} that it has just returned")

    def _is_oldest_first(self, first: int, last: int, page: Page) -> bool:
        """Whether full pages are known to hold the oldest rows of their window.

        They do if what lies before this page's last millisecond fits into a page and is what this page has, while
        newer rows, which this page has not, are there. A page that is full by chance proves nothing. One page out of order
        is enough for none to be trusted any more.
        """
        newest = max(page.times)
        with self._proving:
            if page.times != sorted(page.times):
                self._oldest_first = False
            if self._oldest_first is None and newest > first:
                older = self._endpoint.ask(self._session, first, newest - 1)
                expected = Counter(page.between(first, newest - 1).times)
                if len(older) >= self._endpoint.limit or Counter(older.times) != expected:
                    self._oldest_first = False
                elif max(self._endpoint.ask(self._session, newest, last).times, default=newest) > newest:
                    self._oldest_first = True
            return bool(self._oldest_first)

    def _proven_end(self, first: int, page: Page) -> int:
        """The millisecond before which this page of the oldest rows has everything; `first` if nothing is certain.

        Of its last millisecond there may be more; of its last second as well, until a whole second has shown that rows
        within one come in order.
        """
        newest = page.times[-1]
        second = newest // 1000 * 1000
        if not self._orders_milliseconds:
            instants = Counter(time // 1000 for time in set(page.times) if time < second)
            self._orders_milliseconds = max(instants.values(), default=0) >= INSTANTS_IN_ORDER
        return newest if self._orders_milliseconds else max(first, second)

    def _may_halve(self, pages_left: float) -> bool:
        with self._lock:
            if self._open >= WORKERS or self._halvings >= MOST_HALVINGS or pages_left < PAGES_WORTH_HALVING:
                return False
            self._halvings += 1
            return True

    def _halve(self, first: int, last: int) -> int:
        """Hands the later half to another worker; what remains ends where this says."""
        middle = (first + last) // 2
        self._submit((middle + 1, last))
        return middle

    def _submit_apart(self, groups: Sequence[Sequence[date]], first: int, last: int) -> None:
        self._submit(
            *((max(first, self._start[days[0]]), min(last, self._end[days[-1]] - 1)) for days in groups if days)
        )

    def _days(self, first: int, last: int) -> list[date]:
        return days_from(day_of(first, self._zone), day_of(last, self._zone))

    def _accept(self, first: int, last: int, page: Page) -> None:
        """The closed window is covered by these rows."""
        days = self._days(first, last)
        by_day: dict[date, list[msgspec.Raw]] = defaultdict(list)
        if len(days) == 1:
            by_day[days[0]] = page.rows
        else:
            for time, row in zip(page.times, page.rows, strict=True):
                by_day[day_of(time, self._zone)].append(row)
        for day in days:
            rows = by_day[day]
            with self._lock:
                if day in self._bad:
                    continue
                if rows:
                    self._chunks[day].append(b",".join(rows))
                    self._rows[day] += len(rows)
                self._left[day] -= min(last + 1, self._end[day]) - max(first, self._start[day])
                covered = self._left[day] == 0
            if covered:
                self._put(DayRows(day, self._chunks.pop(day, ()), self._rows[day], self._requests[day]))

    def _fail(self, day: date, error: ExchangeError) -> None:
        with self._lock:
            if day in self._bad:
                return
            self._bad.add(day)
            chunks = self._chunks.pop(day, ())
        self._put(DayError(day, error, chunks))

    def _overfull(self, time: int, page: Page) -> Refused:
        return Refused(
            f"{instant(time)} ({time}) holds {self._endpoint.limit} rows or more in a single millisecond: the exchange "
            "returns no more than that, so the rest cannot be asked for. Ask its support for the rows of this millisecond"
        ).about(map(bytes, page.rows))
