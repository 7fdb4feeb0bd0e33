"""Rows with a time, stored and read by UTC day."""

import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import Any

from affiliate_pipeline.sandbox.days import DAY_MS, HOUR_MS, day_of
from affiliate_pipeline.sandbox.rows import encode

PAYOUT_AFTER_MS = 20 * HOUR_MS
DAYS_CACHED = 40


@dataclass(frozen=True)
class Day:
    """The rows of a UTC day, oldest first: the row at i has times[i] and customers[i].

    With `paid_later` a row's last four fields are absent until it is paid out.
    """

    times: list[int]
    customers: list[str]
    rows: list[bytes]
    paid_later: bool

    def between(
        self, start: int, stop: int, now: int, *, customer: str | None, newest_first: bool, limit: int | None
    ) -> list[bytes]:
        """The first `limit` rows with start <= time < stop, ordered by `newest_first`, as sent at `now`."""
        indices: Sequence[int] = range(bisect_left(self.times, start), bisect_left(self.times, stop))
        if customer is not None:
            indices = [i for i in indices if self.customers[i] == customer]
        if newest_first:
            indices = indices[::-1]
        paid_count = self._paid_count(now)
        return [self.rows[i] if i < paid_count else _unpaid(self.rows[i]) for i in indices[:limit]]

    def _paid_count(self, now: int) -> int:
        """How many rows, the oldest, have been paid out at `now`."""
        if not self.paid_later:
            return len(self.rows)
        # Payouts are at whole hours.
        last_payout_ms = now // HOUR_MS * HOUR_MS
        return bisect_right(self.times, last_payout_ms - PAYOUT_AFTER_MS)


EMPTY_DAY = Day([], [], [], paid_later=False)


class Records:
    """Rows of any day: generated, or all set by a test."""

    def __init__(self, generate: Callable[[date], Day]) -> None:
        self._generated = lru_cache(DAYS_CACHED)(generate)
        self._given: dict[date, Day] | None = None
        self._lock = threading.Lock()

    def set(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Serve only these rows, each exactly as given; those of the same time stay in the given order.

        Only generated rows lack fields until they are paid out.
        """
        days: dict[date, Day] = {}
        for row in sorted(rows, key=lambda row: int(row["time"])):
            at = int(row["time"])
            day = days.setdefault(day_of(at), Day([], [], [], paid_later=False))
            day.times.append(at)
            day.customers.append(str(row.get("customerId", "")))
            day.rows.append(encode(row))
        self._given = days

    def day(self, day: date) -> Day:
        """All rows of the UTC day, including future ones."""
        if (given := self._given) is not None:
            return given.get(day, EMPTY_DAY)
        with self._lock:  # otherwise concurrent callers of a new day would each generate it
            return self._generated(day)

    def between(
        self,
        start: int,
        stop: int,
        *,
        now: int,
        retained_ms: int | None,
        customer: str | None = None,
        newest_first: bool = False,
        limit: int | None = None,
    ) -> list[bytes]:
        """The first `limit` retained rows with start <= time < stop that exist by now, ordered by `newest_first`."""
        stop = min(stop, now + 1)
        if retained_ms is not None:
            start = max(start, now - retained_ms)
        days = [day_of(ms) for ms in range(start // DAY_MS * DAY_MS, stop, DAY_MS)]
        if newest_first:
            days.reverse()

        rows: list[bytes] = []
        for day in days:
            remaining = None if limit is None else limit - len(rows)
            if remaining == 0:
                break
            rows += self.day(day).between(
                start, stop, now, customer=customer, newest_first=newest_first, limit=remaining
            )
        return rows


def _unpaid(row: bytes) -> bytes:
    return row[: row.rindex(b',"distributeTime":')] + b"}"
