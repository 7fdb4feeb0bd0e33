"""Decoding of received rows: accepted and rejected values, COPY text, and the content hash."""

import json
from collections import Counter
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from random import Random

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from affiliate_pipeline.exchanges.fetching import DayBatch
from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline.landing import endpoint_tables
from affiliate_pipeline.landing.blocks import blocks_of
from affiliate_pipeline.landing.day_writer import DayWriter
from affiliate_pipeline.landing.prepare import PreparedDay
from affiliate_pipeline.landing.store import Store
from affiliate_pipeline.schema import columns as schema
from affiliate_pipeline.schema import decode
from affiliate_pipeline.schema.columns import Row
from affiliate_pipeline.schema.decode import Parsed, parse
from affiliate_pipeline.schema.encode import copy_text, fingerprint
from affiliate_pipeline.schema.fingerprint import Fingerprint
from affiliate_pipeline.schema.invalid import Invalid
from affiliate_pipeline.schema.raw_row import split

DAY = date(2025, 6, 3)
START_MS = int(datetime(2025, 6, 3, tzinfo=UTC).timestamp() * 1000)
END_MS = START_MS + 86_400_000
INSIDE = ("trade_time", START_MS, END_MS)
# Each example validates a table, which takes about 20 ms.
FEW_EXAMPLES = settings(max_examples=8)


class Thing(Row):
    name = schema.text("A name.", nullable=True)
    asset = schema.text("A coin.")
    income = schema.amount("An amount.")
    trade_time = schema.instant("A time.")
    order_id = schema.bigint("An id.")
    price = schema.amount("A newer amount.", optional=True)
    level = schema.smallint("A newer level.", optional=True)
    active = schema.flag("A newer flag.", optional=True)


THINGS = replace(ENDPOINTS[0], name="thing", schema=Thing, time_column="trade_time", sum_by=("income", "asset"))
GOOD = {"name": "Ann", "asset": "BTC", "income": "1.50", "tradeTime": START_MS, "orderId": 7}


def row(**fields) -> bytes:
    """A good row in which these fields (by JSON name) are replaced; a field with the value `...` is left out."""
    return json.dumps({name: value for name, value in (GOOD | fields).items() if value is not ...}).encode()


def row_with_json(name: str, json_text: str) -> bytes:
    """A good row with this JSON text as the value of the field."""
    return row(**{name: "@@"}).replace(b'"@@"', json_text.encode())


def values(parsed: Parsed, name: str) -> list:
    return parsed.table[name].to_pylist()


def problems(*rows: bytes) -> list[str]:
    with pytest.raises(Invalid) as raised:
        parse(Thing, rows, INSIDE)
    assert str(raised.value) == "; ".join(map(str, raised.value.problems))
    return [str(problem) for problem in raised.value.problems]


def hashed(*rows: bytes, cuts: tuple[int, ...] = ()) -> str:
    total = Fingerprint()
    ends = [0, *sorted(cuts), len(rows)]
    for first, last in zip(ends, ends[1:], strict=False):
        table = parse(Thing, rows[first:last]).table
        total += fingerprint(table, copy_text(table))
    return str(total)


@st.composite
def amounts(draw) -> tuple[str, str | Decimal]:
    """A JSON number's text and PostgreSQL's output for it: the same text, except for exponents and -0.

    For an exponent, the output is given as a number, since its format differs.
    """
    sign = draw(st.sampled_from(["", "-"]))
    whole = draw(st.integers(0, 10**31 - 1))
    fraction = draw(st.just("") | st.text("0123456789", min_size=1, max_size=30).map(".{}".format))
    exponents = st.tuples(st.sampled_from("eE"), st.sampled_from(["", "+", "-"]), st.integers(0, 99))
    exponent = draw(st.just("") | st.just("") | exponents.map("{0[0]}{0[1]}{0[2]}".format))
    number = f"{sign}{whole}{fraction}{exponent}"
    if exponent:
        return number, Decimal(number)
    return number, number if Decimal(number) else number.lstrip("-")


