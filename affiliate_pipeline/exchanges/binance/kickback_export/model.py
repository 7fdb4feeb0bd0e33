"""What was asked of the history: one collection per request to the exchange, kept in the database. What follows from its
state is decided in `history`."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import date, datetime
from typing import Protocol
from zoneinfo import ZoneInfo

from affiliate_pipeline.domain.days import DAY, days_from, start_ms

UTC = ZoneInfo("UTC")


@dataclass(frozen=True)
class Collection:
    """Days that were or are to be asked for in one request. `is_asked`: the exchange is known to have taken it;
    `is_due`: it may be looked after again; `is_kept`: its file is in the database; `is_followed`: another one was asked for
    in its place; `turn`: it is the so many-th of those that follow one another."""

    id: int
    first_day: date
    last_day: date
    state: str
    requested_at: datetime | None
    code: int | None
    msg: str | None
    path_before: str | None
    path: str | None
    is_asked: bool
    is_overdue: bool
    is_due: bool
    is_kept: bool
    is_followed: bool
    turn: int
    note: str | None
    age_s: float

    @property
    def days(self) -> list[date]:
        return days_from(self.first_day, self.last_day)

    @property
    def start_ms(self) -> int:
        return start_ms(self.first_day, UTC)

    @property
    def end_ms(self) -> int:
        """The first millisecond after its days."""
        return start_ms(self.last_day + DAY, UTC)

    @property
    def requested_ms(self) -> int | None:
        return None if self.requested_at is None else int(self.requested_at.timestamp() * 1000)

    def covers(self, day: date) -> bool:
        return self.first_day <= day <= self.last_day


class CollectionStore(Protocol):
    """Where the collections of one key are kept (`postgres.collection`)."""

    def alone(self) -> AbstractContextManager[bool]:
        """Whether nobody else moves them meanwhile."""

    def open(self) -> list[Collection]:
        """Those that wait, are collected or can be landed, in the order they were asked for."""

    def covering(self, days: Iterable[date]) -> dict[date, Collection]:
        """Of each day the collection that has it, or comes nearest to having it."""

    def get(self, number: int) -> Collection: ...

    def add(self, first: date, last: date) -> int: ...

    def forgotten(self, number: int, until: date, note: str) -> None: ...

    def begin(self, number: int, path_before: str | None) -> bool:
        """False if another one turns out to be under way: its turn has not come."""

    def asked(self, number: int, code: int | None, msg: str, wait_s: float) -> None: ...

    def wait(self, number: int, note: str, wait_s: float) -> None: ...

    def pending(self, number: int, note: str, wait_s: float) -> None: ...

    def ready(self, number: int, path: str, wait_s: float) -> None: ...

    def refuse(self, number: int, path: str, note: str) -> None: ...

    def is_another(self, number: int, path: str) -> bool:
        """Whether the file is known not to be this collection's."""

    def keep(self, number: int, file: bytes, note: str) -> None: ...

    def kept(self, number: int) -> bytes | None: ...

    def landed(self, number: int, asset: str) -> None: ...

    def expire(self, number: int, note: str, *, again: bool) -> None: ...

    def told(self, number: int) -> None:
        """People know that it expired."""
