"""From rows as received to what PostgreSQL copies: what is read, what is refused, what the hash sees."""

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
from affiliate_pipeline.landing.day_writer import DayWriter
from affiliate_pipeline.landing.prepare import PreparedDay, blocks_of
from affiliate_pipeline.landing.store import Store
from affiliate_pipeline.schema import columns as schema
from affiliate_pipeline.schema import decode
from affiliate_pipeline.schema.columns import Amount, BigInt, Flag, Instant, Row, SmallInt, Text
from affiliate_pipeline.schema.decode import Invalid, Parsed, parse
from affiliate_pipeline.schema.fingerprint import Fingerprint, copy_text, fingerprint
from affiliate_pipeline.schema.raw_row import split

DAY = date(2025, 6, 3)
START_MS = int(datetime(2025, 6, 3, tzinfo=UTC).timestamp() * 1000)
END_MS = START_MS + 86_400_000
INSIDE = ("trade_time", START_MS, END_MS)


class Thing(Row):
    name: Text = schema.text("A name.", nullable=True)
    asset: Text = schema.text("A coin.")
    income: Amount = schema.amount("An amount.")
    trade_time: Instant = schema.instant("A time.")
    order_id: BigInt = schema.bigint("An id.")
    price: Amount = schema.amount("A newer amount.", optional=True)
    level: SmallInt = schema.smallint("A newer level.", optional=True)
    active: Flag = schema.flag("A newer flag.", optional=True)


THINGS = replace(ENDPOINTS[0], name="thing", schema=Thing, time_column="trade_time", sum_by=("income", "asset"))
GOOD = {"name": "Ann", "asset": "BTC", "income": "1.50", "tradeTime": START_MS, "orderId": 7}


def row(**fields) -> bytes:
    """A good row but for these fields, given by their JSON names; a field that is `...` is left out."""
    return json.dumps({name: value for name, value in (GOOD | fields).items() if value is not ...}).encode()


def bare(name: str, spelling: str) -> bytes:
    """A good row whose field has this JSON text."""
    return row(**{name: "@@"}).replace(b'"@@"', spelling.encode())


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
    """A JSON number's text, and what PostgreSQL shows for it: the same text, but for exponents and -0."""
    sign = draw(st.sampled_from(["", "-"]))
    whole = draw(st.one_of(st.just("0"), st.from_regex(r"[1-9][0-9]{0,30}", fullmatch=True)))
    fraction = draw(st.one_of(st.just(""), st.from_regex(r"\.[0-9]{1,30}", fullmatch=True)))
    exponent = draw(st.one_of(st.just(""), st.just(""), st.from_regex(r"[eE][+-]?[0-9]{1,2}", fullmatch=True)))
    spelling = f"{sign}{whole}{fraction}{exponent}"
    if exponent:
        return spelling, Decimal(spelling)
    return spelling, spelling if Decimal(spelling) else spelling.lstrip("-")


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


def written(fields: dict, random: Random) -> bytes:
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
    """Lands rows of `Thing` and gives what the table then holds."""
    with Store(database_url) as store:
        endpoint_tables.ensure(store.connection, THINGS)
        writer = DayWriter(store.connection, THINGS, "test", "r", allow_shrink=True)

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


def as_shown(amount: tuple | None, shown: str | None) -> object:
    """What was sent, in the form in which it can be compared with what is shown."""
    if amount is None:
        return None
    return Decimal(shown) if isinstance(amount[1], Decimal) and shown is not None else shown


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ROWS, max_size=8), st.randoms(use_true_random=False))
def test_what_is_sent_is_what_the_table_holds(landed, sent, random):
    sent = [{**fields, "tradeTime": START_MS + number} for number, fields in enumerate(sent)]
    held = landed([written(fields, random) for fields in sent])
    by_time = {values[5]: values for values in held}
    assert len(held) == len(by_time) == len(sent)
    for fields in sent:
        name, asset, income, price, order_id, _, level, active, extra = by_time[fields["tradeTime"]]
        assert (name, asset, order_id) == (fields["name"], fields["asset"], fields["orderId"])
        assert (level, active) == (fields.get("level"), fields.get("active"))
        assert as_shown(fields["income"], income) == fields["income"][1]
        assert as_shown(fields["price"], price) == (fields["price"] and fields["price"][1])
        assert extra == ({"brandNew": fields["brandNew"]} if "brandNew" in fields else None)


