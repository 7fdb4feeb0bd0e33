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
    SECOND_CHANCE = 4
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
        for asset, day, attempts, requested_at, level in self._execute(
            f"select asset, partition, tries, asked_at, said from {TABLE}"
        ):
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

    `ledgers` must have, by asset, the first landed day and those of the last 31. An expired day is not overdue if the
    fallback has landed it.
    """
    timetable, landed = endpoint.timetable, ledgers.get(endpoint.key)
    if not landed or not timetable.is_monitored:
        return []
    landed_by_fallback = ledgers.get(timetable.fallback.asset) if timetable.fallback else None
    first = max(min(landed), start, day_of(now_ms, timetable.zone) - MONITORED_DAYS * DAY)
    return [
        each
        for each in expected_days(timetable, first, now_ms, landed)
        if each.overdue_at_ms is not None
        and now_ms >= each.overdue_at_ms
        and (each.is_retained(now_ms) or each.day not in (landed_by_fallback or ()))
    ]


def described(each: ExpectedDay, now_ms: int) -> str:
    """Why the day is overdue, and until when it can be fetched."""
    reason = (
        f"it was last read at {each.last_read_at:%Y-%m-%d %H:%M} UTC, before it had settled"
        if each.last_read_at
        else "it has not landed"
    )
    text = f"{each.day}: {reason}; "
    if each.deadline_ms is None:
        return f"{text}it is not known how long the exchange retains it"
    until = f"fetchable until {last_minute_before(each.deadline_ms)}"
    if each.is_retained(now_ms):
        return text + until
    fallback = f", by {each.fallback[0]} until {last_minute_before(each.fallback[1])}" if each.fallback else ""
    return f"{text}was {until}{fallback}"


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
    actions = OverdueActions([], {}, {})
    requested: list[date] = []
    for each in days:
        state = states.get(each.day, State())
        may_request = _may_request(endpoint, each, state, now_ms)
        waits = each.day in just_failed
        level = level_for(each, state, now_ms, may_request=may_request, waits=waits, in_progress=in_progress)
        if level > state.level:
            actions.report.setdefault(level, []).append(each)
            state = replace(state, level=level)
        if may_request and not waits and not in_progress:
            requested.append(each.day)
            state = replace(state, attempts=state.attempts + 1, requested_at=datetime.fromtimestamp(now_ms / 1000, UTC))
        if state != State():
            actions.states[each.day] = state
    return replace(actions, request=day_ranges(requested))


def _may_request(endpoint: Endpoint, each: ExpectedDay, state: State, now_ms: int) -> bool:
    requested_ms = state.requested_at and state.requested_at.timestamp() * 1000
    if each.deadline_ms is None or each.is_retained(now_ms):
        pause = min(FIRST_PAUSE * 2 ** max(0, state.attempts - 1), MAX_PAUSE)
        is_paused = requested_ms is not None and now_ms - requested_ms < pause / timedelta(milliseconds=1)
        return state.attempts < MAX_ATTEMPTS and not is_paused
    # After the promised retention, request the day once more if the source can prove that it still has it. Without the
    # proof, the run fails. A run does not fetch a landed day again after the promised retention.
    is_provable = (retention := retention_of(endpoint)) is not None and retention.proof is not None
    was_requested = requested_ms is not None and requested_ms > each.deadline_ms
    return is_provable and not each.last_read_at and not was_requested and state.level is not NotificationLevel.LOST


def level_for(
    each: ExpectedDay, state: State, now_ms: int, *, may_request: bool, waits: bool, in_progress: bool
) -> NotificationLevel:
    """The day's level now, reported if above the last one. `waits`: a run just failed, so a new request waits."""
    is_retained = each.is_retained(now_ms)
    # Report nothing if a request is due, unless a run has just failed and the day is still retained. Report no loss
    # while a run is in progress.
    if (may_request and not (waits and is_retained)) or (in_progress and not is_retained):
        return NotificationLevel.NOTHING
    if not is_retained:
        return NotificationLevel.SECOND_CHANCE if each.fallback else NotificationLevel.LOST
    if each.deadline_ms is not None:
        left = timedelta(milliseconds=each.deadline_ms - now_ms)
        if left < SECOND_WARNING:
            return NotificationLevel.BELOW_12_HOURS
        # The first attempt may still succeed while it is in progress.
        if left < FIRST_WARNING and (state.attempts > 1 or not in_progress):
            return NotificationLevel.BELOW_48_HOURS
    is_given_up = state.attempts >= MAX_ATTEMPTS and not in_progress
    return NotificationLevel.GIVEN_UP if is_given_up else NotificationLevel.NOTHING


def alerts_of(endpoint: Endpoint, level: NotificationLevel, days: Sequence[ExpectedDay], now_ms: int) -> list[Alert]:
    """One alert; from `SECOND_CHANCE` on, a separate one for days that landed before settling."""
    if level < NotificationLevel.SECOND_CHANCE:
        return [_alert(endpoint, level, days, now_ms)]
    groups = [each for each in days if not each.last_read_at], [each for each in days if each.last_read_at]
    return [_alert(endpoint, level, group, now_ms) for group in groups if group]


def _alert(endpoint: Endpoint, level: NotificationLevel, days: Sequence[ExpectedDay], now_ms: int) -> Alert:
    named = format_days(each.day for each in days)
    it, is_ = ("it", "is") if len(days) == 1 else ("them", "are")
    action = (
        f"To do: fix the cause that the alert of the failed run names, then materialize {it} (missing and failed only)."
    )
    given_up = f"No further run is requested for {it}."
    match level:
        case NotificationLevel.LOST if days[0].last_read_at:
            title = f"{named} expired before settling"
            text = "The rows that had landed are unchanged, but lack what the exchange changed after they were read."
        case NotificationLevel.LOST:
            title, text = f"{named} {is_} lost", given_up
            if (retention := retention_of(endpoint)) and retention.proof:
                text += (
                    f" If you know that the exchange still has {it}: materialize {it} with run config trust_old: true."
                )
        case NotificationLevel.SECOND_CHANCE:
            asset = days[0].fallback[0] if days[0].fallback else ""
            title = f"only {asset} can still land {named}"
            text = f"To do: unless a schedule does so, materialize {asset} for {it}, as its description says."
        case NotificationLevel.GIVEN_UP:
            title, text = f"{named} {is_} still overdue after {MAX_ATTEMPTS} attempts", f"{given_up} {action}"
        case _:
            span = SECOND_WARNING if level is NotificationLevel.BELOW_12_HOURS else FIRST_WARNING
            title, text = f"less than {span // HOUR} hours are left to land {named}", action
    return Alert(
        # A day may be overdue twice: before it landed, and again because it was read before it settled.
        f"watch: {level.name.lower()}, {endpoint.key}, {named}" + (", too early" if days[0].last_read_at else ""),
        f"{endpoint.key}: {title}",
        "\n".join([*(described(each, now_ms) for each in days), text]),
        {endpoint.key: [each.day for each in days]},
    )
