"""Fetching for the two assets of an export: one requests it, the other lands its file."""

import logging
from collections import defaultdict
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import date
from itertools import groupby
from time import sleep
from zoneinfo import ZoneInfo

import msgspec

from affiliate_pipeline.domain.days import day_of, day_ranges, format_days, utc_text
from affiliate_pipeline.exchanges.binance.exchange import BinanceSession
from affiliate_pipeline.exchanges.binance.kickback_export.advance import PATH, advance, offered_file
from affiliate_pipeline.exchanges.binance.kickback_export.exports import (
    REQUESTED_BY,
    TABLE,
    ZONE,
    KickbackExport,
    KickbackExports,
)
from affiliate_pipeline.exchanges.binance.kickback_export.file_format import MAX_FILE_BYTES, Pending, rows_of
from affiliate_pipeline.exchanges.fetching import DayBatch, DayError, RequestPlan
from affiliate_pipeline.http.download import download
from affiliate_pipeline.http.errors import ExchangeError, Refused, Transient, UrlExpired
from affiliate_pipeline.http.unpacking import IncompleteFile, NotTheFile, Unreadable
from affiliate_pipeline.schema.columns import Row

# How long a run waits for the file, and for another run that requests its days, such as one started together with it.
MAX_WAIT_S, REQUEST_WAIT_S, POLL_S = 600, 120, 5
MAX_DOWNLOADS = 3

RowsByDay = dict[date, list[bytes]]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportRequest:
    """Requests an export per range of days, unless an open one has it; rows name the export."""

    path = PATH

    def plan(self, session: BinanceSession, days: Sequence[date], zone: ZoneInfo) -> RequestPlan:
        """Two requests for each range that no open export has."""
        new_exports = sum(_under_way(session.exports(), span) is None for span in day_ranges(days))
        requests = 2 * new_exports
        return RequestPlan(min_requests=requests, max_requests=requests, seconds=0)

    def fetch(self, session: BinanceSession, days: Sequence[date], zone: ZoneInfo) -> Generator[DayBatch | DayError]:
        """Request the days that no open export has; one row per day names its export."""
        for span in day_ranges(days):
            yield from self._request(session, span)

    def _request(self, session: BinanceSession, days: list[date]) -> Iterator[DayBatch | DayError]:
        """Request consecutive days in one export, unless an open one has them; yield the outcome of each day."""
        exports = session.exports()
        sent_before = session.client.requests_sent
        under_way = _under_way(exports, days)
        export_id = under_way.id if under_way else exports.add(days[0], days[-1])
        advance_failed = False
        if under_way is None or under_way.state == "waiting":
            try:
                # Takes the next step of one export, which may be an earlier one.
                advance(session, is_run=True)
            except (Refused, Transient):
                advance_failed = True

        export = next(each for each in exports.refresh() if each.id == export_id)
        newer: list[KickbackExport] = []
        if export.state == "expired":
            # If only some days had expired, the other days were added again as a new export.
            newer = [each for each in exports.all_open() if each.id > export_id]

        for day in days:
            current = next((each for each in newer if each.covers(day)), export)
            note = (current.note or "").rstrip(".")
            if current.state == "expired":
                yield DayError(day, Refused(note))
            # Without a note, this export has not been tried: the failure is of an earlier one.
            elif advance_failed and note:
                queued = "The request is still queued, and the sensor kickback_history sends it"
                yield DayError(day, Transient(f"{note}. {queued}"))
            else:
                yield DayBatch(day, [_request_row(current)], 1, session.client.requests_sent - sent_before)


def _under_way(exports: KickbackExports, days: Sequence[date]) -> KickbackExport | None:
    """The open export that has all of the days and no stored file: only an unreadable file is stored."""
    for export in exports.all_open():
        if export.covers(*days) and not export.has_stored_file:
            return export
    return None


