"""Giving out customer ids: what is wanted is compared with what is there, and only what differs is posted.

Each attempt is kept before it is made and again when its outcome is known. So a run that is killed loses none, and the next
one looks what became of the last attempt before it makes another.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, Literal
from uuid import uuid4
from zoneinfo import ZoneInfo

import msgspec

from affiliate_pipeline.domain.redaction import redact
from affiliate_pipeline.environment import Binance
from affiliate_pipeline.exchanges.binance.customer_ids.desired import Wish, masked
from affiliate_pipeline.exchanges.binance.customer_ids.snapshot import rows_of
from affiliate_pipeline.exchanges.binance.exchange import BinanceSession
from affiliate_pipeline.exchanges.spec import DayError, DayRows, Plan
from affiliate_pipeline.http.client import ATTEMPTS
from affiliate_pipeline.http.errors import ExchangeError, OutcomeUnknown, Refused
from affiliate_pipeline.schema.decode import identities

# `unknown` never lands: the next run settles it.
ASSIGNED, REFUSED, FAILED, UNKNOWN = "assigned", "refused", "failed", "unknown"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Change:
    """What has to be posted, and the ids that its person had before."""

    wish: Wish
    before: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.wish}: to be assigned, now {', '.join(self.before) or 'none'}"


@dataclass(frozen=True)
class Assignment:
    """Posts to `path` and looks by its GET. `whose` is the parameter that names a person besides `customerId`.

    `listed`: without parameters the GET gives everybody's ids. `variable` is where the wishes come from.
    """

    path: str
    whose: Literal["email", "apiAgentCode"]
    wishes: Callable[[Binance], list[Wish]]
    variable: str
    listed: bool

    def plan(self, session: BinanceSession, days: Sequence[date], zone: ZoneInfo) -> Plan:
        """Sends the requests that it takes to compare."""
        wishes = self.wishes(session.settings)
        if not wishes:
            return Plan(0, 0, 0, (self.nothing_wanted(),))
        asked_before = session.client.requests_sent
        changes: list[_Change] = []

        def would_succeed(change: _Change) -> bool:
            changes.append(change)
            return True

        faulty = self.work_off(session, wishes, would_succeed)
        least = session.client.requests_sent - asked_before + len(changes)
        in_place = len(wishes) - len(changes) - len(faulty)
        return Plan(
            least,
            None,
            0,
            (*map(str, changes), *(f"{wish}. Nothing will be posted" for wish in faulty), f"{in_place} are in place"),
        )

    def fetch(self, session: BinanceSession, days: Sequence[date], zone: ZoneInfo) -> Iterator[DayRows | DayError]:
        for day in days:
            work = _Work(self, session)
            try:
                yield work.day(day)
            except ExchangeError as error:
                made = len(work.attempts.rows())
                kept = f". {made} attempts are kept in affiliate.attempt and land with the next run" if made else ""
                yield DayError(day, Refused(f"{str(error).rstrip('.')}{kept}"))

    def oldest_before(self, session: BinanceSession, day: date, zone: ZoneInfo) -> int | None:
        raise NotImplementedError("only now can be changed")

    def held(self, session: BinanceSession, whose: str) -> tuple[str, ...]:
        """The ids that a person has."""
        try:
            return tuple(self._pairs(session, {self.whose: whose}))
        except Refused:
            if not self.listed:
                raise
            # Of an email that it does not know it may tell nothing; the list then does.
            everybody = self._pairs(session, {}).items()
            return tuple(customer_id for customer_id, email in everybody if email.casefold() == whose.casefold())

    def nothing_wanted(self) -> str:
        """What there is to say where there are no wishes."""
        return f"Nothing is wanted: {self.variable} is not set, or names nobody"

    def _pairs(self, session: BinanceSession, params: dict[str, str]) -> dict[str, str]:
        """Emails by id; "" where the answer says none."""
        rows = session.client.get(self.path, params, rows_of)
        pairs = identities(rows, ("customerId", "email"))
        return {customer_id: email or "" for customer_id, email in pairs if customer_id}

    def work_off(
        self, session: BinanceSession, wishes: Sequence[Wish], assign: Callable[[_Change], bool]
    ) -> list[Wish]:
        """Calls `assign`, which says whether it succeeded, for each wish that is not fulfilled and can be. The others.

        An id becomes free when its holder is given another one, so that a chain of them is worked off from its end.
        """
        holders = self._pairs(session, {}) if self.listed else {}
        ids: dict[str, tuple[str, ...]] = {}
        for customer_id, email in holders.items():
            ids[email.casefold()] = (*ids.get(email.casefold(), ()), customer_id)
        faulty = [wish for wish in wishes if wish.fault]
        left = []
        for wish in (wish for wish in wishes if not wish.fault):
            # Whom the list does not show as the wish spells it is asked for by name.
            before = ids.get(wish.whose.casefold()) or self.held(session, wish.whose)
            if wish.customer_id not in before:
                left.append(_Change(wish, before))
        while free := [change for change in left if change.wish.customer_id not in holders]:
            for change in free:
                if assign(change):
                    for customer_id in change.before:
                        holders.pop(customer_id, None)
            left = [change for change in left if change not in free]
        return faulty + [
            replace(change.wish, fault=f"the customerId belongs to {masked(holders[change.wish.customer_id])}")
            for change in left
        ]


class _Work:
    """A run's attempts."""

    def __init__(self, assignment: Assignment, session: BinanceSession):
        self._assignment, self._session = assignment, session
        self.attempts = session.attempts()
        self._problems: list[str] = []
        self._assigned = 0

    def day(self, day: date) -> DayRows:
        sent_before = self._session.client.requests_sent
        self._settle_the_last()
        wishes = self._assignment.wishes(self._session.settings)
        faulty = self._assignment.work_off(self._session, wishes, self._assign) if wishes else []
        rows = list(self.attempts.rows().values())
        rows += [
            self._row(wish, (), REFUSED, f"{wish.where}: {wish.fault}. Nothing was posted", self._session.now_ms())
            for wish in faulty
        ]
        self._problems += map(str, faulty)
        in_place = len(wishes) - self._assigned - len(self._problems)
        note = (
            f"{len(wishes)} wanted: {in_place} were in place, {self._assigned} have been assigned, "
            f"{len(self._problems)} are not"
            if wishes
            else self._assignment.nothing_wanted()
        )
        log.info("%s: %s", self._assignment.path, note)
        requests = self._session.client.requests_sent - sent_before
        return DayRows(day, rows, len(rows), requests, note=note, problems=tuple(self._problems))

    def _settle_the_last(self) -> None:
        """An attempt that a run did not live to see the end of was either done or not."""
        for name, kept in self.attempts.rows().items():
            row = msgspec.json.decode(kept)
            if row["outcome"] == UNKNOWN:
                done = row["customerId"] in self._assignment.held(self._session, row[self._assignment.whose])
                row |= {
                    "outcome": ASSIGNED if done else FAILED,
                    "message": f"the run ended before its answer; {_found(done)}",
                }
                self.attempts.keep(name, msgspec.json.encode(row))

    def _assign(self, change: _Change) -> bool:
        outcome, message = FAILED, ""
        for _ in range(ATTEMPTS):
            outcome, message = self._attempt(change)
            if outcome != FAILED:
                break
        if outcome == ASSIGNED:
            self._assigned += 1
            return True
        self._problems.append(f"{change.wish}: {message}")
        return False

    def _attempt(self, change: _Change) -> tuple[str, str]:
        """The outcome, and what there is to say of it."""
        wish, attempted_ms = change.wish, self._session.now_ms()
        name = f"{attempted_ms} {uuid4()}"

        def keep(outcome: str, message: str) -> tuple[str, str]:
            self.attempts.keep(name, self._row(wish, change.before, outcome, message, attempted_ms))
            return outcome, message

        def confirmed(body: bytes) -> None:
            try:
                rows = rows_of(body)
            except Refused as error:
                raise ValueError(str(error)) from None
            if wish.customer_id not in [answered for (answered,) in identities(rows, ("customerId",))]:
                raise ValueError("the answer does not confirm the customerId")

        keep(UNKNOWN, "")
        params = {"customerId": wish.customer_id, self._assignment.whose: wish.whose}
        try:
            self._session.client.post(self._assignment.path, params, confirmed)
        except OutcomeUnknown as error:
            done = wish.customer_id in self._assignment.held(self._session, wish.whose)
            return keep(ASSIGNED if done else FAILED, f"{redact(error)}; {_found(done)}")
        except Refused as error:
            return keep(REFUSED, redact(error))
        except ExchangeError as error:
            keep(FAILED, redact(error))
            raise
        return keep(ASSIGNED, "")

    def _row(self, wish: Wish, before: tuple[str, ...], outcome: str, message: str, attempted_ms: int) -> bytes:
        row: dict[str, Any] = {
            "customerId": wish.customer_id or None,
            self._assignment.whose: wish.whose or None,
            "beforeCustomerId": ", ".join(before) or None,
            "outcome": outcome,
            "message": message or None,
            "attemptedAt": attempted_ms,
        }
        return msgspec.json.encode(row)


def _found(done: bool) -> str:
    return f"read back: it was {'' if done else 'not '}done"
