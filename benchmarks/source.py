"""The source of the benchmarks' rows: the sandbox in its own process."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Context, Decimal
from hashlib import md5
from itertools import chain
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from affiliate_pipeline.sandbox import Request, Sandbox

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
# Generated weekends have fewer rows than other days, so generate more rows than needed.
SURPLUS_FACTOR = 2
EXACT = Context(prec=100)


class Content(NamedTuple):
    """A summary of a multiset of rebates: number of rows, exact sum of `income`, sum of the rows' hashes."""

    rows: int
    income: Decimal
    hashes: int


@dataclass(frozen=True)
class ServedRequest:
    """A request that the sandbox has served."""

    path: str
    received_ms: int
    refused: bool


@dataclass
class Source:
    """The sandbox in another process; `environment` configures a client of it, `prepared` is what `prepare` returned."""

    environment: Mapping[str, str]
    prepared: Any
    _pipe: Connection

    def served(self) -> list[ServedRequest]:
        """Return the requests served since the previous call."""
        self._pipe.send(True)
        return self._pipe.recv()

    def requests(self) -> int:
        """Return the number of requests served since the previous call; fail if any was refused."""
        served = self.served()
        assert not any(request.refused for request in served), "the sandbox refused requests"
        return len(served)


@contextmanager
def source(prepare: Callable[..., Any], *arguments: Any, **options: Any) -> Iterator[Source]:
    """Run the sandbox with these options, and call `prepare(sandbox, *arguments)` before yielding."""
    context = get_context("spawn")
    pipe, child_pipe = context.Pipe()
    process = context.Process(target=_serve, args=(child_pipe, prepare, arguments, options), daemon=True)
    process.start()
    child_pipe.close()
    environment, prepared = pipe.recv()
    yield Source(environment, prepared, pipe)
    pipe.close()
    process.join()


def serve_rebates(sandbox: "Sandbox", sets: Sequence[tuple[int, Sequence[date]]]) -> list[Content]:
    """Replace the sandbox's rebates by generated sets (number of rows, days); return the summary of each set.

    Also adds one rebate on the day before the first day of each set, which no summary counts: it proves that the source
    retains the set's days. Retention and weight limit are removed.
    """
    generated_sets: list[list[dict[str, Any]]] = []
    older: list[dict[str, Any]] = []
    for count, days in sets:
        older += _rebates(min(days) - timedelta(days=1), 1)
        generated: list[dict[str, Any]] = []
        for day in days:
            generated += _rebates(day, count // len(days))
        generated_sets.append(generated)

    sandbox.binance.retention_ms = None
    # The benchmarks measure landing, not waiting for the weight limit.
    sandbox.binance.weight.limit = 10**9
    sandbox.binance.set_rebates([*older, *chain.from_iterable(generated_sets)])
    return [_content(rows) for rows in generated_sets]


def _serve(pipe: Connection, prepare: Callable[..., Any], arguments: Sequence[Any], options: Mapping[str, Any]) -> None:
    from affiliate_pipeline.sandbox import Sandbox

    with Sandbox(**options) as sandbox:
        prepared = prepare(sandbox, *arguments)
        pipe.send((sandbox.variables, prepared))
        try:
            while pipe.recv():
                served = [_served(request) for request in sandbox.requests]
                sandbox.requests.clear()
                pipe.send(served)
        except EOFError:
            pass


def _served(request: "Request") -> ServedRequest:
    is_refused = request.status != 200 or request.code is not None
    return ServedRequest(request.path, request.received_ms, is_refused)


def _rebates(day: date, count: int) -> Iterator[dict[str, Any]]:
    """`count` rebates, evenly spaced among those generated for the day."""
    from affiliate_pipeline.sandbox.binance.rebates import generated_day
    from affiliate_pipeline.sandbox.rows import decode

    rows = generated_day(day, SURPLUS_FACTOR * count).rows
    return (decode(rows[number * len(rows) // count]) for number in range(count))


def _content(rows: Sequence[dict[str, Any]]) -> Content:
    income = Decimal(0)
    hashes = 0
    for row in rows:
        line = "|".join(NULL if row.get(name) is None else str(row[name]) for name in FIELDS)
        digest = md5(line.encode(), usedforsecurity=False).hexdigest()
        income = EXACT.add(income, Decimal(row["income"]))
        hashes += int(digest[:HASH_HEX_DIGITS], 16)
    return Content(len(rows), income, hashes)