def _request_row(export: KickbackExport) -> bytes:
    """The row of a requested day, which names its export."""
    return msgspec.json.encode(
        {
            "collectionId": export.id,
            "startTime": export.start_ms,
            "endTime": export.end_ms - 1,
            "requestedAt": export.requested_ms,
            "code": export.code,
            "msg": export.msg or export.note or "not requested yet: earlier exports have to land first",
        }
    )


@dataclass(frozen=True)
class ExportFile:
    """Lands the files of exports, with rows of `schema`; waits up to ten minutes for a file."""

    schema: type[Row]
    path = PATH

    def plan(self, session: BinanceSession, days: Sequence[date], zone: ZoneInfo) -> RequestPlan:
        """At least two requests: how often the file has to be polled for is unknown."""
        return RequestPlan(min_requests=2, max_requests=None, seconds=0)

    def fetch(self, session: BinanceSession, days: Sequence[date], zone: ZoneInfo) -> Generator[DayBatch | DayError]:
        """Yield each day once its export is ready.

        A day fails if its export is not ready after `MAX_WAIT_S`, or if no export has the day after `REQUEST_WAIT_S`.
        """
        exports = session.exports()
        pending = set(days)
        for waited_s in range(0, MAX_WAIT_S + 1, POLL_S):
            if session.cancelled.is_set():
                return
            for outcome in self._outcomes_of_ready(session, pending):
                pending.remove(outcome.day)
                yield outcome

            by_day = exports.covering(pending)
            for day in sorted(_past_wait(pending, by_day, waited_s)):
                pending.remove(day)
                yield DayError(day, _not_ready(session, by_day.get(day)))
            if not pending:
                return

            try:
                advance(session, is_run=True)
            except (Refused, Transient) as error:
                log.warning("the export could not be requested: %s", error)
            if waited_s % 60 == 0:
                log.info("waiting for the export of %s", format_days(pending))
            is_any_ready = any(export.state == "ready" for export in exports.covering(pending).values())
            if not is_any_ready:
                sleep(POLL_S)

    def _outcomes_of_ready(self, session: BinanceSession, days: Collection[date]) -> Iterator[DayBatch | DayError]:
        """The outcomes of those days whose export is ready or has landed; its file is read once per range of days."""
        by_day = session.exports().covering(days)
        for export, group in groupby(sorted(by_day), key=by_day.__getitem__):
            if export.state in ("ready", "landed"):
                yield from self._outcomes(session, export, list(group))

    def _outcomes(self, session: BinanceSession, export: KickbackExport, days: list[date]) -> list[DayBatch | DayError]:
        """One outcome per day; empty if the file has to be waited for again."""
        sent_before = session.client.requests_sent
        try:
            by_day = self._rows(session, export)
        except (Refused, Transient) as error:
            return [DayError(day, error) for day in days]
        if by_day is None:
            return []
        requests = session.client.requests_sent - sent_before
        outcomes: list[DayBatch | DayError] = []
        for day in days:
            # Each day's rows are freed once they are joined.
            rows = by_day.pop(day, [])
            chunks = [b",".join(rows)] if rows else []
            outcomes.append(DayBatch(day, chunks, len(rows), requests, requested_ms=export.requested_ms))
        return outcomes

    def _rows(self, session: BinanceSession, export: KickbackExport) -> RowsByDay | None:
        """The rows of the stored or offered file; None: the export is collecting again, or has expired."""
        exports = session.exports()
        stored = exports.stored_file(export)
        for downloads_left in reversed(range(MAX_DOWNLOADS)):
            file = stored
            try:
                if file is None:
                    # Each attempt requests a fresh URL.
                    file = _downloaded(session, export)
                return self._parsed(file, export)
            except (UrlExpired, IncompleteFile, NotTheFile):
                # A partial file, or a page in its place, is not stored: the file itself can still be fetched.
                if not downloads_left:
                    raise
            except Unreadable as error:
                if stored is None:
                    exports.update(export, file=file, note=str(error))
                raise Refused(
                    f"{error}",
                    "Fix exchanges/binance/kickback_export/file_format.py, then materialize the days again",
                    impact=f"The file is stored in {TABLE} (id {export.id})",
                ) from None
            except _NoOwnFile as error:
                if export.state == "landed":
                    request = session.key_of(REQUESTED_BY)
                    raise Refused(f"{error}", f"To fetch the day again, materialize {request} for it first") from None
                _collect_again_or_expire(exports, export, error, has_stored_file=stored is not None)
                return None
        return None  # never reached: the last attempt raises its error

    def _parsed(self, file: bytes, export: KickbackExport) -> RowsByDay:
        by_day: RowsByDay = defaultdict(list)
        for time, row in rows_of(file, self.schema):
            by_day[day_of(time, ZONE)].append(row)
        outside = by_day.keys() - {*export.days}
        if outside:
            raise _NoOwnFile(
                f"the file has rows of {format_days(outside)}, which are not among the requested days ({format_days(export.days)}): it "
                "belongs to another request, and none of it has landed",
                export.path,
            )
        return by_day


