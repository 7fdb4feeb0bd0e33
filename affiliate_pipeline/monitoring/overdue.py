"""What to do about overdue days: which to request again, and what to report about them.

The decisions have no side effects. `OverdueStore` stores their state, and `defs/sensors/overdue.py` carries them out.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from enum import IntEnum
from typing import Final

from affiliate_pipeline.domain.days import DAY, HOUR, day_of, day_ranges, format_days, last_minute_before
from affiliate_pipeline.domain.expected_days import ExpectedDay, expected_days
from affiliate_pipeline.exchanges.endpoint import Endpoint, retention_of
from affiliate_pipeline.landing import ledger
from affiliate_pipeline.monitoring.alerts import Alert
from affiliate_pipeline.postgres.errors import as_store_unavailable
from affiliate_pipeline.postgres.table_store import TableStore

TABLE: Final = "affiliate.watch"
MONITORED_DAYS = 30
FIRST_PAUSE = HOUR
MAX_PAUSE = DAY
# The pauses spread the attempts over five days; the shortest retention of any source is a week.
MAX_ATTEMPTS = 10
FIRST_WARNING = 48 * HOUR
SECOND_WARNING = 12 * HOUR


class NotificationLevel(IntEnum):
    """What was last reported about an overdue day, in order of urgency."""

    NOTHING = 0
    GIVEN_UP = 1
    BELOW_48_HOURS = 2
    BELOW_12_HOURS = 3
    SECOND_CHANCE = 4  # expired, but its fallback can still land it
    LOST = 5


@dataclass(frozen=True)
class State:
    """How often and when (UTC) an overdue day was last requested, and what was reported."""

    attempts: int = 0
    requested_at: datetime | None = None
    level: NotificationLevel = NotificationLevel.NOTHING


class OverdueStore(TableStore):
    """The states of overdue days, and the ledger that they are compared with."""

    def ledgers(self, since: date) -> ledger.Ledgers:
        """By asset, the earliest landed day and the landed days from `since` on."""
        return ledger.entries_since(self._connection, since)

    def states(self) -> dict[str, dict[date, State]]:
        """By asset, the states of its overdue days."""
        states: dict[str, dict[date, State]] = {}
        rows = self._execute(f"select asset, partition, tries, asked_at, said from {TABLE}")
        for asset, day, attempts, requested_at, level in rows:
            states.setdefault(asset, {})[day] = State(attempts, requested_at, NotificationLevel[level.upper()])
        return states

    def save(self, asset: str, states: Mapping[date, State]) -> None:
        """Replace the states of the asset's overdue days."""
        rows = [
            (asset, day, state.attempts, state.requested_at, state.level.name.lower())
            for day, state in sorted(states.items())
        ]
        with as_store_unavailable(), self._connection.transaction(), self._connection.cursor() as cursor:
            cursor.execute(f"delete from {TABLE} where asset = %s", (asset,))
            cursor.executemany(
                f"insert into {TABLE} (asset, partition, tries, asked_at, said) values (%s, %s, %s, %s, %s)", rows
            )


def overdue_days(endpoint: Endpoint, ledgers: ledger.Ledgers, start: date, now_ms: int) -> list[ExpectedDay]:
    """Overdue days of the last 30, oldest first, not before `start` or the first landed day.

    `ledgers` must have, by asset, the first landed day and those of the last 31 days: one more than 30, since the
    caller may count from today in UTC, which may be a day ahead of today in the endpoint's zone. An expired day is not
    overdue if the fallback has landed it.
    """
    timetable = endpoint.timetable
    landed = ledgers.get(endpoint.key)
    if not landed or not timetable.is_monitored:
        return []
    landed_by_fallback: Collection[date] = ()
    if timetable.fallback:
        landed_by_fallback = ledgers.get(timetable.fallback.asset, ())

    first = max(min(landed), start, day_of(now_ms, timetable.zone) - MONITORED_DAYS * DAY)
    overdue: list[ExpectedDay] = []
    for expected in expected_days(timetable, first, now_ms, landed):
        is_overdue = expected.overdue_at_ms is not None and now_ms >= expected.overdue_at_ms
        if is_overdue and (expected.is_retained(now_ms) or expected.day not in landed_by_fallback):
            overdue.append(expected)
    return overdue


