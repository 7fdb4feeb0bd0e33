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
# Rows without an id may be equal, and so may two pages of them; this many pages show that the server ignores `start`.
MAX_EQUAL_PAGES = 20
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
    previous_ids: list[int] = []
    with _reporting_received(rows):
        start = 0
        while True:
            page = get({"start": start, "pageSize": PAGE_SIZE})
            if page is None:
                if previous_ids:
                    _require_end(get, previous_ids)
                return rows
            ids = read_values(whole_numbers, page, "id")
            # It is not documented whether the row with the id `start` is in the page.
            rows += [row for row, row_id in zip(page, ids, strict=True) if row_id > start]
            if len(page) < PAGE_SIZE:
                return rows

            if ids != sorted(ids):
                raise Refused(
                    "a page is not in the order of its ids, so the largest one does not lead to the next page"
                )
            if ids[-1] <= start:
                raise Refused(f"a full page has no id above {start}, the largest id of the page before")
            start = ids[-1]
            previous_ids = ids


def _require_end(get: GetPage, ids: Sequence[int]) -> None:
    """Raise `Refused` unless the list ends with the last of these ids, which are in order.

    Requests again what follows the largest id below the last one. Exactly the rows with the last id may follow; an id may
    be repeated.
    """
    last = ids[-1]
    id_before_last = max((row_id for row_id in ids if row_id < last), default=0)
    page = get({"start": id_before_last, "pageSize": PAGE_SIZE}) or []
    page_ids = read_values(whole_numbers, page, "id")

    expected = [last] * ids.count(last)
    following = [row_id for row_id in page_ids if row_id > id_before_last]
    if len(page) == PAGE_SIZE or following != expected:
        raise Refused(f"LBank twice sent no list (null) for the page after id {last}, where more rows may follow")


def by_offset(get: GetPage, time_field: str, id_fields: Sequence[str] = ()) -> list[bytes]:
    """All rows of a list whose request parameter `start` is the number of rows before the page; raises `Refused`.

    A walk reads the whole list once, with one page size. If a walk is not proven complete, its rows are returned only
    if the walk reached the end of the list and the previous walk that reached the end had the same rows; with
    `id_fields`, the walk must also have no row twice. Walks that stop early are not compared.

    Args:
        time_field: The JSON name of the time that the rows are ordered by.
        id_fields: The fields (JSON names) that identify a row, whose other fields may change; empty: the whole row
            identifies it.
    """
    overlap = 1
    previous_counts: Counter[Hashable] | None = None
    # The longest list of rows that a walk received. It is attached to an error, to be stored with the failed day.
    most_rows: list[bytes] = []
    for size in WALKS:
        rows: list[bytes] = []  # filled by `_walk`, so that they are also known if it raises
        try:
            with _reporting_received(most_rows, rows):
                is_proven = _walk(get, time_field, id_fields, overlap, size, rows)
        except _ListChanged as change:
            most_rows = max(most_rows, _with_new(rows, change.page), key=len)
            if change.is_start_rounded:
                overlap = 0
            continue
        if is_proven:
            return rows

        counts = Counter(identities(rows, id_fields))
        has_row_twice = bool(id_fields) and len(counts) < len(rows)
        if counts == previous_counts and not has_row_twice:
            return rows
        previous_counts = counts
        most_rows = max(most_rows, rows, key=len)

    raise Refused(
        f"the list changed during each of {len(WALKS)} walks, or each page orders rows of the same time differently"
    ).about(most_rows)


def _walk(get: GetPage, time_field: str, id_fields: Sequence[str], overlap: int, size: int, rows: list[bytes]) -> bool:
    """Add the rows of all pages to `rows`; return whether they are proven to be complete; raises `_ListChanged`.

    With an `overlap` of 1, each page begins with the last row of the one before, so that a removed row is noticed; with
    0, nothing is proven.
    """
    previous_ids: list[Hashable] = []
    seen_ids: set[Hashable] = set()
    doubtful_ms: set[int] = set()
    equal_pages = 1
    while True:
        start = max(0, len(rows) - overlap)
        page = get({"start": start, "pageSize": size}) or []
        page_ids = list(identities(page, id_fields))
        new_rows = page
        is_first_page = start == 0
        if not is_first_page:
            equal_pages = equal_pages + 1 if page_ids == previous_ids else 1
            if overlap and equal_pages > 1:
                # The same page again: the server rounds `start` down to whole pages, so an overlap is impossible.
                raise _ListChanged(page, is_start_rounded=True)
            if equal_pages == MAX_EQUAL_PAGES:
                raise Refused(
                    f"LBank sent the same page {equal_pages} times, so it seems to ignore which page is requested"
                )

            new_rows, new_ids = page[overlap:], page_ids[overlap:]
            # Rows of one instant may be ordered differently each time: if one is on two pages, another may be on none.
            repeated = [row for row, row_id in zip(new_rows, new_ids, strict=True) if row_id in seen_ids]
            doubtful_ms.update(read_values(instants_ms, repeated, time_field))
            if overlap and page_ids[:1] != previous_ids[-1:]:
                doubtful_ms.add(_reordered_ms(rows[-1], page, time_field))

        rows += new_rows
        seen_ids.update(page_ids)
        if len(page) < size:
            break
        previous_ids = page_ids

    is_complete = overlap > 0
    # No exit at the first False: each call also replaces the rows of its own instant.
    for time_ms in sorted(doubtful_ms):
        if not _refetch_instant(get, rows, time_field, time_ms):
            is_complete = False
    return is_complete


def _reordered_ms(last_row: bytes, page: list[bytes], time_field: str) -> int:
    """The instant (ms) of `last_row` and of the first row of the page, which should have begun with `last_row`.

    Rows of one instant may be reordered. If the instants differ, or the page is empty, the list has changed: raises
    `_ListChanged`.
    """
    times_ms = read_values(instants_ms, [last_row, *page[:1]], time_field)
    if not page or times_ms[0] != times_ms[1]:
        raise _ListChanged(page)
    return times_ms[0]


def _refetch_instant(get: GetPage, rows: list[bytes], time_field: str, time_ms: int) -> bool:
    """Replace the rows of this instant with a single response's; return whether that was possible.

    A full response may lack rows: the result is then False, and `rows` are unchanged. Raises `_ListChanged` if the
    instant's number of rows has changed.
    """
    end_ms = time_ms
    if time_ms % SECOND_MS == 0:
        # A time in whole seconds may be rounded: request all of that second.
        end_ms = time_ms + SECOND_MS - 1
    page = get({"startTime": time_ms, "endTime": end_ms, "start": 0, "pageSize": PAGE_SIZE}) or []
    if len(page) == PAGE_SIZE:
        return False

    page_times = read_values(instants_ms, page, time_field)
    of_instant = [row for row, row_ms in zip(page, page_times, strict=True) if row_ms == time_ms]
    row_times = read_values(instants_ms, rows, time_field)
    others = [row for row, row_ms in zip(rows, row_times, strict=True) if row_ms != time_ms]
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
    new_rows = Counter(page) - Counter(rows)
    return [*rows, *new_rows.elements()]