def test_an_empty_text_and_null_stay_apart(landed):
    rows = [row(name="", orderId=1), row(name=None, orderId=2), row(name="NULL", orderId=3), row(name='""', orderId=4)]
    assert {held[4]: held[0] for held in landed(rows)} == {1: "", 2: None, 3: "NULL", 4: '""'}


def test_equal_twins_both_land(landed):
    assert Counter(held[4] for held in landed([row(), row(), row(orderId=8)])) == {7: 2, 8: 1}


@given(amounts())
@example(("0.000000000000000001", "0.000000000000000001"))
@example(("0.0000", "0.0000"))
def test_a_number_is_kept_as_sent_quoted_or_not(amount):
    spelling, _ = amount
    for json_text in (spelling, f'"{spelling}"'):
        assert values(parse(Thing, [bare("income", json_text)]), "income") == [spelling]


@given(st.integers(-(2**63), 2**63 - 1))
@example(2**53 + 1)
def test_an_id_is_kept_to_the_last_digit_quoted_or_not(number):
    rows = [bare("orderId", f"{number}"), bare("orderId", f'"{number}"')]
    assert values(parse(Thing, rows), "order_id") == [number, number]


@pytest.mark.parametrize(
    "spelling",
    [
        *('"NaN"', '"Infinity"', '""', '" 1"', '"1 "', '"1\\n"', '"1,5"', '"1_0"', '"0x1"', '"１"', '"."', '"+1"'),
        *("true", "[]", "{}", '"1e999"', "1e400", '"' + "9" * 101 + '"'),
    ],
)
def test_what_is_not_an_amount_is_refused(spelling):
    (problem,) = problems(row(), bare("income", spelling))
    assert problem.startswith("income: not ") and " in 1 row, such as " in problem


@pytest.mark.parametrize("spelling", ["1e3", "1.0", '"x"', '""', "true", "[]", str(2**63), str(-(2**63) - 1)])
def test_what_is_not_a_whole_number_of_64_bits_is_refused(spelling):
    (problem,) = problems(row(), bare("orderId", spelling))
    assert problem.startswith("order_id: not a whole number of 64 bits in 1 row, such as ")


@pytest.mark.parametrize("spelling", ["1_000", " 12 ", "+5", "１２", "12\\n"])
def test_a_whole_number_is_not_guessed(spelling):
    (problem,) = problems(bare("orderId", f'"{spelling}"'))
    assert problem.startswith("order_id: not a whole number")


@pytest.mark.parametrize("ms", [0, -1, 1_230_767_999, 4_102_444_800_001, 1_748_952_000_000_000, 2**63 - 1])
def test_an_instant_of_another_age_is_refused(ms):
    (problem,) = problems(row(tradeTime=ms))
    assert problem.startswith("trade_time: not a time in milliseconds ")
    assert problem.endswith(f" in 1 row, such as '{ms}'")


