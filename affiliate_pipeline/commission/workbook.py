"""Excel workbooks (xlsx, ECMA-376) whose texts and amounts are exact, written while their rows are read.

Libraries first write the whole workbook to temporary files, and take several times as long.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from itertools import chain, islice
from typing import IO, BinaryIO, Final
from xml.sax.saxutils import escape, quoteattr
from zipfile import ZIP_DEFLATED, ZipFile

from affiliate_pipeline.domain.problem import AffiliateError

# The limits of the format: rows of a sheet, characters of its name, and UTF-16 units of a text.
MAX_ROWS: Final = 1_048_576
MAX_NAME: Final = 31
MAX_TEXT: Final = 32_767
# Beyond 2 GiB, a part of the archive needs ZIP64, for which Excel offers to repair the file.
MAX_SHEET_BYTES: Final = 2_000_000_000
# Excel's numbers have 15 digits. Excel has a 29 February 1900, so its days before 1 March 1900 are off by one.
MAX_NUMBER: Final = 10**15 - 1
FIRST_DATE: Final = date(1900, 3, 1)
_DAY_0: Final = date(1899, 12, 30)
_ROWS_PER_WRITE: Final = 1_000
# What XML or Excel would take for something else: markup, characters that XML does not permit, and texts like Excel's
# own escapes: `_x0041_`, and `_x0041` before U+0001, because U+0001 is written as `_x0001_`, whose first underscore
# would complete `_x0041_`.
_SPECIAL: Final = re.compile(
    "[&<>\x00-\x08\x0b-\x1f\ufffe\uffff]|_(?=x[0-9A-Fa-f]{4}[_\x00-\x08\x0b-\x1f\ufffe\uffff])"
)

_XML: Final = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
_MAIN: Final = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_OFFICE: Final = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE: Final = "http://schemas.openxmlformats.org/package/2006"
_CONTENT: Final = "application/vnd.openxmlformats-officedocument.spreadsheetml"
# The indices of formats of cells.
_TEXT, _DATE = 1, 2
_STYLES: Final = (
    f'<styleSheet xmlns="{_MAIN}"><numFmts count="1"><numFmt numFmtId="164" formatCode="yyyy-mm-dd"/></numFmts>'
    '<fonts count="1"><font><sz val="11"/><name val="Calibri"/></font></fonts>'
    '<fills count="2"><fill><patternFill patternType="none"/></fill><fill><patternFill patternType="gray125"/></fill></fills>'
    '<borders count="1"><border><left/><right/><top/><bottom/><diagonal/></border></borders>'
    '<cellStyleXfs count="1"><xf numFmtId="0" fontId="0" fillId="0" borderId="0"/></cellStyleXfs><cellXfs count="3">'
    '<xf numFmtId="0" fontId="0" fillId="0" borderId="0" xfId="0"/>'
    '<xf numFmtId="49" fontId="0" fillId="0" borderId="0" xfId="0" applyNumberFormat="1"/>'
    '<xf numFmtId="164" fontId="0" fillId="0" borderId="0" xfId="0" applyNumberFormat="1"/>'
    '</cellXfs><cellStyles count="1"><cellStyle name="Normal" xfId="0" builtinId="0"/></cellStyles></styleSheet>'
)

Cell = str | int | date | None


class TextTooLong(AffiliateError):
    """A text is longer than a cell can be."""


def write_workbook(output: BinaryIO, name: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> None:
    """Write the rows below a header, on as many sheets as they need, while they are read.

    A text remains text even if its cell is edited, and becomes neither a formula nor a number. A number or day that
    Excel cannot represent exactly is a text. `output` must be seekable.

    Raises:
        TextTooLong: A text has more characters than a cell can have.
    """
    remaining = iter(rows)
    sheet_rows = remaining
    names: list[str] = []
    with ZipFile(output, "w", ZIP_DEFLATED) as archive:
        while True:
            names.append(_sheet_name(name, len(names) + 1))
            with archive.open(_sheet_part(len(names)), "w") as sheet:
                _write_sheet(sheet, columns, sheet_rows)
            # A further sheet is written only if a row remains for it.
            next_row = next(remaining, None)
            if next_row is None:
                break
            sheet_rows = chain([next_row], remaining)
        for part, text in _other_parts(names).items():
            archive.writestr(part, f"{_XML}{text}")


def _sheet_name(name: str, number: int) -> str:
    """The name of a sheet, from the second one on with its number; at most `MAX_NAME` characters."""
    suffix = f" {number}" if number > 1 else ""
    return name[: MAX_NAME - len(suffix)] + suffix


def _write_sheet(sheet: IO[bytes], columns: Sequence[str], rows: Iterator[Sequence[Cell]]) -> None:
    """Write the header and as many rows as the sheet may have; the others remain in `rows`."""
    widths = "".join(
        f'<col min="{number}" max="{number}" width="{max(len(title) + 2, 12)}" customWidth="1"/>'
        for number, title in enumerate(columns, start=1)
    )
    sheet.write(
        f'{_XML}<worksheet xmlns="{_MAIN}"><sheetViews><sheetView workbookViewId="0"><pane ySplit="1" topLeftCell="A2" '
        f'activePane="bottomLeft" state="frozen"/></sheetView></sheetViews><cols>{widths}</cols><sheetData>'.encode()
    )

    letters = [_letters(number) for number in range(len(columns))]
    header = _row(1, letters, columns, columns)
    size = sheet.write(header.encode())
    last_row = 1
    while size < MAX_SHEET_BYTES:
        next_rows = islice(rows, min(_ROWS_PER_WRITE, MAX_ROWS - last_row))
        block = [_row(number, letters, columns, row) for number, row in enumerate(next_rows, start=last_row + 1)]
        if not block:
            break
        size += sheet.write("".join(block).encode())
        last_row += len(block)

    # Otherwise Excel marks each amount as a mistake.
    sheet.write(
        f'</sheetData><ignoredErrors><ignoredError sqref="A1:XFD{MAX_ROWS}" numberStoredAsText="1"/></ignoredErrors>'
        "</worksheet>".encode()
    )


def _row(number: int, letters: Sequence[str], columns: Sequence[str], row: Sequence[Cell]) -> str:
    cells = [
        _cell(f"{letter}{number}", value, title) for letter, value, title in zip(letters, row, columns, strict=True)
    ]
    return f'<row r="{number}">{"".join(cells)}</row>'


def _cell(place: str, value: Cell, title: str) -> str:
    match value:
        case str():
            text = value
        case None:
            return ""
        case bool():
            return f'<c r="{place}" t="b"><v>{value:d}</v></c>'
        case int() if abs(value) <= MAX_NUMBER:
            return f'<c r="{place}"><v>{value}</v></c>'
        case date() if value >= FIRST_DATE:
            return f'<c r="{place}" s="{_DATE}"><v>{(value - _DAY_0).days}</v></c>'
        case _:
            text = f"{value}"

    # A character is one or two UTF-16 units, so only long texts are encoded to count them.
    if len(text) > MAX_TEXT // 2 and len(text.encode("utf-16-le")) // 2 > MAX_TEXT:
        raise TextTooLong(
            f"a text of the column {title} does not fit into a cell of a workbook, which has at most {MAX_TEXT:,} "
            "characters (an emoji counts as two)",
            "Export these days as CSV or Parquet",
            impact="No file was written",
        )
    text = _SPECIAL.sub(_escaped, text)
    return f'<c r="{place}" s="{_TEXT}" t="inlineStr"><is><t xml:space="preserve">{text}</t></is></c>'


def _escaped(match: re.Match[str]) -> str:
    character = match[0]
    return escape(character) if character in "&<>" else f"_x{ord(character):04X}_"


def _letters(column: int) -> str:
    """The name of a column: A for 0, Z for 25, AA for 26."""
    # The letters are digits without a zero: AA, not BA, follows Z.
    preceding, letter = divmod(column, 26)
    prefix = _letters(preceding - 1) if preceding else ""
    return prefix + chr(ord("A") + letter)


def _sheet_part(number: int) -> str:
    return f"xl/worksheets/sheet{number}.xml"


def _other_parts(names: Sequence[str]) -> dict[str, str]:
    """The parts of the archive that are not sheets."""
    numbers = range(1, len(names) + 1)
    sheets = "".join(
        f'<sheet name={quoteattr(name)} sheetId="{number}" r:id="rId{number}"/>'
        for number, name in zip(numbers, names, strict=True)
    )
    targets = "".join(
        f'<Relationship Id="rId{number}" Type="{_OFFICE}/worksheet" Target="worksheets/sheet{number}.xml"/>'
        for number in numbers
    )
    styles = f'<Relationship Id="rId{len(names) + 1}" Type="{_OFFICE}/styles" Target="styles.xml"/>'
    types = {"/xl/workbook.xml": "sheet.main", "/xl/styles.xml": "styles"}
    types |= {f"/{_sheet_part(number)}": "worksheet" for number in numbers}
    overrides = "".join(
        f'<Override PartName="{part}" ContentType="{_CONTENT}.{kind}+xml"/>' for part, kind in types.items()
    )

    return {
        "[Content_Types].xml": f'<Types xmlns="{_PACKAGE}/content-types">'
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Default Extension="xml" ContentType="application/xml"/>{overrides}</Types>',
        "_rels/.rels": f'<Relationships xmlns="{_PACKAGE}/relationships">'
        f'<Relationship Id="rId1" Type="{_OFFICE}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{_MAIN}" xmlns:r="{_OFFICE}"><sheets>{sheets}</sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{_PACKAGE}/relationships">{targets}{styles}</Relationships>',
        "xl/styles.xml": _STYLES,
    }