def _downloaded(session: BinanceSession, export: KickbackExport) -> bytes:
    """The export's file, if it is offered; otherwise raises `_NoOwnFile`.

    Raises `Transient` if the export has landed and the response does not show whether its file is offered.
    """
    # Retry only for a landed export: any other one is set to collecting again, and later polls request its file.
    has_landed = export.state == "landed"
    offered = offered_file(session, retries=has_landed)
    if isinstance(offered, Pending) and not offered.is_conclusive:
        text = f"the exchange did not send the URL of the file: {offered.note}"
        raise Transient(text) if has_landed else _NoOwnFile(text)
    if isinstance(offered, Pending) or offered.path != export.path:
        raise _NoOwnFile("the exchange no longer offers the file")

    offered.check_host(session.client.host, session.settings.binance_file_hosts)
    return download(offered.secret, MAX_FILE_BYTES, session.client.network)


class _NoOwnFile(Refused):
    """The export's file is not offered or may not be, or the file at `path` is another request's."""

    def __init__(self, text: str, path: str | None = None):
        super().__init__(text)
        self.paths = [path] if path else []


def _collect_again_or_expire(
    exports: KickbackExports, export: KickbackExport, error: _NoOwnFile, *, has_stored_file: bool
) -> None:
    """Set the export to collecting, or to expired if its stored file was another request's.

    Also record the path of the file that was another request's, whether stored or just downloaded.
    """
    log.warning("%s", error)
    # If a stored file is another request's, a later request may have withdrawn the right one.
    state = "expired" if has_stored_file else "collecting"
    other_paths = [*export.other_paths, *error.paths]
    exports.update(export, state=state, path=None, other_paths=other_paths, note=str(error))


def _past_wait(pending: Set[date], by_day: Mapping[date, KickbackExport], waited_s: int) -> Set[date]:
    """The days that fail now: after `MAX_WAIT_S` all, after `REQUEST_WAIT_S` those that no export has (see `by_day`)."""
    if waited_s >= MAX_WAIT_S:
        return pending
    if waited_s >= REQUEST_WAIT_S:
        return pending - by_day.keys()
    return set()


def _not_ready(session: BinanceSession, export: KickbackExport | None) -> ExchangeError:
    """Why a day cannot be landed now; `export` is the one that has the day, or None if no export has it."""
    if export is None:
        return Refused("no export has the day", f"Materialize {session.key_of(REQUESTED_BY)} for it first")
    requested = "not requested yet" if export.requested_ms is None else f"requested at {utc_text(export.requested_ms)}"
    note = f" ({export.note})" if export.note else ""
    return Transient(
        f"the file is not ready after {MAX_WAIT_S // 60} minutes{note}; it was {requested}. The sensor kickback_history "
        "waits for it and lands its days"
    )
