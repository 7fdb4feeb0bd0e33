"""Formats of the export: the response with the file's URL, allowed hosts, the file's rows."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import msgspec

from affiliate_pipeline.domain.redaction import redact
from affiliate_pipeline.domain.wording import count_of
from affiliate_pipeline.http.errors import Refused
from affiliate_pipeline.http.unpacking import Unreadable, unpack_text
from affiliate_pipeline.schema.columns import KINDS, MIN_MILLISECONDS, Row, columns

# Enough for 30 days of one trader; their rows take several times as much memory.
MAX_FILE_BYTES = 256 << 20
# In a recorded response of the sister endpoint (broker rebates), the file is at a presigned URL of Amazon S3.
FILE_HOSTS = ("amazonaws.com", "binance.com")
_MAX_NOTE_CHARACTERS = 200
# Excludes hosts that `urlsplit` rejects.
_URL = re.compile(r"https?://[^\s/?#\[\]]+\S*", re.IGNORECASE)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Distinguishes a file's URL from a web page's: a signature, or a file name.
_FILE_MARK = re.compile(r"[?&](x-amz-)?signature=|\.(csv|txt|zip|gz|gzip|tar|tgz|bz2|xz|zst)(\?|$)", re.IGNORECASE)


@dataclass(frozen=True)
class FileUrl:
    """The file's URL: a secret, because it is signed. `path` identifies the file."""

    secret: str = field(repr=False)

    @property
    def path(self) -> str:
        """The path without query: the same for each URL of a file."""
        return urlsplit(self.secret).path

    @property
    def host(self) -> str:
        """The host in lower case; empty if it has none."""
        return (urlsplit(self.secret).hostname or "").lower()

    def is_allowed(self, own_host: str, more_hosts: Sequence[str]) -> bool:
        """Whether it has no credentials and is on the exchange's own host or, by https, on or below a known host."""
        parts = urlsplit(self.secret)
        if parts.username or parts.password:
            return False
        if self.host == own_host:
            return True
        known_hosts = (*FILE_HOSTS, *more_hosts)
        is_known = any(self.host == known or self.host.endswith(f".{known}") for known in known_hosts)
        return is_known and parts.scheme.lower() == "https"

    def check_host(self, own_host: str, more_hosts: Sequence[str] = ()) -> None:
        """Raise `Refused` unless the URL `is_allowed`."""
        if not self.is_allowed(own_host, more_hosts):
            known = " or ".join((*FILE_HOSTS, *more_hosts))
            raise Refused(
                f"the file is offered on {self.host or 'no host'}. Only {own_host}, and hosts below {known} by https, are "
                f"allowed, so nothing was fetched from there. If Binance confirms that this host is its own, add it to "
                "BINANCE_FILE_HOSTS"
            )


@dataclass(frozen=True)
class Pending:
    """No usable URL of a file; `note` is the redacted response, or the error.

    `is_conclusive`: the response shows that no file is offered, as a refusal also does. A transient
    failure or several URLs do not show it.
    """

    note: str
    is_conclusive: bool = True


def read_response(body: bytes, own_host: str = "", more_hosts: Sequence[str] = ()) -> FileUrl | Pending:
    """The file's URL, from a JSON string at any depth or bare text; otherwise `Pending`.

    Of several URLs, those on an allowed host are preferred, then those that look like a file's; `Pending` if these are
    of more than one file. The URL may be on a host that is not allowed: see `FileUrl.check_host`.
    """
    text = body.decode(errors="replace").strip()
    # An ampersand that was escaped for HTML would spoil the signature.
    strings = [each.strip().replace("&amp;", "&") for each in [text, *_strings(text)]]
    urls = [FileUrl(each) for each in strings if _URL.fullmatch(each)]
    # If no URL is preferred, all remain.
    urls = [url for url in urls if url.is_allowed(own_host, more_hosts)] or urls
    urls = [url for url in urls if _FILE_MARK.search(url.secret)] or urls

    places = {f"{url.host}{url.path}" for url in urls}
    if len(places) == 1:
        return urls[0]
    if places:
        note = f"several URLs, and it is unclear which is the file's: {', '.join(sorted(places))}"
    elif text.strip('"') in ("", "null"):
        note = "an empty response"
    else:
        note = redact(re.sub(r"(?i)https?://\S+", "https://***", text))
    return Pending(note[:_MAX_NOTE_CHARACTERS], is_conclusive=not places)