def described(expected: ExpectedDay, now_ms: int) -> str:
    """Why the day is overdue, and until when it can be fetched."""
    if expected.last_read_at:
        reason = f"it was last read at {expected.last_read_at:%Y-%m-%d %H:%M} UTC, before it had settled"
    else:
        reason = "it has not landed"
    text = f"{expected.day}: {reason}; "

    if expected.deadline_ms is None:
        return f"{text}it is not known how long the exchange retains it"
    until = f"fetchable until {last_minute_before(expected.deadline_ms)}"
    if expected.is_retained(now_ms):
        return text + until
    if expected.fallback is None:
        return f"{text}was {until}"
    fallback_asset, fallback_deadline_ms = expected.fallback
    return f"{text}was {until}, and is fetchable by {fallback_asset} until {last_minute_before(fallback_deadline_ms)}"


def at_risk(days: Sequence[ExpectedDay], states: Mapping[date, State]) -> list[date]:
    """The overdue days that have not been reported as lost."""
    return [each.day for each in days if states.get(each.day, State()).level is not NotificationLevel.LOST]


@dataclass(frozen=True)
class OverdueActions:
    """The ranges of days to request, the days to report by level, and the resulting states."""

    request: list[list[date]]
    report: dict[NotificationLevel, list[ExpectedDay]]
    states: dict[date, State]


def actions_for(
    endpoint: Endpoint,
    days: Sequence[ExpectedDay],
    states: Mapping[date, State],
    now_ms: int,
    *,
    in_progress: bool = False,
    just_failed: Collection[date] = (),
) -> OverdueActions:
    """What to do about the overdue days.

    Args:
        in_progress: Whether a run of the asset is unfinished.
        just_failed: The days of runs, not requested by the monitor, that failed less than `FIRST_PAUSE` ago.
    """
    to_request: list[date] = []
    to_report: dict[NotificationLevel, list[ExpectedDay]] = {}
    new_states: dict[date, State] = {}
    for expected in days:
        state = states.get(expected.day, State())
        may_request = _may_request(endpoint, expected, state, now_ms)
        request_waits = expected.day in just_failed

        level = level_for(
            expected, state, now_ms, may_request=may_request, request_waits=request_waits, in_progress=in_progress
        )
        if level > state.level:
            to_report.setdefault(level, []).append(expected)
            state = replace(state, level=level)

        if may_request and not request_waits and not in_progress:
            to_request.append(expected.day)
            now = datetime.fromtimestamp(now_ms / 1000, UTC)
            state = replace(state, attempts=state.attempts + 1, requested_at=now)

        if state != State():
            new_states[expected.day] = state
    return OverdueActions(day_ranges(to_request), to_report, new_states)


def _may_request(endpoint: Endpoint, expected: ExpectedDay, state: State, now_ms: int) -> bool:
    """Whether an attempt is left for the day, and the pause since the last one is over."""
    if expected.deadline_ms is not None and now_ms > expected.deadline_ms:
        return _may_request_expired(endpoint, expected, state, expected.deadline_ms)
    return state.attempts < MAX_ATTEMPTS and not _is_paused(state, now_ms)


def _is_paused(state: State, now_ms: int) -> bool:
    """Whether the last request is too recent for another one; the pause doubles with each attempt."""
    if state.requested_at is None:
        return False
    pause = min(FIRST_PAUSE * 2 ** max(0, state.attempts - 1), MAX_PAUSE)
    elapsed_ms = now_ms - state.requested_at.timestamp() * 1000
    return elapsed_ms < pause / timedelta(milliseconds=1)


def _may_request_expired(endpoint: Endpoint, expected: ExpectedDay, state: State, deadline_ms: int) -> bool:
    """Whether to request the day once more after `deadline_ms`, the end of the promised retention."""
    # Only if the source can prove that it still has the day: without the proof, the run fails.
    retention = retention_of(endpoint)
    is_provable = retention is not None and retention.proof is not None
    # A run does not fetch a landed day again after the promised retention.
    has_landed = expected.last_read_at is not None
    was_requested = state.requested_at is not None and state.requested_at.timestamp() * 1000 > deadline_ms
    return is_provable and not has_landed and not was_requested and state.level is not NotificationLevel.LOST


