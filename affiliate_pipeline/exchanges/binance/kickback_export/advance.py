"""The client's history of kickbacks: a POST starts a collection, and hours later a GET gives the URL of its file.

Nothing at Binance ties the file to the request, and a second POST replaces the first. So one collection at a time is
under way per key, and everything known about it stands in the database: whoever is killed is followed by somebody who
goes on where it was. `advance` is the one place that decides what comes next; the sensor and both assets call it.

    waiting ──POST──> collecting ──another path──> ready ──its days land──> landed
                          └──────no file in time──────> expired, and another one waits in its place, twice
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial
from time import sleep
from zoneinfo import ZoneInfo

import msgspec

from affiliate_pipeline.domain.days import DAY, day_of, days_from, fold, instant, runs, start_ms
from affiliate_pipeline.exchanges.binance.exchange import BinanceSession
from affiliate_pipeline.exchanges.binance.kickback_export.file_format import (
    MOST_FILE_BYTES,
    FileUrl,
    Pending,
    read_answer,
    rows_of,
)
from affiliate_pipeline.exchanges.binance.kickback_export.model import UTC, Collection, CollectionStore
from affiliate_pipeline.exchanges.spec import DayError, DayRows, Endpoint, Plan
from affiliate_pipeline.http.download import download
from affiliate_pipeline.http.error_body import read_error
from affiliate_pipeline.http.errors import (
    AccessRefused,
    ExchangeError,
    Fatal,
    OutcomeUnknown,
    Refused,
    Transient,
    UrlExpired,
)
from affiliate_pipeline.http.unpacking import AnotherBody, NotWhole, Unreadable, unpack_text
from affiliate_pipeline.schema.columns import Row

PATH = "/sapi/v1/apiReferral/kickback/historicalRecord"
MEMORY = timedelta(days=30)
# Nobody knows how long a file takes; other exports of Binance take minutes to hours.
FILE_WAIT_S = 12 * 3600
# After a POST of which nobody knows whether it was done.
UNSURE_WAIT_S = 3600
PATIENCE_S = 600
POLL_S = 5
# How long a run waits for somebody to ask for its days, such as a run of the request that was started with it.
REQUEST_WAIT_S = 120
LOOKS_BEFORE = 3
# How long a request waits for an answer to what file is there already.
LOOK_WAIT_S = 120
FRESH_URLS = 3
# So often the same days are asked for by themselves: what cannot land by then is for people to mend.
MOST_TURNS = 3
_FORGOTTEN = f"the turn to be asked for came only after the {MEMORY.days} days that the exchange keeps"

log = logging.getLogger(__name__)


def advance(session: BinanceSession, *, patient: bool) -> None:
    """Takes the next step with the key's collections, unless somebody else is doing so: looks for the file of the one under
    way, or asks for the one whose turn it is.

    Not patient: only what is due, with one attempt a request. Raises `ExchangeError` where asking failed, and `Fatal`.
    """
    store = session.collections()
    with store.alone() as alone:
        if not alone:
            return
        # One whose file is in the database needs the exchange no more.
        open_ones = [each for each in store.open() if not each.is_kept]
        # Until a file has landed, asking for the next one would take it away.
        collection = min(open_ones, key=lambda each: (each.state == "waiting", each.id), default=None)
        if collection is None or not (patient or collection.is_due):
            return
        match collection.state:
            case "waiting":
                _begin(session, store, collection, patient)
            case "collecting":
                _poll(session, store, collection, patient)
            case "ready" if collection.is_overdue:
                give_up(store, collection, "its file came, and could not be landed since")


def give_up(store: CollectionStore, collection: Collection, note: str) -> None:
    """It expires, and its days are asked for again unless they were often enough."""
    store.expire(collection.id, note, again=collection.turn < MOST_TURNS)


def _begin(session: BinanceSession, store: CollectionStore, collection: Collection, patient: bool) -> None:
    forgotten = [day for day in collection.days if not is_remembered(day, session.now_ms())]
    if forgotten == collection.days:
        store.expire(collection.id, _FORGOTTEN, again=False)
        return
    if forgotten:
        store.forgotten(collection.id, forgotten[-1], _FORGOTTEN)
    try:
        for _ in range(LOOKS_BEFORE):
            before = _look(session)
            if isinstance(before, FileUrl):
                break
    except Fatal as error:
        _not_begun(store, collection, error)
        raise
    if isinstance(before, Pending) and not before.answered and collection.age_s < LOOK_WAIT_S:
        # A file that is there, and not known to be, would later be taken for the one asked for.
        store.wait(collection.id, f"the exchange does not say which file it has already: {before.note}", FILE_WAIT_S)
        return
    # Written before the exchange is asked: whoever finds it so knows that it may have been.
    if not store.begin(collection.id, before.path if isinstance(before, FileUrl) else None):
        return
    _ask(session, store, store.get(collection.id), patient)


def _ask(session: BinanceSession, store: CollectionStore, collection: Collection, patient: bool) -> None:
    params = {"startTime": collection.start_ms, "endTime": collection.end_ms - 1}
    try:
        accepted = session.client.post(PATH, params, read_error, patient=patient)
    except OutcomeUnknown as error:
        store.asked(collection.id, None, str(error), UNSURE_WAIT_S)
    except (Refused, AccessRefused) as error:
        store.expire(collection.id, f"the exchange refused the request: {error}", again=False)
        raise
    except ExchangeError as error:
        _not_begun(store, collection, error)
        raise
    else:
        store.asked(collection.id, accepted.code, accepted.message, FILE_WAIT_S)
        log.info("the history of %s was requested: %s", fold(collection.days), accepted.message)


def _not_begun(store: CollectionStore, collection: Collection, error: ExchangeError) -> None:
    if collection.is_overdue:
        give_up(store, collection, f"it could not be asked for within {FILE_WAIT_S // 3600} hours: {error}")
    else:
        store.wait(collection.id, f"the exchange could not be asked: {error}", FILE_WAIT_S)


def _poll(session: BinanceSession, store: CollectionStore, collection: Collection, patient: bool) -> None:
    try:
        answer = _look(session)
    except Fatal as error:
        _no_file(store, collection, str(error))
        raise
    if isinstance(answer, FileUrl):
        if not store.is_another(collection.id, answer.path):
            store.ready(collection.id, answer.path, FILE_WAIT_S)
            log.info("the history of %s is ready", fold(collection.days))
            return
        answer = Pending("the URL of another file, which is not the one asked for")
    if not collection.is_asked:
        # Whoever was about to ask did not live to tell: once more replaces what may be under way.
        _ask(session, store, collection, patient)
    else:
        _no_file(store, collection, answer.note)


def _no_file(store: CollectionStore, collection: Collection, note: str) -> None:
    if collection.is_overdue:
        give_up(store, collection, f"no file came in time; the last answer was: {note}")
    else:
        store.pending(collection.id, note, FILE_WAIT_S)


def _look(session: BinanceSession, *, patient: bool = False) -> FileUrl | Pending:
    """What the exchange says of the file, with one request unless patient; only `Fatal` is raised, any other error means no
    file yet."""
    try:
        return session.client.get(
            PATH,
            {},
            partial(read_answer, own_host=session.client.host, more_hosts=session.settings.binance_file_hosts),
            patient=patient,
        )
    except Fatal:
        raise
    except ExchangeError as error:
        return Pending(str(error), answered=not isinstance(error, Transient))


def is_remembered(day: date, at_ms: int) -> bool:
    """Whether the history, asked at that instant, has the whole day."""
    return start_ms(day, UTC) >= at_ms - MEMORY // timedelta(milliseconds=1)


def asked_in_time(session: BinanceSession, day: date) -> bool:
    """Whether a file is on its way, or there, that was asked for while the whole day was remembered."""
    collection = session.collections().covering([day]).get(day)
    return (
        collection is not None
        and collection.state in ("collecting", "ready")
        and collection.requested_ms is not None
        and is_remembered(day, collection.requested_ms)
    )


def missed_days(
    recent: Endpoint,
    recent_landed: Mapping[date, bool],
    history_landed: Iterable[date],
    asked: Iterable[date],
    now_ms: int,
) -> list[date]:
    """The days that only the history has: since the first one that the recent records landed, forgotten by them, landed by
    neither (by them: and settled) and not asked for."""
    first = min(recent_landed, default=None)
    if first is None:
        return []
    have = {*(day for day, is_settled in recent_landed.items() if is_settled), *history_landed, *asked}
    ended = days_from(max(first, day_of(now_ms, UTC) - MEMORY), day_of(now_ms, UTC) - DAY)
    return [
        day for day in ended if day not in have and is_remembered(day, now_ms) and not recent.is_remembered(day, now_ms)
    ]


@dataclass(frozen=True)
class HistoryRequest:
    """Asks for each range of days with one POST, or sees that they are under way. Its rows say in which collection."""

    def plan(self, session: BinanceSession, days: Sequence[date], zone: ZoneInfo) -> Plan:
        store = session.collections()
        new = sum(_under_way(store, run) is None for run in runs(days))
        return Plan(2 * new, (1 + LOOKS_BEFORE) * new, 0)

    def fetch(self, session: BinanceSession, days: Sequence[date], zone: ZoneInfo) -> Iterator[DayRows | DayError]:
        store = session.collections()
        for run in runs(days):
            yield from self._ask_for(session, store, run)

    def oldest_before(self, session: BinanceSession, day: date, zone: ZoneInfo) -> int | None:
        raise NotImplementedError("nothing older than what is promised proves anything of a request")

    def _ask_for(
        self, session: BinanceSession, store: CollectionStore, days: list[date]
    ) -> Iterator[DayRows | DayError]:
        sent = session.client.requests_sent
        found = _under_way(store, days)
        number = found.id if found else store.add(days[0], days[-1])
        error: ExchangeError | None = None
        if found is None or found.state == "waiting":
            try:
                advance(session, patient=True)
            except ExchangeError as failed:
                error = failed
        collection = store.get(number)
        if collection.state == "expired":
            store.told(number)
        if isinstance(error, Fatal):
            raise error
        if collection.state == "expired":
            yield from (DayError(day, Refused(str(collection.note))) for day in days)
        elif error and collection.note:
            note = (
                f"{collection.note.rstrip('.')}. It stays in the queue, and the sensor kickback_history asks by itself"
            )
            yield from (DayError(day, Transient(note)) for day in days)
        else:
            row = {
                "collectionId": number,
                "startTime": collection.start_ms,
                "endTime": collection.end_ms - 1,
                "requestedAt": collection.requested_ms,
                "code": collection.code,
                "msg": collection.msg
                or collection.note
                or "it waits until the collections asked for earlier have landed",
            }
            for day in days:
                if not collection.covers(day):
                    yield DayError(day, Refused(_FORGOTTEN))
                    continue
                yield DayRows(day, [msgspec.json.encode(row)], 1, session.client.requests_sent - sent)


def _under_way(store: CollectionStore, days: Sequence[date]) -> Collection | None:
    """The collection that will bring all of the (consecutive) days, or has and only has to be landed."""
    return next(
        (each for each in store.open() if each.covers(days[0]) and each.covers(days[-1]) and not each.is_kept), None
    )


@dataclass(frozen=True)
class HistoryFile:
    """Lands what was asked for: waits up to ten minutes for the file, which holds rows of `schema`."""

    asset: str
    schema: type[Row]

    def plan(self, session: BinanceSession, days: Sequence[date], zone: ZoneInfo) -> Plan:
        return Plan(least=2, most=None, seconds=0)

    def oldest_before(self, session: BinanceSession, day: date, zone: ZoneInfo) -> int | None:
        raise NotImplementedError("the history's memory is asked of nobody: what was not requested in time is gone")

    def fetch(self, session: BinanceSession, days: Sequence[date], zone: ZoneInfo) -> Iterator[DayRows | DayError]:
        store = session.collections()
        left = set(days)
        for waited_s in range(0, PATIENCE_S, POLL_S):
            for outcome in self._there(session, store, left):
                left.discard(outcome.day)
                yield outcome
            if waited_s >= REQUEST_WAIT_S:
                for day in sorted(left - store.covering(left).keys()) if left else []:
                    left.discard(day)
                    yield DayError(day, _not_asked_for())
            if not left:
                return
            try:
                advance(session, patient=True)
            except Fatal:
                raise
            except ExchangeError as error:
                log.warning("the history could not be asked for: %s", error)
            if waited_s % 60 == 0:
                log.info("waiting for the history of %s", fold(left))
            if not any(each.state == "ready" for each in store.covering(left).values()):
                sleep(POLL_S)
        covering = store.covering(left)
        for day in sorted(left):
            yield DayError(day, _not_there_yet(covering[day]) if day in covering else _not_asked_for())

    def _there(
        self, session: BinanceSession, store: CollectionStore, days: Iterable[date]
    ) -> Iterator[DayRows | DayError]:
        """Those of the days whose file is there."""
        if not days:
            return
        by_collection: dict[Collection, list[date]] = {}
        for day, collection in sorted(store.covering(days).items()):
            if collection.state in ("ready", "landed"):
                by_collection.setdefault(collection, []).append(day)
        for collection, own in by_collection.items():
            yield from self._land(session, store, collection, own)

    def _land(
        self, session: BinanceSession, store: CollectionStore, collection: Collection, days: list[date]
    ) -> Iterator[DayRows | DayError]:
        kept = store.kept(collection.id)
        sent = session.client.requests_sent
        file = kept
        try:
            if file is None:
                file = self._fetch(session, store, collection)
                if file is None:
                    return
            by_day = self._by_day(file, collection)
        except Unreadable as error:
            if kept is None and file is not None:
                store.keep(collection.id, file, str(error))
            problem = Refused(
                f"{error}. The file is kept in binance.kickback_historical_collection (id {collection.id}): mend how it is "
                "read (exchanges/binance/history_file.py), then materialize the days again"
            )
            yield from (DayError(day, problem) for day in days)
            return
        except _NotOurs as error:
            log.warning("%s", error)
            if collection.state == "landed":
                yield from (DayError(day, Refused(str(error))) for day in days)
            elif kept is None:
                store.refuse(collection.id, str(collection.path), str(error))
            else:
                # Others may have been asked for since it was kept: its own file comes no more.
                give_up(store, collection, str(error))
            return
        except Fatal:
            raise
        except ExchangeError as error:
            yield from (DayError(day, error) for day in days)
            return
        requests = session.client.requests_sent - sent
        for day in days:
            rows = by_day.pop(day, [])
            yield DayRows(day, [b",".join(rows)] if rows else [], len(rows), requests, collection.requested_ms)
        # Whoever takes the days has landed the last one by now.
        store.landed(collection.id, self.asset)

    def _fetch(self, session: BinanceSession, store: CollectionStore, collection: Collection) -> bytes | None:
        """The file, whole, by a fresh URL; None if it is not offered now, and waited for again."""
        in_vain: ExchangeError | None = None
        for _ in range(FRESH_URLS):
            # The file of days that have landed is waited for by nobody else.
            answer = _look(session, patient=collection.state == "landed")
            if not isinstance(answer, FileUrl) or answer.path != collection.path:
                if collection.state == "landed":
                    if isinstance(answer, Pending) and not answer.answered:
                        raise Transient(f"the exchange did not say where the file is: {answer.note}")
                    raise Refused(
                        "the exchange no longer offers the file that they came in. To fetch them again, materialize "
                        "binance/kickback_historical_request for them first"
                    )
                store.pending(collection.id, "its file was offered, and is no longer", FILE_WAIT_S)
                return None
            answer.check_host(session.client.host, session.settings.binance_file_hosts)
            try:
                file = download(answer.secret, MOST_FILE_BYTES, session.client.network)
                # Do not store a partial file, or a page in its place: the file itself can still be fetched.
                unpack_text(file, MOST_FILE_BYTES)
                return file
            except (UrlExpired, NotWhole, AnotherBody) as error:
                in_vain = error
            except Unreadable:
                return file
        assert in_vain is not None
        raise in_vain

    def _by_day(self, file: bytes, collection: Collection) -> dict[date, list[bytes]]:
        by_day: dict[date, list[bytes]] = {}
        outside: list[int] = []
        for time, row in rows_of(file, self.schema):
            if collection.start_ms <= time < collection.end_ms:
                by_day.setdefault(day_of(time, UTC), []).append(row)
            else:
                outside.append(time)
        if outside:
            raise _NotOurs(
                f"the file offered has {len(outside)} rows outside the days asked for ({fold(collection.days)}), such as one "
                f"of {instant(outside[0])}: it is somebody else's or an older one, and nothing of it was landed"
            )
        return by_day


class _NotOurs(Exception):
    """The file has rows that were not asked for."""


def _not_asked_for() -> Refused:
    return Refused(
        "nobody has asked the exchange to collect the day: materialize binance/kickback_historical_request for it first"
    )


def _not_there_yet(collection: Collection) -> Transient:
    asked = (
        f"asked for at {collection.requested_at:%Y-%m-%d %H:%M} UTC" if collection.requested_at else "not asked for yet"
    )
    note = f" ({collection.note})" if collection.note else ""
    return Transient(
        f"the file is not there after {PATIENCE_S // 60} minutes{note}; it was {asked}. The sensor kickback_history goes on "
        "waiting for it and lands its days by itself"
    )