ODD = [
    "",
    '"',
    '""',
    "\\",
    "\\.",
    "\\N",
    "NULL",
    ",",
    "a\nb",
    "a\r\n\\.\nb",
    "\n",
    "\t",
    " x ",
    "x'y",
    "\u2028",
    "\ufeff",
]
TEXTS = st.one_of(
    st.sampled_from(ODD),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20),
)
ROWS = st.fixed_dictionaries(
    {
        "name": st.none() | TEXTS,
        "asset": TEXTS,
        "income": amounts(),
        "price": st.none() | amounts(),
        "tradeTime": st.integers(START_MS, END_MS - 1),
        "orderId": st.integers(-(2**63), 2**63 - 1),
    },
    optional={
        "level": st.none() | st.integers(-(2**15), 2**15 - 1),
        "active": st.none() | st.booleans(),
        "brandNew": TEXTS | st.integers() | st.booleans() | st.lists(st.integers(), max_size=2),
    },
)


def encoded(fields: dict, random: Random) -> bytes:
    """The row as an exchange may send it: members in any order, amounts quoted or bare, any spacing and escaping."""
    members = list(fields.items())
    random.shuffle(members)
    texts = []
    for name, value in members:
        if isinstance(value, tuple):
            text = random.choice(['"{}"', "{}"]).format(value[0])
        elif isinstance(value, int) and name in ("tradeTime", "orderId", "level", "active"):
            text = random.choice(['"{}"', "{}"]).format(json.dumps(value))
        elif value is None and name == "price" and random.random() < 0.5:
            continue
        else:
            text = json.dumps(value, ensure_ascii=random.random() < 0.5)
        texts.append(f'"{name}"{random.choice([":", " : "])}{text}')
    return ("{" + random.choice([",", ", "]).join(texts) + "}").encode()


@pytest.fixture
def landed(database_url):
    """Lands rows of `Thing` and returns the table's rows of the day."""
    with Store(database_url) as store:
        endpoint_tables.ensure(store.connection, THINGS)
        writer = DayWriter(store.connection, THINGS, source="test", sources=["test"], run_id="r", allow_shrink=True)

        def land(rows: list[bytes]) -> list[tuple]:
            batch = DayBatch(DAY, rows, len(rows), requests=0)
            day = PreparedDay(batch, blocks_of(batch, THINGS))
            with store.exclusive(THINGS):
                writer.write(day, settled=False)
            return store.connection.execute(
                "select name, asset, income::text, price::text, order_id, "
                "(extract(epoch from trade_time) * 1000)::bigint, level, active, extra from binance.thing where partition_date = %s",
                (DAY,),
            ).fetchall()

        yield land


def is_stored(amount: tuple[str, str | Decimal] | None, stored: str | None) -> bool:
    """Whether `stored`, PostgreSQL's output, is the one that `amounts` expects for the number."""
    if amount is None or stored is None:
        return amount is stored
    _, expected = amount
    return (Decimal(stored) if isinstance(expected, Decimal) else stored) == expected


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(ROWS, max_size=8), st.randoms(use_true_random=False))
def test_the_table_has_exactly_what_was_sent(landed, sent, random):
    sent = [{**fields, "tradeTime": START_MS + number} for number, fields in enumerate(sent)]
    stored = landed([encoded(fields, random) for fields in sent])
    by_time = {values[5]: values for values in stored}
    assert len(stored) == len(by_time) == len(sent)
    for fields in sent:
        name, asset, income, price, order_id, _, level, active, extra = by_time[fields["tradeTime"]]
        assert (name, asset, order_id) == (fields["name"], fields["asset"], fields["orderId"])
        assert (level, active) == (fields.get("level"), fields.get("active"))
        assert is_stored(fields["income"], income) and is_stored(fields["price"], price)
        assert extra == ({"brandNew": fields["brandNew"]} if "brandNew" in fields else None)


def test_an_empty_text_is_not_null(landed):
    rows = [row(name="", orderId=1), row(name=None, orderId=2), row(name="NULL", orderId=3), row(name='""', orderId=4)]
    assert {stored[4]: stored[0] for stored in landed(rows)} == {1: "", 2: None, 3: "NULL", 4: '""'}


def test_equal_rows_all_land(landed):
    assert Counter(stored[4] for stored in landed([row(), row(), row(orderId=8)])) == {7: 2, 8: 1}


@FEW_EXAMPLES
@given(st.lists(amounts(), min_size=1, max_size=20), st.booleans())
@example([("0.000000000000000001", ""), ("0.0000", "")], False)
def test_amounts_are_unchanged_whether_quoted_or_not(amounts, is_quoted):
    numbers = [number for number, _ in amounts]
    rows = [row_with_json("income", f'"{number}"' if is_quoted else number) for number in numbers]
    assert values(parse(Thing, rows), "income") == numbers


