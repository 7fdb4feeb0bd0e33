"""What an exchange and an endpoint are: frozen declarations that assets, tables, checks and UI text follow from."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, time, timedelta
from typing import Any, Protocol
from zoneinfo import ZoneInfo

from affiliate_pipeline.domain.days import start_ms
from affiliate_pipeline.domain.expected_days import Timetable
from affiliate_pipeline.http.client import Client
from affiliate_pipeline.http.errors import ExchangeError
from affiliate_pipeline.http.limits import Limit
from affiliate_pipeline.schema.columns import Row


@dataclass(frozen=True)
class DayRows:
    """All rows of one day as received, proven complete: chunks of JSON objects joined by commas, to be read as
    often as needed.

    `asked_ms` is when the oldest answer among them was asked for, None if that was in this run. `left_out` are openIds
    whose rows the exchange refused to give. `note` and `problems` describe a landed day to people; `problems` need a
    fix. `following` is a day that is already complete and is yielded soon. `unlisted` has, for each response without a list,
    the values (by JSON name) that its rows would share (none: any row matches): landed rows with these values stay (see
    `lists`).
    """

    day: date
    chunks: Iterable[bytes]
    rows: int
    requests: int
    asked_ms: int | None = None
    left_out: frozenset[str] = frozenset()
    note: str = ""
    problems: tuple[str, ...] = ()
    following: "DayRows | None" = None
    unlisted: Sequence[Mapping[str, object]] = ()


@dataclass(frozen=True)
class DayError:
    """Why a day could not be fetched, and the rows received until then, as in `DayRows`. They are stored with those that
    `error` is about, but never land, since other rows may be missing."""

    day: date
    error: ExchangeError
    chunks: Iterable[bytes] = ()


@dataclass(frozen=True)
class Plan:
    """What fetching some days costs: requests at least, and at most if that is known, and the seconds that the rate
    limit makes of the least. `changes`: what it would change at the exchange."""

    least: int
    most: int | None
    seconds: float
    changes: tuple[str, ...] = ()

    def __str__(self) -> str:
        least = "" if self.most == self.least else "at least "
        # In tenths, a minute would be told with an error of 5 %.
        minutes = f", {least}{self.seconds / 60:.2f} minutes at the permitted rate" if self.seconds else ""
        return "\n  ".join([f"{least}{self.least} requests{minutes}", *self.changes])


class Strategy(Protocol):
    """How an endpoint is asked."""

    def plan(self, session: Any, days: Sequence[date], zone: ZoneInfo) -> Plan:
        """What `fetch` will cost; sends no request for it."""

    def fetch(self, session: Any, days: Sequence[date], zone: ZoneInfo) -> Iterator[DayRows | DayError]:
        """Each of the days once, in any order; raises `Fatal` where no further request makes sense."""

    def oldest_before(self, session: Any, day: date, zone: ZoneInfo) -> int | None:
        """When (ms) a row older than the day happened, if the source still has one; asked only where
        `Memory.provable`."""


@dataclass(frozen=True)
class Session:
    """A signed client of one account, and what the ledger calls this source."""

    client: Client
    source: str

    def finished(self) -> None:
        """Every day of a run has been told of: nothing of it has to be resumed."""


@dataclass(frozen=True)
class Answer:
    """An answer kept by a run that did not end: its payload, and when it was asked for."""

    payload: bytes
    asked_ms: int


class Answers(Protocol):
    """Answers of one asset's run, kept so that a killed one can be resumed."""

    def get(self, request: str) -> Answer | None: ...

    def put(self, request: str, payload: bytes, asked_ms: int) -> None: ...

    def clear(self) -> None: ...


class Shared(Protocol):
    """What sessions share with all other processes, through the database."""

    def limit(self, scope: str, per_window: int, window_s: float) -> Limit:
        """The rate limit that everybody with this scope shares."""

    def answers(self, asset: str, source: str) -> Answers: ...

    def pending_actions(self, asset: str, source: str) -> Any:
        """`exchanges.binance.customer_ids.pending_actions.PendingActions`"""

    def roster(self, source: str) -> Any:
        """`exchanges.lbank.roster.RosterStore`"""

    def exports(self, source: str) -> Any:
        """`exchanges.binance.kickback_export.store.KickbackExports`"""


