"""Rate limits shared by all processes and machines, as slot leases in the database.

A slot is free again one window after the *response* to its last request: the server counts a request when it receives
it, which is some time between sending and response. The slot of a killed process is free once its slot lease ends.
"""

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from affiliate_pipeline.domain.wording import duration
from affiliate_pipeline.postgres.errors import StoreUnavailable
from affiliate_pipeline.postgres.table_store import TableStore

TABLE: Final = "affiliate.lease"
PRIVILEGES = {TABLE: "select insert update"}
# A slot lease lasts this long plus the window: longer than any request takes (see the timeouts of http.client), so that
# no two processes use a slot at the same time.
SLOT_LEASE_S = 60
MAX_WAIT_S = 300
# Pauses set by another process are noticed up to this late: not every request of a slot lease queries the database.
PAUSE_CHECK_S = 0.02
# Well above the longest ban known, three days at Binance.
MAX_PAUSE_S = 30 * 86_400

# Slot -1 is the pause that the exchange requested.
_PAUSED: Final = f"select 1 from {TABLE} where scope = %(scope)s and slot = -1 and returns_at > clock_timestamp()"
_TAKE: Final = f"""
update {TABLE} set returns_at = clock_timestamp() + %(lease_s)s * interval '1 second'
where (scope, slot) = (
    select scope, slot from {TABLE}
    where scope = %(scope)s and slot between 0 and %(slots)s - 1 and returns_at <= clock_timestamp()
    and not exists ({_PAUSED})
    order by returns_at, slot limit 1 for update skip locked
) returning slot, returns_at"""
_WAIT: Final = f"""
with free_times as (
    select min(returns_at) filter (where slot between 0 and %(slots)s - 1) as slot_returns_at,
        max(returns_at) filter (where slot = -1) as pause_ends_at
    from {TABLE} where scope = %(scope)s
)
select extract(epoch from greatest(slot_returns_at, pause_ends_at) - clock_timestamp())::float8,
    extract(epoch from pause_ends_at - clock_timestamp())::float8
from free_times"""


@dataclass
class _OwnSlot:
    """The slot lease of this process: the requests it permits, until when, and those in flight."""

    number: int
    returns_at: datetime
    requests_left: int
    usable_until: float
    in_flight: int = 0


class RateLimiter(TableStore):
    """A limit of `slots` slots per window with `requests` requests each.

    Safe to share between threads. A pause longer than `max_wait_s` raises `too_long(message)`.
    """

    def __init__(
        self,
        url: str,
        scope: str,
        slots: int,
        window_s: float,
        requests: int = 1,
        *,
        sleep: Callable[[float], None] = time.sleep,
        max_wait_s: float = MAX_WAIT_S,
        too_long: Callable[[str], Exception] = TimeoutError,
    ) -> None:
        # Losing slot leases in a crash of the database costs less than waiting for the disk at every request.
        super().__init__(url, durable=False)
        self._window_s = window_s
        self._requests = requests
        self._sleep = sleep
        self._max_wait_s = max_wait_s
        self._too_long = too_long
        self._values = {"scope": scope, "slots": slots, "lease_s": SLOT_LEASE_S + window_s}
        self._lock = threading.Lock()
        self._own_slot: _OwnSlot | None = None
        self._no_pause_until = float("-inf")

        try:
            self._execute(
                f"insert into {TABLE} select %(scope)s, slot, 'epoch' from generate_series(-1, %(slots)s - 1) slot "
                "on conflict do nothing",
                self._values,
            )
        except BaseException:
            super().close()
            raise

    def close(self) -> None:
        """Give back the slot if it is idle and the database can be used, and close the connection."""
        with self._lock:
            try:
                # Without the database, the slot is free once its slot lease ends; raising the error would replace the
                # outcome of the run.
                with suppress(StoreUnavailable):
                    self._drop_slot()
            finally:
                super().close()

    @contextmanager
    def slot(self) -> Generator[None]:
        """Wait until a request may be sent; its slot is in use until the `with` block ends."""
        own = self._take()
        try:
            yield
        finally:
            with self._lock:
                own.in_flight -= 1
                is_replaced = own is not self._own_slot
                if not own.in_flight and (is_replaced or not own.requests_left):
                    self._give_back(own)

    def pause(self, seconds: float) -> None:
        """Stop the requests of all processes with this scope for that long."""
        pause_s = max(0.0, min(seconds, MAX_PAUSE_S))
        with self._lock:
            # Drop the slot, so that this process stops at once: with it, the pause may be noticed up to `PAUSE_CHECK_S`
            # late.
            self._drop_slot()
            self._execute(
                f"update {TABLE} set returns_at = greatest(returns_at, clock_timestamp() + %s * interval '1 second') "
                "where scope = %s and slot = -1",
                (pause_s, self._values["scope"]),
            )

    def _take(self) -> _OwnSlot:
        """The slot for one request, which is counted as in flight; waits until there is a slot."""
        while True:
            with self._lock:
                own = self._reused_slot() or self._new_slot()
                if own:
                    return own
                [(wait_s, pause_s)] = self._execute(_WAIT, self._values).fetchall()

            if pause_s is not None and pause_s > self._max_wait_s:
                raise self._too_long(
                    f"the exchange allows no request for another {duration(pause_s)}; materialize again after that"
                )
            # Another process may take the returning slot first, so look again. `wait_s` may last until a slot lease
            # ends, but a slot in use returns one window after its response, usually long before: sleep at most one
            # window.
            wait_s = max(wait_s or 0.0, 0.005)
            self._sleep(min(wait_s, self._window_s, 5.0))

    def _reused_slot(self) -> _OwnSlot | None:
        """This process's slot, with another request counted as in flight; None if it permits no further one now."""
        own = self._own_slot
        if own is None or not own.requests_left or time.monotonic() >= own.usable_until:
            return None
        if self._is_paused():
            return None
        own.requests_left -= 1
        own.in_flight += 1
        return own

    def _new_slot(self) -> _OwnSlot | None:
        """A free slot in place of the current one, with one request counted as in flight; None if no slot is free."""
        row = self._execute(_TAKE, self._values).fetchone()
        if row is None:
            return None
        number, returns_at = row
        self._drop_slot()
        self._own_slot = _OwnSlot(
            number,
            returns_at,
            requests_left=self._requests - 1,
            # No request starts after half of SLOT_LEASE_S: each has to end before the slot lease does.
            usable_until=time.monotonic() + SLOT_LEASE_S / 2,
            in_flight=1,
        )
        return self._own_slot

    def _is_paused(self) -> bool:
        """Whether the requests of the scope are paused; a new pause is noticed up to `PAUSE_CHECK_S` late."""
        now = time.monotonic()
        if now < self._no_pause_until:
            return False
        if self._execute(_PAUSED, self._values).fetchone():
            return True
        self._no_pause_until = now + PAUSE_CHECK_S
        return False

    def _drop_slot(self) -> None:
        """Start no further request with the slot: it is returned now if idle, otherwise after its last response."""
        if self._own_slot and not self._own_slot.in_flight:
            self._give_back(self._own_slot)
        self._own_slot = None

    def _give_back(self, own: _OwnSlot) -> None:
        # No effect if the slot lease has ended and another process has taken the slot.
        self._execute(
            f"update {TABLE} set returns_at = clock_timestamp() + %s * interval '1 second' "
            "where scope = %s and slot = %s and returns_at = %s",
            (self._window_s, self._values["scope"], own.number, own.returns_at),
        )
        if own is self._own_slot:
            self._own_slot = None
