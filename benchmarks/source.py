"""What the benchmarks read: the sandbox with an exact number of rebates, in a process of its own, and what these rows
come to. Nothing is measured here."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Context, Decimal
from hashlib import md5
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

FIELDS = (
    "customerId",
    "email",
    "income",
    "asset",
    "symbol",
    "time",
    "orderId",
    "tradeId",
    "distributeTime",
    "commissionAsset",
    "commission",
    "convertPrice",
)
NULL = "-"
HASH_HEX_DIGITS = 15
# Weekends have fewer rows than asked for.
SURPLUS = 2
EXACT = Context(prec=100)


@dataclass(frozen=True)
class Content:
    """What a multiset of rebates comes to: their number, the exact sum of `income`, the sum of the rows' hashes."""

    rows: int
    income: Decimal
    hashes: int


@dataclass
class Source:
    """The sandbox running in another process."""

    url: str
    key: str
    secret: str
    pid: int
    content: Content
    _pipe: Connection

    def requests(self) -> int:
        """How many were answered since this was last asked."""
        self._pipe.send(True)
        requests, refused = self._pipe.recv()
        assert not refused, f"the sandbox refused {refused} requests"
        return requests


@contextmanager
def source(rows: int, days: Sequence[date]) -> Iterator[Source]:
    """The sandbox with exactly so many rebates on these days, and one older that proves it forgets nothing."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, rows, days), daemon=True)
    process.start()
    theirs.close()
    url, key, secret, content = ours.recv()
    assert process.pid
    yield Source(url, key, secret, process.pid, content, ours)
    ours.close()
    process.join()


def _serve(pipe: Connection, rows: int, days: Sequence[date]) -> None:
    from affiliate_pipeline.sandbox import Sandbox

    served = [row for day in days for row in _rebates(day, rows // len(days))]
    with Sandbox() as sandbox:
        sandbox.binance.remembers_ms = None
        sandbox.binance.set_rebates([*_rebates(days[0] - timedelta(days=1), 1), *served])
        pipe.send((sandbox.url, sandbox.binance.partner_key, sandbox.binance.partner_secret, _content(served)))
        del served
        try:
            while pipe.recv():
                refused = sum(request.status != 200 for request in sandbox.requests)
                pipe.send((len(sandbox.requests), refused))
                sandbox.requests.clear()
        except EOFError:
            pass


def _rebates(day: date, count: int) -> Iterator[dict[str, Any]]:
    from affiliate_pipeline.sandbox.rebates import generated_day
    from affiliate_pipeline.sandbox.rows import decode

    rows = generated_day(day, SURPLUS * count).rows
    return (decode(rows[number * len(rows) // count]) for number in range(count))


def _content(rows: Sequence[dict[str, Any]]) -> Content:
    income, hashes = Decimal(0), 0
    for row in rows:
        line = "|".join(NULL if row.get(name) is None else str(row[name]) for name in FIELDS)
        income = EXACT.add(income, Decimal(row["income"]))
        hashes += int(md5(line.encode()).hexdigest()[:HASH_HEX_DIGITS], 16)
    return Content(len(rows), income, hashes)
