"""Land days in three stages: fetch, prepare, write. Yields each outcome after its commit.

Works without Dagster:

    with Store(database_url) as store, connected(endpoint, store, variables) as session:
        for outcome in land_days(endpoint, days, session=session, store=store, run_id="by hand"):
            print(outcome)
"""

import logging
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import partial
from itertools import chain

from affiliate_pipeline.domain.days import format_days
from affiliate_pipeline.domain.problem import AffiliateError, Problem
from affiliate_pipeline.domain.wording import count_of
from affiliate_pipeline.exchanges.endpoint import Endpoint, Records, SessionT
from affiliate_pipeline.exchanges.fetching import DayBatch, DayError, RequestPlan, Session
from affiliate_pipeline.exchanges.shared_state import SharedState
from affiliate_pipeline.landing import endpoint_tables, quarantine
from affiliate_pipeline.landing.day_writer import DayWriter, Landed, Shrunken, StoreError
from affiliate_pipeline.landing.eligibility import Availability, Expired, NotEnded, eligibility_of
from affiliate_pipeline.landing.endpoint_tables import DayStats, stats_of
from affiliate_pipeline.landing.ledger import LedgerEntry, has_landed
from affiliate_pipeline.landing.prepare import Block, PreparedDay, prepared
from affiliate_pipeline.landing.quarantine import Rejection
from affiliate_pipeline.landing.store import Store
from affiliate_pipeline.postgres.errors import as_store_unavailable
from affiliate_pipeline.postgres.rate_limiter import MAX_WAIT_S
from affiliate_pipeline.schema.invalid import Invalid
from affiliate_pipeline.schema.raw_row import payload, split

LOG_EVERY_S = 10

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """Exceptions to the rules of a run.

    `allow_shrink`: accept fewer rows than had landed. `from_rejected`: land rejected rows instead of fetching.
    `trust_old`: fetch days that the source no longer promises.
    """

    allow_shrink: bool = False
    from_rejected: bool = False
    trust_old: bool = False


@dataclass(frozen=True)
class Retained:
    """The day had landed and has since expired at the source; its rows are unchanged."""

    day: date
    stats: DayStats
    content_hash: str
    settled: bool
    source: str


@dataclass(frozen=True)
class Failed:
    """The day did not land."""

    day: date
    problem: Problem


Outcome = Landed | Retained | Failed


def now_ms() -> int:
    """This machine's clock in Unix milliseconds."""
    return time.time_ns() // 1_000_000


@contextmanager
def connected(
    endpoint: Endpoint[SessionT], store: Store, variables: Mapping[str, str], max_wait_s: float = MAX_WAIT_S
) -> Generator[SessionT]:
    """A session with the endpoint's account, whose credentials are in `variables`.

    Its rate limits are shared through the store's database; a pause longer than `max_wait_s` raises `Banned`.
    """
    with SharedState(store.url, quarantine.landed_or_rejected_at, has_landed, max_wait_s) as shared:
        session = endpoint.exchange.connect(endpoint, shared, variables)
        with session.client:
            yield session


def land_days(
    endpoint: Endpoint,
    days: Sequence[date],
    *,
    session: Session,
    store: Store,
    run_id: str,
    options: Options = Options(),
    now: Callable[[], int] = now_ms,
) -> Iterator[Outcome]:
    """Yield one outcome per day, in any order."""
    # Imported here: it imports pandas, pandera and pyarrow, which most processes never use. That takes seconds, which have
    # to be over before the asset is locked and the first day's transaction begins.
    from affiliate_pipeline.landing.blocks import blocks_of

    pending = dict.fromkeys(sorted(days))
    ledger: dict[date, LedgerEntry] = {}
    try:
        store.require_ready(endpoint)
        with store.exclusive(endpoint):
            endpoint_tables.ensure(store.connection, endpoint)
            ledger.update(store.ledger(endpoint, days))
            # This verifies that the key is not of another account, before any record is requested.
            sources = session.identity.sources
            availability = Availability(endpoint, session, options.trust_old, now, started_ms=now())
            writer = DayWriter(store.connection, endpoint, session.source, sources, run_id, options.allow_shrink)
            run = LandingRun(availability, writer, partial(blocks_of, endpoint=endpoint), options.from_rejected, ledger)
            for outcome in run.outcomes(list(pending)):
                del pending[outcome.day]
                yield outcome
            session.finished()
        # For days without an outcome, of which there should be none.
        problem = Problem("internal_error", "the fetch ended without this day: an internal error")
    except AffiliateError as error:
        # A fatal error fails every pending day, including the one being landed.
        problem = error.problem

    for day in pending:
        yield Failed(day, problem.adding(impact=_impact_on(ledger.get(day))))


