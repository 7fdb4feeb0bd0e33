"""Assignment of customer ids: only ids that differ from the current ones are posted.

Each attempt is persisted before its POST and again with its outcome. So no crash loses one, and the next run finds out
whether an interrupted attempt took effect before it makes another.
"""

import csv
import io
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Literal
from uuid import uuid4
from zoneinfo import ZoneInfo

import msgspec

from affiliate_pipeline.domain.files import text_of
from affiliate_pipeline.domain.problem import SettingsError
from affiliate_pipeline.domain.redaction import redact
from affiliate_pipeline.domain.wording import count_of
from affiliate_pipeline.exchanges.binance.exchange import BinanceSession
from affiliate_pipeline.exchanges.fetching import DayBatch, DayError, RequestPlan
from affiliate_pipeline.exchanges.lists import rows_of
from affiliate_pipeline.exchanges.pending_actions import TABLE, PendingActions
from affiliate_pipeline.http.errors import ExchangeError, OutcomeUnknown, Refused
from affiliate_pipeline.http.retry import MAX_ATTEMPTS
from affiliate_pipeline.schema.raw_row import texts

HEADER = ["customerid", "email"]
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
FILE_VARIABLE, _OWN_ID_VARIABLE = "BINANCE_CUSTOMER_IDS", "BINANCE_USER_CUSTOMER_ID"
# `unknown` never lands: the next run finds out the outcome.
ASSIGNED, REFUSED, FAILED, UNKNOWN = "assigned", "refused", "failed", "unknown"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DesiredCustomerId:
    """A desired id, and the owner that it is desired for.

    `owner` is the email of a client of the partner or, for the client's own id, the partner's apiAgentCode. `where`
    names the line or the variable; `rejection` is the reason why the id cannot be assigned.
    """

    where: str
    customer_id: str
    owner: str
    rejection: str = ""

    def __str__(self) -> str:
        text = f"{self.where} ({redact(self.customer_id)} for {masked(self.owner)})"
        return f"{text}: {self.rejection}" if self.rejection else text


def masked(owner: str) -> str:
    """The owner without what identifies a person, even if it is not an email."""
    return redact(owner) if "@" in owner else f"{owner[:2]}***"


def desired_of_partner(session: BinanceSession) -> list[DesiredCustomerId]:
    """The desired id of each line of the file `BINANCE_CUSTOMER_IDS`, with a `rejection` if it cannot be assigned.

    Empty if the variable is not set; raises SettingsError if the file cannot be read.
    """
    path = session.settings.binance_customer_ids
    if path is None:
        return []
    variable = session.variable(FILE_VARIABLE)
    file = f"the file that {variable} names"
    desired: list[DesiredCustomerId] = []
    try:
        data = Path(path).expanduser().read_bytes()
        lines = csv.reader(io.StringIO(text_of(data, file), newline=""))
        for line in lines:
            cells = [cell.strip() for cell in line]
            if any(cells):
                desired.append(_of_line(lines.line_num, cells))
    except OSError as error:
        action = f"Set {variable} to the path of a CSV file that the user who runs this may read"
        raise SettingsError(f"{file} cannot be read: {error.strerror}", action, variable=variable) from None
    except csv.Error:
        action = f"Set {variable} to the path of a CSV file `customerId,email`"
        raise SettingsError(f"{file} is not a CSV file", action, variable=variable) from None

    if desired and [desired[0].customer_id.lower(), desired[0].owner.lower()] == HEADER:
        del desired[0]
    return _with_duplicates_rejected(desired)


def rejected_lines(session: BinanceSession) -> list[str]:
    """The desired ids of the file that cannot be assigned, each as text with its line and the reason.

    Raises SettingsError if the file cannot be read.
    """
    return [str(each) for each in desired_of_partner(session) if each.rejection]


def desired_of_client(session: BinanceSession) -> list[DesiredCustomerId]:
    """The client's own id, `BINANCE_USER_CUSTOMER_ID`; empty if that or the partner's apiAgentCode is not set."""
    customer_id = session.settings.binance_user_customer_id
    agent_code = session.settings.binance_api_agent_code
    if customer_id is None or not agent_code:
        return []
    return [DesiredCustomerId(session.variable(_OWN_ID_VARIABLE), customer_id, owner=agent_code)]


def _of_line(number: int, cells: list[str]) -> DesiredCustomerId:
    customer_id, owner, *_ = [*cells, "", ""]  # a line may have fewer than two cells
    rejection = ""
    if len(cells) != 2:
        rejection = "it does not have the two fields customerId,email"
    elif not customer_id:
        rejection = "it has no customerId"
    elif not _EMAIL.fullmatch(owner):
        rejection = "its email is malformed"
    return DesiredCustomerId(f"line {number}", customer_id, owner, rejection)


def _with_duplicates_rejected(desired: list[DesiredCustomerId]) -> list[DesiredCustomerId]:
    """The desired ids; those whose id or email is also on another line have a rejection."""
    lines: dict[tuple[str, str], list[str]] = defaultdict(list)
    for each in desired:
        for key in _unique_fields(each):
            lines[key].append(each.where)

    def duplicate_rejection(each: DesiredCustomerId) -> str:
        for name, value in _unique_fields(each):
            other_lines = [line for line in lines[name, value] if line != each.where]
            if other_lines:
                return f"its {name} is on {', '.join(other_lines)} too"
        return ""

    return [replace(each, rejection=each.rejection or duplicate_rejection(each)) for each in desired]


