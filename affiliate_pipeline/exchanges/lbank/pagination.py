"""All rows of a paged query, without gaps or duplicates, for any endpoint.

Proof of `by_offset`: the received rows fill all positions of the list. If rows change their order between two pages, so
that one row is missed, another row is received twice. If a row is added or removed, the next page does not begin with
the last row received.
"""

from collections import Counter
from collections.abc import Callable, Generator, Hashable, Iterable, Mapping, Sequence
from contextlib import contextmanager

from affiliate_pipeline.http.errors import ExchangeError, Refused
from affiliate_pipeline.schema.raw_row import identities, instants_ms, whole_numbers

PAGE_SIZE = 100
# A page size for each walk: with the same size, rows of one instant could be returned in the same wrong order again.
WALKS = (PAGE_SIZE, 89, 97, 83)
SECOND_MS = 1000

# Requests a page with these parameters in addition to the query's own; returns its rows, None if there is no list.
GetPage = Callable[[Mapping[str, object]], list[bytes] | None]
Paging = Callable[[GetPage], list[bytes]]


class _ListChanged(Exception):
    """A page shows that the list changed or, if `is_start_rounded`, that `start` is rounded down to whole pages."""

    def __init__(self, page: list[bytes], *, is_start_rounded: bool = False) -> None:
        super().__init__()
        self.page, self.is_start_rounded = page, is_start_rounded


def by_id(get: GetPage) -> list[bytes]:
    """All rows of a list whose request parameter `start` is the largest id received before; raises `Refused`."""
    rows: list[bytes] = []
    ids: list[int] = []
    with _reporting_received(rows):
        start = 0
        while True:
            page = get({"start": start, "pageSize": PAGE_SIZE})
            if page is None and ids:
                _require_end(get, ids)
            page = page or []
            ids = read_values(whole_numbers, page, "id")
            # It is not documented whether the row with the id `start` is in the page.
            rows += [row for row, number in zip(page, ids, strict=True) if number > start]
            if len(page) < PAGE_SIZE:
                return rows
            if ids != sorted(ids):
                raise Refused(
                    "a page is not in the order of its ids, so the largest one does not lead to the next page"
                )
            if ids[-1] <= start:
                raise Refused(f"a full page has no id above {start}, the largest id of the page before")
            start = ids[-1]


def _require_end(get: GetPage, ids: Sequence[int]) -> None:
    """Raise `Refused` unless the list ends with the last of these ids: then only that one follows the last but one."""
    last = ids[-1]
    last_but_one = max((number for number in ids if number < last), default=0)
    page = get({"start": last_but_one, "pageSize": PAGE_SIZE}) or []
    following = [number for number in read_values(whole_numbers, page, "id") if number > last_but_one]
    if len(page) == PAGE_SIZE or following != [number for number in ids if number > last_but_one]:
        raise Refused(f"LBank twice sent no list (null) for the page after id {last}, where more rows may follow")


def by_offset(get: GetPage, time_field: str, id_fields: Sequence[str] = ()) -> list[bytes]:
    """All rows of a list whose request parameter `start` is the number of rows before the page; raises `Refused`.

    A walk reads the whole list once, with one page size. Without proof, two successive completed walks must have the
    same rows and, with `id_fields`, no row twice.

    Args:
        time_field: The JSON name of the time that the rows are ordered by.
        id_fields: The fields (JSON names) that identify a row, whose other fields may change; empty: the whole row
            identifies it.
    """
    overlap = 1
    previous: Counter[Hashable] | None = None
    received: list[bytes] = []
    for size in WALKS:
        rows: list[bytes] = []
        try:
            with _reporting_received(received, rows):
                is_proven = _walk(get, time_field, id_fields, overlap, size, rows)
        except _ListChanged as change:
            received = max(received, _with_new(rows, change.page), key=len)
            overlap = 0 if change.is_start_rounded else overlap
            continue
        received = max(received, rows, key=len)
        found = Counter(identities(rows, id_fields))
        if is_proven or (found == previous and not (id_fields and len(found) < len(rows))):
            return rows
        previous = found
    raise Refused(
        f"the list changed during each of {len(WALKS)} walks, or each page orders rows of the same time differently"
    ).about(received)


