"""Files that are written completely or not at all, and text files in any usual encoding."""

import codecs
import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from affiliate_pipeline.domain.problem import SettingsError

_LINE_END = re.compile(r"\r\n|\r|\n")


@contextmanager
def replacing(path: Path, mode: int = 0o666) -> Generator[BinaryIO, None, None]:
    """Yield a file that replaces `path` at the end of the block; if the block fails, `path` is unchanged.

    If `path` exists and is not a regular file, such as /dev/null, it is written to directly. Otherwise, an `OSError`
    raised during the write names `path`.
    """
    target = path.resolve()
    if target.exists() and not target.is_file():
        with target.open("wb") as file:
            yield file
        return
    unfinished = target.with_name(f"{target.name}.{os.getpid()}")
    try:
        unfinished.unlink(missing_ok=True)
        with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            yield file
        unfinished.replace(target)
    except OSError as error:
        if error.filename in (None, str(unfinished)):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        unfinished.unlink(missing_ok=True)


def text_of(data: bytes, file: str) -> str:
    """The text of `data` in UTF-8, or in UTF-16 with a byte order mark; raises a SettingsError that names `file`."""
    marks = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    # The little-endian mark of UTF-32 begins with that of UTF-16.
    utf_32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
    is_utf_16 = data.startswith(marks) and not data.startswith(utf_32)
    encoding = "utf-16" if is_utf_16 else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        before = data[: error.start].decode(encoding, "ignore")
        problem = "is not UTF-8 text"
    else:
        before, nul, _ = text.partition("\0")
        if not nul:
            return text
        problem = "has a NUL character, as in UTF-16 without a byte order mark"
    line = len(_LINE_END.findall(before)) + 1
    raise SettingsError(f"{file}, line {line}, {problem}", "Save the file as UTF-8")