def _unique_fields(desired: DesiredCustomerId) -> tuple[tuple[str, str], tuple[str, str]]:
    """Names and values of the fields that no two lines may share; emails are compared without case."""
    return ("customerId", desired.customer_id), ("email", desired.owner.casefold())


@dataclass(frozen=True)
class _Change:
    """A desired id to post, and the ids that the owner has before."""

    desired: DesiredCustomerId
    before: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.desired}: will be assigned; current: {', '.join(self.before) or 'none'}"


@dataclass(frozen=True)
class Assignment:
    """Posts to `path` the desired ids that a GET of it lacks; `desired` reads all of them from `variable`."""

    path: str
    # The parameter that names an id's owner.
    owner_param: Literal["email", "apiAgentCode"]
    desired: Callable[[BinanceSession], list[DesiredCustomerId]]
    variable: str
    # Whether a GET without parameters returns all ids.
    lists_all: bool

    def plan(self, session: BinanceSession, days: Sequence[date], zone: ZoneInfo) -> RequestPlan:
        """The ids that would be posted; sends the GETs of the comparison, but no POST."""
        desired = self.desired(session)
        if not desired:
            return RequestPlan(0, 0, 0, (self.nothing_desired_note(session),))
        requests_before = session.client.requests_sent
        changes: list[_Change] = []

        def record(change: _Change) -> bool:
            changes.append(change)
            # As if it were assigned: that frees the owner's current ids for changes that wait for them (see `apply`).
            return True

        rejected = self.apply(session, desired, assign=record)
        lines = [*map(str, changes), *(f"{each}. Nothing will be posted" for each in rejected)]
        already_assigned = f"already assigned: {len(desired) - len(lines)}"
        # A run sends at least the same GETs, and one POST per change.
        gets = session.client.requests_sent - requests_before
        return RequestPlan(gets + len(changes), max_requests=None, seconds=0, changes=(*lines, already_assigned))

    def fetch(self, session: BinanceSession, days: Sequence[date], zone: ZoneInfo) -> Generator[DayBatch | DayError]:
        """Post the missing ids; the day's rows are all attempts that have not landed, and the rejected ids."""
        for day in days:
            actions = session.pending_actions()
            try:
                yield _Run(self, session, actions).execute(day)
            except ExchangeError as error:
                pending = len(actions.rows())
                impact = ""
                if pending:
                    impact = f"{count_of(pending, 'attempt')} stored in {TABLE} will land with the next run"
                yield DayError(day, Refused(error.problem.what, error.problem.action, impact=impact))

    def nothing_desired_note(self, session: BinanceSession) -> str:
        """The note of a run without a desired id."""
        return f"No customer id is desired: {session.variable(self.variable)} is not set, or names none"

    def current(self, session: BinanceSession, owner: str) -> tuple[str, ...]:
        """Request the ids that the owner has now."""
        try:
            return tuple(self._email_by_id(session, {self.owner_param: owner}))
        except Refused:
            if not self.lists_all:
                raise
            # For an unknown email the exchange may return an error; the list then shows whether the email has ids.
            emails = self._email_by_id(session, {}).items()
            return tuple(customer_id for customer_id, email in emails if email.casefold() == owner.casefold())

    def _email_by_id(self, session: BinanceSession, params: dict[str, str]) -> dict[str, str]:
        """Request the ids that match `params`: the email of each, "" where the response has none."""
        email_by_id: dict[str, str] = {}
        for row in session.client.get(self.path, params, rows_of):
            customer_id, email = texts(row, "customerId", "email")
            if customer_id:
                email_by_id[customer_id] = email or ""
        return email_by_id

    def apply(
        self, session: BinanceSession, desired: Sequence[DesiredCustomerId], assign: Callable[[_Change], bool]
    ) -> list[DesiredCustomerId]:
        """Call `assign` for each desired id that its owner lacks and no other owner has; return the rejected ones.

        `assign` returns whether it succeeded. An id that another owner has becomes free once that owner is assigned
        another one, so a chain of reassignments is processed from its end. Ids that do not become free are rejected.
        """
        owner_by_id = self._email_by_id(session, {}) if self.lists_all else {}
        valid = [each for each in desired if not each.rejection]
        remaining = self._changes(session, valid, owner_by_id)

        while free := [change for change in remaining if change.desired.customer_id not in owner_by_id]:
            for change in free:
                if assign(change):
                    for customer_id in change.before:
                        owner_by_id.pop(customer_id, None)
            remaining = [change for change in remaining if change not in free]

        rejected = [each for each in desired if each.rejection]
        for change in remaining:
            owner = masked(owner_by_id[change.desired.customer_id])
            rejected.append(replace(change.desired, rejection=f"the customerId belongs to {owner}"))
        return rejected

    def _changes(
        self, session: BinanceSession, desired: Sequence[DesiredCustomerId], owner_by_id: dict[str, str]
    ) -> list[_Change]:
        """The desired ids that their owners lack; `owner_by_id` has the emails in the list of all ids."""
        ids_by_email: dict[str, tuple[str, ...]] = defaultdict(tuple)
        for customer_id, email in owner_by_id.items():
            ids_by_email[email.casefold()] += (customer_id,)

        changes: list[_Change] = []
        for each in desired:
            # If an email is not in the list as written (the list may be masked), query it by itself.
            before = ids_by_email[each.owner.casefold()] or self.current(session, each.owner)
            if each.customer_id not in before:
                changes.append(_Change(each, before))
        return changes


