"""The life of a kickback export: after a POST, a GET returns its file's URL hours later.

Binance ties no file to a request, and a second POST replaces the first. So each account has one export under way at a
time, with its whole state in the database: any process can resume after a crash. Only `advance` sends POSTs and polls
for new files; the sensor and both assets call it.

    waiting ──POST──> collecting ──URL of a new file──> ready ──its days land──> landed
       └───────────────────┴──────────failure───────────┴────> expired

A POST that failed without effect returns an export to waiting. `fetch` returns a ready export to collecting if its file
is no longer offered, or belongs to another request.
"""

import logging
from dataclasses import dataclass
from datetime import date
from functools import partial

from affiliate_pipeline.domain.days import format_days
from affiliate_pipeline.exchanges.binance.exchange import BinanceSession
from affiliate_pipeline.exchanges.binance.kickback_export.exports import (
    RETENTION,
    KickbackExport,
    KickbackExports,
    is_retained,
)
from affiliate_pipeline.exchanges.binance.kickback_export.file_format import FileUrl, Pending, read_response
from affiliate_pipeline.http.error_body import read_error
from affiliate_pipeline.http.errors import AccessRefused, ExchangeError, Fatal, OutcomeUnknown, Refused, Transient

PATH = "/sapi/v1/apiReferral/kickback/historicalRecord"
# How long a file takes is not documented; other exports of Binance take minutes to hours.
FILE_WAIT_S = 12 * 3600
# How long to delay the POST while it is unknown which file the exchange offers already.
FILE_BEFORE_WAIT_S = 120

log = logging.getLogger(__name__)


def advance(session: BinanceSession, *, is_run: bool) -> None:
    """Take one export's next step, unless another process is doing so: poll for its file, send its POST, or expire it.

    Args:
        is_run: Whether a run calls this, rather than the sensor. For a run, the POST and the GET before it are retried,
            and the step is taken even if it is not due yet. A poll is one GET; it does not wait for the file.

    Raises:
        ExchangeError: the POST failed, or a GET failed with `Fatal`.
    """
    exports = session.exports()
    with exports.try_exclusive() as is_exclusive:
        if not is_exclusive:
            return
        # An export whose file is stored needs no request.
        queue = [export for export in exports.all_open() if not export.has_stored_file]
        # Waiting exports come last: their POST would withdraw a file that has not landed.
        export = min(queue, key=lambda each: (each.state == "waiting", each.id), default=None)
        if export is None or not (is_run or export.is_due):
            return

        if export.state != "ready":
            _Step(session, exports, export, is_run).take()
        elif export.is_overdue:  # otherwise a run has to land the file first
            exports.update(export, state="expired", note="its file was offered, but could not be landed in time")


