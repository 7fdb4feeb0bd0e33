"""All rows of a question that LBank answers page by page, none lost and none twice. No endpoint and no day is known here.

What proves it: as many rows came as there are places in the list. So if one was lost, because the list moved between two
pages, another came on two of them.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from affiliate_pipeline.http.errors import ExchangeError, Refused
from affiliate_pipeline.schema.decode import identities, instants_ms, whole_numbers

PAGE_SIZE = 100
# Each walk's own: asked in the same way again, rows of one instant may come in the same wrong order again.
WALKS = (PAGE_SIZE, 89, 97, 83)
SECOND_MS = 1000

# The rows of one page; the parameters given come on top of the question's own.
Ask = Callable[[Mapping[str, object]], list[bytes]]


class _Moved(Exception):
    """Rows came or went while pages were read, as this page shows."""

    def __init__(self, page: list[bytes]):
        super().__init__()
        self.page = page


class _Rounded(Exception):
    """The exchange took `start` for the beginning of the page that it lies in."""


def by_id(ask: Ask) -> list[bytes]:
    """All rows, where `start` is the largest id received."""
    rows: list[bytes] = []
    try:
        _walk_by_id(ask, rows)
    except ExchangeError as error:
        raise error.about(_with_new(rows, error.received)) from None
    return rows


def _walk_by_id(ask: Ask, rows: list[bytes]) -> None:
    start = 0
    while True:
        page = ask({"start": start, "pageSize": PAGE_SIZE})
        ids = _ids(page)
        # Whether the row of that id itself comes again, the document leaves open.
        rows += [row for row, number in zip(page, ids, strict=True) if number > start]
        if len(page) < PAGE_SIZE:
            return
        if ids != sorted(ids):
            raise Refused("a page is not in the order of its ids, so the largest one does not lead to the next page")
        if ids[-1] <= start:
            raise Refused(f"a full page has no id above {start}, after which it was to begin")
        start = ids[-1]


def by_offset(ask: Ask, instant: str, identity: Sequence[str] = ()) -> list[bytes]:
    """All rows, where `start` is the number of rows before the page; `instant` is the JSON name of the time they are
    listed by, `identity` are those that tell one from another (none: all of it).

    A walk that proves nothing is believed once another, whose pages begin elsewhere, finds the same, and none twice.
    """
    overlap = 1
    believed: Counter[object] | None = None
    received: list[bytes] = []
    for size in WALKS:
        rows: list[bytes] = []
        try:
            proven = _walk(ask, instant, identity, overlap, size, rows)
        except ExchangeError as error:
            raise error.about(_with_new(max(received, rows, key=len), error.received)) from None
        except _Moved as moved:
            received = max(received, _with_new(rows, moved.page), key=len)
            continue
        except _Rounded:
            overlap = 0
            continue
        received = max(received, rows, key=len)
        found = Counter(identities(rows, identity))
        twice = identity and len(found) < len(rows)
        if proven or (found == believed and not twice):
            return rows
        believed = found
    raise Refused(
        f"the pages moved during each of {len(WALKS)} walks, or each page orders rows of the same time differently"
    ).about(received)


def _with_new(rows: list[bytes], page: Iterable[bytes]) -> list[bytes]:
    """The rows, and those of the page that are not among them."""
    return [*rows, *(Counter(page) - Counter(rows)).elements()]


def _walk(ask: Ask, instant: str, identity: Sequence[str], overlap: int, size: int, rows: list[bytes]) -> bool:
    """Adds the rows of all pages of this size to `rows`; whether they are proven to be all there are.

    Each page begins with the last row of the one before (`overlap`), so that a row that leaves is noticed.
    """
    before: list[object] = []
    seen: set[object] = set()
    doubtful: set[int] = set()
    while True:
        start = max(0, len(rows) - overlap)
        page = ask({"start": start, "pageSize": size})
        known = list(identities(page, identity))
        if start:
            if overlap and known == before:
                raise _Rounded
            new = page[overlap:]
            # Rows of one instant may come in another order each time: one that is on two pages tells of one on none.
            again = [row for row, name in zip(new, known[overlap:], strict=True) if name in seen]
            doubtful.update(_instants(again, instant))
            if overlap and known[:1] != before[-1:]:
                # A row that comes or goes shifts all others by one, and is to be found itself.
                ends = set(_instants([rows[-1], *page[:1]], instant))
                if len(ends) > 1 or not page:
                    raise _Moved(page)
                doubtful |= ends
            page = new
        rows += page
        seen.update(known)
        if len(known) < size:
            break
        before = known
    proven = [_settled(ask, rows, instant, time) for time in sorted(doubtful)]
    return bool(overlap) and all(proven)


def _settled(ask: Ask, rows: list[bytes], instant: str, time_ms: int) -> bool:
    """Whether one answer holds all rows of this instant; then puts them in the place of those in `rows`."""
    # Where times come in seconds, the exchange's own may be any of that second.
    end_ms = time_ms if time_ms % SECOND_MS else time_ms + SECOND_MS - 1
    answer = ask({"startTime": time_ms, "endTime": end_ms, "start": 0, "pageSize": PAGE_SIZE})
    if len(answer) == PAGE_SIZE:
        return False
    alone = [row for row, time in zip(answer, _instants(answer, instant), strict=True) if time == time_ms]
    others = [row for row, time in zip(rows, _instants(rows, instant), strict=True) if time != time_ms]
    if len(others) + len(alone) != len(rows):
        raise _Moved(answer)
    rows[:] = others + alone
    return True


def _instants(rows: list[bytes], instant: str) -> list[int]:
    try:
        return instants_ms(rows, instant)
    except ValueError as error:
        raise Refused(f"a row's time cannot be read: {error}").about(rows) from None


def _ids(page: list[bytes]) -> list[int]:
    try:
        return whole_numbers(page, "id")
    except ValueError as error:
        raise Refused(f"a row has no `id` to request the next page with: {error}").about(page) from None