def test_an_instant_in_seconds_is_that_second():
    parsed = parse(Thing, [row(tradeTime=START_MS // 1000 + 5), row(tradeTime=START_MS + 5)], INSIDE)
    assert parsed.table["trade_time"].cast("int64").to_pylist() == [START_MS + 5000, START_MS + 5]


@pytest.mark.parametrize("ms", [START_MS - 1, END_MS])
def test_a_row_outside_the_day_is_refused(ms):
    (problem,) = problems(row(), row(tradeTime=ms))
    assert problem.startswith("trade_time: outside the day in 1 row, such as ")


def test_both_edges_of_the_day_are_inside():
    parse(Thing, [row(tradeTime=START_MS), row(tradeTime=END_MS - 1)], INSIDE)


def test_u0000_is_refused_since_postgresql_cannot_hold_it():
    (problem,) = problems(row(), row(name="a\0b"))
    assert problem.startswith("name: ") and " in 1 row, such as " in problem


@pytest.mark.parametrize("name", [b'"\xff"', b'"\\ud83d"'], ids=["not UTF-8", "half a surrogate pair"])
def test_a_text_that_is_no_unicode_is_refused(name):
    (problem,) = problems(row(), row(name="@@").replace(b'"@@"', name))
    assert " in 1 row" in problem


@pytest.mark.parametrize(
    ("spelling", "is_flag"), [("true", 1), ('"False"', 1), ("1", 1), ('"yes"', 0), ("2", 0), ("[]", 0)]
)
def test_a_flag_is_true_or_false(spelling, is_flag):
    if is_flag:
        assert values(parse(Thing, [bare("active", spelling)]), "active") == [spelling in ("true", "1")]
    else:
        assert problems(bare("active", spelling))[0].startswith("active: not true or false in 1 row, such as ")


@pytest.mark.parametrize("name", ["price", "level", "active"])
def test_an_empty_value_is_null_where_there_may_be_none(name):
    parsed = parse(Thing, [bare(name, '""'), row()])
    assert values(parsed, name) == [None, None] and not parsed.unknown
    assert values(parse(Thing, [row(name="")]), "name") == [""]


@pytest.mark.parametrize("name", ["income", "tradeTime", "orderId"])
def test_an_empty_value_is_refused_where_there_has_to_be_one(name):
    assert problems(bare(name, '""'))


@pytest.mark.parametrize("number", [2**15, -(2**15) - 1])
def test_a_level_beyond_16_bits_is_refused(number):
    assert problems(row(level=number))[0].startswith("level: not a whole number of 16 bits in 1 row, such as ")


def test_every_column_that_is_wrong_is_named_once_with_its_count_and_an_example():
    rows = [row(income="x"), row(income="y", orderId="z"), row(asset=None), row()]
    assert sorted(problems(*rows)) == [
        "asset: null in 1 row",
        "income: not a decimal number in 2 rows, such as 'x'",
        "order_id: not a whole number of 64 bits in 1 row, such as '\"z\"'",
    ]


def test_a_missing_field_is_said_to_be_missing():
    assert problems(row(), row(income=...), row(income=...)) == ["income: the field is missing in 2 rows"]


def test_a_field_that_may_be_null_may_not_be_missing():
    assert problems(row(name=None), row(name=...)) == ["name: the field is missing in 1 row"]
    spaced = row(name=None).replace(b'"name":', b'"name" \n:')
    assert values(parse(Thing, [row(name=None), row(name='"name":'), spaced]), "name") == [None, '"name":', None]


@given(st.lists(ROWS, min_size=1))
def test_rows_that_are_exactly_as_declared_and_others_are_read_alike(sent):
    """The former column by column, the latter field by field."""
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
    # A row that spells a name otherwise than the first one has to be read field by field.
    others = [text.replace(b'"tradeTime":', b'"trade_time":') for text in declared]
    assert parse(Thing, [row(), *declared]).table.equals(parse(Thing, [row(), *others]).table)


@pytest.mark.parametrize("spelling", ["null", '""', '" "', '"-"', '"NULL"', '"n/a"'])
@pytest.mark.parametrize("name", ["price", "level", "active"])
def test_no_value_is_read_alike_column_by_column_and_field_by_field(name, spelling):
    declared = bare(name, spelling)
    other = declared.replace(b'"tradeTime":', b'"trade_time":')
    assert values(parse(Thing, [declared]), name) == [None]
    assert values(parse(Thing, [row(), other]), name)[1:] == [None]


def test_a_field_that_is_there_twice_is_found_however_it_is_spaced():
    for colon in (b":", b" : ", b"\t:"):
        twice = row(name="a:b").replace(b"}", b', "income"' + colon + b'"2"}')
        assert problems(twice) == ["income: the field occurs twice in 1 row, such as '\"2\"'"]
    assert values(parse(Thing, [row().replace(b"}", b', "orderId":7}')]), "order_id") == [7]


def test_a_newer_field_may_be_missing_or_null():
    assert values(parse(Thing, [row(), row(price=None), row(price="2.0")]), "price") == [None, None, "2.0"]


def test_an_example_is_redacted_and_short():
    (told,) = problems(row(income="jane.doe@example.com"))
    assert "'ja***@example.com'" in told
    (told,) = problems(row(income="x" * 5000))
    assert len(told) < 150


def test_an_unknown_field_is_kept_and_counted():
    parsed = parse(Thing, [row(), row(fee=1), bare("rank", "1.10"), row(fee={"a": [None]})])
    assert [extra and json.loads(extra) for extra in values(parsed, "extra")] == [
        None, {"fee": 1}, {"rank": 1.1}, {"fee": {"a": [None]}},
    ]  # fmt: skip
    assert '"rank":1.10' in values(parsed, "extra")[2]
    assert parsed.unknown == {"fee": 2, "rank": 1}


def test_a_field_is_known_however_its_name_is_spelled():
    spelled = {"Name": "Ann", "asset": "BTC", "INCOME": "1", "tradetime": START_MS, "order_id": 7}
    parsed = parse(Thing, [json.dumps(spelled).encode()])
    assert (values(parsed, "name"), values(parsed, "order_id"), values(parsed, "extra")) == (["Ann"], [7], [None])


def test_a_field_that_is_there_in_two_spellings_loses_neither():
    parsed = parse(Thing, [row(order_id=8)])
    assert values(parsed, "order_id") == [7]
    assert [json.loads(extra) for extra in values(parsed, "extra")] == [{"order_id": 8}]


def test_no_rows_are_an_empty_table_and_no_text():
    parsed = parse(Thing, [], INSIDE)
    assert len(parsed.table) == 0
    assert copy_text(parsed.table) == b""


def test_chunks_of_several_rows_are_split_into_the_texts_received():
    rows = [row(name="a,b"), bare("income", "1.50"), row(name="{}")]
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


@given(HASHED, st.data())
def test_the_hash_depends_neither_on_the_order_nor_on_the_blocks(rows, data):
    shuffled = data.draw(st.permutations(rows))
    cuts = data.draw(st.lists(st.integers(0, len(rows)), max_size=3))
    assert hashed(*rows) == hashed(*shuffled, cuts=tuple(cuts))


@given(HASHED, HASHED)
def test_another_multiset_of_rows_has_another_hash(rows, others):
    assert (hashed(*rows) == hashed(*others)) == (Counter(rows) == Counter(others))


@given(HASHED.filter(bool), st.data())
def test_a_row_lost_or_doubled_changes_the_hash(rows, data):
    index = data.draw(st.integers(0, len(rows) - 1))
    assert len({hashed(*rows), hashed(*rows, rows[index]), hashed(*rows[:index], *rows[index + 1 :])}) == 3


def test_the_scale_changes_the_hash_and_quotes_do_not():
    assert hashed(row(income="1.0")) != hashed(row(income="1.00"))
    assert hashed(row(income="1.0")) == hashed(bare("income", "1.0"))


def test_the_order_of_unknown_fields_does_not_change_the_hash_and_their_values_do():
    assert hashed(row(b="1.0", a=2)) == hashed(row(a=2, b="1.0")) != hashed(row(a=2, b="1.00"))
    (extra,) = values(parse(Thing, [b'%s,"z":{"y": 1.0,"x":1},"a":1e2}' % row()[:-1]]), "extra")
    assert extra == '{"a":1e2,"z":{"y": 1.0,"x":1}}'


def test_the_hash_of_no_rows_is_that_of_nothing():
    assert hashed() == str(Fingerprint()) == "0" * 64
    assert hashed(row(name="\n")) != hashed(row(name="\n\n"))


def test_what_follows_a_line_end_in_a_text_belongs_to_its_row():
    rows = [row(name="a\nb", orderId=1), row(name="c\nd", orderId=2)]
    others = [row(name="a\nd", orderId=2), row(name="c\nb", orderId=1)]
    assert hashed(*rows) != hashed(*others)


def test_names_in_lower_case_and_instants_in_seconds_stay_on_the_fast_path(monkeypatch):
    lower = json.dumps({name.lower(): value for name, value in json.loads(row(tradeTime=START_MS // 1000 + 5)).items()})
    expected = parse(Thing, [row(tradeTime=START_MS + 5000)]).table
    monkeypatch.setattr(decode, "_FieldReader", None)
    assert parse(Thing, [lower.replace(", ", ",").replace(": ", ":").encode()] * 2).table[:1].equals(expected)


def test_a_field_may_have_a_name_of_the_exchanges_own():
    class Short(Row):
        trade_time: Instant = schema.instant("A time.", json_name="T")

    assert values(parse(Short, [b'{"T":%d}' % START_MS]), "trade_time") == values(
        parse(Thing, [row(tradeTime=START_MS)]), "trade_time"
    )
