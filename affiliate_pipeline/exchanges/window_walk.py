"""Fetching endpoints that have a time range and a row limit but no paging, without loss.

A full page may be truncated without notice. So every millisecond of a day is covered by a response that is proven
complete. A response shorter than the limit is complete. A full page with the *oldest* rows of its window covers the
window up to the second of its last row; that second is excluded, because the exchange may sort by whole seconds. The
window of any other full page is bisected, down to a single millisecond, which fails its day if it fills a page.
"""

import queue
import threading
from collections import Counter, defaultdict
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from itertools import compress
from zoneinfo import ZoneInfo

import msgspec

from affiliate_pipeline.domain.days import DAY, day_of, day_ranges, days_from, start_ms, utc_text
from affiliate_pipeline.exchanges.fetching import DayBatch, DayError, RequestPlan, Session
from affiliate_pipeline.exchanges.spool import Spool
from affiliate_pipeline.http.bodies import possible_rows
from affiliate_pipeline.http.error_body import quote
from affiliate_pipeline.http.errors import ExchangeError, Refused, Transient
from affiliate_pipeline.schema.columns import MIN_MILLISECONDS
from affiliate_pipeline.schema.raw_row import instants_ms

WORKERS = 4
# A busy window is split among the workers only if it is long enough that this adds few requests.
MIN_PAGES_TO_SPLIT = 16
SECOND_MS = 1000

# The first and the last millisecond, both included.
Window = tuple[int, int]


class _Timed(msgspec.Struct, gc=False):
    time: int


@dataclass(frozen=True)
class Page:
    """A response: the rows' instants (ms) and their JSON texts, in the order received."""

    times: list[int]
    rows: list[msgspec.Raw]

    def __len__(self) -> int:
        return len(self.times)

    def between(self, first: int, last: int) -> "Page":
        """The rows from `first` to `last` (ms), both included."""
        is_between = [first <= time <= last for time in self.times]
        return Page(list(compress(self.times, is_between)), list(compress(self.rows, is_between)))


@dataclass(frozen=True)
class WindowWalk:
    """Fetches `path` by `startTime`, `endTime` and `limit`, in windows of up to `max_days`."""

    path: str
    row_limit: int
    max_days: int

    def plan(self, session: Session, days: Sequence[date], zone: ZoneInfo) -> RequestPlan:
        """At least one request per `max_days` consecutive days."""
        return RequestPlan(min_requests=len(day_ranges(days, self.max_days)), max_requests=None, seconds=0)

    def fetch(self, session: Session, days: Sequence[date], zone: ZoneInfo) -> Generator[DayBatch | DayError]:
        """Yield each day once it is covered by complete responses."""
        return _Walk(self, session, days, zone).outcomes()

    def oldest_before(self, session: Session, day: date, zone: ZoneInfo) -> int | None:
        """The time (ms) of a row from the `max_days` before the day, which proves that the source retains the day."""
        page = self.request(session, start_ms(day - self.max_days * DAY, zone), start_ms(day, zone) - 1)
        return min(page.times, default=None)

    def request(self, session: Session, first: int, last: int) -> Page:
        """The rows of the window, at most `row_limit` of them; raises `Refused` if one is outside it."""
        params = {"startTime": first, "endTime": last, "limit": self.row_limit}
        page = session.client.get(self.path, params, _page)
        if page.times and not first <= min(page.times) <= max(page.times) <= last:
            raise Refused(
                f"{session.client.host} returned rows outside the requested {utc_text(first)} to {utc_text(last)}"
            ).about(map(bytes, page.rows))
        return page


def _page(body: bytes) -> Page:
    try:
        rows = msgspec.json.decode(body, type=list[msgspec.Raw])
    except msgspec.ValidationError as error:
        what = f"the response is not a list of rows ({error}). It was: {quote(body)}"
        raise Refused(what).about(possible_rows(body)) from None
    try:
        times = [row.time for row in msgspec.json.decode(body, type=list[_Timed])]
    except msgspec.ValidationError:
        times = []
    if rows and min(times, default=0) < MIN_MILLISECONDS:
        # Times in an unusual form, which `instants_ms` converts: texts, for which `times` is empty, or seconds.
        try:
            times = instants_ms(map(bytes, rows), "time")
        except (ValueError, msgspec.DecodeError) as error:
            text = f"a row's `time` is missing or not in milliseconds ({error})"
            raise Refused(text).about(map(bytes, rows)) from None
    return Page(times, rows)