@dataclass(frozen=True)
class _Step:
    """The next step of an export that is waiting or collecting."""

    session: BinanceSession
    exports: KickbackExports
    export: KickbackExport
    is_run: bool

    def take(self) -> None:
        """Poll for the file of a collecting export; send the POST of a waiting one.

        If some days of a waiting export have expired, cut the export to these days and expire it instead.
        """
        is_waiting = self.export.state == "waiting"
        expired = [day for day in self.export.days if not is_retained(day, self.session.now_ms())]
        if is_waiting and expired:
            note = f"it could not be requested within the {RETENTION.days} days that the exchange retains"
            self.exports.expire_first_days(self.export, expired, note)
            return

        try:
            offered = offered_file(self.session, retries=self.is_run and is_waiting)
        except Fatal as error:
            self._postpone_or_expire(self.export.state, str(error))
            raise
        if is_waiting:
            self._post_or_postpone(offered)
        else:
            self._handle_poll(offered)

    def _post_or_postpone(self, offered_before: FileUrl | Pending) -> None:
        """Send the POST, or postpone it for a short time if it is unknown which file is offered already."""
        if isinstance(offered_before, FileUrl):
            self._post(offered_before.path)
        elif offered_before.is_conclusive or self.export.age_s > FILE_BEFORE_WAIT_S:
            self._post(None)
        else:
            # A file that is offered already could be taken for the requested one later.
            note = f"it is unknown which file the exchange already offers: {offered_before.note}"
            self._postpone_or_expire("waiting", note)

    def _handle_poll(self, offered: FileUrl | Pending) -> None:
        """Mark the export as ready if its own file is offered; otherwise post again, or postpone the next poll."""
        if isinstance(offered, FileUrl) and not self._belongs_to_another(offered.path):
            self.exports.update(self.export, state="ready", path=offered.path, note=None, wait_s=FILE_WAIT_S)
            log.info("the export of %s is ready", format_days(self.export.days))
            return

        if isinstance(offered, FileUrl):
            note, has_no_own_file = "the URL of another request's file", True
        else:
            note, has_no_own_file = offered.note, offered.is_conclusive
        if self.export.msg is None and has_no_own_file:
            # It is unknown whether the POST arrived: the process died before recording the response, or there was no
            # usable one. The poll shows that no file of this export is offered, so another POST withdraws none.
            self._post(self.export.path_before)
        else:
            self._postpone_or_expire("collecting", note)

    def _belongs_to_another(self, path: str) -> bool:
        """Whether the file is known to be another request's."""
        for export in self.exports.refresh():
            if path == export.path and export.id != self.export.id:
                return True
            if path in (export.path_before, *export.other_paths):
                return True
        return False

    def _post(self, path_before: str | None) -> None:
        """Send the POST and record the result; raises `ExchangeError` if it failed without effect."""
        # Persist before requesting: from now on the exchange may be collecting.
        self.exports.mark_collecting(self.export, path_before)
        params = {"startTime": self.export.start_ms, "endTime": self.export.end_ms - 1}

        try:
            # `read_error` also reads the code and the message of a request that was accepted.
            accepted = self.session.client.post(PATH, params, read_error, retries=self.is_run)
        except OutcomeUnknown as error:
            self._postpone_or_expire("collecting", str(error))
        except (Refused, AccessRefused) as error:
            self.exports.update(self.export, state="expired", note=f"the exchange refused the request: {error}")
            raise
        except ExchangeError as error:
            self._postpone_or_expire("waiting", str(error))
            raise
        else:
            self.exports.update(self.export, code=accepted.code, msg=accepted.message, wait_s=FILE_WAIT_S)
            log.info("requested the export of %s: %s", format_days(self.export.days), accepted.message)

    def _postpone_or_expire(self, state: str, note: str) -> None:
        """Set the export to `state` for another attempt, or expire it if it is overdue."""
        if self.export.is_overdue:
            reason = "it could not be requested in time" if state == "waiting" else "no file was offered in time"
            self.exports.update(self.export, state="expired", note=f"{reason}; the last response was: {note}")
        else:
            # Retries do not extend the deadline: None leaves it unchanged.
            wait_s = None if self.export.expires_at else FILE_WAIT_S
            self.exports.update(self.export, state=state, note=note, wait_s=wait_s)


def offered_file(session: BinanceSession, *, retries: bool = False) -> FileUrl | Pending:
    """The URL of the file offered now; only `Fatal` is raised, other errors mean `Pending`."""
    read = partial(read_response, own_host=session.client.host, more_hosts=session.settings.binance_file_hosts)
    try:
        return session.client.get(PATH, {}, read, retries=retries)
    except (Refused, Transient) as error:
        return Pending(str(error), is_conclusive=not isinstance(error, Transient))


def requested_in_time(session: BinanceSession, day: date) -> bool:
    """Whether a collecting or ready export of the day was requested while the exchange still retained the day."""
    export = session.exports().covering([day]).get(day)
    if export is None or export.state not in ("collecting", "ready"):
        return False
    return export.requested_ms is not None and is_retained(day, export.requested_ms)
