"""The watch: which days are due and missing, which of them to ask for again, and what to tell people.

Pure: is given `now`, the ledger and what was done before. Runs, checks and messages are made of it in `defs/watch.py`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta

from affiliate_pipeline.domain.days import DAY, HOUR, day_of, days_from, fold, last_minute_before, runs
from affiliate_pipeline.exchanges.spec import Endpoint
from affiliate_pipeline.landing.day_writer import Ledger
from affiliate_pipeline.monitoring.alerts import Alert
from affiliate_pipeline.monitoring.notifications import Said, State

MOST_DAYS_BACK = 30
# So that the schedule comes first.
GRACE = HOUR
FIRST_PAUSE = HOUR
LONGEST_PAUSE = DAY
# With those pauses over the whole of a week's memory, the shortest that a source has.
MOST_TRIES = 10
FIRST_WARNING = 48 * HOUR
SECOND_WARNING = 12 * HOUR


@dataclass(frozen=True)
class MissingDay:
    """A day that is due and has not landed; or, if it is `held`, not since it settled.

    `until_ms`: the last millisecond at which the source promises to have it, None where no limit is known.
    `remembered`: that is not past. `second_chance`: the asset that can still land it otherwise, and until when (ms).
    """

    day: date
    held: Ledger | None
    remembered: bool
    until_ms: int | None
    second_chance: tuple[str, int] | None = None

    def __str__(self) -> str:
        what = "it has not landed"
        if self.held:
            what = f"it was last read at {self.held.checked_at:%Y-%m-%d %H:%M} UTC, before it had settled"
        if self.until_ms is None:
            return f"{self.day}: {what}; no limit of the exchange's memory is known"
        was = "" if self.remembered else "was "
        told = f"{self.day}: {what}; {was}fetchable until {last_minute_before(self.until_ms)}"
        if self.second_chance and not self.remembered:
            key, until_ms = self.second_chance
            told += f", by {key} until {last_minute_before(until_ms)}"
        return told


def is_watched(endpoint: Endpoint) -> bool:
    """Whether its days can be missing: they land daily, and can be fetched later than on the day itself."""
    return endpoint.daily_at is not None and not endpoint.observation


def missing(
    endpoint: Endpoint,
    ledger: Mapping[date, Ledger],
    start: date,
    now_ms: int,
    elsewhere: Mapping[date, Ledger] | None = None,
) -> list[MissingDay]:
    """The missing days, oldest first: since the first that ever landed, of the last 30, none before `start`.

    `ledger` holds at least the first landed day and the landed ones of the last 31; `elsewhere` those of the endpoint's
    second chance, which make good a day that its own source has forgotten.
    """
    if not ledger or not is_watched(endpoint):
        return []
    last = day_of(now_ms, endpoint.exchange.zone) - DAY
    first = max(min(ledger), start, last - (MOST_DAYS_BACK - 1) * DAY)
    return [
        MissingDay(
            day,
            held,
            endpoint.is_remembered(day, now_ms),
            endpoint.fetchable_until_ms(day),
            _second_chance(endpoint, day, now_ms),
        )
        for day in days_from(first, last)
        if not ((held := ledger.get(day)) and held.settled)
        and now_ms >= _due_ms(endpoint, day, endpoint.settles_after if held else timedelta(0))
        and (endpoint.is_remembered(day, now_ms) or not (elsewhere and day in elsewhere))
    ]


def landed_elsewhere(endpoint: Endpoint, ledgers: Mapping[str, Mapping[date, Ledger]]) -> Mapping[date, Ledger]:
    """Of the ledgers, by asset, that of the endpoint's second chance."""
    second = endpoint.memory.second_chance if endpoint.memory else None
    return ledgers.get(second.key, {}) if second else {}


def _second_chance(endpoint: Endpoint, day: date, now_ms: int) -> tuple[str, int] | None:
    second = endpoint.memory.second_chance if endpoint.memory else None
    if second is None or not second.is_remembered(day, now_ms):
        return None
    until_ms = second.fetchable_until_ms(day)
    assert until_ms is not None
    return second.key, until_ms


