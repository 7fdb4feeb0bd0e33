"""Fetching endpoints that have a time range and a row limit but no paging, without loss.

A full page may be truncated without notice. So every millisecond of a day is covered by a response that is proven
complete. A response shorter than the limit is complete. A full page with the *oldest* rows of its window covers the
window up to the second of its last row; that second is excluded, because the exchange may sort by whole seconds. The
window of any other full page is bisected, down to a single millisecond, which fails its day if it fills a page.
"""

import math
import queue
import threading
from collections import Counter, defaultdict
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from zoneinfo import ZoneInfo

import msgspec

from affiliate_pipeline.domain.days import DAY, day_of, day_ranges, days_from, start_ms, utc_text
from affiliate_pipeline.exchanges.fetching import DayBatch, DayError, RequestPlan, Session
from affiliate_pipeline.exchanges.spool import Spool
from affiliate_pipeline.exchanges.timed_page import Page, read_page
from affiliate_pipeline.http.errors import ExchangeError, Refused, Transient

WORKERS = 4
# A busy window is split among the workers only if it is long enough that this adds few requests.
MIN_PAGES_TO_SPLIT = 16
SECOND_MS = 1000

# The first and the last millisecond, both included.
Window = tuple[int, int]


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
        page = session.client.get(self.path, params, read_page)
        if page.times and not first <= min(page.times) <= max(page.times) <= last:
            raise Refused(
                f"{session.client.host} returned rows outside the requested {utc_text(first)} to {utc_text(last)}"
            ).about(map(bytes, page.rows))
        return page


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
        is_widened = (before, after) != (0, 0)
        # A full page is not reduced to the window: its length must still show that it is full.
        if is_widened and len(page) < self._endpoint.row_limit:
            return page.between(first, last)
        return page

    def request_and_set_widening(self, time: int) -> tuple[int, int]:
        """Prove `widening` by requests for only this instant (ms) of a received row; set and return it.

        It is the smallest one with which such a request returns a row of the instant.
        Raises `Refused` if no widening does.
        """
        for before, after in ((0, 0), (0, 1), (1, 0), (1, 1)):
            # An exchange may require the end of a window to be after its start.
            with suppress(Refused):
                page = self._endpoint.request(self._session, time - before, time + after)
                if time in page.times:
                    self.widening = before, after
                    return self.widening
        raise Refused(
            f"{self._session.client.host} no longer returns a row of {utc_text(time)} that it returned a moment ago"
        )

    def is_oldest_first(self, first: int, last: int, page: Page) -> bool:
        """Whether full pages are proven to have their window's oldest rows, in order.

        Until a page has proven or disproven that, tests `page`, a full one of the window, with the requests of
        `_request_proof`. After one page that is out of order or lacks older rows, no page is trusted.
        """
        newest = max(page.times)
        with self._lock:
            if page.times != sorted(page.times):
                self._oldest_first = False
            # Unless `newest` is in the window and after its start, one of the two requests would have an empty window.
            elif self._oldest_first is None and first < newest <= last:
                self._oldest_first = self._request_proof(first, last, newest, page)
            return bool(self._oldest_first)

    def _request_proof(self, first: int, last: int, newest: int, page: Page) -> bool | None:
        """Whether two requests show that the page has its window's oldest rows; None: they prove nothing.

        The page has them if the window's rows before the page's `newest` time (ms) fit into one page and have the same
        times as those in this page, and there are newer rows, which this page lacks: a page that is full by chance
        proves nothing.
        """
        older = self.request(first, newest - 1)
        expected_times = page.between(first, newest - 1).times
        if len(older) >= self._endpoint.row_limit or Counter(older.times) != Counter(expected_times):
            return False
        from_newest = self.request(newest, last)
        has_newer_rows = any(time > newest for time in from_newest.times)
        return True if has_newer_rows else None


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
        # Why `widening` could not be proven by a received row.
        self._proof_error: ExchangeError | None = None
        self._open_jobs = 0
        self._has_split = False
        # The next days are fetched while one lands; only a few of them wait in the queue.
        self._done: queue.Queue[DayBatch | DayError | BaseException | None] = queue.Queue(maxsize=WORKERS)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="window-walk")

    def outcomes(self) -> Generator[DayBatch | DayError]:
        """Yield each day once it is covered or has failed; at the end, stop the threads."""
        ranges = day_ranges(list(self._start), self._endpoint.max_days)
        try:
            self._submit([(self._start[days[0]], self._end[days[-1]] - 1) for days in ranges])
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
            windows = [*self._request_and_accept(first, last), *later]
            if self._server.widening is None or not windows:
                continue
            next_window, *other_windows = windows
            self._submit(*([window] for window in other_windows))
            next_window, *other_parts = self._split(next_window, first)
            self._submit(*([part] for part in other_parts))
            windows = [next_window]
        if self._server.widening is None:
            # This is the only job: no window has a row, or proving `widening` by one has failed.
            self._accept_or_fail_unproven()

    def _split(self, window: Window, page_start: int) -> list[Window]:
        """The window as the only item or, once per walk, the parts of a busy one for this job and the idle workers.

        The previous page covered the time from `page_start` to the window's start. From the length of that time, the
        number of pages left in the window is estimated.
        """
        start, last = window
        # This job is one of the open ones.
        max_jobs = WORKERS + 1 - self._open_jobs
        is_busy = 0 < MIN_PAGES_TO_SPLIT * (start - page_start) <= last - start
        if self._has_split or max_jobs <= 1 or not is_busy:
            return [window]
        self._has_split = True
        size = math.ceil((last + 1 - start) / max_jobs)
        return [(part_start, min(part_start + size - 1, last)) for part_start in range(start, last + 1, size)]

    def _request_and_accept(self, first: int, last: int) -> list[Window]:
        """Request the window and accept what the rows prove; return the windows to request next.

        If the window has failed days, nothing is requested. If the request fails, so does the day of the window; a
        window of several days is returned as one window per day instead.
        """
        days = self._days(first, last)
        if self._failed_days.intersection(days):
            other_days = set(days) - self._failed_days
            return self._by_days(day_ranges(other_days), first, last)

        page: Page | None = None
        try:
            with self._lock:
                self._requests.update(days)
            page = self._server.request(first, last)
            if self._server.widening is not None:
                return self._accept_page(first, last, page)
            return self._accept_unwidened_page(first, last, page)
        except (Refused, Transient) as error:
            if len(days) > 1:
                return self._by_days([[day] for day in days], first, last)
            self._fail(days[0], error, page)
            return []

    def _accept_unwidened_page(self, first: int, last: int, page: Page) -> list[Window]:
        """As `_accept_page`, for a page that was requested before `widening` was proven; proves it if the page has a row."""
        if not page.times:
            self._unproven.append((first, last))
            return []
        try:
            widening = self._server.request_and_set_widening(page.times[0])
        except (Refused, Transient) as error:
            self._proof_error = error
            raise
        if widening != (0, 0):
            # Request the earlier windows again, now widened to include their ends.
            return [*self._unproven, (first, last)]
        self._accept_unproven()
        return self._accept_page(first, last, page)

    def _accept_page(self, first: int, last: int, page: Page) -> list[Window]:
        """Accept the part of the window that the page is proven to cover; return the rest.

        A page that proves nothing results in both halves of the window. Raises `Refused` if a millisecond fills a page.
        """
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
            end = min(_second_of(page.times[-1]) - 1, last)
            if end >= first:
                self._accept(first, end, page.between(first, end))
                return [(end + 1, last)] if end < last else []
            # The second of `first` fills the page by itself: separate it from the rest of the window, or bisect it.
            end_of_second = _second_of(first) + SECOND_MS - 1
            middle = min(middle, end_of_second)
        return [(first, middle), (middle + 1, last)]

    def _by_days(self, groups: Sequence[Sequence[date]], first: int, last: int) -> list[Window]:
        """The parts of the window that are in these groups of consecutive days."""
        return [(max(first, self._start[days[0]]), min(last, self._end[days[-1]] - 1)) for days in groups]

    def _days(self, first: int, last: int) -> list[date]:
        return days_from(day_of(first, self._zone), day_of(last, self._zone))

    def _accept_or_fail_unproven(self) -> None:
        """Accept the windows without a row as empty or, if there is a row but no proof by it, fail their days."""
        if self._proof_error is None:
            self._accept_unproven()
            return
        what = f"the response had no rows, but it is not proven that it covers the whole day: {self._proof_error}"
        for first, last in self._unproven:
            for day in self._days(first, last):
                self._fail(day, Transient(what), page=None)

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
            covered_from, covered_until = max(first, self._start[day]), min(last + 1, self._end[day])
            with self._lock:
                if day in self._failed_days:
                    continue
                if rows:
                    self._chunks[day].append(b",".join(rows))
                    self._rows[day] += len(rows)
                self._uncovered_ms[day] -= covered_until - covered_from
                is_covered = self._uncovered_ms[day] == 0
            if is_covered:
                self._put(DayBatch(day, self._chunks.pop(day, ()), self._rows[day], self._requests[day]))

    def _fail(self, day: date, error: ExchangeError, page: Page | None) -> None:
        """Queue the day as failed, unless it has failed before.

        `page` is the window's page, if it was received before a later request failed, or was itself refused. Its rows
        are stored with those of the error, which may be the same rows.
        """
        page_rows = list(map(bytes, page.rows)) if page else []
        only_in_error = Counter(error.received) - Counter(page_rows)
        error.about([*page_rows, *only_in_error.elements()])
        with self._lock:
            if day in self._failed_days:
                return
            self._failed_days.add(day)
            chunks = self._chunks.pop(day, ())
        self._put(DayError(day, error, chunks))


def _second_of(ms: int) -> int:
    """The first millisecond of the second."""
    return ms // SECOND_MS * SECOND_MS
