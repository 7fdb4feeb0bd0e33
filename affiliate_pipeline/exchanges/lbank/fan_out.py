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
from affiliate_pipeline.exchanges.lbank.queries import OpenDay, Pages, Query, Task
from affiliate_pipeline.exchanges.lbank.response_cache import ResponseCache
from affiliate_pipeline.exchanges.lbank.responses import OPEN_ID_CODES
from affiliate_pipeline.exchanges.lists import get_list, read_list, without_list_note
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
        min_requests = range_count * len(self._queries_of(session, days, zone))
        max_requests = None if self.paging else min_requests
        return request_plan(session, min_requests, max_requests)

    def fetch(self, session: LBankSession, days: Sequence[date], zone: ZoneInfo) -> Generator[DayBatch | DayError]:
        """Yield each day once its queries are completed; raises `Fatal` if LBank refuses access."""
        queries = self._queries_of(session, days, zone)
        for month in _months(days):
            # Open the cache before the threads start: otherwise each could open one of its own.
            response_cache = session.response_cache()
            yield from MonthFetch(self, session, response_cache, queries, month, zone).outcomes()

    def ranges(self, days: Iterable[date]) -> list[list[date]]:
        """The ranges in which the days are requested."""
        return day_ranges(days) if self.time_field else [[day] for day in days]

    def _queries_of(self, session: LBankSession, days: Sequence[date], zone: ZoneInfo) -> Sequence[Query]:
        # The roster has to include the users of the whole last day.
        roster_not_before_ms = start_ms(max(days) + DAY, zone)
        now_ms = session.now_ms()
        if now_ms < roster_not_before_ms:
            roster_not_before_ms = now_ms - RECENT_ROSTER_MS
        return self.queries(session, roster_not_before_ms)


def request_plan(session: LBankSession, min_requests: int, max_requests: int | None) -> RequestPlan:
    """The plan for this many requests of one path, and how long the minimum takes."""
    windows = math.ceil(min_requests / REQUESTS_PER_WINDOW)
    # The requests of the first window are sent at once.
    later_windows = max(0, windows - 1)
    seconds = later_windows * REQUESTS_PER_WINDOW / session.slots_per_s
    return RequestPlan(min_requests, max_requests, seconds)


