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

from affiliate_pipeline.domain.days import DAY, day_of, fold, runs, start_ms
from affiliate_pipeline.exchanges.lbank.pagination import by_id, by_offset
from affiliate_pipeline.exchanges.lbank.responses import OPEN_ID_CODES
from affiliate_pipeline.exchanges.lbank.roster.members import Roster
from affiliate_pipeline.exchanges.lists import NO_LIST, get_list, unlisted_note
from affiliate_pipeline.exchanges.spec import Answers, DayError, DayRows, Plan, Session
from affiliate_pipeline.http.bodies import may_hold_rows
from affiliate_pipeline.http.encoding import encode
from affiliate_pipeline.http.error_body import quote
from affiliate_pipeline.http.errors import AccessRefused, ExchangeError, Fatal, Refused
from affiliate_pipeline.schema.columns import Row
from affiliate_pipeline.schema.decode import emptied, instants_ms, is_false, with_fields

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
    """One query: its parameters, the fields (JSON names) to add to its rows, and the openId of the rows (None: any)."""

    params: Mapping[str, object]
    fields: Mapping[str, object] = field(default_factory=dict)
    open_id: str | None = None

    @property
    def of_rows(self) -> Mapping[str, object]:
        """What its rows have in common, by JSON name."""
        return {**self.fields, **({"openId": self.open_id} if self.open_id else {})}


@dataclass(frozen=True)
class _Task:
    ask: Ask
    days: tuple[date, ...]
    apart: bool = False


@dataclass(frozen=True)
class _Rows:
    by_day: Mapping[date, list[bytes]]
    asked_ms: int
    is_unlisted: bool = False


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
    # A flag that says, where it is false, that the row's other fields mean nothing; and the schema that they are of.
    confirmed_by: tuple[str, type[Row]] | None = None

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
        self._unlisted: dict[date, list[Mapping[str, object]]] = defaultdict(list)
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
        except AccessRefused as error:
            if error.code not in OPEN_ID_CODES or task.ask.open_id in (None, self._session.open_id):
                raise
            self._leave_out(str(task.ask.open_id), error)
            answer = _Rows({}, self._session.now_ms())
        except Fatal:
            raise
        except ExchangeError as error:
            if len(task.days) > 1:
                waiting.extendleft(_Task(task.ask, (day,), apart=True) for day in reversed(task.days))
            elif self._open.pop(task.days[0], None) is not None:
                yield DayError(task.days[0], error, self._rows.pop(task.days[0], []))
            return
        self._progress.one_more()
        for day in task.days:
            if day in self._open:
                self._rows[day] += answer.by_day.get(day, [])
                self._asked_ms[day] = min(answer.asked_ms, self._asked_ms.get(day, answer.asked_ms))
                self._requests[day] += 1
                self._unlisted[day] += [task.ask.of_rows] * answer.is_unlisted
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
                note=unlisted_note(len(self._unlisted[day])),
                unlisted=self._unlisted[day],
                problems=self._told_of_left_out(),
            )

    def _told_of_left_out(self) -> tuple[str, ...]:
        if not self._left_out:
            return ()
        return (f"rows of these openIds are missing, since LBank refuses them: {', '.join(sorted(self._left_out))}",)

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

    def _by_day(self, task: _Task, rows: list[bytes]) -> Mapping[date, list[bytes]]:
        """The rows, with the fields they lack, by their day."""
        try:
            completed = [self._completed(row, task.ask.fields) for row in rows]
        except ValueError as error:
            raise Refused(f"a row does not match the request: {error}").about(rows) from None
        if self._sweep.instant is None:
            # A sum of nothing is 0, and of somebody who is not ours that is told: neither is no row.
            if len(rows) != 1:
                raise Refused(f"LBank returned {len(rows)} rows instead of one").about(rows)
            return {task.days[0]: completed}
        try:
            times = instants_ms(rows, self._sweep.instant)
        except ValueError as error:
            raise Refused(f"a row's day cannot be read: {error}").about(rows) from None
        by_day: dict[date, list[bytes]] = defaultdict(list)
        for time_ms, row in zip(times, completed, strict=True):
            by_day[day_of(time_ms, self._zone)].append(row)
        if outside := set(by_day) - set(task.days):
            raise Refused(f"requested {fold(task.days)}, and LBank returned rows of {fold(outside)}").about(rows)
        return by_day

    def _answer(self, task: _Task) -> _Rows:
        """All rows of the question."""
        params = dict(task.ask.params)
        if not self._sweep.timeless:
            # Nobody promises that the end is inclusive. One millisecond more would touch a day that was not asked for: one
            # that always fails would take the day before with it.
            params |= {
                "startTime": start_ms(task.days[0], self._zone),
                "endTime": start_ms(task.days[-1] + DAY, self._zone) - 1,
            }
        question = _Question(self._sweep, self._session, params, self._stop, lambda rows: self._by_day(task, rows))
        match self._sweep.paging:
            case "id":
                rows = by_id(question.ask)
            case "offset":
                assert self._sweep.instant
                rows = by_offset(question.ask, self._sweep.instant, self._sweep.identity)
            case None:
                rows = question.ask({})
        return _Rows(self._by_day(task, rows), question.asked_ms, question.is_unlisted and not rows)

    def _completed(self, row: bytes, fields: Mapping[str, object]) -> bytes:
        if self._sweep.confirmed_by:
            flag, schema = self._sweep.confirmed_by
            if is_false(row, flag):
                return emptied(schema, {**fields, flag: False})
        return with_fields(row, fields) if fields else row