@dataclass(frozen=True)
class Exchange:
    name: str
    title: str
    zone: ZoneInfo
    # Connects with the account in these variables, or in the configured ones if None.
    connect: Callable[["Endpoint", Shared, Mapping[str, str] | None], Session]
    # The environment variables that hold the credentials of an account.
    credentials: Callable[[str], tuple[str, ...]]


@dataclass(frozen=True)
class Memory:
    """How long the source keeps rows. `provable`: it may keep them longer, and an older row found proves it. `is_final`: it
    is not even asked for older ones, whoever may know that it has them.
    `second_chance`: another endpoint that has the same rows for longer. `asked_in_time`: whether a day that is no longer
    remembered was asked for while it was, and only has to be fetched."""

    span: timedelta
    provable: bool
    is_final: bool = False
    second_chance: "Endpoint | None" = None
    asked_in_time: Callable[[Any, date], bool] = lambda session, day: False


@dataclass(frozen=True)
class Probe:
    """How an account is tried without landing anything: the parameters, made of the session and the time (ms), of a
    request for next to nothing; a refusal is `about` these variables, by default the account's credentials."""

    params: Callable[[Any, int], Mapping[str, object]]
    about: str = ""


@dataclass(frozen=True)
class Earnings:
    """That an endpoint's rows are money earned: its `total` says how much, in which coin.

    Endpoints of an exchange with the same `kind` tell of the same money, so that of a day only one of them counts.
    """

    kind: str
    # The columns, first non-empty first, that say by whose trades or by whom it was earned; none if it is all one's own.
    earners: tuple[str, ...]
    # The column with the amount in USDT, where the source gives it.
    usdt: str | None = None
    # The column of codes that divides the kind, and the name of each code.
    kind_by: tuple[str, tuple[tuple[int, str], ...]] | None = None


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
    settles_after: timedelta
    memory: Memory | None
    # The column that says when a row happened, and the amount to sum by another column; None where there is none.
    instant: str | None = None
    total: tuple[str, str] | None = None
    # Two amounts of a row of which the first is never below the second.
    volume_and_fee: tuple[str, str] | None = None
    earnings: Earnings | None = None
    # The key of another endpoint that tells of the same rows: where both have landed a day, a check compares them.
    same_rows_as: str | None = None
    probe: Probe | None = None
    # An observation tells how things are now: only today's partition can be fetched.
    observation: bool = False
    # Its rows tell what was done at the exchange: a day keeps those it holds and gains those of each run.
    appends: bool = False
    # Environment variables that it needs beside its account's.
    requires: tuple[str, ...] = ()
    # When, in the exchange's zone, the schedule lands the last days (of an observation: today); None: only when asked.
    daily_at: time | None = None

    @property
    def key(self) -> str:
        return f"{self.exchange.name}/{self.name}"

    @property
    def credentials(self) -> tuple[str, ...]:
        """The environment variables without which it cannot be asked."""
        return self.exchange.credentials(self.account)

    def start_ms(self, day: date) -> int:
        return start_ms(day, self.exchange.zone)

    def end_ms(self, day: date) -> int:
        """The first millisecond after the day."""
        return self.timetable.end_ms(day)

    @property
    def timetable(self) -> Timetable:
        """When its days land, settle and expire."""
        second = self.memory.second_chance if self.memory else None
        return Timetable(
            self.key,
            self.exchange.zone,
            self.daily_at,
            self.settles_after,
            self.memory.span if self.memory else None,
            self.observation,
            second.timetable if second else None,
        )

    def has_settled(self, day: date, now_ms: int) -> bool:
        return self.timetable.has_settled(day, now_ms)

    def is_remembered(self, day: date, now_ms: int) -> bool:
        """Whether the whole day lies inside the memory that the source promises."""
        return self.timetable.is_retained(day, now_ms)

    def fetchable_until_ms(self, day: date) -> int | None:
        """The last millisecond at which `is_remembered` holds; None where no end of the memory is known."""
        return self.timetable.deadline_ms(day)