class ServerBehaviour:
    """How the exchange treats window ends and full pages: undocumented, so proven by rows.

    `widening`: how many milliseconds to extend a window before its start and after its end, so that both are included;
    None until a row has proven it.
    """

    def __init__(self, endpoint: WindowWalk, session: Session) -> None:
        self._endpoint, self._session = endpoint, session
        self.widening: tuple[int, int] | None = None
        # None until a full page has proven or disproven it.
        self._oldest_first: bool | None = None
        self._lock = threading.Lock()

    def request(self, first: int, last: int) -> Page:
        """The window's rows; a full page may also have rows of the adjacent milliseconds."""
        before, after = self.widening or (0, 0)
        page = self._endpoint.request(self._session, first - before, last + after)
        # A full page is not reduced to the window: its length must still show that it is full.
        is_full = len(page) >= self._endpoint.row_limit
        return page if is_full or not (before or after) else page.between(first, last)

    def find_widening(self, time: int) -> tuple[int, int]:
        """Set and return `widening`, proven by requests for only this instant (ms).

        It is the smallest one with which such a request returns a row of the instant.
        Raises `Refused` if no widening does.
        """
        for before, after in ((0, 0), (0, 1), (1, 0), (1, 1)):
            # An exchange may require the end of a window to be after its start.
            with suppress(Refused):
                if time in self._endpoint.request(self._session, time - before, time + after).times:
                    self.widening = before, after
                    return self.widening
        raise Refused(
            f"{self._session.client.host} no longer returns a row of {utc_text(time)} that it returned a moment ago"
        )

    def is_oldest_first(self, first: int, last: int, page: Page) -> bool:
        """Whether full pages, such as this one of this window, are proven to have their window's oldest rows, in order.

        Proof takes two requests: the rows before this page's last millisecond fit into one page and have the same times
        as this page's, and there are newer rows, which this page lacks (a page that is full by chance proves nothing).
        After one page that is out of order or lacks older rows, no page is trusted.
        """
        newest = max(page.times)
        with self._lock:
            if page.times != sorted(page.times):
                self._oldest_first = False
            # Unless `newest` is in the window and after its start, one of the two requests would have an empty window.
            elif self._oldest_first is None and first < newest <= last:
                older = self.request(first, newest - 1)
                expected = Counter(page.between(first, newest - 1).times)
                if len(older) >= self._endpoint.row_limit or Counter(older.times) != expected:
                    self._oldest_first = False
                elif max(self.request(newest, last).times, default=newest) > newest:
                    self._oldest_first = True
            return bool(self._oldest_first)