class _Question:
    """Asks for the pages of one question, and keeps what is answered for a run that resumes this one.

    `check` raises `Refused` for rows that cannot be used: kept, they would fail the runs that resume this one too.
    """

    def __init__(
        self,
        sweep: Sweep,
        session: LBankSession,
        params: Mapping[str, object],
        stop: threading.Event,
        check: Callable[[list[bytes]], object],
    ):
        self._check = check
        self._path, self._session, self._params, self._stop = sweep.path, session, params, stop
        self._keeps, self._is_of_lists = not sweep.timeless, sweep.instant is not None
        self._asked: set[str] = set()
        # When the oldest of its answers was asked for.
        self.asked_ms = session.now_ms()
        self.is_unlisted = False

    def ask(self, page: Mapping[str, object]) -> list[bytes]:
        params = {**self._params, **page}
        request = f"{self._path}?{encode(params)}"
        # What is asked a second time is asked because it may have changed.
        kept = self._session.answers.get(request) if self._keeps and request not in self._asked else None
        self._asked.add(request)
        if kept:
            self.asked_ms = min(self.asked_ms, kept.asked_ms)
            self.is_unlisted |= kept.payload in NO_LIST
            return [] if kept.payload in NO_LIST else rows_of(kept.payload)
        if self._stop.is_set():
            raise Fatal("the range has ended")
        asked_ms = self._session.now_ms()
        if self._is_of_lists:
            rows, is_unlisted = get_list(self._session.client, self._path, params, rows_of)
        else:
            rows, is_unlisted = self._session.client.get(self._path, params, rows_of), False
        self.is_unlisted |= is_unlisted
        self._check(rows)
        if self._keeps:
            self._session.answers.put(request, b"null" if is_unlisted else b"[" + b",".join(rows) + b"]", asked_ms)
        return rows


def rows_of(payload: bytes) -> list[bytes]:
    """The rows of `data`, which is a list, or the one row that it is."""
    if payload.strip() in NO_LIST:
        raise Refused("LBank reports success and sends no data, where there always is a row")
    try:
        if payload.lstrip()[:1] == b"{":
            return [payload]
        rows = list(map(bytes, msgspec.json.decode(payload, type=list[msgspec.Raw])))
    except msgspec.ValidationError:
        raise Refused(f"the response's data is neither a row nor a list of rows: {quote(payload)}") from None
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from None
    if not all(row.startswith(b"{") for row in rows):
        kept = [payload] if may_hold_rows(payload) else []
        raise Refused(f"the response's data is a list of items that are not rows: {quote(payload)}").about(kept)
    return rows
