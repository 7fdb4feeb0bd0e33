"""The source of the benchmarks' rows: the sandbox in a separate process."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Context, Decimal
from hashlib import md5
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from affiliate_pipeline.sandbox import Sandbox

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
# Weekends have fewer rows than requested.
SURPLUS = 2
EXACT = Context(prec=100)


class Content(NamedTuple):
    """A summary of a multiset of rebates: their number, the exact sum of `income`, the sum of the rows' hashes."""

    rows: int
    income: Decimal
    hashes: int


@dataclass(frozen=True)
class ServedRequest:
    """A request that the sandbox has served: its path, its arrival, and whether it was refused."""

    path: str
    received_ms: int
    refused: bool


@dataclass
class Source:
    """The sandbox running in another process; `prepared` is the return value of its preparation."""

    url: str
    environment: Mapping[str, str]
    prepared: Any
    pid: int
    _pipe: Connection

    def served(self) -> list[ServedRequest]:
        """Return the requests served since the last call."""
        self._pipe.send(True)
        return self._pipe.recv()

    def requests(self) -> int:
        """Return the number of requests since the last call; fails if any was refused."""
        served = self.served()
        assert not any(request.refused for request in served), "the sandbox refused requests"
        return len(served)


@contextmanager
def source(prepare: Callable[..., Any], *arguments: Any, **options: Any) -> Iterator[Source]:
    """Run the sandbox with these options; `prepare(sandbox, *arguments)` is called before it is used."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, prepare, arguments, options), daemon=True)
    process.start()
    theirs.close()
    url, environment, prepared = ours.recv()
    assert process.pid
    yield Source(url, environment, prepared, process.pid, ours)
    ours.close()
    process.join()


def rebates(sandbox: "Sandbox", sets: Sequence[tuple[int, Sequence[date]]]) -> list[Content]:
    """Generate exactly this many rebates over each set of days; returns the summary of each set.

    A further rebate just before each set proves that the source retains the set's days.
    """
    served = [[row for day in days for row in _rebates(day, rows // len(days))] for rows, days in sets]
    older = [row for _, days in sets for row in _rebates(min(days) - timedelta(days=1), 1)]
    sandbox.binance.retention_ms = None
    # The rate limit must not limit the speed of landing.
    sandbox.binance.weight_limit = 10**9
    sandbox.binance.set_rebates([*older, *(row for rows in served for row in rows)])
    return [_content(rows) for rows in served]


def _serve(pipe: Connection, prepare: Callable[..., Any], arguments: Sequence[Any], options: Mapping[str, Any]) -> None:
    from affiliate_pipeline.sandbox import Sandbox

    with Sandbox(**options) as sandbox:
        prepared = prepare(sandbox, *arguments)
        binance, lbank = sandbox.binance, sandbox.lbank
        environment = {
            "BINANCE_BASE_URL": sandbox.url,
            "BINANCE_PARTNER_API_KEY": binance.partner_key,
            "BINANCE_PARTNER_API_SECRET": binance.partner_secret,
            "LBANK_BASE_URL": sandbox.url,
            "LBANK_API_KEY": lbank.api_key,
            "LBANK_API_SECRET": lbank.api_secret,
            "LBANK_OPEN_ID": lbank.own_open_id,
        }
        pipe.send((sandbox.url, environment, prepared))
        try:
            while pipe.recv():
                served = [
                    ServedRequest(request.path, request.received_ms, request.status != 200 or request.code is not None)
                    for request in sandbox.requests
                ]
                sandbox.requests.clear()
                pipe.send(served)
        except EOFError:
            pass


def _rebates(day: date, count: int) -> Iterator[dict[str, Any]]:
    from affiliate_pipeline.sandbox.binance.rebates import generated_day
    from affiliate_pipeline.sandbox.rows import decode

    rows = generated_day(day, SURPLUS * count).rows
    return (decode(rows[number * len(rows) // count]) for number in range(count))


def _content(rows: Sequence[dict[str, Any]]) -> Content:
    income, hashes = Decimal(0), 0
    for row in rows:
        line = "|".join(NULL if row.get(name) is None else str(row[name]) for name in FIELDS)
        income = EXACT.add(income, Decimal(row["income"]))
        hashes += int(md5(line.encode(), usedforsecurity=False).hexdigest()[:HASH_HEX_DIGITS], 16)
    return Content(len(rows), income, hashes)
