"""What an exchange and an endpoint are: frozen declarations that assets, tables, checks and UI text follow from."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Protocol
from zoneinfo import ZoneInfo

from affiliate_pipeline.days import DAY, day_of, start_ms
from affiliate_pipeline.rest.client import Client
from affiliate_pipeline.rest.errors import ExchangeError
from affiliate_pipeline.rest.limits import Limit
from affiliate_pipeline.schema import Row


@dataclass(frozen=True)
class DayRows:
    """All rows of one day as received, proven complete: chunks of JSON objects joined by commas."""

    day: date
    chunks: list[bytes]
    rows: int
    requests: int


@dataclass(frozen=True)
class DayError:
    """Why a day could not be fetched."""

    day: date
    error: ExchangeError


class Strategy(Protocol):
    """How an endpoint is asked."""

    def fetch(self, session: "Session", days: Sequence[date], zone: ZoneInfo) -> Iterator[DayRows | DayError]:
        """Each of the days once, in any order; raises `Fatal` where no further request makes sense."""

    def remembers_before(self, session: "Session", day: date, zone: ZoneInfo) -> bool:
        """Whether the source still has a row older than the day."""

    def requests(self, rows: int) -> int:
        """About how many requests a day with so many rows takes."""


@dataclass(frozen=True)
class Session:
    """A signed client of one account, and what the ledger calls this source."""

    client: Client
    source: str


class LimitOf(Protocol):
    def __call__(self, scope: str, per_window: int, window_s: float) -> Limit:
        """The rate limit that everybody with this scope shares."""


@dataclass(frozen=True)
class Exchange:
    name: str
    title: str
    zone: ZoneInfo
    connect: Callable[["Endpoint", LimitOf], Session]


@dataclass(frozen=True)
class Memory:
    """How long the source keeps rows. `provable`: it may keep them longer, and an older row found proves it."""

    span: timedelta
    provable: bool


@dataclass(frozen=True)
class Endpoint:
    """One endpoint: its asset, its table and how its days are fetched."""

    exchange: Exchange
    name: str
    path: str
    account: str
    description: str
    schema: type[Row]
    strategy: Strategy
    instant: str
    total: tuple[str, str]
    settles_after: timedelta
    memory: Memory | None

    @property
    def key(self) -> str:
        return f"{self.exchange.name}/{self.name}"

    def start_ms(self, day: date) -> int:
        return start_ms(day, self.exchange.zone)

    def end_ms(self, day: date) -> int:
        """The first millisecond after the day."""
        return start_ms(day + DAY, self.exchange.zone)

    def has_settled(self, day: date, now_ms: int) -> bool:
        return now_ms >= self.end_ms(day) + _ms(self.settles_after)

    def is_remembered(self, day: date, now_ms: int) -> bool:
        """Whether the whole day lies inside the memory that the source promises."""
        return self.memory is None or self.start_ms(day) >= now_ms - _ms(self.memory.span)

    def remembered_days(self, now_ms: int) -> list[date]:
        """The ended days that the source promises to hold wholly, at most 30."""
        today = day_of(now_ms, self.exchange.zone)
        ended = [today - i * DAY for i in range(30, 0, -1)]
        return [day for day in ended if self.is_remembered(day, now_ms)]


def _ms(span: timedelta) -> int:
    return span // timedelta(milliseconds=1)
