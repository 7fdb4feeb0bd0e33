"""The queries of a fan-out, the tasks that send them, and what was received: per query, and per day."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date


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
class Task:
    """A query for some consecutive days. `isolated`: a single day of a failed range."""

    query: Query
    days: tuple[date, ...]
    isolated: bool = False


@dataclass
class Pages:
    """A query's rows by day, when (ms) its oldest page was requested, and whether its first page had no list.

    `requests`: the number of pages that were requested; the others were cached.
    """

    requested_ms: int
    requests: int = 0
    lacks_list: bool = False
    by_day: Mapping[date, list[bytes]] = field(default_factory=dict[date, list[bytes]])


@dataclass
class OpenDay:
    """A day's rows from the queries that are complete, and the number of open queries."""

    open_queries: int
    rows: list[bytes] = field(default_factory=list[bytes])
    requested_ms: int | None = None
    # The pages requested by its queries; those of a query for several days count for each of the days.
    requests: int = 0
    without_list: list[Mapping[str, object]] = field(default_factory=list[Mapping[str, object]])

    def complete_query(self, query: Query, day: date, pages: Pages | None) -> None:
        """Count the query as complete and add its rows of this `day`; `pages` is None if its openId is excluded."""
        self.open_queries -= 1
        if pages is None:
            self.requests += 1
            return
        self.requests += pages.requests
        self.rows += pages.by_day.get(day, [])
        if self.requested_ms is None or pages.requested_ms < self.requested_ms:
            self.requested_ms = pages.requested_ms
        if pages.lacks_list:
            self.without_list.append(query.shared_values)
