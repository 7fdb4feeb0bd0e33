"""Rate limits that hold over all processes and machines together: leases of slots in the database.

A slot comes back one window after the *answer* to its last request arrived: a server counts when a request reaches
it, which is somewhere between sending and answering. A killed holder costs its slot until the lease ends.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg

from affiliate_pipeline.http.errors import Banned
from affiliate_pipeline.postgres.connection import connect, unavailable

# A request has been answered or given up by then (client.TIMEOUT), so its slot is never taken by two.
HOLD_S = 60
LONGEST_WAIT_S = 300
# Within a block the database is not asked at every request: what another process was just told is heard of so much later,
# when a request of ours might have been under way just as well.
PAUSE_HEARD_WITHIN_S = 0.02
# Binance's bans end after three days.
LONGEST_PAUSE_S = 30 * 86_400

_TAKE = """
update affiliate.lease set returns_at = clock_timestamp() + %(held)s * interval '1 second'
where (scope, slot) = (
    select scope, slot from affiliate.lease
    where scope = %(scope)s and slot between 0 and %(slots)s - 1 and returns_at <= clock_timestamp()
    -- slot -1 is the pause that the exchange asked for
    and not exists (
        select from affiliate.lease where scope = %(scope)s and slot = -1 and returns_at > clock_timestamp()
    )
    order by returns_at, slot limit 1 for update skip locked
) returning slot, returns_at"""
_PAUSED = """
select exists (select from affiliate.lease where scope = %(scope)s and slot = -1 and returns_at > clock_timestamp())"""
_WAIT = """
select extract(epoch from greatest(
    min(returns_at) filter (where slot between 0 and %(slots)s - 1), max(returns_at) filter (where slot = -1)
) - clock_timestamp())::float8,
extract(epoch from max(returns_at) filter (where slot = -1) - clock_timestamp())::float8
from affiliate.lease where scope = %(scope)s"""


@dataclass
class _Block:
    """A slot taken: how many requests it still permits, how many are under way, and until when it may be used."""

    slot: int
    returns_at: datetime
    left: int
    used_until: float
    under_way: int = 0


class Lease:
    """A rate limit (`rest.limits.Limit`): `slots` slots per window of `window_s` seconds, each good for `requests` requests. Safe to share by threads."""

    def __init__(
        self,
        url: str,
        scope: str,
        slots: int,
        window_s: float,
        requests: int = 1,
        sleep: Callable[[float], None] = time.sleep,
        longest_wait_s: float = LONGEST_WAIT_S,
    ):
        self._longest_wait_s = longest_wait_s
        self._scope, self._slots, self._window_s, self._requests, self._sleep = scope, slots, window_s, requests, sleep
        self._lock = threading.Lock()
        self._block: _Block | None = None
        self._no_pause_until = float("-inf")
        # A lease that a crashed database forgets costs nothing worth waiting for the disk at every request.
        self._connection = connect(url, autocommit=True, durable=False)
        self._run(
            "insert into affiliate.lease select %s, slot, 'epoch' from generate_series(-1, %s - 1) slot "
            "on conflict do nothing",
            (scope, slots),
        )

    def close(self) -> None:
        with self._lock:
            self._drop_block()
            self._connection.close()

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Waits until a request may be sent; held until its answer has arrived. Raises `Banned` on a long pause."""
        block = self._take()
        try:
            yield
        finally:
            with self._lock:
                block.under_way -= 1
                if not block.under_way and (not block.left or block is not self._block):
                    self._give_back(block)
                    if block is self._block:
                        self._block = None

    def pause(self, seconds: float) -> None:
        """Nobody with this scope sends for so long."""
        with self._lock:
            self._drop_block()
            self._run(
                "update affiliate.lease set returns_at = "
                "greatest(returns_at, clock_timestamp() + %s * interval '1 second') where scope = %s and slot = -1",
                (min(seconds, LONGEST_PAUSE_S) if seconds > 0 else 0, self._scope),
            )

    def _take(self) -> _Block:
        values = {"scope": self._scope, "slots": self._slots, "held": HOLD_S + self._window_s}
        while True:
            with self._lock:
                block = self._block
                if block and block.left and time.monotonic() < block.used_until and not self._paused(values):
                    block.left -= 1
                    block.under_way += 1
                    return block
                if taken := self._run(_TAKE, values).fetchone():
                    self._drop_block()
                    self._block = _Block(
                        *taken, self._requests - 1, used_until=time.monotonic() + HOLD_S / 2, under_way=1
                    )
                    return self._block
                wait_s, pause_s = self._run(_WAIT, values).fetchone()
            if pause_s is not None and pause_s > self._longest_wait_s:
                raise Banned(
                    f"the exchange allows no request for another {pause_s:.0f} s; materialize again after that"
                )
            # Another process may be faster; a slot that was seen coming back is then asked for again.
            self._sleep(min(max(wait_s or 0.0, 0.005), 5.0))

    def _paused(self, values: Any) -> bool:
        now = time.monotonic()
        if now < self._no_pause_until:
            return False
        row = self._run(_PAUSED, values).fetchone()
        paused = bool(row and row[0])
        if not paused:
            self._no_pause_until = now + PAUSE_HEARD_WITHIN_S
        return paused

    def _drop_block(self) -> None:
        if self._block and not self._block.under_way:
            self._give_back(self._block)
        self._block = None

    def _give_back(self, block: _Block) -> None:
        # Unless the lease had ended and somebody else holds the slot by now.
        self._run(
            "update affiliate.lease set returns_at = clock_timestamp() + %s * interval '1 second' "
            "where scope = %s and slot = %s and returns_at = %s",
            (self._window_s, self._scope, block.slot, block.returns_at),
        )

    def _run(self, statement: str, values: Any) -> psycopg.Cursor:
        with unavailable():
            return self._connection.execute(statement, values)