@FEW_EXAMPLES
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20))
@example([2**53 + 1])
def test_ids_are_exact_whether_quoted_or_not(numbers):
    rows = [row_with_json("orderId", json_text) for number in numbers for json_text in (f"{number}", f'"{number}"')]
    assert values(parse(Thing, rows), "order_id") == [number for number in numbers for _ in range(2)]


@pytest.mark.parametrize(
    "json_text",
    [
        *('"NaN"', '"Infinity"', '""', '" 1"', '"1 "', '"1\\n"', '"1,5"', '"1_0"', '"0x1"', '"１"', '"."', '"+1"'),
        *("true", "[]", "{}", '"1e999"', "1e400", '"' + "9" * 101 + '"'),
    ],
)
def test_an_invalid_amount_is_rejected(json_text):
    (problem,) = problems(row(), row_with_json("income", json_text))
    assert problem.startswith("income: not ") and " in 1 row, such as " in problem


@pytest.mark.parametrize(
    "json_text",
    [
        *("1e3", "1.0", '"x"', '""', "true", "[]", str(2**63), str(-(2**63) - 1)),
        *('"1_000"', '" 12 "', '"+5"', '"１２"', '"12\\n"'),
    ],
)
def test_an_invalid_64_bit_integer_is_rejected(json_text):
    (problem,) = problems(row(), row_with_json("orderId", json_text))
    assert problem.startswith("order_id: not a whole number of 64 bits in 1 row, such as ")


# Among these: seconds just before 2009, milliseconds just after the start of 2100, and microseconds.
@pytest.mark.parametrize("ms", [0, -1, 1_230_767_999, 4_102_444_800_001, 1_748_952_000_000_000, 2**63 - 1])
def test_an_instant_out_of_range_is_rejected(ms):
    (problem,) = problems(row(tradeTime=ms))
    assert problem.startswith("trade_time: not a time in milliseconds ")
    assert problem.endswith(f" in 1 row, such as '{ms}'")


