"""Fetching LBank's endpoints in few requests, since it permits only five per ten seconds.

A fan-out sends the same query for each of many openIds, in one or more variants, for a range of days, and splits the
rows by day. A range is at most a calendar month: so responses stay small, and a repeated run sends the same requests,
whose responses may be cached.
"""

import logging
import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import date
from itertools import groupby
from zoneinfo import ZoneInfo

from affiliate_pipeline.domain.days import DAY, day_of, day_ranges, format_days, start_ms
from affiliate_pipeline.domain.wording import count_of, duration
from affiliate_pipeline.exchanges.fetching import DayBatch, DayError, RequestPlan
from affiliate_pipeline.exchanges.lbank.exchange import REQUESTS_PER_WINDOW, LBankSession
from affiliate_pipeline.exchanges.lbank.pagination import Paging, read_values
from affiliate_pipeline.exchanges.lbank.response_cache import ResponseCache
from affiliate_pipeline.exchanges.lbank.responses import OPEN_ID_CODES
from affiliate_pipeline.exchanges.lists import get_list, read_list, unlisted_note
from affiliate_pipeline.http.encoding import encode
from affiliate_pipeline.http.errors import AccessRefused, Fatal, Refused, Transient
from affiliate_pipeline.schema.raw_row import instants_ms, joined, with_fields

# Enough to use all slots of a window while each response takes a second.
WORKERS = 8
MAX_EXCLUDED_SHARE = 0.05
LOG_EVERY_S = 10
# For today, which has not ended, a roster of this age is recent enough.
RECENT_ROSTER_MS = 10 * 60_000

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Query:
    """A query's parameters, the fields to add to its rows, and the rows' openId (None: any)."""

    params: Mapping[str, object]
    fields: Mapping[str, object] = field(default_factory=dict[str, object])
    open_id: str | None = None

    @property
    def shared_values(self) -> Mapping[str, object]:
        """The values that all its rows have, by JSON name."""
        return {**self.fields, "openId": self.open_id} if self.open_id else self.fields


@dataclass(frozen=True)
class FanOut:
    """Sends `queries` to `path` for ranges of days.

    `queries` takes the session and an instant (ms): the roster must not be older than that. `time_field` is the JSON
    name of the time that determines a row's day; without one, a response is a sum over its range, so each day is
    requested by itself. `timeless` queries take no range: they return the current state.
    """

    path: str
    queries: Callable[[LBankSession, int], Sequence[Query]]
    paging: Paging | None = None
    time_field: str | None = None
    timeless: bool = False
    # Adds the query's fields to a row; raises ValueError if the row has other values.
    add_fields: Callable[[bytes, Mapping[str, object]], bytes] = with_fields

    def plan(self, session: LBankSession, days: Sequence[date], zone: ZoneInfo) -> RequestPlan:
        """One request per query and range, and an unknown number for further pages."""
        range_count = sum(len(self.ranges(month)) for month in _months(days))
        requests = range_count * len(self._queries_of(session, days, zone))
        return request_plan(session, requests, None if self.paging else requests)

    def fetch(self, session: LBankSession, days: Sequence[date], zone: ZoneInfo) -> Generator[DayBatch | DayError]:
        """Yield each day once its queries are completed; raises `Fatal` if LBank refuses access."""
        queries = self._queries_of(session, days, zone)
        for month in _months(days):
            # Open the cache before the threads start: otherwise each could open one of its own.
            yield from MonthFetch(self, session, session.response_cache(), queries, month, zone).outcomes()

    def ranges(self, days: Iterable[date]) -> list[list[date]]:
        """The ranges in which the days are requested."""
        return day_ranges(days) if self.time_field else [[day] for day in days]

    def _queries_of(self, session: LBankSession, days: Sequence[date], zone: ZoneInfo) -> Sequence[Query]:
        # The roster has to include the users of the whole last day.
        end_ms, now_ms = start_ms(max(days) + DAY, zone), session.now_ms()
        return self.queries(session, end_ms if end_ms <= now_ms else now_ms - RECENT_ROSTER_MS)


def request_plan(session: LBankSession, min_requests: int, max_requests: int | None) -> RequestPlan:
    """The plan for this many requests of one path, and how long the minimum takes."""
    # The requests of the first window are sent at once.
    later = max(0, math.ceil(min_requests / REQUESTS_PER_WINDOW) - 1) * REQUESTS_PER_WINDOW
    return RequestPlan(min_requests, max_requests, later / session.slots_per_s)


def _months(days: Sequence[date]) -> list[list[date]]:
    return [list(month) for _, month in groupby(sorted(days), key=lambda day: (day.year, day.month))]


