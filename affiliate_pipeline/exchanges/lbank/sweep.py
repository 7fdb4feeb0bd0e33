"""Fetching LBank's endpoints with as few requests as its five per ten seconds deserve.

A sweep asks the same question about somebody, in one or more variants, for a range of days at once, and splits the rows
by their own day. A calendar month is the longest range, so that one answer stays bounded and a run that is repeated asks
the same questions, whose answers it may find kept.
"""

import logging
import math
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import date
from itertools import groupby
from typing import Literal
from zoneinfo import ZoneInfo

import msgspec

from affiliate_pipeline.days import DAY, day_of, fold, runs, start_ms
from affiliate_pipeline.exchanges.lbank.replies import OPEN_ID_CODES
from affiliate_pipeline.exchanges.lbank.roster import Roster
from affiliate_pipeline.exchanges.spec import Answers, DayError, DayRows, Plan, Session
from affiliate_pipeline.rest.encoding import encode
from affiliate_pipeline.rest.errors import AccessRefused, ExchangeError, Fatal, Refused
from affiliate_pipeline.rows import emptied, identities, instants_ms, is_true, with_fields

PAGE_SIZE = 100
MOST_WALKS = 4
# Enough to have a whole window's slots under way while answers take a second.
WORKERS = 8
MOST_LEFT_OUT = 0.05
LOG_EVERY_S = 10
NEW_ROSTER_MS = 10 * 60_000

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LBankSession(Session):
    """A session that knows whose it is, who is under it, and what an unfinished run has already been answered."""

    open_id: str
    answers: Answers
    slots_per_s: float
    burst: int
    # Refreshed if it is older than the instant given.
    roster: Callable[[int], Roster]
    now_ms: Callable[[], int]

    def finished(self) -> None:
        self.answers.clear()


@dataclass(frozen=True)
class Ask:
    """One question: its parameters, and the fields (JSON names) that its rows need and lack."""

    params: Mapping[str, object]
    fields: Mapping[str, object] = field(default_factory=dict)
    open_id: str | None = None


@dataclass(frozen=True)
class _Task:
    ask: Ask
    days: tuple[date, ...]
    apart: bool = False


@dataclass(frozen=True)
class _Rows:
    rows: list[bytes]
    asked_ms: int


@dataclass(frozen=True)
class Sweep:
    """Asks `path` what `asks` says.

    `paging`: by `offset`, by the largest `id` received, or not at all. `instant` is the JSON name of what tells a row's
    day; without one the answer is about the range as a whole, so each day is asked for by itself. `timeless` questions
    take no range: they are about now.
    """

    path: str
    asks: Callable[[LBankSession, int], Sequence[Ask]]
    paging: Literal["offset", "id"] | None = None
    instant: str | None = None
    timeless: bool = False
    # The fields (JSON names) that tell one row from all others, where some do: the rest of a row may change meanwhile.
    identity: tuple[str, ...] = ()
    # The flag without which a row's other fields mean nothing.
    confirmed_by: str | None = None

    def plan(self, session: LBankSession, days: Sequence[date], zone: ZoneInfo) -> Plan:
        asks = len(self._asks(session, days, zone))
        least = sum(asks * len(runs(chunk) if self.instant else chunk) for chunk in _chunks(days))
        windows = math.ceil(max(0, least - session.burst) / session.burst)
        seconds = windows * session.burst / session.slots_per_s
        return Plan(least, None if self.paging else least, seconds)

    def fetch(self, session: LBankSession, days: Sequence[date], zone: ZoneInfo) -> Iterator[DayRows | DayError]:
        asks = self._asks(session, days, zone)
        progress = _Progress(self.plan(session, days, zone), session)
        for chunk in _chunks(days):
            yield from _Chunk(self, session, asks, chunk, zone, progress).outcomes()

    def oldest_before(self, session: LBankSession, day: date, zone: ZoneInfo) -> int | None:
        raise NotImplementedError("LBank promises no end of its memory, so there is none to prove wrong")

    def _asks(self, session: LBankSession, days: Sequence[date], zone: ZoneInfo) -> Sequence[Ask]:
        end_ms, now_ms = start_ms(max(days) + DAY, zone), session.now_ms()
        # Today goes on: for it, a roster that is as good as new will do.
        return self.asks(session, end_ms if end_ms <= now_ms else now_ms - NEW_ROSTER_MS)


def _chunks(days: Sequence[date]) -> list[list[date]]:
    """The days by calendar month."""
    return [list(chunk) for _, chunk in groupby(sorted(days), key=lambda day: (day.year, day.month))]