def _strings(json_text: str) -> Iterator[str]:
    """Every string in the JSON text, and in JSON texts inside these strings."""
    try:
        values = [msgspec.json.decode(json_text)]
    except msgspec.DecodeError:
        return
    while values:
        value: Any = values.pop()
        if isinstance(value, str):
            yield value
            yield from _strings(value)
        elif isinstance(value, dict):
            values += value.values()
        elif isinstance(value, list):
            values += value


def rows_of(packed: bytes, model: type[Row]) -> Iterator[tuple[int, bytes]]:
    """Each row's `time` (ms) and JSON, amounts as in the file.

    Raises `Unreadable` or `IncompleteFile`. Columns may come in any order and case; those that the model
    lacks retain their names.
    """
    # Excel's line `sep=;` repeats what the header shows.
    text = re.sub(r"\Asep=.(\r\n?|\n)", "", unpack_text(packed, MAX_FILE_BYTES), flags=re.IGNORECASE)
    lines = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=_separator(text, model))
    try:
        names = _names(next(lines, list[str]()), model)
        for cells in lines:
            if not cells:  # an empty line
                continue
            if len(cells) != len(names):
                raise Unreadable(
                    f"line {lines.line_num} of the file has {count_of(len(cells), 'cell')} under {count_of(len(names), 'column')}"
                )
            row: dict[str, object] = dict(zip(names, cells, strict=True))
            time = _time_ms(str(row["time"]), lines.line_num)
            row["time"] = time
            yield time, msgspec.json.encode(row)
    except csv.Error as error:
        raise Unreadable(f"line {lines.line_num} of the file is not CSV ({error})") from None


def _separator(text: str, model: type[Row]) -> str:
    """The only separator that yields all required columns in the header; else the comma."""
    header = io.StringIO(text, newline="").readline().rstrip("\r\n")
    required = {_normalized(name) for name in _required(model)}
    fitting: list[str] = []
    for separator in ",;\t|":
        names = {_normalized(name.strip('"')) for name in header.split(separator)}
        if required <= names:
            fitting.append(separator)
    return fitting[0] if len(fitting) == 1 else ","


def _names(header: Sequence[str], model: type[Row]) -> list[str]:
    """The JSON names of the header's columns, in its order; raises `Unreadable`."""
    if not header:
        # An empty file is permitted: it has no header and no rows.
        return []
    known = {_normalized(column.name): column.json_name for column in columns(model)}
    names = [known.get(_normalized(name), name) for name in header]
    missing = _required(model) - {*names}
    if missing:
        problem = f"lacks {', '.join(sorted(missing))}"
    elif len({*names}) < len(names):
        problem = "names a column twice"
    else:
        return names
    raise Unreadable(f"the file's header {problem}: {redact(','.join(header))[:_MAX_NOTE_CHARACTERS]!r}")


def _required(model: type[Row]) -> set[str]:
    return {column.json_name for column in columns(model) if not column.optional}


def _normalized(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()


def _time_ms(text: str, line: int) -> int:
    """The milliseconds of a time that is a number of them, or a date with a time; raises `Unreadable`."""
    try:
        if text.isdecimal():
            # The schema reads small numbers as seconds, but here they may be milliseconds cut to ten digits.
            if int(text) < MIN_MILLISECONDS:
                raise ValueError
            return KINDS["instant"].read(text.encode())

        # Not a bare date: midnight would be a guess.
        if len(text) < len("2026-11-03 00:00:00"):
            raise ValueError
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        ms, rest = divmod(moment - _EPOCH, timedelta(milliseconds=1))
        if rest:
            raise ValueError
        return KINDS["instant"].read(b"%d" % ms)
    except ValueError:
        raise Unreadable(
            f"line {line} of the file has the time {redact(text)[:40]!r}, which is neither milliseconds nor "
            "YYYY-MM-DD HH:MM:SS"
        ) from None