@dataclass(frozen=True)
class _Task:
    """A query for some consecutive days. `isolated`: a single day of a failed range."""

    query: Query
    days: tuple[date, ...]
    isolated: bool = False


@dataclass
class _Pages:
    """A query's rows by day, when (ms) its oldest page was requested, and whether the response had no list."""

    requested_ms: int
    is_unlisted: bool = False
    by_day: Mapping[date, list[bytes]] = field(default_factory=dict[date, list[bytes]])


@dataclass
class _Day:
    """A day's rows from the queries that are complete, and the number of open queries."""

    open_queries: int
    rows: list[bytes] = field(default_factory=list[bytes])
    requested_ms: int | None = None
    requests: int = 0
    unlisted: list[Mapping[str, object]] = field(default_factory=list[Mapping[str, object]])


@dataclass
class MonthFetch:
    """The queries for some days of a month; a day is yielded once its queries are completed."""

    fan_out: FanOut
    session: LBankSession
    response_cache: ResponseCache
    queries: Sequence[Query]
    days: Sequence[date]
    zone: ZoneInfo
    _excluded: set[str] = field(default_factory=set[str])
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._open = {day: _Day(len(self.queries)) for day in self.days}

    def outcomes(self) -> Generator[DayBatch | DayError]:
        """Each day once its queries have completed or failed; raises `Fatal` if none can succeed."""
        waiting = deque(_Task(query, tuple(days)) for days in self.fan_out.ranges(self._open) for query in self.queries)
        # Without queries, all days are complete.
        yield from self._completed_days(list(self._open))
        with ThreadPoolExecutor(WORKERS, thread_name_prefix="fan-out") as pool:
            running: dict[Future[_Pages], _Task] = {}
            # Send the first query by itself: it shows whether we have access. Where possible, it is for our own openId.
            max_running = 1
            logged_at = time.monotonic()
            try:
                while waiting or running:
                    while waiting and len(running) < max_running:
                        # While the days of a failed range are fetched one by one, request no other range: the day
                        # that failed this range would fail the other one too.
                        if not waiting[0].isolated and any(task.isolated for task in running.values()):
                            break
                        task = waiting.popleft()
                        open_days = tuple(day for day in task.days if day in self._open)
                        if open_days == task.days:
                            running[pool.submit(self.fetch, task)] = task
                        else:
                            # A day has failed in another task: request only the others.
                            waiting.extendleft(
                                _Task(task.query, tuple(span), task.isolated) for span in day_ranges(open_days)
                            )
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        yield from self._handle_result(running.pop(future), future, waiting)
                    max_running = WORKERS
                    if time.monotonic() - logged_at >= LOG_EVERY_S:
                        logged_at = time.monotonic()
                        left = len(waiting) + len(running)
                        requests_left, time_left = count_of(left, "request"), duration(left / self.session.slots_per_s)
                        log.info("%s: at least %s left, about %s", format_days(self.days), requests_left, time_left)
            finally:
                self.stop.set()
                pool.shutdown(wait=True, cancel_futures=True)

    def _handle_result(
        self, task: _Task, future: Future[_Pages], waiting: deque[_Task]
    ) -> Iterator[DayBatch | DayError]:
        """Yield the days that the task completes or fails.

        A failed range is queued again day by day; a refused openId is excluded, unless it is our own.
        """
        pages: _Pages | None = None
        try:
            pages = future.result()
        except AccessRefused as error:
            open_id = task.query.open_id
            if error.code not in OPEN_ID_CODES or open_id is None or open_id == self.session.open_id:
                raise
            self._exclude(open_id, error)
        except (Refused, Transient) as error:
            first, *others = task.days
            if others:
                waiting.extendleft(_Task(task.query, (day,), isolated=True) for day in reversed(task.days))
            elif failed := self._open.pop(first, None):
                yield DayError(first, error, failed.rows)
            return
        for day in task.days:
            if open_day := self._open.get(day):
                open_day.requests += 1
                open_day.open_queries -= 1
                if pages:
                    open_day.rows += pages.by_day.get(day, [])
                    open_day.requested_ms = min(pages.requested_ms, open_day.requested_ms or pages.requested_ms)
                    if pages.is_unlisted:
                        open_day.unlisted.append(task.query.shared_values)
        yield from self._completed_days(task.days)

    def _completed_days(self, days: Iterable[date]) -> Iterator[DayBatch]:
        """Yield those of the days that have no open query left, and remove them from the open days."""
        refused = sorted(self._excluded)
        missing = f"rows of these openIds are missing, since LBank refuses them: {', '.join(refused)}"
        for day in [day for day in days if day in self._open and not self._open[day].open_queries]:
            done = self._open.pop(day)
            yield DayBatch(
                day,
                [b",".join(done.rows)] if done.rows else [],
                len(done.rows),
                done.requests,
                done.requested_ms,
                note=unlisted_note(len(done.unlisted)),
                excluded=[{"openId": open_id} for open_id in refused],
                unlisted=done.unlisted,
                warnings=(missing,) if refused else (),
            )

    def _exclude(self, open_id: str, error: AccessRefused) -> None:
        """Exclude the openId, with a warning in the log; raises `Fatal` if LBank has refused too many."""
        if open_id in self._excluded:
            return
        self._excluded.add(open_id)
        log.warning("%s: openId %s is excluded: %s", self.fan_out.path, open_id, error)
        all_ids = {query.open_id for query in self.queries}
        if len(self._excluded) > MAX_EXCLUDED_SHARE * len(all_ids):
            raise Fatal(
                f"LBank refused {len(self._excluded)} of {len(all_ids)} openIds ({error}), too many to be problems of single users",
                "Check the permissions of the key, then materialize again",
            )

    def fetch(self, task: _Task) -> _Pages:
        """All rows of the query for the task's days. Responses are cached for a run that resumes this one."""
        fan_out, session, pages = self.fan_out, self.session, _Pages(self.session.now_ms())
        earlier_requests: set[str] = set()
        params = dict(task.query.params)
        if not fan_out.timeless:
            # It is not documented whether the end is inclusive. One millisecond more could include a day that was not
            # requested: if that day always fails, the day before would fail with it.
            params["startTime"] = start_ms(task.days[0], self.zone)
            params["endTime"] = start_ms(task.days[-1] + DAY, self.zone) - 1

        def get(page_params: Mapping[str, object]) -> list[bytes] | None:
            all_params = {**params, **page_params}
            request = f"{fan_out.path}?{encode(all_params)}"
            # A page that this fetch requests again may have changed: do not take it from the cache.
            may_use_cache = not fan_out.timeless and request not in earlier_requests
            earlier_requests.add(request)
            if may_use_cache and (cached := self.response_cache.get(request)):
                body, requested_ms = cached
                rows, is_unlisted = read_list(body)
                pages.requested_ms = min(pages.requested_ms, requested_ms)
            elif self.stop.is_set():
                raise Fatal("the fetch was cancelled")
            else:
                requested_ms = session.now_ms()
                if fan_out.time_field:
                    rows, is_unlisted = get_list(session.client, fan_out.path, all_params)
                else:
                    # A sum or a user always has a row: a response without a list is refused below.
                    rows, is_unlisted = session.client.get(fan_out.path, all_params, read_list)
                # Check before caching: unusable rows would also fail the runs that resume this one.
                self.rows_by_day(task, rows)
                # A later page without a list may fail the query: a run that resumes this one requests it again.
                if not fan_out.timeless and not (is_unlisted and page_params.get("start")):
                    self.response_cache.put(request, b"null" if is_unlisted else joined(rows), requested_ms)
            pages.is_unlisted |= is_unlisted
            return None if is_unlisted else rows

        rows = fan_out.paging(get) if fan_out.paging else get({}) or []
        # With rows, the response without a list was a later page, which is the end of the list.
        pages.by_day, pages.is_unlisted = self.rows_by_day(task, rows), pages.is_unlisted and not rows
        return pages

    def rows_by_day(self, task: _Task, rows: list[bytes]) -> Mapping[date, list[bytes]]:
        """The rows by day, each with the query's `fields` added.

        Raises `Refused` if a row does not match the query or the task's days.
        """
        query, time_field = task.query, self.fan_out.time_field
        try:
            with_values = [self.fan_out.add_fields(row, query.fields) for row in rows] if query.fields else rows
        except ValueError as error:
            raise Refused(f"a row does not match the request: {error}").about(rows) from None
        if time_field is None:
            # The response is one row: either the details of a user or the total of one day, which is a row of zeros if
            # empty.
            if len(rows) != 1:
                raise Refused(f"LBank returned {len(rows)} rows instead of one").about(rows)
            return {task.days[0]: with_values}
        by_day: dict[date, list[bytes]] = defaultdict(list)
        for time_ms, row in zip(read_values(instants_ms, rows, time_field), with_values, strict=True):
            by_day[day_of(time_ms, self.zone)].append(row)
        if outside := by_day.keys() - set(task.days):
            raise Refused(
                f"requested {format_days(task.days)}, and LBank returned rows of {format_days(outside)}"
            ).about(rows)
        return by_day
