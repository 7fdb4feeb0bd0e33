"""Reads workbooks (xlsx) without the code that wrote them. Contains no tests."""

import re
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import IO
from xml.etree import ElementTree
from zipfile import ZipFile

NAMESPACES = {
    "x": "http://schemas.openxmlformats.org/spreadsheetml/2006/main",
    "xml": "http://www.w3.org/XML/1998/namespace",
}
# The built-in format of cells whose content remains a text when it is edited.
TEXT_FORMAT = 49


@dataclass(frozen=True)
class Text:
    """The text of a cell whose format is text."""

    text: str

    def __str__(self) -> str:
        return self.text


Cell = Text | int | bool | date | None


def read_workbook(file: IO[bytes] | Path) -> dict[str, list[list[Cell]]]:
    """The rows of each sheet, as Excel shows them."""
    with ZipFile(file) as parts:
        names = [
            each.attrib["name"] for each in _tree(parts, "xl/workbook.xml").findall("x:sheets/x:sheet", NAMESPACES)
        ]
        styles = _tree(parts, "xl/styles.xml")
        own_formats = {
            each.attrib["numFmtId"]: each.attrib["formatCode"] for each in styles.iterfind(".//x:numFmt", NAMESPACES)
        }
        formats = [int(each.attrib["numFmtId"]) for each in styles.iterfind("x:cellXfs/x:xf", NAMESPACES)]
        dates = {index for index, number in enumerate(formats) if own_formats.get(f"{number}") == "yyyy-mm-dd"}
        texts = {index for index, number in enumerate(formats) if number == TEXT_FORMAT}
        sheets = [_tree(parts, f"xl/worksheets/sheet{number}.xml") for number in range(1, len(names) + 1)]
    return {name: [*_rows(sheet, dates, texts)] for name, sheet in zip(names, sheets, strict=True)}


def _tree(parts: ZipFile, name: str) -> ElementTree.Element:
    return ElementTree.fromstring(parts.read(name))


def _rows(sheet: ElementTree.Element, dates: set[int], texts: set[int]):
    rows = [
        {_column(cell): _value(cell, dates, texts) for cell in row.iterfind("x:c", NAMESPACES)}
        for row in sheet.iterfind("x:sheetData/x:row", NAMESPACES)
    ]
    width = max(max(row) for row in rows) + 1
    for row in rows:
        yield [row.get(column) for column in range(width)]


def _column(cell: ElementTree.Element) -> int:
    number = 0
    for letter in re.sub(r"\d", "", cell.attrib["r"]):
        number = number * 26 + ord(letter) - ord("A") + 1
    return number - 1


def _value(cell: ElementTree.Element, dates: set[int], texts: set[int]) -> Cell:
    assert cell.find("x:f", NAMESPACES) is None, "a formula"
    style, kind = int(cell.attrib.get("s", 0)), cell.attrib.get("t", "n")
    if kind == "inlineStr":
        assert style in texts
        text = cell.findtext("x:is/x:t", namespaces=NAMESPACES) or ""
        if cell.find("x:is/x:t[@xml:space='preserve']", NAMESPACES) is None:
            text = text.strip()
        return Text(re.sub("_x([0-9A-F]{4})_", lambda match: chr(int(match[1], 16)), text))
    value = cell.findtext("x:v", namespaces=NAMESPACES) or ""
    if kind == "b":
        return value == "1"
    assert kind == "n"
    return date(1899, 12, 30) + timedelta(days=int(value)) if style in dates else int(value)
