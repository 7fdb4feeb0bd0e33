"""The days that an asset is expected to land: when each is overdue, settled and expired.

Instants are Unix milliseconds; nothing here reads a clock.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Protocol
from zoneinfo import ZoneInfo

from affiliate_pipeline.domain.days import DAY, HOUR, day_of, days_from, start_ms

MIN_LOOKBACK_DAYS = 3
# A day becomes overdue this long after the schedule that should have landed it.
GRACE = HOUR


@dataclass(frozen=True)
class Timetable:
    """When the days of an asset land, settle and expire.

    `lands_at` is None if no schedule lands them, `retention` if no limit is known. A snapshot can only be taken of
    today. `fallback` is another asset whose source retains the same rows for longer.
    """

    asset: str
    zone: ZoneInfo
    lands_at: time | None
    settles_after: timedelta
    retention: timedelta | None
    is_snapshot: bool = False
    fallback: "Timetable | None" = None

    @property
    def is_monitored(self) -> bool:
        """Whether its days can be overdue: they are scheduled, and fetchable after the day itself."""
        return self.lands_at is not None and not self.is_snapshot

    def end_ms(self, day: date) -> int:
        """The first millisecond after the day."""
        return start_ms(day + DAY, self.zone)

    def has_settled(self, day: date, now_ms: int) -> bool:
        """Whether the source is assumed not to change the day any more."""
        return now_ms >= self.end_ms(day) + _ms(self.settles_after)

    def deadline_ms(self, day: date) -> int | None:
        """The last instant at which the source promises the whole day; None: no limit is known."""
        if self.is_snapshot:
            return self.end_ms(day) - 1
        return None if self.retention is None else start_ms(day, self.zone) + _ms(self.retention)

    def is_retained(self, day: date, now_ms: int) -> bool:
        """Whether the source promises to have the whole day at that instant."""
        if self.is_snapshot:
            return day == day_of(now_ms, self.zone)
        deadline_ms = self.deadline_ms(day)
        return deadline_ms is None or now_ms <= deadline_ms

    def lookback_start(self, now_ms: int) -> date:
        """The first day of the schedule's lookback window: days are landed again until settled."""
        days = max(MIN_LOOKBACK_DAYS, self.settles_after // DAY + 1)
        return day_of(now_ms, self.zone) - days * DAY

    def scheduled_at_ms(self, day: date, *, settled: bool = False) -> int | None:
        """When the schedule first lands the day, once it has ended or, with `settled`, once it has settled.

        None if no schedule lands it.
        """
        if self.lands_at is None:
            return None
        ready = datetime.fromtimestamp(self.end_ms(day) // 1000, self.zone)
        if settled:
            ready += self.settles_after
        scheduled = datetime.combine(ready.date(), self.lands_at, self.zone)
        if scheduled < ready:
            scheduled += DAY
        return int(scheduled.timestamp() * 1000)

    def overdue_at_ms(self, day: date, *, settled: bool) -> int | None:
        """When the day becomes overdue; None if no schedule lands it.

        That is `GRACE` after the first scheduled landing that follows the day's end or, with `settled`, its settling.
        """
        scheduled_ms = self.scheduled_at_ms(day, settled=settled)
        return None if scheduled_ms is None else scheduled_ms + _ms(GRACE)


class LandedDay(Protocol):
    """What the ledger records of a landed day."""

    @property
    def settled(self) -> bool:
        """Whether the day was read after it had settled."""
        ...

    @property
    def checked_at(self) -> datetime:
        """When the day was last read from the source."""
        ...


NOTHING_LANDED: Mapping[date, LandedDay] = {}


@dataclass(frozen=True)
class ExpectedDay:
    """A day that has not landed, or not since it settled.

    `last_read_at` is None if it has not landed, `overdue_at_ms` if no schedule lands it, `deadline_ms` if no limit is
    known. `fallback` is the asset whose source still has the day, with its own deadline (ms).
    """

    day: date
    overdue_at_ms: int | None
    deadline_ms: int | None
    last_read_at: datetime | None = None
    fallback: tuple[str, int] | None = None

    def is_retained(self, now_ms: int) -> bool:
        """Whether the source still promises the whole day."""
        return self.deadline_ms is None or now_ms <= self.deadline_ms


def expected_days(
    timetable: Timetable, first: date, now_ms: int, landed: Mapping[date, LandedDay] = NOTHING_LANDED
) -> Iterator[ExpectedDay]:
    """Yield the days since `first` that have to land, or to land again once settled, oldest first.

    Only days that have ended are expected; of a snapshot, only today.
    """
    today = day_of(now_ms, timetable.zone)
    last = today - DAY
    if timetable.is_snapshot:
        first = max(first, today)
        last = today

    for day in days_from(first, last):
        entry = landed.get(day)
        if entry and entry.settled:
            continue
        yield ExpectedDay(
            day,
            # A day that has landed is expected again once it has settled.
            overdue_at_ms=timetable.overdue_at_ms(day, settled=entry is not None),
            deadline_ms=timetable.deadline_ms(day),
            last_read_at=entry.checked_at if entry else None,
            fallback=_fallback(timetable, day, now_ms),
        )


def newest_scheduled(timetables: Collection[Timetable], now_ms: int) -> date:
    """The newest day that the schedules of all these assets should have landed.

    An asset that no schedule lands counts as landing each day at its end.
    """

    def expected_at_ms(day: date) -> int:
        return max(each.scheduled_at_ms(day) or each.end_ms(day) for each in timetables)

    day = max(day_of(now_ms, each.zone) for each in timetables)
    while expected_at_ms(day) > now_ms:
        day -= DAY
    return day


def _fallback(timetable: Timetable, day: date, now_ms: int) -> tuple[str, int] | None:
    """The asset whose source still promises the day, with its deadline (ms); None if no fallback promises it."""
    fallback = timetable.fallback
    if fallback is None:
        return None
    deadline_ms = fallback.deadline_ms(day)
    # Without a known limit there is no deadline to report, so such a fallback promises nothing.
    if deadline_ms is None or now_ms > deadline_ms:
        return None
    return fallback.asset, deadline_ms


def _ms(span: timedelta) -> int:
    return span // timedelta(milliseconds=1)