def test_an_instant_in_seconds_is_read():
    parsed = parse(Thing, [row(tradeTime=START_MS // 1000 + 5), row(tradeTime=START_MS + 5)], INSIDE)
    assert parsed.table["trade_time"].cast("int64").to_pylist() == [START_MS + 5000, START_MS + 5]


@pytest.mark.parametrize("ms", [START_MS - 1, END_MS])
def test_a_row_outside_the_day_is_rejected(ms):
    (problem,) = problems(row(), row(tradeTime=ms))
    assert problem.startswith("trade_time: outside the day in 1 row, such as ")


def test_both_edges_of_the_day_are_inside():
    parse(Thing, [row(tradeTime=START_MS), row(tradeTime=END_MS - 1)], INSIDE)


def test_u0000_is_rejected_because_postgresql_cannot_store_it():
    (problem,) = problems(row(), row(name="a\0b"))
    assert problem.startswith("name: ") and " in 1 row, such as " in problem


@pytest.mark.parametrize("name", [b'"\xff"', b'"\\ud83d"'], ids=["not UTF-8", "an unpaired surrogate"])
def test_an_invalid_unicode_text_is_rejected(name):
    (problem,) = problems(row(), row(name="@@").replace(b'"@@"', name))
    assert " in 1 row" in problem


@pytest.mark.parametrize(("json_text", "value"), [("true", True), ('"False"', False), ("1", True), ("false", False)])
def test_a_flag_is_read(json_text, value):
    assert values(parse(Thing, [row_with_json("active", json_text)]), "active") == [value]


@pytest.mark.parametrize("json_text", ['"yes"', "2", "[]"])
def test_an_invalid_flag_is_rejected(json_text):
    assert problems(row_with_json("active", json_text))[0].startswith("active: not true or false in 1 row, such as ")


@pytest.mark.parametrize("name", ["price", "level", "active"])
def test_an_empty_value_of_an_optional_field_is_null(name):
    parsed = parse(Thing, [row_with_json(name, '""'), row()])
    assert values(parsed, name) == [None, None] and not parsed.unknown
    assert values(parse(Thing, [row(name="")]), "name") == [""]


@pytest.mark.parametrize("name", ["income", "tradeTime", "orderId"])
def test_an_empty_value_of_a_required_field_is_rejected(name):
    assert problems(row_with_json(name, '""'))


@pytest.mark.parametrize("number", [2**15, -(2**15) - 1])
def test_an_integer_beyond_16_bits_is_rejected(number):
    assert problems(row(level=number))[0].startswith("level: not a whole number of 16 bits in 1 row, such as ")


def test_every_invalid_column_is_reported_once_with_a_count_and_an_example():
    rows = [row(income="x"), row(income="y", orderId="z"), row(asset=None), row()]
    assert sorted(problems(*rows)) == [
        "asset: null in 1 row",
        "income: not a decimal number in 2 rows, such as 'x'",
        "order_id: not a whole number of 64 bits in 1 row, such as '\"z\"'",
    ]


def test_null_is_reported_also_if_another_row_of_the_column_is_unreadable():
    rows = [row(income=None), row(income="x"), row(income=...)]
    assert sorted(problems(*rows)) == [
        "income: not a decimal number in 1 row, such as 'x'",
        "income: null in 1 row",
        "income: the field is missing in 1 row",
    ]


def test_a_missing_field_is_reported_as_missing():
    assert problems(row(), row(income=...), row(income=...)) == ["income: the field is missing in 2 rows"]


def test_a_nullable_field_must_not_be_missing():
    assert problems(row(name=None), row(name=...)) == ["name: the field is missing in 1 row"]
    spaced = row(name=None).replace(b'"name":', b'"name" \n:')
    assert values(parse(Thing, [row(name=None), row(name='"name":'), spaced]), "name") == [None, '"name":', None]


@FEW_EXAMPLES
@given(st.lists(ROWS, min_size=1))
def test_the_fast_and_the_slow_path_read_the_same_values(sent):
    """Rows are read column by column (fast) or field by field (slow).

    The fast path needs valid rows of the declared types, with all names spelled as in the first row.
    """
    declared = [
        json.dumps(
            {
                name: value[0] if isinstance(value, tuple) else value
                for name, value in fields.items()
                if name != "brandNew"
            },
            ensure_ascii=index % 2 == 0,
        ).encode()
        for index, fields in enumerate(sent)
    ]
    # The field's name differs from that in the first row.
    slow = [text.replace(b'"tradeTime":', b'"trade_time":') for text in declared]
    assert parse(Thing, [row(), *declared]).table.equals(parse(Thing, [row(), *slow]).table)


@pytest.mark.parametrize("json_text", ["null", '""', '" "', '"-"', '"NULL"', '"n/a"'])
@pytest.mark.parametrize("name", ["price", "level", "active"])
def test_placeholders_of_a_missing_value_are_null_however_the_names_are_spelled(name, json_text):
    usual = row_with_json(name, json_text)
    respelled = usual.replace(b'"tradeTime":', b'"trade_time":')
    assert values(parse(Thing, [usual]), name) == [None]
    assert values(parse(Thing, [row(), respelled]), name)[1:] == [None]


def test_a_field_with_two_different_values_is_rejected_with_any_spacing():
    for colon in (b":", b" : ", b"\t:"):
        twice = row(name="a:b").replace(b"}", b', "income"' + colon + b'"2"}')
        assert problems(twice) == ["income: the field occurs twice in 1 row, such as '\"2\"'"]
    assert values(parse(Thing, [row().replace(b"}", b', "orderId":7}')]), "order_id") == [7]


def test_an_optional_field_may_be_missing_or_null():
    assert values(parse(Thing, [row(), row(price=None), row(price="2.0")]), "price") == [None, None, "2.0"]


def test_an_example_is_redacted_and_short():
    (problem,) = problems(row(income="jane.doe@example.com"))
    assert "'ja***@example.com'" in problem
    (problem,) = problems(row(income="x" * 5000))
    assert len(problem) < 150


def test_an_unknown_field_is_stored_in_extra_and_counted():
    parsed = parse(Thing, [row(), row(fee=1), row_with_json("rank", "1.10"), row(fee={"a": [None]})])
    assert [extra and json.loads(extra) for extra in values(parsed, "extra")] == [
        None, {"fee": 1}, {"rank": 1.1}, {"fee": {"a": [None]}},
    ]  # fmt: skip
    assert '"rank":1.10' in values(parsed, "extra")[2]
    assert parsed.unknown == {"fee": 2, "rank": 1}


def test_field_names_match_in_any_case_and_with_underscores():
    spelled = {"Name": "Ann", "asset": "BTC", "INCOME": "1", "tradetime": START_MS, "order_id": 7}
    parsed = parse(Thing, [json.dumps(spelled).encode()])
    assert (values(parsed, "name"), values(parsed, "order_id"), values(parsed, "extra")) == (["Ann"], [7], [None])


def test_a_field_in_two_spellings_is_read_once_and_stored_in_extra():
    parsed = parse(Thing, [row(order_id=8)])
    assert values(parsed, "order_id") == [7]
    assert [json.loads(extra) for extra in values(parsed, "extra")] == [{"order_id": 8}]


def test_no_rows_give_an_empty_table_and_no_copy_text():
    parsed = parse(Thing, [], INSIDE)
    assert len(parsed.table) == 0
    assert copy_text(parsed.table) == b""


def test_chunks_of_several_rows_are_split_into_the_received_texts():
    rows = [row(name="a,b"), row_with_json("income", "1.50"), row(name="{}")]
    assert list(split([rows[0] + b"," + rows[1], rows[2]])) == rows


HASHED = st.lists(
    st.builds(
        lambda name, income, order: row(name=name, income=income, orderId=order),
        st.none() | st.sampled_from(["", "a", "b", "a,b", '"', "ä"]),
        st.sampled_from(["1", "1.0", "10"]),
        st.integers(0, 2),
    ),
    max_size=8,
)


@FEW_EXAMPLES
@given(HASHED, st.data())
def test_the_hash_is_independent_of_order_and_blocks(rows, data):
    shuffled = data.draw(st.permutations(rows))
    cuts = data.draw(st.lists(st.integers(0, len(rows)), max_size=3))
    assert hashed(*rows) == hashed(*shuffled, cuts=tuple(cuts))


@FEW_EXAMPLES
@given(HASHED, HASHED)
def test_hashes_are_equal_only_for_the_same_multiset_of_rows(rows, others):
    assert (hashed(*rows) == hashed(*others)) == (Counter(rows) == Counter(others))


@FEW_EXAMPLES
@given(HASHED.filter(bool), st.data())
def test_a_lost_or_duplicate_row_changes_the_hash(rows, data):
    index = data.draw(st.integers(0, len(rows) - 1))
    assert len({hashed(*rows), hashed(*rows, rows[index]), hashed(*rows[:index], *rows[index + 1 :])}) == 3


def test_the_scale_of_an_amount_changes_the_hash_but_quotes_do_not():
    assert hashed(row(income="1.0")) != hashed(row(income="1.00"))
    assert hashed(row(income="1.0")) == hashed(row_with_json("income", "1.0"))


def test_values_of_unknown_fields_change_the_hash_but_their_order_does_not():
    assert hashed(row(b="1.0", a=2)) == hashed(row(a=2, b="1.0")) != hashed(row(a=2, b="1.00"))
    (extra,) = values(parse(Thing, [b'%s,"z":{"y": 1.0,"x":1},"a":1e2}' % row()[:-1]]), "extra")
    assert extra == '{"a":1e2,"z":{"y": 1.0,"x":1}}'


def test_the_hash_of_no_rows_is_zero():
    assert hashed() == str(Fingerprint()) == "0" * 64


def test_a_newline_in_a_text_does_not_split_the_row_for_the_hash():
    assert hashed(row(name="\n")) != hashed(row(name="\n\n"))
    rows = [row(name="a\nb", orderId=1), row(name="c\nd", orderId=2)]
    others = [row(name="a\nd", orderId=2), row(name="c\nb", orderId=1)]
    assert hashed(*rows) != hashed(*others)


def test_lower_case_names_and_instants_in_seconds_use_the_fast_path(monkeypatch):
    lower = json.dumps({name.lower(): value for name, value in json.loads(row(tradeTime=START_MS // 1000 + 5)).items()})
    expected = parse(Thing, [row(tradeTime=START_MS + 5000)]).table
    monkeypatch.setattr(decode, "_FieldReader", None)
    assert parse(Thing, [lower.replace(", ", ",").replace(": ", ":").encode()] * 2).table[:1].equals(expected)


def test_a_field_may_have_an_explicit_json_name():
    class Short(Row):
        trade_time = schema.instant("A time.", json_name="T")

    assert values(parse(Short, [b'{"T":%d}' % START_MS]), "trade_time") == values(
        parse(Thing, [row(tradeTime=START_MS)]), "trade_time"
    )
