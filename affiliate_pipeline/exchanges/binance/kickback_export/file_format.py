"""What the history's answers and its file mean: where the file is, whether it may be fetched from there, and its rows.
Nothing is asked here."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import msgspec

from affiliate_pipeline.domain.redaction import redact
from affiliate_pipeline.http.errors import Refused
from affiliate_pipeline.http.unpacking import Unreadable, unpack_text
from affiliate_pipeline.schema.columns import KINDS, LEAST_MS, Row, columns

# 30 days of one trader; beside it, a list of rows takes several times as much memory.
MOST_FILE_BYTES = 256 << 20
# Recorded for the sister endpoint (broker rebates): a presigned URL of Amazon S3.
FILE_HOSTS = ("amazonaws.com", "binance.com")
MOST_NOTE_CHARACTERS = 200
_URL = re.compile(r"https?://\S+", re.IGNORECASE)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Distinguishes a file's URL from a web page's: a signature, or a file name.
_OF_A_FILE = re.compile(r"[?&](x-amz-)?signature=|\.(csv|txt|zip|gz|gzip|tar|tgz|bz2|xz|zst)$", re.IGNORECASE)
_MAX_DEPTH = 10
_SEPARATORS = ",;\t|"


@dataclass(frozen=True)
class FileUrl:
    """Where the file is. `secret` is what may be sent, and not told; `path` tells one file from another."""

    secret: str = field(repr=False)

    @property
    def path(self) -> str:
        return urlsplit(self.secret).path

    @property
    def host(self) -> str:
        return (urlsplit(self.secret).hostname or "").lower()

    def check_host(self, own_host: str, more_hosts: Sequence[str] = ()) -> None:
        """Raises `Refused` unless the URL is on the exchange's own host, or on or below a known host by https."""
        parts = urlsplit(self.secret)
        known = (*FILE_HOSTS, *more_hosts)
        is_known = any(self.host == each or self.host.endswith(f".{each}") for each in known)
        offered = f"the file is offered on {self.host or 'no host'}"
        nothing = "nothing was fetched from there"
        if parts.username or parts.password:
            raise Refused(f"{offered}, by a URL with a user's name: {nothing}")
        if self.host == own_host or (is_known and parts.scheme.lower() == "https"):
            return
        if is_known:
            raise Refused(f"{offered}, without https: {nothing}")
        raise Refused(
            f"{offered}, which is neither {own_host} nor below {' or '.join(known)} (https): {nothing}. If Binance confirms "
            "that this host is its own, add it to BINANCE_FILE_HOSTS"
        )


@dataclass(frozen=True)
class Pending:
    """There is no file yet; `note` is what was answered instead, fit to be told. Not `answered`: nobody said so."""

    note: str
    answered: bool = True


def read_answer(body: bytes, own_host: str = "", more_hosts: Sequence[str] = ()) -> FileUrl | Pending:
    """The file's URL, from a JSON string at any depth or from bare text; `Pending` for any other body.

    Of several URLs, the one of a file on an allowed host.
    """
    text = body.decode(errors="replace").strip()
    try:
        decoded = msgspec.json.decode(body)
    except msgspec.DecodeError:
        decoded = text
    urls = [FileUrl(url) for url in _urls(decoded)]
    for is_likely in (lambda url: _is_allowed(url, own_host, more_hosts), _is_of_a_file):
        urls = [url for url in urls if is_likely(url)] or urls
    if urls and all((url.host, url.path) == (urls[0].host, urls[0].path) for url in urls):
        return urls[0]
    if urls:
        places = ", ".join(f"{url.host}{url.path}" for url in urls)
        return Pending(f"several URLs, and it is unclear which is the file's: {places}"[:MOST_NOTE_CHARACTERS])
    if not text or decoded is None or decoded == "":
        return Pending("an empty answer")
    return Pending(redact(_URL.sub("https://***", text))[:MOST_NOTE_CHARACTERS])


def _urls(value: object, depth: int = 0) -> Iterator[str]:
    """Every text of the value that is a URL."""
    if depth > _MAX_DEPTH:
        return
    if isinstance(value, str):
        # An ampersand that was escaped for HTML would spoil the signature.
        text = value.strip().replace("&amp;", "&")
        if _is_url(text):
            yield text
        elif text[:1] in ("{", "[", '"') and depth:
            try:
                yield from _urls(msgspec.json.decode(text), depth + 1)
            except msgspec.DecodeError:
                return
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _urls(each, depth + 1)


def _is_allowed(url: FileUrl, own_host: str, more_hosts: Sequence[str]) -> bool:
    try:
        url.check_host(own_host, more_hosts)
    except Refused:
        return False
    return True


def _is_of_a_file(url: FileUrl) -> bool:
    return bool(_OF_A_FILE.search(url.secret) or _OF_A_FILE.search(url.path))


def _is_url(text: str) -> bool:
    try:
        return bool(_URL.fullmatch(text) and urlsplit(text).hostname)
    except ValueError:
        return False


def rows_of(packed: bytes, model: type[Row]) -> Iterator[tuple[int, bytes]]:
    """Each row's `time` (ms) and its JSON text, amounts exactly as in the file; raises `Unreadable` and
    `NotWhole`.

    Columns may come in any order and case; those that the model lacks are kept under their own name.
    """
    text = unpack_text(packed, MOST_FILE_BYTES)
    separator, skipped = _separator(text, model)
    lines = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
    try:
        for _ in range(skipped):
            next(lines)
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


def _separator(text: str, model: type[Row]) -> tuple[str, int]:
    """What separates the cells, and how many lines there are before the header: the comma unless Excel's line `sep=;` or
    the header says otherwise."""
    first = io.StringIO(text, newline="").readline().rstrip("\r\n")
    if re.fullmatch(r"sep=.", first, re.IGNORECASE):
        return first[-1], 1
    required = {_plain(column.json_name) for column in columns(model) if not column.newer}
    fitting = [each for each in _SEPARATORS if required <= {_plain(name.strip('"')) for name in first.split(each)}]
    return (fitting[0] if len(fitting) == 1 else ","), 0


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