def _due_ms(endpoint: Endpoint, day: date, after: timedelta) -> int:
    """An hour after the first time of the schedule that lies `after` the day's end or later."""
    assert endpoint.daily_at is not None
    ready = datetime.fromtimestamp(endpoint.end_ms(day) // 1000, endpoint.exchange.zone) + after
    scheduled = datetime.combine(ready.date(), endpoint.daily_at, endpoint.exchange.zone)
    if scheduled < ready:
        scheduled += DAY
    return int((scheduled + GRACE).timestamp() * 1000)


def at_risk(days: Sequence[MissingDay], states: Mapping[date, State]) -> list[date]:
    """The missing days of which nobody has said yet that they are lost."""
    return [each.day for each in days if states.get(each.day, State()).said is not Said.LOST]


@dataclass(frozen=True)
class Turn:
    """What to do now: ranges of days to ask for, what to say of which days, and the states once that is done."""

    ask: list[list[date]]
    say: dict[Said, list[MissingDay]]
    states: dict[date, State]


def turn(
    endpoint: Endpoint,
    days: Sequence[MissingDay],
    states: Mapping[date, State],
    now_ms: int,
    *,
    under_way: bool = False,
    just_failed: Collection[date] = (),
) -> Turn:
    """What to do about the missing days. `under_way`: a run of the asset has not ended; `just_failed`: a run over
    these days has failed within the first pause."""
    now = datetime.fromtimestamp(now_ms / 1000, UTC)
    ask: list[date] = []
    say: dict[Said, list[MissingDay]] = {}
    after: dict[date, State] = {}
    for each in days:
        state = states.get(each.day, State())
        may_ask = _may_be_asked(endpoint, each, state, now)
        waits = each.day in just_failed
        said = _word(each, state, now_ms, may_ask, waits, under_way)
        if said > state.said:
            say.setdefault(said, []).append(each)
            state = replace(state, said=said)
        if may_ask and not waits and not under_way:
            ask.append(each.day)
            state = replace(state, tries=state.tries + 1, asked_at=now)
        if state != State():
            after[each.day] = state
    return Turn(runs(ask), say, after)


def _may_be_asked(endpoint: Endpoint, missing: MissingDay, state: State, now: datetime) -> bool:
    if missing.remembered:
        pause = min(FIRST_PAUSE * 2 ** max(0, state.tries - 1), LONGEST_PAUSE)
        return state.tries < MOST_TRIES and (state.asked_at is None or now - state.asked_at >= pause)
    if missing.held or not (endpoint.memory and endpoint.memory.provable) or state.said is Said.LOST:
        return False
    # A source that may keep days longer than it promises is asked once more: the run proves it, or fails.
    assert missing.until_ms is not None
    return state.asked_at is None or state.asked_at.timestamp() * 1000 <= missing.until_ms


def _word(missing: MissingDay, state: State, now_ms: int, may_ask: bool, waits: bool, under_way: bool) -> Said:
    """What there is to say, once a run that may yet land the day has failed. `waits`: it will be asked for, but later."""
    # A day that somebody has just failed to land is warned of, but not lost before the last try.
    if may_ask and not (waits and missing.remembered):
        return Said.NOTHING
    if not missing.remembered:
        if under_way:
            return Said.NOTHING
        return Said.SECOND_CHANCE if missing.second_chance else Said.LOST
    if missing.until_ms is not None:
        left = timedelta(milliseconds=missing.until_ms - now_ms)
        if left < SECOND_WARNING:
            return Said.BELOW_12_HOURS
        if left < FIRST_WARNING and (state.tries > 1 or not under_way):
            return Said.BELOW_48_HOURS
    return Said.GIVEN_UP if state.tries >= MOST_TRIES and not under_way else Said.NOTHING


def alerts_of(endpoint: Endpoint, said: Said, days: Sequence[MissingDay]) -> list[Alert]:
    """What people are told of these days; one that was never landed and one that was read too early are two things."""
    if said >= Said.SECOND_CHANCE:
        kinds = [[each for each in days if not each.held], [each for each in days if each.held]]
    else:
        kinds = [list(days)]
    return [_alert(endpoint, said, kind) for kind in kinds if kind]


def _alert(endpoint: Endpoint, said: Said, days: Sequence[MissingDay]) -> Alert:
    named = fold(each.day for each in days)
    it, is_, has = ("it", "is", "has") if len(days) == 1 else ("them", "are", "have")
    to_do = f"To do: mend the cause that the alert of the failed run names, then materialize {it} (missing and failed only)."
    match said:
        case Said.LOST if days[0].held:
            title = f"{named} can no longer be read again"
            to_do = f"What had landed of {it} stays. What the exchange changed before {it} settled is not in it."
        case Said.LOST:
            title = f"{named} {is_} lost"
            to_do = f"The watch does not ask for {it} any more."
            if endpoint.memory and endpoint.memory.provable:
                to_do += (
                    f" If you know that the exchange still has {it}: materialize {it} with run config trust_old: true."
                )
        case Said.SECOND_CHANCE:
            assert days[0].second_chance
            key, _ = days[0].second_chance
            title = f"of {named} only {key} can land the rows any more"
            to_do = f"To do: unless a schedule does so, materialize {key} for {it}."
        case Said.GIVEN_UP:
            title = f"{named} {has} not landed after {MOST_TRIES} tries"
            to_do = f"The watch does not ask for {it} any more. {to_do}"
        case _:
            span = SECOND_WARNING if said is Said.BELOW_12_HOURS else FIRST_WARNING
            title = f"less than {span // HOUR} hours are left to land {named}"
    return Alert(
        # A day may be missing twice: before it landed, and again because it was read before it settled.
        f"watch: {said.name.lower()}, {endpoint.key}, {named}" + (", too early" if days[0].held else ""),
        f"{endpoint.key}: {title}",
        "\n".join([*map(str, days), to_do]),
        {endpoint.key: [each.day for each in days]},
    )
