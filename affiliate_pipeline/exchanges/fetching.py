"""The interface of fetching: sessions, strategies, complete days and failed days."""

import threading
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Protocol
from zoneinfo import ZoneInfo

from typing_extensions import TypeVar

from affiliate_pipeline.domain.wording import count_of, duration
from affiliate_pipeline.exchanges.identity import KeyIdentity
from affiliate_pipeline.http.client import Client
from affiliate_pipeline.http.errors import ExchangeError


@dataclass(frozen=True)
class DayBatch:
    """All rows of one day as received; those of records are proven complete.

    `chunks` are JSON objects joined by commas, and can be read more than once. `requested_ms` is when the oldest
    response was requested; it may be None if that was after the run began. `note` and `warnings` are for people; a
    warning needs a fix.

    `excluded` has an entry for each user that the exchange refuses, `without_list` for each response without a list
    (see the module `exchanges.lists`). An entry has the values (by JSON name) that the missing rows would share; an
    empty one matches any row. Landed rows that match must not be removed.
    """

    day: date
    chunks: Iterable[bytes]
    rows: int
    requests: int
    requested_ms: int | None = None
    note: str = ""
    warnings: tuple[str, ...] = ()
    excluded: Sequence[Mapping[str, object]] = ()
    without_list: Sequence[Mapping[str, object]] = ()


@dataclass(frozen=True)
class DayError:
    """Why a day could not be fetched, and the rows received before, as in `DayBatch`.

    They are stored together with those in `error.received`, but never land, since other rows may be missing.
    """

    day: date
    error: ExchangeError
    chunks: Iterable[bytes] = ()


@dataclass(frozen=True)
class RequestPlan:
    """How many requests some days take, and how long the minimum takes at the permitted rate.

    `max_requests` is None if unknown. `changes` are lines about what would, and would not, be changed at the exchange.
    """

    min_requests: int
    max_requests: int | None
    seconds: float
    changes: tuple[str, ...] = ()

    def __str__(self) -> str:
        at_least = "" if self.max_requests == self.min_requests else "at least "
        cost = f"{at_least}{count_of(self.min_requests, 'request')}"
        if self.seconds:
            cost += f", {at_least}{duration(self.seconds)} at the permitted rate"
        return "\n  ".join([cost, *self.changes])


@dataclass(frozen=True)
class Session:
    """A signed client of one account, and the identity of its key."""

    client: Client
    identity: KeyIdentity
    cancelled: threading.Event = field(default_factory=threading.Event, kw_only=True)
    # By table name: the counts of a reference table after its refresh by this session, for the asset's metadata.
    refreshed: dict[str, Mapping[str, int]] = field(
        default_factory=dict[str, Mapping[str, int]], kw_only=True, compare=False
    )

    @property
    def source(self) -> str:
        """The source that the ledger records for days of this session."""
        return self.identity.source

    def cancel(self) -> None:
        """Make the fetch in another thread fail soon: no further request is sent."""
        self.cancelled.set()
        self.client.close()

    def finished(self) -> None:
        """Drop what is stored to resume a run; called at the end, when each day has its outcome."""


SessionT = TypeVar("SessionT", bound=Session, default=Session, contravariant=True)


class Strategy(Protocol[SessionT]):
    """How an endpoint's days are fetched."""

    @property
    def path(self) -> str:
        """The path of the endpoint's URL."""
        ...

    def plan(self, session: SessionT, days: Sequence[date], zone: ZoneInfo) -> RequestPlan:
        """What `fetch` will cost; may send GETs, but changes nothing at the exchange."""
        ...

    def fetch(self, session: SessionT, days: Sequence[date], zone: ZoneInfo) -> Generator[DayBatch | DayError]:
        """Yield each day once, in any order; raises `Fatal` if no further request can succeed."""
        ...