class _Walk:
    """One walk over some days in parallel windows; rows are spooled until their day is covered."""

    def __init__(self, endpoint: WindowWalk, session: Session, days: Sequence[date], zone: ZoneInfo) -> None:
        self._endpoint, self._zone = endpoint, zone
        self._server = ServerBehaviour(endpoint, session)
        self._start = {day: start_ms(day, zone) for day in days}
        self._end = {day: start_ms(day + DAY, zone) for day in days}
        self._uncovered_ms = {day: self._end[day] - self._start[day] for day in days}
        self._chunks: dict[date, Spool] = defaultdict(Spool)
        self._rows: Counter[date] = Counter()
        self._requests: Counter[date] = Counter()
        self._failed_days: set[date] = set()
        # Windows without a row that were requested before `widening` was proven.
        self._unproven: list[Window] = []
        self._open_jobs = 0
        self._has_split = False
        # The next days are fetched while one lands; only a few of them wait in the queue.
        self._done: queue.Queue[DayBatch | DayError | BaseException | None] = queue.Queue(maxsize=WORKERS)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="window-walk")

    def outcomes(self) -> Generator[DayBatch | DayError]:
        spans = day_ranges(list(self._start), self._endpoint.max_days)
        try:
            self._submit([(self._start[span[0]], self._end[span[-1]] - 1) for span in spans])
            while (item := self._done.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            self._stop.set()
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, *jobs: list[Window]) -> None:
        # All are counted before the first one can end: the walk ends with the last open job.
        with self._lock:
            self._open_jobs += len(jobs)
        for windows in jobs:
            self._pool.submit(self._run, windows)

    def _run(self, windows: list[Window]) -> None:
        try:
            self._walk(windows)
        except BaseException as error:
            self._put(error)
        with self._lock:
            self._open_jobs -= 1
            is_last = self._open_jobs == 0
        if is_last:
            self._put(None)

    def _put(self, item: DayBatch | DayError | BaseException | None) -> None:
        while not self._stop.is_set():
            with suppress(queue.Full):
                self._done.put(item, timeout=0.1)
                return

    def _walk(self, windows: list[Window]) -> None:
        """Cover the windows in order; once `widening` is proven, submit all but the first as new jobs."""
        while windows and not self._stop.is_set():
            (first, last), *later = windows
            windows = [*self._step(first, last), *later]
            if self._server.widening is None:
                continue
            self._submit(*([window] for window in windows[1:]))
            windows, *parts = self._split(first, windows[:1])
            self._submit(*parts)
        if self._server.widening is None:
            # This is the only job, and no window has a row: accept all as empty.
            self._accept_unproven()

    def _split(self, first: int, next_window: list[Window]) -> list[list[Window]]:
        """The jobs for the next window (a list of one or none), the first of them for this worker.

        It is one job; only once per walk, a busy window is split among this and the idle workers. The page before
        covered `first` to the window's start, which shows how many pages are left.
        """
        # This job is one of the open ones.
        max_jobs = WORKERS + 1 - self._open_jobs
        for start, last in next_window:
            if max_jobs > 1 and not self._has_split and 0 < MIN_PAGES_TO_SPLIT * (start - first) <= last - start:
                self._has_split = True
                size = -(-(last + 1 - start) // max_jobs)
                return [[(begin, min(begin + size - 1, last))] for begin in range(start, last + 1, size)]
        return [next_window]

    def _step(self, first: int, last: int) -> list[Window]:
        """Request the window once and accept what that proves, or fail its day; return the windows to request next."""
        days = self._days(first, last)
        if self._failed_days.intersection(days):
            return self._by_days(day_ranges(set(days) - self._failed_days), first, last)
        page: Page | None = None
        try:
            with self._lock:
                self._requests.update(days)
            page = self._server.request(first, last)
            if self._server.widening is None:
                if not page.times:
                    self._unproven.append((first, last))
                    return []
                if self._server.find_widening(page.times[0]) != (0, 0):
                    # Request the earlier windows again, now widened to include their ends.
                    return [*self._unproven, (first, last)]
                self._accept_unproven()
            return self._accept_page(first, last, page)
        except (Refused, Transient) as error:
            if len(days) > 1:
                return self._by_days([[day] for day in days], first, last)
            # The failed request may have been part of the proof for a received page: store that page too.
            received = list(map(bytes, page.rows)) if page else []
            others = Counter(error.received) - Counter(received)
            self._fail(days[0], error.about([*received, *others.elements()]))
            return []

    def _accept_page(self, first: int, last: int, page: Page) -> list[Window]:
        """Accept the part of the window that the page is proven to cover; return the rest."""
        if len(page) < self._endpoint.row_limit:
            self._accept(first, last, page)
            return []
        if first == last:
            raise Refused(
                f"{utc_text(first)} ({first}) has {self._endpoint.row_limit} rows or more in a single millisecond: the "
                "exchange returns no more than that, so the rest cannot be requested. Contact its support for the rows of this "
                "millisecond"
            ).about(map(bytes, page.rows))
        middle = (first + last) // 2
        if self._server.is_oldest_first(first, last, page):
            end = min(page.times[-1] // SECOND_MS * SECOND_MS - 1, last)
            if end >= first:
                self._accept(first, end, page.between(first, end))
                return [(end + 1, last)] if end < last else []
            # One second fills the page by itself: bisect it apart from the rest.
            middle = min(middle, first // SECOND_MS * SECOND_MS + SECOND_MS - 1)
        return [(first, middle), (middle + 1, last)]

    def _by_days(self, groups: Sequence[Sequence[date]], first: int, last: int) -> list[Window]:
        """The parts of the window that are in these groups of consecutive days."""
        return [(max(first, self._start[days[0]]), min(last, self._end[days[-1]] - 1)) for days in groups]

    def _days(self, first: int, last: int) -> list[date]:
        return days_from(day_of(first, self._zone), day_of(last, self._zone))

    def _accept_unproven(self) -> None:
        for first, last in self._unproven:
            self._accept(first, last, Page([], []))

    def _accept(self, first: int, last: int, page: Page) -> None:
        """Count the window as covered by these rows; queue the days that it completes."""
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
                if day in self._failed_days:
                    continue
                if rows:
                    self._chunks[day].append(b",".join(rows))
                    self._rows[day] += len(rows)
                self._uncovered_ms[day] -= min(last + 1, self._end[day]) - max(first, self._start[day])
                is_covered = self._uncovered_ms[day] == 0
            if is_covered:
                self._put(DayBatch(day, self._chunks.pop(day, ()), self._rows[day], self._requests[day]))

    def _fail(self, day: date, error: ExchangeError) -> None:
        with self._lock:
            if day in self._failed_days:
                return
            self._failed_days.add(day)
            chunks = self._chunks.pop(day, ())
        self._put(DayError(day, error, chunks))
