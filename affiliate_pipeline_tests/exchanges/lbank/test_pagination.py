"""Paging through lists that change between requests: every row once, or an error."""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from affiliate_pipeline.exchanges.lbank.pagination import MAX_EQUAL_PAGES, by_id, by_offset
from affiliate_pipeline.http.errors import Refused

PAGE_SIZE = 4
START_MS = 1_750_000_000_000


@pytest.fixture(autouse=True, scope="module")
def small_pages() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("affiliate_pipeline.exchanges.lbank.pagination.PAGE_SIZE", PAGE_SIZE)
        patch.setattr("affiliate_pipeline.exchanges.lbank.pagination.WALKS", (PAGE_SIZE, 3, 2, 5))
        yield


class PagedList:
    """A list served in pages, ordered by time; rows of equal time are in insertion order, or shuffled by `order`.

    `rounds_start`: each page begins at a multiple of the page size. `order`: shuffles the rows before each page.
    `unit_ms`: the unit of the times served. `before_page`: called with each page's number, and may change the rows.
    """

    def __init__(
        self,
        rows: list[dict],
        *,
        order: random.Random | None = None,
        rounds_start: bool = False,
        unit_ms: int = 1,
        before_page: Callable[[int], None] = lambda number: None,
    ) -> None:
        self.rows, self.order, self.rounds_start, self.unit_ms = list(rows), order, rounds_start, unit_ms
        self.before_page = before_page
        self.queries: list[dict] = []

    def get(self, page) -> list[bytes]:
        self.before_page(len(self.queries))
        self.queries.append(dict(page))
        rows = list(self.rows)
        if self.order:
            self.order.shuffle(rows)
        first, last = page.get("startTime", 0), page.get("endTime", 1 << 60)
        rows = sorted((row for row in rows if first <= row["createTime"] <= last), key=lambda row: row["createTime"])
        start = page["start"] // page["pageSize"] * page["pageSize"] if self.rounds_start else page["start"]
        return [self.text(row) for row in rows[start : start + page["pageSize"]]]

    def text(self, row) -> bytes:
        return json.dumps(row | {"createTime": row["createTime"] // self.unit_ms}).encode()

    @property
    def all(self) -> Counter:
        return Counter(map(self.text, self.rows))


def rows_at(times: list[int], names: Iterator[object] | None = None) -> list[dict]:
    """Rows at these times after START_MS, each with the next name; by default, names are unique."""
    names = names or count()
    return [{"createTime": START_MS + time, "name": next(names)} for time in times]


# Pairs of a time and its number of rows, which fit into one page.
small_groups = st.lists(
    st.tuples(st.integers(0, 6), st.integers(1, PAGE_SIZE - 1)), max_size=8, unique_by=lambda group: group[0]
)


@given(small_groups, st.randoms(use_true_random=False), st.booleans(), st.sampled_from([1, 1000]))
def test_all_rows_are_returned_if_each_page_orders_rows_of_equal_time_differently(groups, order, duplicates, unit_ms):
    # Times served in seconds lack the milliseconds.
    times = [time * unit_ms + unit_ms // 3 for time, size in groups for _ in range(size)]
    names = iter([order.randrange(2) for _ in times]) if duplicates else None
    served = PagedList(rows_at(times, names), order=order, unit_ms=unit_ms)

    assert Counter(by_offset(served.get, "createTime")) == served.all
    # Each page may take one further query, for the rows of its last time.
    assert len(served.queries) <= 1 + 2 * (max(0, len(times) - 1) // (PAGE_SIZE - 1))


page_numbers = st.sets(st.integers(0, 12), max_size=3)


@given(st.lists(st.integers(1, 9), max_size=20), page_numbers, page_numbers, st.booleans(), st.data())
def test_permanent_rows_are_returned_once_and_no_row_twice(times, additions, removals, rounds_start, data):
    names = count()
    served = PagedList(rows_at(times, names), rounds_start=rounds_start)
    permanent = served.all
    ever = permanent.copy()

    def change(number):
        if number in removals and served.rows:
            served.rows.pop(data.draw(st.integers(0, len(served.rows) - 1)))
        elif number in additions:
            served.rows += rows_at([data.draw(st.integers(1, 9))], names)
        permanent.subtract(permanent - served.all)
        ever.update(served.all - ever)

    served.before_page = change
    try:
        found = Counter(by_offset(served.get, "createTime"))
    except Refused:
        return
    assert permanent <= found <= ever


# Two additions disturb at most two of the four walks. Two undisturbed walks suffice, even if one time has more rows than
# a page.
@given(st.lists(st.integers(1, 9), max_size=20), st.sets(st.integers(0, 12), max_size=2), st.data())
def test_rows_added_between_pages_are_returned(times, additions, data):
    names = count()
    served = PagedList(rows_at(times, names))
    before_last_page = Counter()

    def change(number):
        # A row added during the query for a single time could conceal an earlier addition, so add none then.
        if is_single_time:
            return
        if number in additions:
            served.rows += rows_at([data.draw(st.integers(1, 9))], names)
        before_last_page.update(served.all - before_last_page)

    is_single_time = False

    def get(page):
        nonlocal is_single_time
        is_single_time = "startTime" in page
        return served.get(page)

    served.before_page = change
    assert before_last_page <= Counter(by_offset(get, "createTime")) <= served.all


@given(small_groups)
def test_all_rows_are_returned_if_start_is_rounded_down_to_whole_pages(groups):
    times = [time for time, size in groups for _ in range(size)]
    served = PagedList(rows_at(times), rounds_start=True)

    assert Counter(by_offset(served.get, "createTime")) == served.all


@given(st.integers(0, 3 * PAGE_SIZE), st.integers(0, PAGE_SIZE))
def test_equal_rows_that_fill_more_than_a_page_are_all_returned(equal, others):
    served = PagedList(rows_at([5] * equal, iter([7] * equal)) + rows_at(list(range(others))))

    assert Counter(by_offset(served.get, "createTime")) == served.all


@pytest.mark.parametrize("id_fields", [(), ("name",)])
def test_a_server_that_ignores_the_requested_page_is_an_error(id_fields):
    served = PagedList(rows_at([5] * PAGE_SIZE))

    with pytest.raises(Refused, match="seems to ignore which page is requested"):
        by_offset(lambda page: served.get({**page, "start": 0}), "createTime", id_fields)
    assert len(served.queries) <= 2 + MAX_EQUAL_PAGES


def test_rows_of_one_time_that_fill_more_than_a_page_in_random_order_are_an_error():
    served = PagedList(rows_at([5] * (5 * PAGE_SIZE)), order=random.Random(7))

    with pytest.raises(Refused, match="changed during each of 4 walks"):
        by_offset(served.get, "createTime")


@given(st.integers(PAGE_SIZE, 4 * PAGE_SIZE), st.integers(0, 99), st.booleans())
def test_a_list_whose_order_depends_on_the_query_is_returned_completely_or_is_an_error(rows, seed, by_size):
    """Two equal walks prove nothing: the same query always returns the same page, so both may lack the same rows."""
    order = random.Random()
    served = PagedList(rows_at([5] * rows), order=order)

    def get(page):
        order.seed(f"{seed} {page['start']} {page['pageSize'] if by_size else 0}")
        return served.get(page)

    try:
        found = Counter(by_offset(get, "createTime", ("name",)))
    except Refused:
        return
    assert found == served.all


def test_a_list_without_changes_takes_one_query_per_page():
    served = PagedList(rows_at(list(range(3 * (PAGE_SIZE - 1)))))

    assert len(by_offset(served.get, "createTime")) == len(served.rows)
    assert [query["start"] for query in served.queries] == [0, 3, 6]


def test_rows_with_changing_fields_are_distinguished_by_their_identity(monkeypatch):
    balances = count()
    served = PagedList(rows_at([*range(5), 5, 5, 5, *range(6, 12)]), order=random.Random(3))
    monkeypatch.setattr(served, "text", lambda row: json.dumps(row | {"balance": next(balances)}).encode())

    found = by_offset(served.get, "createTime", ("name",))

    assert Counter(json.loads(row)["name"] for row in found) == Counter(row["name"] for row in served.rows)


@pytest.mark.parametrize("inclusive", [False, True])
@given(st.integers(0, 5 * PAGE_SIZE))
def test_pages_by_id_return_every_row_once(inclusive, rows):
    def get(page):
        later = [number for number in ids if number > page["start"] - inclusive]
        return [json.dumps({"id": number}).encode() for number in later[: page["pageSize"]]]

    ids = [3 * number + 1 for number in range(rows)]

    assert [json.loads(row)["id"] for row in by_id(get)] == ids


@pytest.mark.parametrize(
    ("ids", "error"), [(range(10, 0, -1), "not in the order of its ids"), (range(1, 11), "no id above 4")]
)
def test_a_page_by_id_that_does_not_lead_to_the_next_is_an_error(ids, error):
    def get(page):
        """The same page for every `start`."""
        return [json.dumps({"id": number}).encode() for number in list(ids)[: page["pageSize"]]]

    with pytest.raises(Refused, match=error):
        by_id(get)