def _months(days: Sequence[date]) -> list[list[date]]:
    return [list(month) for _, month in groupby(sorted(days), key=lambda day: (day.year, day.month))]


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
        self._open = {day: OpenDay(len(self.queries)) for day in self.days}

    def outcomes(self) -> Generator[DayBatch | DayError]:
        """Each day once its queries have completed or failed; raises `Fatal` if none can succeed."""
        ranges = self.fan_out.ranges(self._open)
        waiting = deque(Task(query, tuple(days)) for days in ranges for query in self.queries)
        # Without queries, all days are complete.
        yield from self._completed_days(list(self._open))

        with ThreadPoolExecutor(WORKERS, thread_name_prefix="fan-out") as pool:
            running: dict[Future[Pages], Task] = {}
            # Send the first query by itself: it shows whether we have access. Where possible, it is for our own openId.
            max_running = 1
            logged_at = time.monotonic()
            try:
                while waiting or running:
                    self._start_tasks(pool, waiting, running, max_running)
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        task = running.pop(future)
                        yield from self._handle_result(task, future, waiting)
                    max_running = WORKERS

                    if time.monotonic() - logged_at >= LOG_EVERY_S:
                        logged_at = time.monotonic()
                        self._log_progress(min_requests=len(waiting) + len(running))
            finally:
                self.stop.set()
                pool.shutdown(wait=True, cancel_futures=True)

    def _start_tasks(
        self, pool: ThreadPoolExecutor, waiting: deque[Task], running: dict[Future[Pages], Task], max_running: int
    ) -> None:
        """Move tasks from `waiting` to `running` until that has `max_running` of them, or no other may start yet."""
        while waiting and len(running) < max_running:
            # While the days of a failed range are fetched, each by a task of its own, start no other task. Most waiting
            # tasks are other queries for the same range, and the day that caused the failure would probably cause these
            # queries to fail too.
            is_isolating = any(task.isolated for task in running.values())
            if is_isolating and not waiting[0].isolated:
                return

            task = waiting.popleft()
            open_days = tuple(day for day in task.days if day in self._open)
            if open_days == task.days:
                future = pool.submit(self.fetch, task)
                running[future] = task
            else:
                # A day has failed in another task: request only the others.
                open_ranges = day_ranges(open_days)
                waiting.extendleft(Task(task.query, tuple(days), task.isolated) for days in open_ranges)

    def _log_progress(self, min_requests: int) -> None:
        time_left = duration(min_requests / self.session.slots_per_s)
        requests_left = count_of(min_requests, "request")
        log.info("%s: at least %s left, about %s", format_days(self.days), requests_left, time_left)

    def _handle_result(self, task: Task, future: Future[Pages], waiting: deque[Task]) -> Iterator[DayBatch | DayError]:
        """Yield the days that the task completes or fails.

        A failed range is queued again day by day; a refused openId is excluded, unless it is our own.
        """
        pages: Pages | None = None
        try:
            pages = future.result()
        except AccessRefused as error:
            open_id = task.query.open_id
            if error.code not in OPEN_ID_CODES or open_id is None or open_id == self.session.open_id:
                raise
            self._exclude(open_id, error)
        except (Refused, Transient) as error:
            first_day, *other_days = task.days
            if other_days:
                single_days = [Task(task.query, (day,), isolated=True) for day in task.days]
                waiting.extendleft(reversed(single_days))
                return
            # The day is no longer open if it has failed in another task too.
            open_day = self._open.pop(first_day, None)
            if open_day:
                yield DayError(first_day, error, open_day.rows)
            return

        for day in task.days:
            if day in self._open:
                self._open[day].complete_query(task.query, day, pages)
        yield from self._completed_days(task.days)

    def _completed_days(self, days: Iterable[date]) -> Iterator[DayBatch]:
        """Yield those of the days that have no open query left, and remove them from the open days."""
        refused = sorted(self._excluded)
        warnings: tuple[str, ...] = ()
        if refused:
            warnings = (f"rows of these openIds are missing, since LBank refuses them: {', '.join(refused)}",)

        completed = [day for day in days if day in self._open and self._open[day].open_queries == 0]
        for day in completed:
            open_day = self._open.pop(day)
            yield DayBatch(
                day,
                chunks=[b",".join(open_day.rows)] if open_day.rows else [],
                rows=len(open_day.rows),
                requests=open_day.requests,
                requested_ms=open_day.requested_ms,
                note=without_list_note(len(open_day.without_list)),
                excluded=[{"openId": open_id} for open_id in refused],
                without_list=open_day.without_list,
                warnings=warnings,
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

    def fetch(self, task: Task) -> Pages:
        """All rows of the query for the task's days. Responses are cached for a run that resumes this one."""
        fan_out = self.fan_out
        query_params = self._params_of(task)
        pages = Pages(requested_ms=self.session.now_ms())
        earlier_requests: set[str] = set()

        def get(page_params: Mapping[str, object]) -> list[bytes] | None:
            params = {**query_params, **page_params}
            request = f"{fan_out.path}?{encode(params)}"
            # A page that this fetch requests again may have changed: do not take it from the cache.
            may_use_cache = not fan_out.timeless and request not in earlier_requests
            earlier_requests.add(request)

            cached = self.response_cache.get(request) if may_use_cache else None
            if cached:
                body, requested_ms = cached
                rows, lacks_list = read_list(body)
                pages.requested_ms = min(pages.requested_ms, requested_ms)
            else:
                pages.requests += 1
                is_later_page = bool(page_params.get("start"))
                rows, lacks_list = self._request_and_cache(task, request, params, is_later_page=is_later_page)

            if lacks_list:
                pages.lacks_list = True
                return None
            return rows

        rows = fan_out.paging(get) if fan_out.paging else get({}) or []
        pages.by_day = self.rows_by_day(task, rows)
        # If the query has rows, the page without a list was a later one: the end of the list.
        if rows:
            pages.lacks_list = False
        return pages

    def _params_of(self, task: Task) -> dict[str, object]:
        """The parameters of the task's query and days, which all of its pages share."""
        params = dict(task.query.params)
        if not self.fan_out.timeless:
            params["startTime"] = start_ms(task.days[0], self.zone)
            # The last millisecond of the last day. It is not documented whether `endTime` is inclusive: if it is, a
            # later one would include the next day, and whatever fails that day would also fail this range.
            params["endTime"] = start_ms(task.days[-1] + DAY, self.zone) - 1
        return params

    def _request_and_cache(
        self, task: Task, request: str, params: Mapping[str, object], *, is_later_page: bool
    ) -> tuple[list[bytes], bool]:
        """The rows of a requested page, and whether the response had no list; `request` is its key in the cache.

        Raises `Refused` for unusable rows, which are not cached, and `Fatal` once the fetch is cancelled.
        """
        if self.stop.is_set():
            raise Fatal("the fetch was cancelled")
        fan_out, client = self.fan_out, self.session.client
        requested_ms = self.session.now_ms()
        if fan_out.time_field:
            rows, lacks_list = get_list(client, fan_out.path, params)
        else:
            # A sum or a user always has a row: `rows_by_day` refuses a response without a list.
            rows, lacks_list = client.get(fan_out.path, params, read_list)

        # Check before caching: unusable rows would also fail the runs that resume this one.
        self.rows_by_day(task, rows)
        # A later page without a list may fail the query: do not cache it, so that a run that resumes this one requests
        # it again.
        may_fail_query = lacks_list and is_later_page
        if not fan_out.timeless and not may_fail_query:
            body = b"null" if lacks_list else joined(rows)
            self.response_cache.put(request, body, requested_ms)
        return rows, lacks_list

    def rows_by_day(self, task: Task, rows: list[bytes]) -> Mapping[date, list[bytes]]:
        """The rows by day, each with the query's `fields` added.

        Raises `Refused` if a row does not match the query or the task's days.
        """
        fields = task.query.fields
        rows_with_fields = rows
        if fields:
            try:
                rows_with_fields = [self.fan_out.add_fields(row, fields) for row in rows]
            except ValueError as error:
                raise Refused(f"a row does not match the request: {error}").about(rows) from None

        time_field = self.fan_out.time_field
        if time_field is None:
            # The response is one row: either the details of a user or the total of one day, which is a row of zeros if
            # empty.
            if len(rows) != 1:
                raise Refused(f"LBank returned {len(rows)} rows instead of one").about(rows)
            return {task.days[0]: rows_with_fields}

        by_day: dict[date, list[bytes]] = defaultdict(list)
        times_ms = read_values(instants_ms, rows, time_field)
        for time_ms, row in zip(times_ms, rows_with_fields, strict=True):
            by_day[day_of(time_ms, self.zone)].append(row)
        outside = by_day.keys() - set(task.days)
        if outside:
            raise Refused(
                f"requested {format_days(task.days)}, and LBank returned rows of {format_days(outside)}"
            ).about(rows)
        return by_day
