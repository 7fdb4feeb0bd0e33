"""This machine's clock, corrected to an exchange's."""

import logging
import time
from collections.abc import Callable

from affiliate_pipeline.domain.redaction import redact
from affiliate_pipeline.http.errors import ClockOff, ExchangeError

CLOCKS_AGREE_MS = 1000
log = logging.getLogger(__name__)


class Clock:
    """Our clock, corrected to the exchange's. Safe to share between threads."""

    def __init__(self, local_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000):
        self._local_ms = local_ms
        self.offset_ms = 0

    def now_ms(self) -> int:
        return self._local_ms() + self.offset_ms

    def set(self, server_ms: int) -> None:
        self.offset_ms = server_ms - self._local_ms()

    def correct(self, rejected: ClockOff, query: Callable[[], int | None]) -> bool:
        """Adopt the exchange's clock, from the rejection or from `query`, its clock (ms) if there is such a request.

        Returns False if the clocks agree already, so that another request would be rejected again.
        """
        if self.offset_ms != rejected.signed_offset_ms:
            return True  # corrected since, because of another request
        try:
            server_ms = query() if rejected.server_ms is None else rejected.server_ms
        except ExchangeError as error:
            log.warning("the exchange's clock could not be read: %s", redact(error))
            return True
        if server_ms is not None:
            self.set(server_ms)
        # Not compared with the current offset: another request may be correcting it at the same time.
        if rejected.server_ms is not None and abs(self.offset_ms - rejected.signed_offset_ms) < CLOCKS_AGREE_MS:
            return False
        log.warning("the exchange's clock differs by %d ms; corrected", self.offset_ms)
        return True
