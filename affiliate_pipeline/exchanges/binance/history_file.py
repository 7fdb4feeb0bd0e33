"""What the history's answers and its file mean: where the file is, whether it may be fetched from there, and its rows.
Nothing is asked here."""

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import msgspec

from affiliate_pipeline.rest.errors import Refused, Transient
from affiliate_pipeline.rest.redact import redact
from affiliate_pipeline.schema import KINDS, LEAST_MS, Row, columns

# 30 days of one trader; beside it, a list of rows takes several times as much memory.
MOST_FILE_BYTES = 256 << 20
# Recorded for the sister endpoint (broker rebates): a presigned URL of Amazon S3.
FILE_HOSTS = ("amazonaws.com", "binance.com")
MOST_NOTE_CHARACTERS = 200
_URL = re.compile(r"https?://\S+", re.IGNORECASE)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class FileUrl:
    """Where the file is. `secret` is what may be sent, and not told; `path` tells one file from another."""

    secret: str = field(repr=False)

    @property
    def path(self) -> str:
        return urlsplit(self.secret).path

    def check_host(self, own_host: str) -> None:
        """Raises `Refused` unless the file is the exchange's to serve."""
        parts = urlsplit(self.secret)
        host = (parts.hostname or "").lower()
        known = parts.scheme.lower() == "https" and any(
            host == each or host.endswith(f".{each}") for each in FILE_HOSTS
        )
        if parts.username or parts.password or not (known or host == own_host):
            raise Refused(
                f"the file is offered on {host or 'no host'}, which is neither {own_host} nor below "
                f"{' or '.join(FILE_HOSTS)} (https): nothing was fetched from there"
            )


@dataclass(frozen=True)
class Pending:
    """There is no file yet; `note` is what was answered instead, fit to be told. Not `answered`: nobody said so."""

    note: str
    answered: bool = True


def read_answer(body: bytes) -> FileUrl | Pending:
    """The URL, as a JSON string, inside a JSON object or as bare text; whatever else is answered means `Pending`."""
    text = body.decode(errors="replace").strip()
    try:
        decoded = msgspec.json.decode(body)
    except msgspec.DecodeError:
        decoded = text
    values = list(decoded.values()) if isinstance(decoded, dict) else [decoded]
    for value in values:
        if isinstance(value, str) and _is_url(value.strip()):
            return FileUrl(value.strip())
    if not text or decoded is None or decoded == "":
        return Pending("an empty answer")
    return Pending(redact(_URL.sub("https://***", text))[:MOST_NOTE_CHARACTERS])


def _is_url(text: str) -> bool:
    try:
        return bool(_URL.fullmatch(text) and urlsplit(text).hostname)
    except ValueError:
        return False


class Unreadable(Refused):
    """The file's header or one of its lines cannot be understood."""


class NotWhole(Transient):
    """A part of the file is missing or spoiled."""


def rows_of(packed: bytes, model: type[Row]) -> Iterator[tuple[int, bytes]]:
    """Each row's `time` (ms) and its JSON text, amounts exactly as they stand in the file; raises `Unreadable` and what
    `unpacked` does.

    Columns may come in any order and case; those that the model lacks are kept under their own name.
    """
    try:
        text = unpacked(packed).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(f"the file is not UTF-8 text ({error.reason} at byte {error.start})") from None
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(lines, None)
        if header is None:
            return
        names = _names(header, model)
        for cells in lines:
            if len(cells) != len(names):
                if not cells:
                    continue
                raise Unreadable(f"line {lines.line_num} of the file has {len(cells)} cells under {len(names)} columns")
            row: dict[str, object] = dict(zip(names, cells, strict=True))
            row["time"] = time = _time_ms(str(row["time"]), lines.line_num)
            yield time, msgspec.json.encode(row)
    except csv.Error as error:
        raise Unreadable(f"line {lines.line_num} of the file is not CSV ({error})") from None


def _names(header: Sequence[str], model: type[Row]) -> list[str]:
    known = {_plain(column.name): column.json_name for column in columns(model)}
    required = {column.json_name for column in columns(model) if not column.newer}
    names = [known.get(_plain(name), name) for name in header]
    missing, twice = required - {*names}, len({*names}) < len(names)
    if missing or twice:
        problem = f"lacks {', '.join(sorted(missing))}" if missing else "names a column twice"
        raise Unreadable(f"the file's header {problem}: {redact(','.join(header))[:MOST_NOTE_CHARACTERS]!r}")
    return names


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()


def _time_ms(text: str, line: int) -> int:
    try:
        if text.isdecimal():
            # Milliseconds that were cut to ten digits look like seconds. A missing line end proves no cut: that the file
            # came as long as it is has been seen to when it was received.
            if int(text) < LEAST_MS:
                raise ValueError
            return KINDS["instant"].read(text.encode())
        # Not a bare date: midnight would be a guess.
        if len(text) < len("2026-11-03 00:00:00"):
            raise ValueError
        moment = datetime.fromisoformat(text)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
        ms, rest = divmod(moment - _EPOCH, timedelta(milliseconds=1))
        if rest:
            raise ValueError
        return KINDS["instant"].read(b"%d" % ms)
    except ValueError:
        raise Unreadable(
            f"line {line} of the file has the time {redact(text)[:40]!r}, which is neither milliseconds nor "
            "YYYY-MM-DD HH:MM:SS"
        ) from None


def unpacked(file: bytes) -> bytes:
    """The file's text; raises `NotWhole`, and `Refused` if it is too large."""
    # Twice: a file of gzip may have been packed once more for its way.
    for _ in range(2):
        if file[:2] == _GZIP:
            file = _unpacked_once(file)
    return file


def _unpacked_once(packed: bytes) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
            unpacked = file.read(MOST_FILE_BYTES + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise NotWhole(f"the file came, and is not whole or not gzip ({type(error).__name__})") from None
    if len(unpacked) > MOST_FILE_BYTES:
        raise Refused(f"the file is larger than {MOST_FILE_BYTES >> 20} MiB unpacked")
    return unpacked