@dataclass(frozen=True)
class LandingRun:
    """Lands days of one asset under its lock; `ledger` has the days that had landed before."""

    availability: Availability
    writer: DayWriter
    blocks_of: Callable[[DayBatch], Iterator[Block]]
    from_rejected: bool
    ledger: Mapping[date, LedgerEntry]

    @property
    def endpoint(self) -> Endpoint:
        """The endpoint of the asset."""
        return self.availability.endpoint

    @property
    def session(self) -> Session:
        """The session with the endpoint's account."""
        return self.availability.session

    def outcomes(self, days: Sequence[date]) -> Iterator[Outcome]:
        """One outcome per day, each after its commit; raises `AffiliateError` if no further one can follow."""
        same_source: list[date] = []
        for day in days:
            entry = self.ledger.get(day)
            if entry and entry.source not in self.writer.sources:
                what = f"its source is {entry.source}, and the source of this run is {self.session.source}"
                action = (
                    "Use the credentials and the base URL it was landed with, or another database. If only the key differs, and "
                    f"both are of the same account, run `{self.session.identity.key.rotation}`"
                )
                yield self._failed(day, Problem("other_source", what, action=action))
            else:
                same_source.append(day)

        if self.from_rejected:
            yield from map(self._land_rejected, same_source)
        else:
            yield from self._fetch_and_land(same_source)

    def _fetch_and_land(self, days: Sequence[date]) -> Iterator[Outcome]:
        eligibility = eligibility_of(days, self.ledger, self.availability)
        for day in eligibility.retain:
            yield self._retained(day)
        for day, problem in eligibility.refuse.items():
            yield self._failed(day, problem)
        days_to_fetch = eligibility.fetch
        if not days_to_fetch:
            return

        strategy, zone = self.endpoint.strategy, self.endpoint.exchange.zone
        plan = strategy.plan(self.session, days_to_fetch, zone)
        log.info("%s: fetching %s: %s", self.endpoint.key, format_days(days_to_fetch), plan)

        logged_at = time.monotonic()
        batches = self.availability.confirmed(strategy.fetch(self.session, days_to_fetch, zone))
        with prepared(batches, self.blocks_of, self.session.cancel) as prepared_days:
            for done, day in enumerate(prepared_days, start=1):
                yield self._land(day) if isinstance(day, PreparedDay) else self._not_fetched(day)
                if done == len(days_to_fetch) or time.monotonic() - logged_at >= LOG_EVERY_S:
                    logged_at = time.monotonic()
                    log.info("%s: %d of %s done", self.endpoint.key, done, count_of(len(days_to_fetch), "day"))

    def _not_fetched(self, failed: DayError) -> Outcome:
        """The outcome of a day that could not be fetched: retained if it has landed and expired, otherwise failed."""
        error = failed.error
        if isinstance(error, Expired) and failed.day in self.ledger:
            return self._retained(failed.day)
        problem = error.problem
        if not isinstance(error, Expired | NotEnded):
            problem = problem.adding(action="Materialize the day again; if it fails again, see the runbook")
        return self._reject(failed, problem, complete=False)

    def _land(self, day: PreparedDay) -> Outcome:
        """Write the day and log its warnings; if it cannot be written, store its rows as rejected."""
        batch = day.batch
        settled = self.endpoint.timetable.has_settled(batch.day, self.availability.requested_ms(batch))
        try:
            landed = self.writer.write(day, settled=settled)
        except Invalid as invalid:
            what = f"its rows do not fit the schema: {invalid} (first in row {invalid.first_row + 1} of {batch.rows})"
            action = "Fix the schema, then materialize with run config from_rejected: true"
            return self._reject(batch, Problem("invalid_rows", what, action=action), complete=True)
        except StoreError as error:
            # Rows of a shrunken day may be incomplete, so `from_rejected` must not land them: `allow_shrink` fetches
            # the day again.
            return self._reject(batch, error.problem, complete=not isinstance(error, Shrunken))

        for warning in landed.warnings:
            self._warn(batch.day, warning)
        if landed.new_fields:
            rows_by_field = landed.unknown_fields
            fields = ", ".join(f"{name} ({count_of(rows_by_field[name], 'row')})" for name in landed.new_fields)
            self._warn(
                batch.day, f"fields that the schema lacks are stored in column extra: {fields}. Add them to the schema"
            )
        return landed

    def _warn(self, day: date, text: str) -> None:
        log.warning("%s %s: %s", self.endpoint.key, day, text)

    def _reject(self, fetched: DayBatch | DayError, problem: Problem, *, complete: bool) -> Failed:
        """Store what was received for the day in `affiliate.rejected_row`; return the failed day."""
        received_by_error = fetched.error.received if isinstance(fetched, DayError) else ()

        def received() -> Iterator[str]:
            return map(payload, chain(split(fetched.chunks), received_by_error))

        received_anything = any(True for _ in received())
        if not received_anything:
            return self._failed(fetched.day, problem)

        requested_at = datetime.fromtimestamp(self.availability.requested_ms(fetched) / 1000, UTC)
        why = Rejection(self.session.source, requested_at, problem.what, complete)
        run_id = self.writer.run_id
        if quarantine.store(self.writer.connection, self.endpoint.key, fetched.day, run_id, why, received):
            subject = "All rows are" if complete else "What was received of the day is"
            impact = f"{subject} stored unchanged in {quarantine.TABLE}"
        else:
            impact = f"{quarantine.TABLE} still has the rows that an earlier run received, which are more complete"
        return self._failed(fetched.day, problem.adding(impact=impact))

    def _land_rejected(self, day: date) -> Outcome:
        """Land the day from its rejected rows, if they are complete and of the same source."""
        stored = quarantine.rejected(self.writer.connection, self.endpoint.key, day)
        if stored is None:
            what = f"{quarantine.TABLE} has no rows of it"
            return self._failed(day, Problem("nothing_rejected", what, action="Materialize it without from_rejected"))

        why, rows = stored
        if why.source not in self.writer.sources:
            what = f"the source of its rejected rows is {why.source}, and that of this run is {self.session.source}"
            action = "Use the credentials and the base URL they were fetched with"
            return self._failed(day, Problem("other_source", what, action=action))
        if not why.complete:
            what = f"{quarantine.TABLE} has only a part of the day ({why.reason}), so it cannot land"
            return self._failed(day, Problem("incomplete", what, action="Materialize it without from_rejected"))

        requested_ms = int(why.requested_at.timestamp() * 1000)
        batch = DayBatch(day, rows, len(rows), requests=0, requested_ms=requested_ms)
        return self._land(PreparedDay(batch, self.blocks_of(batch)))

    def _retained(self, day: date) -> Retained | Failed:
        """The day as retained; failed if the table no longer has the number of rows that landed."""
        entry, connection = self.ledger[day], self.writer.connection
        with as_store_unavailable(), connection.transaction():
            stats = stats_of(connection, self.endpoint, day)
        if stats.rows == entry.rows:
            return Retained(day, stats, entry.content_hash, entry.settled, entry.source)
        what = (
            f"the source no longer has the day, and the table has {count_of(stats.rows, 'row')} of it instead of the "
            f"{entry.rows} that landed: something else has changed the table"
        )
        return self._failed(day, Problem("table_changed", what, action="Restore the day from a backup"))

    def _failed(self, day: date, problem: Problem) -> Failed:
        return Failed(day, problem.adding(impact=_impact_on(self.ledger.get(day))))


def plan_of(endpoint: Endpoint, days: Sequence[date], *, session: Session, store: Store) -> RequestPlan:
    """What fetching these days costs, not counting expired ones that landed or are snapshots."""
    now = now_ms()
    ledger = store.ledger(endpoint, days)
    # Verify the key first: some strategies request records for their plan, and the key may be of another account.
    _ = session.identity.sources
    has_past_days = isinstance(endpoint, Records)
    to_fetch: list[date] = []
    for day in days:
        may_be_proven = has_past_days and day not in ledger
        if endpoint.timetable.is_retained(day, now) or may_be_proven:
            to_fetch.append(day)
    if not to_fetch:
        return RequestPlan(0, 0, 0)
    return endpoint.strategy.plan(session, to_fetch, endpoint.exchange.zone)


def _impact_on(entry: LedgerEntry | None) -> str:
    """The impact of a failure: what had landed for the day."""
    if entry is None:
        return "Nothing of this day has landed"
    return f"What landed at {entry.landed_at:%Y-%m-%d %H:%M} UTC ({count_of(entry.rows, 'row')}) is unchanged"
