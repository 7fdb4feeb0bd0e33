"""Lands days: fetch, validate, replace the day; one outcome per day, each committed before it is told.

Works without Dagster:

    with Store(database_url) as store, connected(endpoint, store) as session:
        for outcome in ingest(endpoint, days, session=session, store=store, run_id="by hand"):
            print(outcome)
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from itertools import chain, islice

from affiliate_pipeline.domain.days import fold
from affiliate_pipeline.domain.days import instant as time_of
from affiliate_pipeline.domain.problem import AffiliateError, Problem
from affiliate_pipeline.exchanges.spec import DayError, DayRows, Endpoint, Plan, Session
from affiliate_pipeline.http.bodies import REPLACEMENT
from affiliate_pipeline.http.errors import ExchangeError, Fatal
from affiliate_pipeline.landing.day_writer import Day, Facts, Ledger, Shrunken, Store, StoreError
from affiliate_pipeline.landing.ledger import handled_at
from affiliate_pipeline.postgres.rate_limiter import LONGEST_WAIT_S
from affiliate_pipeline.postgres.shared import Shared
from affiliate_pipeline.schema import decode
from affiliate_pipeline.schema.decode import ContentHash, Invalid, batches, damaged, parse, payload, split

BATCH_BYTES = 4 << 20
# So much of a day is made while PostgreSQL takes the day before.
BLOCKS_MADE = 4
LOG_EVERY_S = 10

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """What a run may be told: accept fewer rows than had landed, land rejected rows, trust a source beyond its
    promised memory."""

    allow_shrink: bool = False
    from_rejected: bool = False
    trust_old: bool = False


@dataclass(frozen=True)
class Landed:
    """The day holds exactly what the source has. `changed`: rows were written; `restated`: what the day had held when it
    had settled already; `new_fields`: unknown fields seen for the first time; `note`, `problems`: the strategy's."""

    day: date
    facts: Facts
    content_hash: str
    settled: bool
    source: str
    changed: bool
    requests: int
    unknown_fields: dict[str, int] = field(default_factory=dict)
    new_fields: Sequence[str] = ()
    restated: Facts | None = None
    note: str = ""
    problems: Sequence[str] = ()


@dataclass(frozen=True)
class Kept:
    """The day had landed and the source no longer holds it: nothing was asked or changed."""

    day: date
    facts: Facts
    content_hash: str
    settled: bool
    source: str


@dataclass(frozen=True)
class Failed:
    """The day did not land."""

    day: date
    problem: Problem


Outcome = Landed | Kept | Failed


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@contextmanager
def connected(
    endpoint: Endpoint,
    store: Store,
    longest_wait_s: float = LONGEST_WAIT_S,
    variables: Mapping[str, str] | None = None,
) -> Iterator[Session]:
    """A session with the endpoint's account whose rate limit is shared through the store's database; a pause of it that is
    longer raises `Banned`. The account is the one in `variables`, by default the one that is configured."""
    with Shared(store.url, handled_at, longest_wait_s) as shared:
        session = endpoint.exchange.connect(endpoint, shared, variables)
        with session.client:
            yield session


def ingest(
    endpoint: Endpoint,
    days: Sequence[date],
    *,
    session: Session,
    store: Store,
    run_id: str,
    options: Options = Options(),
    now: Callable[[], int] = now_ms,
) -> Iterator[Outcome]:
    """One outcome for each of the days, in any order."""
    pending = dict.fromkeys(sorted(days))
    ledger: dict[date, Ledger] = {}
    try:
        store.require_ready(endpoint)
        with store.alone(endpoint):
            store.create_table(endpoint)
            ledger.update(store.ledger(endpoint, days))
            for outcome in _Landing(endpoint, session, store, run_id, options, now, ledger).outcomes(list(pending)):
                del pending[outcome.day]
                yield outcome
            session.finished()
        problem = Problem("internal_error", "the fetch ended without this day: an internal error")
    except AffiliateError as error:
        # A fatal error fails every pending day, including the one being landed.
        problem = error.problem
    for day in pending:
        yield Failed(day, problem.adding(impact=_stored(ledger.get(day))))