class _Progress:
    """A log line every ten seconds at most."""

    def __init__(self, plan: Plan, session: LBankSession):
        self._plan, self._session = plan, session
        self._done = 0
        self._told_at = time.monotonic()

    def one_more(self) -> None:
        self._done += 1
        if time.monotonic() - self._told_at < LOG_EVERY_S:
            return
        self._told_at = time.monotonic()
        left = max(0, self._plan.least - self._done)
        log.info(
            "%d of %d questions answered, about %.1f minutes left",
            *(self._done, max(self._done, self._plan.least), left / self._session.slots_per_s / 60),
        )


class _Chunk:
    """The questions about some days of one month; each day is told of once all its questions are answered."""

    def __init__(
        self,
        sweep: Sweep,
        session: LBankSession,
        asks: Sequence[Ask],
        days: Sequence[date],
        zone: ZoneInfo,
        progress: _Progress,
    ):
        self._sweep, self._session, self._asks, self._zone, self._progress = sweep, session, asks, zone, progress
        self._days = days
        self._open = dict.fromkeys(days, len(asks))
        self._rows: dict[date, list[bytes]] = defaultdict(list)
        self._asked_ms: dict[date, int] = {}
        self._requests: Counter[date] = Counter()
        self._left_out: set[str] = set()
        self._stop = threading.Event()

    def outcomes(self) -> Iterator[DayRows | DayError]:
        ranges = runs(self._days) if self._sweep.instant else [[day] for day in self._days]
        waiting = deque(_Task(ask, tuple(days)) for days in ranges for ask in self._asks)
        if not self._asks:
            yield from self._days_done(self._days)
        with ThreadPoolExecutor(WORKERS, thread_name_prefix="sweep") as pool:
            under_way: dict[Future[_Rows], _Task] = {}
            # The first question is about ourselves: whether we are let in is known before anything else is asked.
            at_once = 1
            try:
                while waiting or under_way:
                    while waiting and len(under_way) < at_once:
                        # While one range is asked for day by day to find the bad one, no other range runs into it.
                        if not waiting[0].apart and any(task.apart for task in under_way.values()):
                            break
                        task = waiting.popleft()
                        good = tuple(day for day in task.days if day in self._open)
                        if good == task.days:
                            under_way[pool.submit(self._answer, task)] = task
                        else:
                            waiting.extendleft(_Task(task.ask, tuple(run), task.apart) for run in runs(good))
                    done, _ = wait(under_way, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield from self._take(under_way.pop(future), future, waiting)
                    at_once = WORKERS
            finally:
                self._stop.set()
                pool.shutdown(wait=True, cancel_futures=True)

    def _take(self, task: _Task, future: "Future[_Rows]", waiting: deque[_Task]) -> Iterator[DayRows | DayError]:
        try:
            answer = future.result()
            by_day = self._by_day(task, answer.rows)
        except AccessRefused as error:
            if error.code not in OPEN_ID_CODES or task.ask.open_id in (None, self._session.open_id):
                raise
            self._leave_out(str(task.ask.open_id), error)
            answer = _Rows([], self._session.now_ms())
            by_day = {}
        except Fatal:
            raise
        except ExchangeError as error:
            if len(task.days) > 1:
                waiting.extendleft(_Task(task.ask, (day,), apart=True) for day in reversed(task.days))
            elif self._open.pop(task.days[0], None) is not None:
                yield DayError(task.days[0], error)
            return
        self._progress.one_more()
        for day in task.days:
            if day in self._open:
                self._rows[day] += by_day.get(day, [])
                self._asked_ms[day] = min(answer.asked_ms, self._asked_ms.get(day, answer.asked_ms))
                self._requests[day] += 1
                self._open[day] -= 1
        yield from self._days_done(task.days)

    def _days_done(self, days: Sequence[date]) -> Iterator[DayRows | DayError]:
        for day in days:
            if self._open.get(day) != 0:
                continue
            del self._open[day]
            rows = self._rows.pop(day, [])
            yield DayRows(
                day,
                [b",".join(rows)] if rows else [],
                len(rows),
                self._requests[day],
                self._asked_ms.get(day),
                frozenset(self._left_out),
            )

    def _leave_out(self, open_id: str, error: AccessRefused) -> None:
        if open_id in self._left_out:
            return
        self._left_out.add(open_id)
        log.warning("%s: openId %s is left out: %s", self._sweep.path, open_id, error)
        everybody = {ask.open_id for ask in self._asks}
        if len(self._left_out) > MOST_LEFT_OUT * len(everybody):
            raise Fatal(
                f"LBank refused {len(self._left_out)} of {len(everybody)} openIds ({error}). So many are not a matter of "
                "single users: check the permissions of the key, then materialize again"
            )

    def _by_day(self, task: _Task, rows: list[bytes]) -> dict[date, list[bytes]]:
        by_day: dict[date, list[bytes]] = defaultdict(list)
        if self._sweep.instant is None:
            by_day[task.days[0]] = rows
            return by_day
        try:
            times = instants_ms(rows, self._sweep.instant)
        except (ValueError, msgspec.DecodeError) as error:
            raise Refused(f"a row's day cannot be read: {error}") from None
        for time_ms, row in zip(times, rows, strict=True):
            by_day[day_of(time_ms, self._zone)].append(row)
        if outside := set(by_day) - set(task.days):
            raise Refused(f"LBank was asked for {fold(task.days)} and answered rows of {fold(outside)}")
        return by_day

    def _answer(self, task: _Task) -> _Rows:
        """All rows of the question, with the fields they lack; kept for a run that resumes this one."""
        params = dict(task.ask.params)
        if not self._sweep.timeless:
            params |= {
                "startTime": start_ms(task.days[0], self._zone),
                "endTime": start_ms(task.days[-1] + DAY, self._zone) - 1,
            }
        request = f"{self._sweep.path}?{encode(params)}"
        kept = None if self._sweep.timeless else self._session.answers.get(request)
        asked_ms = kept.asked_ms if kept else self._session.now_ms()
        if kept:
            rows = rows_of(kept.payload)
        else:
            rows = self._paged(params) if self._sweep.paging else self._ask(params)
            if not self._sweep.timeless:
                self._session.answers.put(request, b"[" + b",".join(rows) + b"]", asked_ms)
        return _Rows([self._completed(row, task.ask.fields) for row in rows], asked_ms)

    def _completed(self, row: bytes, fields: Mapping[str, object]) -> bytes:
        flag = self._sweep.confirmed_by
        if flag and not is_true(row, flag):
            return emptied(row, {**fields, flag: False})
        return with_fields(row, fields) if fields else row

    def _ask(self, params: Mapping[str, object]) -> list[bytes]:
        if self._stop.is_set():
            raise Fatal("the range has ended")
        return self._session.client.get(self._sweep.path, params, rows_of)

    def _paged(self, params: Mapping[str, object]) -> list[bytes]:
        """All pages' rows. Where rows moved meanwhile, only two walks that agree are believed."""

        def ask(page: Mapping[str, object]) -> list[bytes]:
            return self._ask({**params, **page})

        believed: Counter[object] | None = None
        for _ in range(MOST_WALKS):
            rows, moved = walk_pages(ask, self._sweep.paging, self._sweep.identity)
            found = Counter(identities(rows, self._sweep.identity))
            if (believed is None and not moved) or believed == found:
                return rows
            believed = found
        raise Refused(f"the pages of {self._sweep.path} moved during each of {MOST_WALKS} walks")


def walk_pages(
    ask: Callable[[Mapping[str, object]], list[bytes]],
    paging: Literal["offset", "id"] | None,
    identity: tuple[str, ...],
) -> tuple[list[bytes], bool]:
    """The rows of all pages, and whether rows moved from one page to another while they were read.

    By offset, each page begins with the last row of the one before: if it does not, a row has come or gone. A row that is
    on both pages otherwise has moved, or is one of two equal ones: the earlier page, asked for again, tells.
    """
    rows: list[bytes] = []
    start, before = 0, None
    moved = False
    while True:
        page = ask({"start": start, "pageSize": PAGE_SIZE})
        if paging == "id":
            # Whether the row of that id itself comes again, the document leaves open.
            new = [row for row in page if _id(row) > start]
            rows += new
            if len(page) < PAGE_SIZE or not new:
                return rows, False
            start = max(map(_id, new))
            continue
        known = list(identities(page, identity))
        if before is not None:
            moved = moved or known[:1] != before[-1:]
            if not moved and not set(before).isdisjoint(known[1:]):
                again = ask({"start": start - PAGE_SIZE + 1, "pageSize": PAGE_SIZE})
                moved = list(identities(again, identity)) != before
        rows += page if before is None else page[1:]
        if len(page) < PAGE_SIZE:
            return rows, moved
        start, before = start + PAGE_SIZE - 1, known


def rows_of(payload: bytes) -> list[bytes]:
    """The rows of `data`, which is a list, or the one row that it is."""
    try:
        if payload.lstrip()[:1] == b"{":
            return [payload]
        return list(map(bytes, msgspec.json.decode(payload, type=list[msgspec.Raw])))
    except msgspec.ValidationError:
        raise Refused("the answer's data is neither a row nor a list of rows") from None
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from None


class _Numbered(msgspec.Struct):
    id: int | str


def _id(row: bytes) -> int:
    try:
        return int(msgspec.json.decode(row, type=_Numbered).id)
    except (msgspec.DecodeError, ValueError):
        raise Refused("a row has no `id` to ask for the next page with") from None
