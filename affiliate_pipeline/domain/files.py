"""Files that are written completely or not at all."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


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
