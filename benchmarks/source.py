"""Where the benchmarks' rows come from: the sandbox in a process of its own."""

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
# Weekends have fewer rows than asked for.
SURPLUS = 2
EXACT = Context(prec=100)


class Content(NamedTuple):
    """What a multiset of rebates comes to: their number, the exact sum of `income`, the sum of the rows' hashes."""

    rows: int
    income: Decimal
    hashes: int


@dataclass(frozen=True)
class Answered:
    """One request that the sandbox answered: what for, when it arrived, whether it was refused."""

    path: str
    received_ms: int
    refused: bool


@dataclass
class Source:
    """The sandbox running in another process; `told` is what its preparation gave."""

    url: str
    environment: Mapping[str, str]
    told: Any
    pid: int
    _pipe: Connection

    def answered(self) -> list[Answered]:
        """Everything since this was last asked."""
        self._pipe.send(True)
        return self._pipe.recv()

    def requests(self) -> int:
        """How many there were since this was last asked; none of them refused."""
        answered = self.answered()
        assert not any(request.refused for request in answered), "the sandbox refused requests"
        return len(answered)


@contextmanager
def source(prepare: Callable[..., Any], *arguments: Any, **options: Any) -> Iterator[Source]:
    """The sandbox made with these options, prepared by `prepare(sandbox, *arguments)` before it serves."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, prepare, arguments, options), daemon=True)
    process.start()
    theirs.close()
    url, environment, told = ours.recv()
    assert process.pid
    yield Source(url, environment, told, process.pid, ours)
    ours.close()
    process.join()


def rebates(sandbox: "Sandbox", sets: Sequence[tuple[int, Sequence[date]]]) -> list[Content]:
    """Exactly so many rebates over each of the sets of days, and one just before each that proves that nothing is forgotten;
    what each set comes to."""
    served = [[row for day in days for row in _rebates(day, rows // len(days))] for rows, days in sets]
    older = [row for _, days in sets for row in _rebates(min(days) - timedelta(days=1), 1)]
    sandbox.binance.remembers_ms = None
    # Landing is what is measured, and not the limit.
    sandbox.binance.weight_limit = 10**9
    sandbox.binance.set_rebates([*older, *(row for rows in served for row in rows)])
    return [_content(rows) for rows in served]


def _serve(pipe: Connection, prepare: Callable[..., Any], arguments: Sequence[Any], options: Mapping[str, Any]) -> None:
    from affiliate_pipeline.sandbox import Sandbox

    with Sandbox(**options) as sandbox:
        told = prepare(sandbox, *arguments)
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
        pipe.send((sandbox.url, environment, told))
        try:
            while pipe.recv():
                answered = [
                    Answered(request.path, request.received_ms, request.status != 200 or request.code is not None)
                    for request in sandbox.requests
                ]
                sandbox.requests.clear()
                pipe.send(answered)
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
        hashes += int(md5(line.encode()).hexdigest()[:HASH_HEX_DIGITS], 16)
    return Content(len(rows), income, hashes)
