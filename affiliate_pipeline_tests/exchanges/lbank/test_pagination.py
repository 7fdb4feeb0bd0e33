"""Pages of a list that lives: every row once, or an error; whatever order equal times come in, whoever comes or goes."""

import json
import random
from collections import Counter
from collections.abc import Iterator
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from affiliate_pipeline.exchanges.lbank.pagination import by_id, by_offset
from affiliate_pipeline.http.errors import Refused

PAGE_SIZE = 4
START_MS = 1_750_000_000_000


@pytest.fixture(autouse=True, scope="module")
def small_pages() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("affiliate_pipeline.exchanges.lbank.pagination.PAGE_SIZE", PAGE_SIZE)
        patch.setattr("affiliate_pipeline.exchanges.lbank.pagination.WALKS", (PAGE_SIZE, 3, 2, 5))
        yield


class List:
    """Rows by their time; those of one time in the order they came, or in any that `shuffled` makes for each page.

    `rounds`: `start` is taken for the beginning of its page. `before_page` may change the rows before page number n.
    """

    def __init__(self, rows: list[dict], *, shuffled: random.Random | None = None, rounds=False, unit_ms=1):
        self.rows, self.shuffled, self.rounds, self.unit_ms = list(rows), shuffled, rounds, unit_ms
        self.before_page = lambda number: None
        self.asked: list[dict] = []

    def ask(self, page) -> list[bytes]:
        self.before_page(len(self.asked))
        self.asked.append(dict(page))
        rows = list(self.rows)
        if self.shuffled:
            self.shuffled.shuffle(rows)
        low, high = page.get("startTime", 0), page.get("endTime", 1 << 60)
        rows = sorted((row for row in rows if low <= row["createTime"] <= high), key=lambda row: row["createTime"])
        start = page["start"] // page["pageSize"] * page["pageSize"] if self.rounds else page["start"]
        return [self.text(row) for row in rows[start : start + page["pageSize"]]]

    def text(self, row) -> bytes:
        return json.dumps(row | {"createTime": row["createTime"] // self.unit_ms}).encode()

    @property
    def all(self) -> Counter:
        return Counter(map(self.text, self.rows))


def rows_at(times: list[int], names: Iterator[object] | None = None) -> list[dict]:
    names = names or count()
    return [{"createTime": START_MS + time, "who": next(names)} for time in times]


few_at_a_time = st.lists(
    st.tuples(st.integers(0, 6), st.integers(1, PAGE_SIZE - 1)), max_size=8, unique_by=lambda t: t[0]
)


@given(few_at_a_time, st.randoms(use_true_random=False), st.booleans(), st.sampled_from([1, 1000]))
def test_rows_of_one_time_may_come_in_another_order_on_each_page(groups, order, twins, unit_ms):
    # In seconds, what is not told are the milliseconds.
    times = [time * unit_ms + unit_ms // 3 for time, size in groups for _ in range(size)]
    names = iter([order.randrange(2) for _ in times]) if twins else None
    served = List(rows_at(times, names), shuffled=order, unit_ms=unit_ms)

    assert Counter(by_offset(served.ask, "createTime")) == served.all
    # One question for each page's end, where several rows are of its time.
    assert len(served.asked) <= 1 + 2 * (max(0, len(times) - 1) // (PAGE_SIZE - 1))


numbers = st.sets(st.integers(0, 12), max_size=3)


@given(st.lists(st.integers(1, 9), max_size=20), numbers, numbers, st.booleans(), st.data())
def test_whoever_was_there_all_the_time_comes_once_and_nobody_twice(times, arrivals, departures, rounds, data):
    names = count()
    served = List(rows_at(times, names), rounds=rounds)
    there = served.all
    ever = there.copy()

    def change(number):
        if number in departures and served.rows:
            served.rows.pop(data.draw(st.integers(0, len(served.rows) - 1)))
        elif number in arrivals:
            served.rows += rows_at([data.draw(st.integers(1, 9))], names)
        there.subtract(there - served.all)
        ever.update(served.all - ever)

    served.before_page = change
    try:
        found = Counter(by_offset(served.ask, "createTime"))
    except Refused:
        return
    assert there <= found <= ever


# Two walks at least are left in peace, as many as it takes where one time has more rows than a page.
@given(st.lists(st.integers(1, 9), max_size=20), st.sets(st.integers(0, 12), max_size=2), st.data())
def test_whoever_arrives_while_pages_are_read_comes_too(times, arrivals, data):
    names = count()
    served = List(rows_at(times, names))
    at_last_page = Counter()

    def change(number):
        # Whoever arrives while one instant is asked for by itself may hide another one, who arrived before.
        if alone:
            return
        if number in arrivals:
            served.rows += rows_at([data.draw(st.integers(1, 9))], names)
        at_last_page.update(served.all - at_last_page)

    alone = False

    def ask(page):
        nonlocal alone
        alone = "startTime" in page
        return served.ask(page)

    served.before_page = change
    assert at_last_page <= Counter(by_offset(ask, "createTime")) <= served.all


@given(few_at_a_time)
def test_pages_that_begin_at_whole_pages_are_read_as_such(groups):
    times = [time for time, size in groups for _ in range(size)]
    served = List(rows_at(times), rounds=True)

    assert Counter(by_offset(served.ask, "createTime")) == served.all


@given(st.integers(0, 3 * PAGE_SIZE), st.integers(0, PAGE_SIZE))
def test_more_equal_rows_than_a_page_holds_all_come(equal, others):
    served = List(rows_at([5] * equal, iter([7] * equal)) + rows_at(list(range(others))))

    assert Counter(by_offset(served.ask, "createTime")) == served.all


def test_more_rows_of_one_time_than_a_page_holds_that_come_in_no_order_are_an_error():
    served = List(rows_at([5] * (5 * PAGE_SIZE)), shuffled=random.Random(7))

    with pytest.raises(Refused, match="moved during each of 4 walks"):
        by_offset(served.ask, "createTime")


@given(st.integers(PAGE_SIZE, 4 * PAGE_SIZE), st.integers(0, 99), st.booleans())
def test_an_order_that_hangs_on_the_question_alone_is_no_proof(rows, seed, by_size):
    """Asked the same again, such a list answers the same, with some rows twice and others never."""
    served = List(rows_at([5] * rows), shuffled=random.Random())

    def ask(page):
        served.shuffled.seed(f"{seed} {page['start']} {page['pageSize'] if by_size else 0}")
        return served.ask(page)

    try:
        found = Counter(by_offset(ask, "createTime", ("who",)))
    except Refused:
        return
    assert found == served.all


def test_a_quiet_list_costs_its_pages():
    served = List(rows_at(list(range(3 * (PAGE_SIZE - 1)))))

    assert len(by_offset(served.ask, "createTime")) == len(served.rows)
    assert [page["start"] for page in served.asked] == [0, 3, 6]


def test_live_rows_are_told_apart_by_their_identity():
    numbers = count()
    served = List(rows_at([*range(5), 5, 5, 5, *range(6, 12)]), shuffled=random.Random(3))
    served.text = lambda row: json.dumps(row | {"balance": next(numbers)}).encode()

    found = by_offset(served.ask, "createTime", ("who",))

    assert Counter(json.loads(row)["who"] for row in found) == Counter(row["who"] for row in served.rows)


@pytest.mark.parametrize("inclusive", [False, True])
@given(st.integers(0, 5 * PAGE_SIZE))
def test_ids_lead_to_the_next_page(inclusive, rows):
    def ask(page):
        later = [number for number in ids if number > page["start"] - inclusive]
        return [json.dumps({"id": number}).encode() for number in later[: page["pageSize"]]]

    ids = [3 * number + 1 for number in range(rows)]

    assert [json.loads(row)["id"] for row in by_id(ask)] == ids


@pytest.mark.parametrize(
    ("ids", "told"), [(range(10, 0, -1), "not in the order of its ids"), (range(1, 11), "no id above 4")]
)
def test_a_page_that_does_not_lead_to_the_next_is_an_error(ids, told):
    def ask(page):
        """The same, whatever `start` is."""
        return [json.dumps({"id": number}).encode() for number in list(ids)[: page["pageSize"]]]

    with pytest.raises(Refused, match=told):
        by_id(ask)