@dataclass
class _Run:
    """One run's attempts and their results."""

    assignment: Assignment
    session: BinanceSession
    actions: PendingActions
    failures: list[str] = field(default_factory=list[str])
    assigned: int = 0

    def execute(self, day: date) -> DayBatch:
        """Post the missing ids; return the attempts and rejections as the rows of the day."""
        requests_before = self.session.client.requests_sent
        self._resolve_interrupted()
        desired = self.assignment.desired(self.session)
        rejected = self.assignment.apply(self.session, desired, self._assign) if desired else []

        rows = list(self.actions.rows().values())
        for each in rejected:
            message = f"{each.where}: {each.rejection}. Nothing was posted"
            rows.append(self._row(_Change(each, before=()), self.session.now_ms(), REFUSED, message))

        problems = (*self.failures, *map(str, rejected))
        unchanged = len(desired) - self.assigned - len(problems)
        if desired:
            note = f"{len(desired)} desired: {unchanged} already assigned, {self.assigned} newly assigned, {len(problems)} not assigned"
        else:
            note = self.assignment.nothing_desired_note(self.session)
        log.info("%s: %s", self.assignment.path, note)
        requests = self.session.client.requests_sent - requests_before
        return DayBatch(day, rows, len(rows), requests, note=note, warnings=problems)

    def _resolve_interrupted(self) -> None:
        """Find out and store the outcome of attempts whose run ended before the response."""
        for name, payload in self.actions.rows().items():
            row = msgspec.json.decode(payload)
            if row["outcome"] == UNKNOWN:
                outcome, explanation = self._read_back(row["customerId"], row[self.assignment.owner_param])
                row |= {"outcome": outcome, "message": f"the run ended before the response; {explanation}"}
                self.actions.put(name, msgspec.json.encode(row))

    def _assign(self, change: _Change) -> bool:
        """Post the id, up to `MAX_ATTEMPTS` times; record the result and return whether it is assigned."""
        outcome, message = FAILED, ""
        for _ in range(MAX_ATTEMPTS):
            outcome, message = self._attempt(change)
            if outcome != FAILED:
                break
        if outcome == ASSIGNED:
            self.assigned += 1
        else:
            self.failures.append(f"{change.desired}: {message}")
        return outcome == ASSIGNED

    def _attempt(self, change: _Change) -> tuple[str, str]:
        """Post the id once; store the outcome and its explanation, then return them or raise the `ExchangeError`."""
        desired = change.desired
        attempted_ms = self.session.now_ms()
        name = f"{attempted_ms} {uuid4()}"
        self.actions.put(name, self._row(change, attempted_ms, UNKNOWN, message=""))

        params = {"customerId": desired.customer_id, self.assignment.owner_param: desired.owner}
        try:
            self.session.client.post(self.assignment.path, params, partial(_confirm, desired.customer_id))
            outcome, message = ASSIGNED, ""
        except OutcomeUnknown as error:
            outcome, explanation = self._read_back(desired.customer_id, desired.owner)
            message = f"{redact(error)}; {explanation}"
        except Refused as error:
            outcome, message = REFUSED, redact(error)
        except ExchangeError as error:
            self.actions.put(name, self._row(change, attempted_ms, FAILED, redact(error)))
            raise
        self.actions.put(name, self._row(change, attempted_ms, outcome, message))
        return outcome, message

    def _read_back(self, customer_id: str, owner: str) -> tuple[str, str]:
        """The outcome of an attempt, from the owner's current ids, and its explanation."""
        if customer_id in self.assignment.current(self.session, owner):
            return ASSIGNED, "read back: the owner has the id"
        return FAILED, "read back: the owner does not have the id"

    def _row(self, change: _Change, attempted_ms: int, outcome: str, message: str) -> bytes:
        row = {
            "customerId": change.desired.customer_id or None,
            self.assignment.owner_param: change.desired.owner or None,
            "beforeCustomerId": ", ".join(change.before) or None,
            "outcome": outcome,
            "message": message or None,
            "attemptedAt": attempted_ms,
        }
        return msgspec.json.encode(row)


def _confirm(customer_id: str, body: bytes) -> None:
    """Raise ValueError unless the response to a POST contains the id."""
    try:
        rows = rows_of(body)
    except Refused as error:
        raise ValueError(str(error)) from None
    if not any(texts(row, "customerId") == (customer_id,) for row in rows):
        raise ValueError("the response does not confirm the customerId")
