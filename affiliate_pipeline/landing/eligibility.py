"""Which days of a run are fetched, retained or refused, by the ledger, the clock and the source's retention."""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import date

from affiliate_pipeline.domain.days import instant
from affiliate_pipeline.domain.problem import Problem
from affiliate_pipeline.exchanges.endpoint import ActionLog, Endpoint, Records, retention_of
from affiliate_pipeline.exchanges.fetching import DayBatch, DayError, Session
from affiliate_pipeline.http.errors import ExchangeError, Refused, Transient


class Expired(ExchangeError):
    """The source does not have the day any more, or whether it does cannot be proven."""


class NotEnded(ExchangeError):
    """The day has not ended yet: rows may follow."""


@dataclass(frozen=True)
class Decision:
    """What becomes of each day of a run: fetched, left as it has landed, or refused without a request."""

    fetch: Sequence[date]
    retain: Sequence[date]
    refuse: Mapping[date, Problem]


@dataclass(frozen=True)
class Availability:
    """Whether the source has days: by its promise, or by a proof that it retains more.

    With `trust_old` it is assumed to have every day that could be requested at all. `started_ms` is when the run began.
    """

    endpoint: Endpoint
    session: Session
    trust_old: bool
    now: Callable[[], int]
    started_ms: int
    # Until when (ms) days past the promised retention are known to be at the source, and why a proof failed.
    _proven_until_ms: dict[date, int] = field(default_factory=dict[date, int])
    _unproven: dict[date, ExchangeError] = field(default_factory=dict[date, ExchangeError])

    def is_promised(self, day: date, at_ms: int) -> bool:
        """Whether the source promises the day at that instant, prepares it on request, or is trusted to have it."""
        retention = retention_of(self.endpoint)
        if self.trust_old and isinstance(self.endpoint, Records) and not (retention and retention.is_final):
            return True
        if self.endpoint.timetable.is_retained(day, at_ms):
            return True
        return bool(retention and retention.requested_in_time and retention.requested_in_time(self.session, day))

    def is_proven(self, day: date) -> bool:
        return self.now() <= self._proven_until_ms.get(day, -1)

    def prove(self, days: Sequence[date]) -> None:
        """Find out whether the source has the days (in order), which it no longer promises.

        It does if it has an older row: if it expires rows meanwhile, that row is the first to go. Raises `Fatal`.
        """
        retention = retention_of(self.endpoint)
        if not (days and retention and retention.proof):
            return
        started_ms = self.now()
        try:
            oldest_ms = retention.proof(self.session, days[0], self.endpoint.exchange.zone)
        except (Refused, Transient) as error:
            self._unproven.update(dict.fromkeys(days, error))
            return
        if oldest_ms is not None:
            until_ms = ((day, started_ms + self.endpoint.start_ms(day) - oldest_ms) for day in days)
            self._proven_until_ms.update(until_ms)

    def still_has(self, day: date) -> bool:
        """Whether the source has the whole day now, after it was fetched."""
        if self.is_promised(day, self.exchange_now_ms()) or self.is_proven(day):
            return True
        if day in self._proven_until_ms:
            del self._proven_until_ms[day]
            self.prove([day])
        return self.is_proven(day)

    def exchange_now_ms(self) -> int:
        """The exchange's clock as far as it is known: ours until it has refused a timestamp."""
        return self.now() + self.session.client.clock_ahead_ms

    def confirmed(self, fetched: Generator[DayBatch | DayError]) -> Generator[DayBatch | DayError]:
        """The fetched days; those that expired meanwhile, so that rows may be missing, as errors."""
        with closing(fetched):
            for each in fetched:
                if not isinstance(self.endpoint, ActionLog) and not self.still_has(each.day):
                    problem = self.expired(each.day).problem
                    error = Expired(f"while it was being fetched, {problem.what}", problem.action)
                    received = each.error.received if isinstance(each, DayError) else ()
                    yield DayError(each.day, error.about(received), each.chunks)
                elif isinstance(each, DayBatch) and self._is_early(each):
                    what = "the day has not ended yet by the exchange's clock, which this machine's is ahead of"
                    action = "Set this machine's clock by NTP, then materialize the day after its end"
                    yield DayError(each.day, NotEnded(what, action))
                else:
                    yield each

    def requested_ms(self, fetched: DayBatch | DayError) -> int:
        """When, by the exchange's clock, this run began, or the oldest response was requested if by an earlier run."""
        began = self.started_ms + self.session.client.clock_ahead_ms
        oldest = fetched.requested_ms if isinstance(fetched, DayBatch) else None
        return min(began, oldest or began)

    def _is_early(self, batch: DayBatch) -> bool:
        return isinstance(self.endpoint, Records) and self.requested_ms(batch) < self.endpoint.end_ms(batch.day)

    def expired(self, day: date) -> Expired:
        """Why the day cannot be fetched, and what else may land it."""
        retention = retention_of(self.endpoint)
        if retention is None:
            return Expired("the endpoint returns only the present state, so no day but today can be fetched")
        promised = f"the day is beyond the {retention.promised.days} days that the source promises"
        if day in self._unproven:
            what = f"{promised}, and whether it still has it could not be found out: {self._unproven[day]}"
            return Expired(what, "Materialize the day again")
        if retention.proof:
            promised += " and no older row is left to prove that this one keeps more"
        action = "If you know that the source still has it, materialize with run config trust_old: true"
        fallback = retention.fallback
        if fallback and fallback.timetable.is_retained(day, self.exchange_now_ms()):
            until_ms = fallback.timetable.deadline_ms(day)
            until = f" until {instant(until_ms)}" if until_ms is not None else ""
            action = f"{fallback.key} can still land it{until}: materialize that instead"
        elif retention.is_final:
            action = "No request brings it any more"
        return Expired(
            f"{promised}. It was not landed, since an empty response would look like a day without rows", action
        )


def decide(days: Iterable[date], landed: Iterable[date], available: Availability) -> Decision:
    """What becomes of the days, in order; may send one request to prove that the source has old ones."""
    endpoint, started_ms = available.endpoint, available.started_ms
    fetch: list[date] = []
    refuse: dict[date, Problem] = {}
    past: list[date] = []
    for day in days:
        if isinstance(endpoint, Records) and started_ms < endpoint.end_ms(day):
            refuse[day] = NotEnded("the day has not ended yet", "Materialize it after its end").problem
        elif available.is_promised(day, started_ms):
            fetch.append(day)
        else:
            past.append(day)
    retain = sorted({*past} & {*landed})
    unknown = [day for day in past if day not in retain]
    available.prove(unknown)
    for day in unknown:
        if available.is_proven(day):
            fetch.append(day)
        else:
            refuse[day] = available.expired(day).problem
    return Decision(sorted(fetch), retain, refuse)