@dataclass
class _Begun:
    """A day of which the first blocks are made, and the unknown fields seen in its rows so far."""

    landing: Day
    unknown: Counter[str] = field(default_factory=Counter)
    # In how many rows so far each column has U+FFFD.
    damaged: Counter[str] = field(default_factory=Counter)


@dataclass
class _Landing:
    endpoint: Endpoint
    session: Session
    store: Store
    run_id: str
    options: Options
    now: Callable[[], int]
    ledger: dict[date, Ledger]
    # Days beyond the promised memory that the source was seen to hold, and until when (ms) that is certain.
    _proven_until: dict[date, int] = field(default_factory=dict)
    # Days of which the source could not be asked whether it still holds them.
    _unasked: dict[date, ExchangeError] = field(default_factory=dict)

    def outcomes(self, days: list[date]) -> Iterator[Outcome]:
        asked_at = self.now()
        fetch: list[date] = []
        for day in days:
            held = self.ledger.get(day)
            if held and held.source != self.session.source:
                yield self._failed(
                    day,
                    "other_source",
                    f"its source is {held.source}, and the source of this run is {self.session.source}",
                    "Use the credentials and the base URL it was landed with, or another database",
                )
            elif self.options.from_rejected:
                yield self._land_rejected(day)
            elif not self.endpoint.observation and asked_at < self.endpoint.end_ms(day):
                yield self._failed(day, "not_ended", "the day has not ended yet", "Materialize it after its end")
            else:
                fetch.append(day)
        yield from self._fetch(fetch, asked_at)

    @property
    def _trusts_old(self) -> bool:
        # How things are now is never how they were.
        can_be_asked = not (self.endpoint.observation or (self.endpoint.memory and self.endpoint.memory.is_final))
        return self.options.trust_old and can_be_asked

    def _fetch(self, days: list[date], asked_at: int) -> Iterator[Outcome]:
        old = [] if self._trusts_old else [d for d in days if not self._is_held(d, asked_at)]
        for day in (day for day in old if day in self.ledger):
            yield self._kept(day)
        unproven = [day for day in old if day not in self.ledger]
        self._prove(unproven)
        for day in unproven:
            if day not in self._proven_until:
                yield self._failed(day, *self._expired(day))
        ask = [day for day in days if day not in old or day in self._proven_until]
        if not ask:
            return
        plan = self.endpoint.strategy.plan(self.session, ask, self.endpoint.exchange.zone)
        log.info("%s: asking for %s: %s", self.endpoint.key, fold(ask), plan)
        told_at = time.monotonic()
        fetching = self.endpoint.strategy.fetch(self.session, ask, self.endpoint.exchange.zone)
        begun: dict[date, Future[_Begun]] = {}
        with ThreadPoolExecutor(1, thread_name_prefix="begin") as beside:
            for done, fetched in enumerate(fetching, start=1):
                if isinstance(fetched, DayRows) and (following := fetched.following):
                    # Read and validated while PostgreSQL takes this one.
                    begun[following.day] = beside.submit(self._begin, following, asked_at, BLOCKS_MADE)
                yield self._outcome(fetched, asked_at, begun.pop(fetched.day, None))
                if done == len(ask) or time.monotonic() - told_at >= LOG_EVERY_S:
                    told_at = time.monotonic()
                    log.info("%s: %d of %d days done", self.endpoint.key, done, len(ask))

    def _outcome(self, fetched: DayRows | DayError, asked_at: int, begun: Future[_Begun] | None) -> Outcome:
        day = fetched.day
        # What was done at the exchange lands whenever it ended.
        if not self.endpoint.appends and not self._is_whole(day):
            if day in self.ledger:
                return self._kept(day)
            code, what, action = self._expired(day)
            problem = Problem(code, f"while it was being fetched, {what}", action=action)
            return self._rejected(fetched, asked_at, problem, complete=False)
        if isinstance(fetched, DayError):
            problem = fetched.error.problem.adding(action="Materialize the day again; if it stays, see the runbook")
            return self._rejected(fetched, asked_at, problem, complete=False)
        of_any_time = self.endpoint.observation or self.endpoint.appends
        if not of_any_time and self._asked_ms(fetched, asked_at) < self.endpoint.end_ms(day):
            return self._failed(
                day,
                "not_ended",
                "the day has not ended yet by the exchange's clock, which this machine's is ahead of",
                "Set this machine's clock by NTP, then materialize the day after its end",
            )
        return self._land(fetched, asked_at, begun)

    def _exchange_now(self) -> int:
        """The exchange's clock as far as it is known: ours until it has refused it."""
        return self.now() + self.session.client.clock_ahead_ms

    def _asked_ms(self, fetched: DayRows | DayError, asked_at: int) -> int:
        """When, by the exchange's clock, the run began that asked for the day, or the oldest answer was asked for if an
        earlier run did."""
        began = asked_at + self.session.client.clock_ahead_ms
        oldest = fetched.asked_ms if isinstance(fetched, DayRows) else None
        return min(began, oldest or began)

    def _rejected(self, fetched: DayRows | DayError, asked_at: int, problem: Problem, *, complete: bool) -> Failed:
        """The failed day, after storing what was received for it in `affiliate.rejected_row`."""
        more = fetched.error.received if isinstance(fetched, DayError) else ()

        def received() -> Iterator[str]:
            return map(payload, chain(split(fetched.chunks), more))

        if any(True for _ in received()):
            asked_ms = self._asked_ms(fetched, asked_at)
            arguments = (self.endpoint, fetched.day, self.run_id, self.session.source, problem.what, received, asked_ms)
            self.store.reject(*arguments, complete=complete)
            kept = "All rows are" if complete else "What was received of the day is"
            problem = problem.adding(impact=f"{kept} kept as received in affiliate.rejected_row")
        return Failed(fetched.day, problem.adding(impact=_stored(self.ledger.get(fetched.day))))

    def _is_whole(self, day: date) -> bool:
        """Whether the source, after the day was fetched, still holds all of it."""
        if self._trusts_old or self._is_held(day, self._exchange_now()):
            return True
        if self.now() > self._proven_until.get(day, math.inf):
            del self._proven_until[day]
            self._prove([day])
        return day in self._proven_until

    def _is_held(self, day: date, at_ms: int) -> bool:
        """Whether the source promises all of the day at that instant, or was asked for it while it did."""
        memory = self.endpoint.memory
        return self.endpoint.is_remembered(day, at_ms) or bool(memory and memory.asked_in_time(self.session, day))

    def _begin(self, fetched: DayRows, asked_at: int, blocks_made: int = 0) -> _Begun:
        """The day, with so many of its blocks made; raises `Invalid`."""
        day = fetched.day
        held = self.ledger.get(day) if self.endpoint.appends else None
        settled = self.endpoint.has_settled(day, self._asked_ms(fetched, asked_at))
        begun = _Begun(
            Day(
                partition=day,
                rows=held.rows if held else 0,
                content_hash=held.content_hash if held else ContentHash().hexdigest(),
                blocks=(),
                settled=settled,
                source=self.session.source,
                run_id=self.run_id,
                may_shrink=self.options.allow_shrink or not settled,
                left_out=frozenset() if self.options.allow_shrink else fetched.left_out,
                unlisted=() if self.options.allow_shrink else fetched.unlisted,
                stay=held.rows if held else 0,
            )
        )
        blocks = self._blocks(fetched.chunks, begun)
        begun.landing.blocks = chain(list(islice(blocks, blocks_made)), blocks)
        return begun

    def _land(self, fetched: DayRows, asked_at: int, begun: Future[_Begun] | None = None) -> Outcome:
        day = fetched.day
        try:
            day_begun = begun.result() if begun else self._begin(fetched, asked_at)
            landing, unknown = day_begun.landing, day_begun.unknown
            landed = self.store.land(self.endpoint, landing)
        except Invalid as invalid:
            problem = Problem(
                "invalid_rows",
                f"its rows do not fit the schema: {invalid} (first in row {invalid.first_row + 1} of {fetched.rows})",
                action="Fix the schema, then materialize with run config from_rejected: true",
            )
            return self._rejected(fetched, asked_at, problem, complete=True)
        except Shrunken as error:
            problem = error.problem.adding(
                action="If the source is right, materialize with run config allow_shrink: true; the rows removed are then "
                "kept in affiliate.superseded_row"
            )
            return self._rejected(fetched, asked_at, problem, complete=False)
        except StoreError as error:
            action = "Fix the cause, then materialize with run config from_rejected: true"
            return self._rejected(fetched, asked_at, error.problem.adding(action=action), complete=True)
        problems = (*fetched.problems, *_damage(day_begun.damaged))
        if landed.difference:
            problems += (
                f"the table held {landed.difference} than had landed, although the source's rows are the same: they were landed "
                "again, and the rows changed or removed are in affiliate.superseded_row",
            )
        for problem in problems:
            log.warning("%s %s: %s", self.endpoint.key, day, problem)
        if landed.new_fields:
            log.warning(
                "%s %s: fields that the schema does not know are kept in column extra: %s. Add them to the schema",
                self.endpoint.key,
                day,
                ", ".join(f"{name} ({unknown[name]} rows)" for name in landed.new_fields),
            )
        return Landed(
            day=day,
            facts=landed.facts,
            content_hash=landing.content_hash,
            settled=landing.settled,
            source=self.session.source,
            changed=landed.changed,
            requests=fetched.requests,
            unknown_fields=dict(unknown),
            new_fields=landed.new_fields,
            restated=landed.restated,
            note=fetched.note,
            problems=problems,
        )

    def _blocks(self, chunks: Iterable[bytes], begun: _Begun) -> Iterator[bytes]:
        """The rows as COPY text; at their end `begun` says what they were. Raises `Invalid` once all rows were read."""
        landing, unknown, texts = begun.landing, begun.unknown, begun.damaged
        day, instant = landing.partition, self.endpoint.instant
        inside = (instant, self.endpoint.start_ms(day), self.endpoint.end_ms(day)) if instant else None
        content = ContentHash(landing.content_hash)
        problems: list[decode.Problem] = []
        rows_before = 0
        for batch in batches(chunks, BATCH_BYTES):
            try:
                parsed = parse(self.endpoint.schema, batch, inside)
            except Invalid as invalid:
                problems += (replace(each, row=rows_before + each.row) for each in invalid.problems)
                rows_before += sum(1 for _ in split(batch))
                continue
            unknown.update(parsed.unknown)
            landing.rows += len(parsed.table)
            rows_before += len(parsed.table)
            block = content.add(parsed.table)
            if REPLACEMENT in block:
                texts.update(damaged(parsed.table))
            if not problems:
                yield block
        if problems:
            raise Invalid(problems)
        landing.content_hash, landing.unknown_fields = content.hexdigest(), list(unknown)

    def _land_rejected(self, day: date) -> Outcome:
        rejected = self.store.rejected(self.endpoint, day)
        if rejected is None:
            return self._failed(
                day,
                "nothing_rejected",
                "affiliate.rejected_row holds nothing for it",
                "Materialize it without from_rejected",
            )
        if rejected.source != self.session.source:
            return self._failed(
                day,
                "other_source",
                f"the source of its rejected rows is {rejected.source}, and the source of this run is {self.session.source}",
                "Use the credentials and the base URL they came with",
            )
        if not rejected.complete:
            return self._failed(
                day,
                "incomplete",
                f"affiliate.rejected_row holds only a part of the day ({rejected.reason}), so it cannot land",
                "Materialize it without from_rejected",
            )
        asked_ms = int(rejected.rejected_at.timestamp() * 1000)
        return self._land(DayRows(day, rejected.rows, len(rejected.rows), requests=0, asked_ms=asked_ms), self.now())

    def _kept(self, day: date) -> Kept | Failed:
        held, facts = self.ledger[day], self.store.facts(self.endpoint, day)
        if facts.rows != held.rows:
            return self._failed(
                day,
                "table_changed",
                f"the source no longer has the day, and the table holds {facts.rows} rows of it instead of the {held.rows} that "
                "landed: something else has changed them",
                "Restore the day from a backup",
            )
        return Kept(day, facts, held.content_hash, held.settled, held.source)

    def _failed(self, day: date, code: str, what: str, action: str) -> Failed:
        return Failed(day, Problem(code, what, _stored(self.ledger.get(day)), action))

    def _expired(self, day: date) -> tuple[str, str, str]:
        """The code, what and action of a day that the source no longer has."""
        if self.endpoint.observation:
            return "expired", "the endpoint tells only how things are now, so no day but today can be fetched", ""
        memory = self.endpoint.memory
        assert memory is not None
        if day in self._unasked:
            what = (
                f"the day lies beyond the {memory.span.days} days that the source promises, and whether it still has it could "
                f"not be asked: {self._unasked[day]}"
            )
            return "unproven", what, "Materialize the day again"
        proof = " and no older row is left to prove that this one keeps more" if memory.provable else ""
        what = (
            f"the day lies beyond the {memory.span.days} days that the source promises{proof}. It was not landed, since an "
            "empty answer would look like a quiet day"
        )
        second = memory.second_chance
        if second and second.is_remembered(day, self._exchange_now()):
            until_ms = second.fetchable_until_ms(day)
            assert until_ms is not None
            action = f"{second.key} can still land it until {time_of(until_ms)}: materialize that instead"
        elif memory.is_final:
            action = "No request brings it any more"
        else:
            action = "If you know that the source still has it, materialize with run config trust_old: true"
        return "expired", what, action

    def _prove(self, days: list[date]) -> None:
        """Notes which of the days, beyond the promised memory, the source still holds, and how long that is certain.

        It does if it has a row older than all of them. Should it forget as time goes on, it forgets that row first.
        Raises `Fatal`; of a request that fails otherwise the days say so.
        """
        if not (days and self.endpoint.memory and self.endpoint.memory.provable):
            return
        asked_at = self.now()
        try:
            oldest = self.endpoint.strategy.oldest_before(self.session, days[0], self.endpoint.exchange.zone)
        except Fatal:
            raise
        except ExchangeError as error:
            self._unasked |= dict.fromkeys(days, error)
            return
        if oldest is not None:
            self._proven_until |= {day: asked_at + self.endpoint.start_ms(day) - oldest for day in days}


def plan_of(endpoint: Endpoint, days: Sequence[date], *, session: Session, store: Store) -> Plan:
    """What materializing the days would cost; days that are kept, or refused unasked, cost nothing."""
    now = now_ms()
    ledger = store.ledger(endpoint, days)
    asked = [day for day in days if endpoint.is_remembered(day, now) or not (day in ledger or endpoint.observation)]
    if not asked:
        return Plan(0, 0, 0)
    return endpoint.strategy.plan(session, asked, endpoint.exchange.zone)


def _damage(rows: Mapping[str, int]) -> Iterator[str]:
    """A problem for each column in which texts landed with U+FFFD."""
    for name, count in rows.items():
        yield (
            f"{name} has U+FFFD in {count} {'row' if count == 1 else 'rows'}: the exchange sent invalid text there, such as "
            "half an emoji. Everything else landed as sent"
        )


def _stored(held: Ledger | None) -> str:
    """The impact of a failure on what had landed for the day."""
    if held is None:
        return "Nothing of this day has landed"
    return f"The {held.rows} rows landed at {held.landed_at:%Y-%m-%d %H:%M} UTC are untouched"
