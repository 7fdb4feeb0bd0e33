"""Which days are fetched, retained or refused: by ledger, clock and source retention."""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import date

from affiliate_pipeline.domain.days import utc_text
from affiliate_pipeline.domain.problem import Problem
from affiliate_pipeline.exchanges.endpoint import ActionLog, Endpoint, Records, Retention, retention_of
from affiliate_pipeline.exchanges.fetching import DayBatch, DayError, Session
from affiliate_pipeline.http.errors import ExchangeError, Refused, Transient


class Expired(ExchangeError):
    """The source no longer has the day, or cannot be proven to have it."""


class NotEnded(ExchangeError):
    """The day has not ended, so more rows may follow."""


@dataclass(frozen=True)
class Eligibility:
    """The days of a run to fetch, to retain as landed, and to refuse without a request."""

    fetch: Sequence[date]
    retain: Sequence[date]
    refuse: Mapping[date, Problem]


@dataclass(frozen=True)
class Availability:
    """Whether the source has a day: because it promises to, or because that was proven.

    With `trust_old`, it is assumed to have all records, except where `Retention.is_final`.
    `started_ms`: when the run began.
    """

    endpoint: Endpoint
    session: Session
    trust_old: bool
    now: Callable[[], int]
    started_ms: int
    # By day past the promised retention: until when (ms) the source is proven to have it, and why a proof failed.
    _proven_until_ms: dict[date, int] = field(default_factory=dict[date, int])
    _unproven: dict[date, ExchangeError] = field(default_factory=dict[date, ExchangeError])

    def is_promised(self, day: date, at_ms: int) -> bool:
        """Whether the day counts as available at `at_ms` without a proof.

        The source promises it, an export of it was requested in time, or `trust_old` assumes that the source has it.
        """
        retention = retention_of(self.endpoint)
        is_final = retention is not None and retention.is_final
        if self.trust_old and isinstance(self.endpoint, Records) and not is_final:
            return True
        if self.endpoint.timetable.is_retained(day, at_ms):
            return True
        if retention is None or retention.requested_in_time is None:
            return False
        return retention.requested_in_time(self.session, day)

    def is_proven(self, day: date) -> bool:
        """Whether a proof that the source has the day still applies."""
        return self.now() <= self._proven_until_ms.get(day, -1)

    def prove(self, days: Sequence[date]) -> None:
        """Request a row older than `days` (in order), which proves that the source still has them.

        Rows expire oldest first: a day is complete at least until it is as old as that row is now. If the request
        fails with `Refused` or `Transient`, the error is recorded for `expired`; a `Fatal` error is raised instead.
        """
        retention = retention_of(self.endpoint)
        if not days or retention is None or retention.proof is None:
            return

        before_proof_ms = self.now()
        try:
            older_row_ms = retention.proof(self.session, days[0], self.endpoint.exchange.zone)
        except (Refused, Transient) as error:
            self._unproven.update(dict.fromkeys(days, error))
            return
        if older_row_ms is None:
            return
        for day in days:
            newer_by_ms = self.endpoint.start_ms(day) - older_row_ms
            self._proven_until_ms[day] = before_proof_ms + newer_by_ms

    def still_has(self, day: date) -> bool:
        """Whether the source still has the whole day after the fetch; renews an outdated proof."""
        if self.is_promised(day, self.exchange_now_ms()) or self.is_proven(day):
            return True
        if day in self._proven_until_ms:
            del self._proven_until_ms[day]
            self.prove([day])
        return self.is_proven(day)

    def exchange_now_ms(self) -> int:
        """The exchange's time, assumed to be this machine's until a timestamp is rejected."""
        return self.now() + self.session.client.clock_ahead_ms

    def confirmed(self, fetched: Generator[DayBatch | DayError]) -> Generator[DayBatch | DayError]:
        """The fetched days; one that expired meanwhile, or had not ended yet, becomes an error."""
        with closing(fetched):
            for day in fetched:
                yield self._confirmed_day(day)

    def _confirmed_day(self, fetched: DayBatch | DayError) -> DayBatch | DayError:
        day = fetched.day
        if not isinstance(self.endpoint, ActionLog) and not self.still_has(day):
            problem = self.expired(day).problem
            error = Expired(f"the day expired while it was being fetched: {problem.what}", problem.action)
            received = fetched.error.received if isinstance(fetched, DayError) else ()
            return DayError(day, error.about(received), fetched.chunks)

        if isinstance(fetched, DayBatch) and self._is_early(fetched):
            what = "the day has not ended yet by the exchange's clock: this machine's clock is ahead"
            action = "Set this machine's clock by NTP, then materialize the day after its end"
            return DayError(day, NotEnded(what, action))
        return fetched

    def requested_ms(self, fetched: DayBatch | DayError) -> int:
        """When the run started or, if earlier, the oldest response was requested (exchange time)."""
        started_ms = self.started_ms + self.session.client.clock_ahead_ms
        if isinstance(fetched, DayBatch) and fetched.requested_ms is not None:
            return min(started_ms, fetched.requested_ms)
        return started_ms

    def _is_early(self, batch: DayBatch) -> bool:
        return isinstance(self.endpoint, Records) and self.requested_ms(batch) < self.endpoint.end_ms(batch.day)

    def expired(self, day: date) -> Expired:
        """Why the day cannot be fetched, and what else may land it."""
        retention = retention_of(self.endpoint)
        if retention is None:
            return Expired("the endpoint has no past days, so only today can be materialized")

        reason = f"the day is beyond the {retention.promised.days} days that the source promises"
        if day in self._unproven:
            error = self._unproven[day]
            what = f"{reason}, and it could not be determined whether the source still has the day: {error}"
            return Expired(what, "Materialize the day again")

        if retention.proof:
            reason += ", and no older row proves that it has retained more"
        what = f"{reason}. It was not landed, since an empty response would look like a day without rows"
        return Expired(what, self._action_if_expired(day, retention))

    def _action_if_expired(self, day: date, retention: Retention) -> str:
        fallback = retention.fallback
        if fallback and fallback.timetable.is_retained(day, self.exchange_now_ms()):
            until_ms = fallback.timetable.deadline_ms(day)
            until = f" until {utc_text(until_ms)}" if until_ms is not None else ""
            return f"{fallback.key} can still land it{until}: materialize that instead, as its description says"
        if retention.is_final:
            return "It can no longer be fetched"
        return "If you know that the source still has it, materialize with run config trust_old: true"


def eligibility_of(days: Iterable[date], landed: Iterable[date], availability: Availability) -> Eligibility:
    """Decide which of `days` (in order) to fetch, retain or refuse; may send one request to `prove` old ones."""
    endpoint, started_ms = availability.endpoint, availability.started_ms
    fetch: list[date] = []
    refuse: dict[date, Problem] = {}
    unpromised: list[date] = []
    for day in days:
        if isinstance(endpoint, Records) and started_ms < endpoint.end_ms(day):
            refuse[day] = NotEnded("the day has not ended yet", "Materialize it after its end").problem
        elif availability.is_promised(day, started_ms):
            fetch.append(day)
        else:
            unpromised.append(day)

    retain = sorted(set(unpromised) & set(landed))
    to_prove = [day for day in unpromised if day not in retain]
    availability.prove(to_prove)
    for day in to_prove:
        if availability.is_proven(day):
            fetch.append(day)
        else:
            refuse[day] = availability.expired(day).problem

    return Eligibility(sorted(fetch), retain, refuse)