def level_for(
    expected: ExpectedDay, state: State, now_ms: int, *, may_request: bool, request_waits: bool, in_progress: bool
) -> NotificationLevel:
    """The day's level now, reported if above the last one.

    `request_waits`: a run just failed, so a new request waits.
    """
    if not expected.is_retained(now_ms):
        # Report no loss while a request is due or in progress.
        if may_request or in_progress:
            return NotificationLevel.NOTHING
        return NotificationLevel.SECOND_CHANCE if expected.fallback else NotificationLevel.LOST

    # A request that is due may still land the day: report nothing. If it waits because a run just failed, warn already.
    if may_request and not request_waits:
        return NotificationLevel.NOTHING
    if expected.deadline_ms is not None:
        time_left = timedelta(milliseconds=expected.deadline_ms - now_ms)
        if time_left < SECOND_WARNING:
            return NotificationLevel.BELOW_12_HOURS
        # The first attempt may still succeed while it is in progress.
        if time_left < FIRST_WARNING and (state.attempts > 1 or not in_progress):
            return NotificationLevel.BELOW_48_HOURS
    is_given_up = state.attempts >= MAX_ATTEMPTS and not in_progress
    return NotificationLevel.GIVEN_UP if is_given_up else NotificationLevel.NOTHING


def alerts_of(endpoint: Endpoint, level: NotificationLevel, days: Sequence[ExpectedDay], now_ms: int) -> list[Alert]:
    """One alert; from `SECOND_CHANCE` on, a separate one for days that landed before settling."""
    if level < NotificationLevel.SECOND_CHANCE:
        return [_alert(endpoint, level, days, now_ms)]
    never_landed = [expected for expected in days if not expected.last_read_at]
    read_too_early = [expected for expected in days if expected.last_read_at]
    return [_alert(endpoint, level, group, now_ms) for group in (never_landed, read_too_early) if group]


def _alert(endpoint: Endpoint, level: NotificationLevel, days: Sequence[ExpectedDay], now_ms: int) -> Alert:
    days_text = format_days(expected.day for expected in days)
    title, advice = _title_and_advice(endpoint, level, days, days_text)
    key = f"watch: {level.name.lower()}, {endpoint.key}, {days_text}"
    if days[0].last_read_at:
        # Each key is raised once, and a day may be overdue twice: before it landed, and again because it was read before
        # it settled. From `SECOND_CHANCE` on, the days of an alert are of one kind.
        key += ", too early"
    return Alert(
        key,
        f"{endpoint.key}: {title}",
        "\n".join([*(described(expected, now_ms) for expected in days), advice]),
        failed={endpoint.key: [expected.day for expected in days]},
    )


def _title_and_advice(
    endpoint: Endpoint, level: NotificationLevel, days: Sequence[ExpectedDay], days_text: str
) -> tuple[str, str]:
    """The title without the asset, and the text's last line: the impact, and what to do."""
    it, is_ = ("it", "is") if len(days) == 1 else ("them", "are")
    given_up = f"No further run is requested for {it}."
    to_do = (
        f"To do: fix the cause that the alert of the failed run names, then materialize {it} (missing and failed only)."
    )
    match level:
        case NotificationLevel.LOST if days[0].last_read_at:
            title = f"{days_text} expired before settling"
            advice = "The rows that had landed are unchanged, but lack what the exchange changed after they were read."
        case NotificationLevel.LOST:
            title = f"{days_text} {is_} lost"
            advice = given_up
            retention = retention_of(endpoint)
            if retention and retention.proof:
                advice += (
                    f" If you know that the exchange still has {it}: materialize {it} with run config trust_old: true."
                )
        case NotificationLevel.SECOND_CHANCE:
            # Each day of this level has a fallback.
            fallback_asset, _ = days[0].fallback or ("", 0)
            title = f"only {fallback_asset} can still land {days_text}"
            advice = (
                f"To do: unless a schedule does so, materialize {fallback_asset} for {it}, as its description says."
            )
        case NotificationLevel.GIVEN_UP:
            title = f"{days_text} {is_} still overdue after {MAX_ATTEMPTS} attempts"
            advice = f"{given_up} {to_do}"
        case _:
            time_left = SECOND_WARNING if level is NotificationLevel.BELOW_12_HOURS else FIRST_WARNING
            title = f"less than {time_left // HOUR} hours are left to land {days_text}"
            advice = to_do
    return title, advice