def _walk(get: GetPage, time_field: str, id_fields: Sequence[str], overlap: int, size: int, rows: list[bytes]) -> bool:
    """Add the rows of all pages to `rows`; return whether they are proven to be complete; raises `_ListChanged`.

    With an `overlap` of 1, each page begins with the last row of the one before, so that a removed row is noticed; with
    0, nothing is proven.
    """
    previous_ids: list[Hashable] = []
    seen_ids: set[Hashable] = set()
    doubtful_ms: set[int] = set()
    while True:
        start = max(0, len(rows) - overlap)
        page = get({"start": start, "pageSize": size}) or []
        row_ids = list(identities(page, id_fields))
        new = page
        if start:
            if overlap and row_ids == previous_ids:
                # The same page again: the server rounds `start` down to whole pages, so an overlap is impossible.
                raise _ListChanged(page, is_start_rounded=True)
            new = page[overlap:]
            # Rows of one instant may be ordered differently each time: if one is on two pages, another may be on none.
            repeated = [row for row, row_id in zip(new, row_ids[overlap:], strict=True) if row_id in seen_ids]
            doubtful_ms.update(read_values(instants_ms, repeated, time_field))
            if overlap and row_ids[:1] != previous_ids[-1:]:
                # Rows of one instant may be reordered; if the instants differ, the list has changed.
                boundary_ms = set(read_values(instants_ms, [rows[-1], *page[:1]], time_field))
                if len(boundary_ms) > 1 or not page:
                    raise _ListChanged(page)
                doubtful_ms |= boundary_ms
        rows += new
        seen_ids.update(row_ids)
        if len(row_ids) < size:
            break
        previous_ids = row_ids
    resolved = [_resolve(get, rows, time_field, time_ms) for time_ms in sorted(doubtful_ms)]
    return bool(overlap) and all(resolved)


def _resolve(get: GetPage, rows: list[bytes], time_field: str, time_ms: int) -> bool:
    """Replace the rows of this instant with a single response's; False if that may lack some.

    Raises `_ListChanged` if their number differs.
    """
    # A time in whole seconds may be rounded: request all of that second.
    end_ms = time_ms if time_ms % SECOND_MS else time_ms + SECOND_MS - 1
    page = get({"startTime": time_ms, "endTime": end_ms, "start": 0, "pageSize": PAGE_SIZE}) or []
    if len(page) == PAGE_SIZE:
        return False
    of_instant = [
        row for row, time in zip(page, read_values(instants_ms, page, time_field), strict=True) if time == time_ms
    ]
    others = [
        row for row, time in zip(rows, read_values(instants_ms, rows, time_field), strict=True) if time != time_ms
    ]
    if len(others) + len(of_instant) != len(rows):
        raise _ListChanged(page)
    rows[:] = others + of_instant
    return True


def read_values(read: Callable[[Iterable[bytes], str], list[int]], rows: list[bytes], name: str) -> list[int]:
    """The value of each row's field; raises `Refused` where `read` raises ValueError."""
    try:
        return read(rows, name)
    except ValueError as error:
        raise Refused(f"a page cannot be used: {error}").about(rows) from None


@contextmanager
def _reporting_received(*walks: list[bytes]) -> Generator[None]:
    """Add the longest of `walks` (lists of rows) to the rows that a raised error is about."""
    try:
        yield
    except ExchangeError as error:
        raise error.about(_with_new(max(walks, key=len), error.received)) from None


def _with_new(rows: list[bytes], page: Iterable[bytes]) -> list[bytes]:
    """The rows, and those of the page that are not among them."""
    return [*rows, *(Counter(page) - Counter(rows)).elements()]
