"""Fetching for the two assets of an export: one requests it, the other lands its file."""

import logging
from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import groupby, takewhile
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
FRESH_URLS = 3

RowsByDay = dict[date, list[bytes]]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportRequest:
    """Requests an export per range of days, unless an open one has it; rows name the export."""

    path = PATH

    def plan(self, session: BinanceSession, days: Sequence[date], zone: ZoneInfo) -> RequestPlan:
        """Two requests for each range that no open export has."""
        new = sum(_under_way(session.exports(), span) is None for span in day_ranges(days))
        return RequestPlan(2 * new, 2 * new, 0)

    def fetch(self, session: BinanceSession, days: Sequence[date], zone: ZoneInfo) -> Generator[DayBatch | DayError]:
        """Request the days that no open export has; one row per day names its export."""
        for span in day_ranges(days):
            yield from self._request(session, span)

    def _request(self, session: BinanceSession, days: list[date]) -> Iterator[DayBatch | DayError]:
        exports, sent, failed = session.exports(), session.client.requests_sent, False
        found = _under_way(exports, days)
        export_id = found.id if found else exports.add(days[0], days[-1])
        if found is None or found.state == "waiting":
            try:
                advance(session, is_run=True)
            except (Refused, Transient):
                failed = True
        export = next(each for each in exports.refresh() if each.id == export_id)
        # If some days had expired, the other days were added again as a new export.
        newer = [each for each in exports.all_open() if each.id > export_id] if export.state == "expired" else []
        for day in days:
            current = next((each for each in newer if each.covers(day)), export)
            note = (current.note or "").rstrip(".")
            row = {
                "collectionId": current.id,
                "startTime": current.start_ms,
                "endTime": current.end_ms - 1,
                "requestedAt": current.requested_ms,
                "code": current.code,
                "msg": current.msg or current.note or "not requested yet: earlier exports have to land first",
            }
            if current.state == "expired":
                yield DayError(day, Refused(note))
            elif failed and note:
                queued = "The request is still queued, and the sensor kickback_history sends it"
                yield DayError(day, Transient(f"{note}. {queued}"))
            else:
                yield DayBatch(day, [msgspec.json.encode(row)], 1, session.client.requests_sent - sent)


def _under_way(exports: KickbackExports, days: Sequence[date]) -> KickbackExport | None:
    """The open export that has all of the days, and has or will have a readable file."""
    return next((each for each in exports.all_open() if each.covers(*days) and not each.has_stored_file), None)


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
        exports, left = session.exports(), set(days)
        for waited_s in takewhile(lambda _: not session.cancelled.is_set(), range(0, MAX_WAIT_S + 1, POLL_S)):
            found = exports.covering(left)
            for export, group in groupby(sorted(found), key=found.__getitem__):
                export_days = list(group)
                if export.state in ("ready", "landed") and (outcomes := self._outcomes(session, export, export_days)):
                    left -= {*export_days}
                    yield from outcomes
            is_last = waited_s >= MAX_WAIT_S
            found = exports.covering(left)
            without_export = left - found.keys() if waited_s >= REQUEST_WAIT_S else set[date]()
            for day in sorted(left if is_last else without_export):
                left.remove(day)
                yield DayError(day, _not_ready(session, found.get(day)))
            if not left:
                return
            try:
                advance(session, is_run=True)
            except (Refused, Transient) as error:
                log.warning("the export could not be requested: %s", error)
            if waited_s % 60 == 0:
                log.info("waiting for the export of %s", format_days(left))
            if not any(export.state == "ready" for export in exports.covering(left).values()):
                sleep(POLL_S)

    def _outcomes(self, session: BinanceSession, export: KickbackExport, days: list[date]) -> list[DayBatch | DayError]:
        """One outcome per day; empty if the file has to be waited for again."""
        sent = session.client.requests_sent
        try:
            by_day = self._rows(session, export)
        except (Refused, Transient) as error:
            return [DayError(day, error) for day in days]
        if by_day is None:
            return []
        requests = session.client.requests_sent - sent
        return [
            DayBatch(day, [b",".join(rows)] if rows else [], len(rows), requests, export.requested_ms)
            for day in days
            # Each day's rows are freed once they are joined.
            for rows in [by_day.pop(day, [])]
        ]

    def _rows(self, session: BinanceSession, export: KickbackExport) -> RowsByDay | None:
        """The rows of the stored or offered file; None: the export is collecting again, or has expired."""
        exports = session.exports()
        stored = exports.stored_file(export)
        for urls_left in reversed(range(FRESH_URLS)):
            file = stored
            try:
                if file is None:
                    file = _downloaded(session, export)
                return self._parsed(file, export)
            except (UrlExpired, IncompleteFile, NotTheFile):
                # A partial file, or a page in its place, is not stored: the file itself can still be fetched.
                if not urls_left:
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
                log.warning("%s", error)
                # If a stored file is another request's, a later request may have withdrawn the right one.
                state = "collecting" if stored is None else "expired"
                others = [*export.other_paths, *error.paths]
                exports.update(export, state=state, path=None, other_paths=others, note=str(error))
                return None
        return None  # never reached: the last attempt raises its error

    def _parsed(self, file: bytes, export: KickbackExport) -> RowsByDay:
        by_day: RowsByDay = defaultdict(list)
        for time, row in rows_of(file, self.schema):
            by_day[day_of(time, ZONE)].append(row)
        if outside := by_day.keys() - {*export.days}:
            raise _NoOwnFile(
                f"the file has rows of {format_days(outside)}, which are not among the requested days ({format_days(export.days)}): it "
                "belongs to another request, and none of it has landed",
                export.path,
            )
        return by_day


def _downloaded(session: BinanceSession, export: KickbackExport) -> bytes:
    # Retry here: the sensor does not poll for a file whose days have landed.
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
    """The export's file is not offered, or the file at `path` is another request's."""

    def __init__(self, text: str, path: str | None = None):
        super().__init__(text)
        self.paths = [path] if path else []


def _not_ready(session: BinanceSession, export: KickbackExport | None) -> ExchangeError:
    if export is None:
        return Refused("no export has the day", f"Materialize {session.key_of(REQUESTED_BY)} for it first")
    requested = "not requested yet" if export.requested_ms is None else f"requested at {utc_text(export.requested_ms)}"
    note = f" ({export.note})" if export.note else ""
    return Transient(
        f"the file is not ready after {MAX_WAIT_S // 60} minutes{note}; it was {requested}. The sensor kickback_history "
        "waits for it and lands its days"
    )
