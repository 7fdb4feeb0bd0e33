"""Workbooks contain every character and every digit, on as many sheets as their rows need."""

import errno
import io
from collections.abc import Iterable, Sequence
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from affiliate_pipeline.commission import workbook
from affiliate_pipeline.commission.workbook import TextTooLong, write_workbook
from affiliate_pipeline_tests.commission.workbooks import Text, read_workbook


def written(rows: Iterable[Sequence[workbook.Cell]], *columns: str, name: str = "trade_user"):
    """The sheets of a workbook with these rows."""
    output = io.BytesIO()
    write_workbook(output, name, columns or ["value"], rows)
    return read_workbook(output)


@pytest.mark.parametrize(
    "text",
    [
        *("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "{=1}", "1.50", "0001", "1e5", "2026-10-01", "true", "#N/A"),
        *(
            "http://example.com",
            "<r><t>x</t></r>",
            "<r>&</r>",
            "<b>&amp;</b>",
            "_x0041_",
            "_x0041\x01",
            "\x01\x1f",
            "\ufffe\uffff",
        ),
        *(" spaces ", "lines\r\nof\ntext", "", "ä€😀", "x" * 32_767, "😀" * 16_383),
    ],
)
def test_every_text_remains_the_same_text(text):
    assert written([[text]]) == {"trade_user": [[Text("value")], [Text(text)]]}


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=50), min_size=1))
def test_any_text_remains_the_same_text(texts):
    assert written([text] for text in texts)["trade_user"][1:] == [[Text(text)] for text in texts]


def test_numbers_and_days_that_a_cell_cannot_represent_exactly_are_texts():
    exact = [-1, 999_999_999_999_999, True, False, date(1900, 3, 1), date(2026, 10, 1), None]
    inexact = [1_000_000_000_000_000, -(2**63), date(1900, 2, 28), date(1, 1, 1)]

    [_, row] = written([[*exact, *inexact]], *"abcdefghijk")["trade_user"]

    assert row == [*exact, *(Text(f"{value}") for value in inexact)]


def test_rows_beyond_the_limit_of_a_sheet_continue_on_further_sheets(monkeypatch):
    monkeypatch.setattr(workbook, "MAX_ROWS", 4)
    name = "a_name_that_is_longer_than_excel_permits"
    header = [Text("value")]
    first, second, third = f"{name[:31]}", f"{name[:29]} 2", f"{name[:29]} 3"

    def sheets(rows: int):
        return written(([number] for number in range(rows)), name=name)

    assert sheets(0) == {first: [header]}
    assert sheets(3) == {first: [header, [0], [1], [2]]}
    assert sheets(7) == {first: [header, [0], [1], [2]], second: [header, [3], [4], [5]], third: [header, [6]]}


def test_a_sheet_that_is_too_large_for_excel_continues_on_the_next_one(monkeypatch):
    monkeypatch.setattr(workbook, "MAX_SHEET_BYTES", 1000)
    sheets = written([number] for number in range(2500))

    # The size is checked only before each block of 1,000 rows; each sheet also has the header.
    assert [len(rows) for rows in sheets.values()] == [1001, 1001, 501]
    assert [number for rows in sheets.values() for [number] in rows[1:]] == [*range(2500)]


@pytest.mark.parametrize("text", ["x" * 32_768, "😀" * 16_384])
def test_a_text_that_does_not_fit_into_a_cell_is_refused(text):
    with pytest.raises(
        TextTooLong, match=r"a text of the column extra does not fit .* at most 32,767 .* as CSV or Parquet"
    ):
        written([["x", None], [text[1:], text]], "id", "extra")


def test_an_error_of_the_output_is_raised_as_it_is():
    class FullDisk(io.BytesIO):
        def write(self, block, /) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError) as raised:
        write_workbook(FullDisk(), "x", ["value"], [[1]])
    assert raised.value.errno == errno.ENOSPC
