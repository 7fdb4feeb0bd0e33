"""Generated kickbacks of the client, and their export.

After a request, the exchange collects the rows for a while, then offers the file at a URL that expires.
"""

import csv
import gzip
import hmac
import io
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from functools import partial
from hashlib import sha256
from random import Random
from typing import Any, Literal
from uuid import UUID

from affiliate_pipeline.sandbox.amounts import ONE
from affiliate_pipeline.sandbox.binance.rebates import MIN_ROWS, markets_of, offsets, payment
from affiliate_pipeline.sandbox.binance.records import Day, Records
from affiliate_pipeline.sandbox.days import DAY_MS, HOUR_MS, day_of, start_of
from affiliate_pipeline.sandbox.exchange import Call, Response
from affiliate_pipeline.sandbox.faults import Faults
from affiliate_pipeline.sandbox.rows import decode, encode

FILES = "/kickback-history/"
RECENT_MS = 7 * DAY_MS
HISTORY_MS = 30 * DAY_MS
# What all kickbacks of a usual day are worth in USDT.
DAY_TOTAL = 150
COLLECTING = b'{"code":200,"msg":"Historical data is collecting"}'
_FILE_KEY = b"sandbox-file-host-secret"


@dataclass(frozen=True)
class FileForm:
    """The format of the file and its URL.

    `header`: the names of the columns, in order; if there are none, the file is empty. `packed`: a .gz file, or gzip as
    Content-Encoding. `url`: sent as a JSON string or as plain text.
    """

    header: tuple[str, ...] = ("income", "asset", "symbol", "time")
    time: Literal["ms", "text"] = "ms"
    packed: Literal["", "gzip", "encoding"] = ""
    url: Literal["json", "text"] = "json"


@dataclass(frozen=True)
class _Collection:
    path: str
    file: bytes
    ready_ms: int
    form: FileForm


class Kickbacks:
    """The client's kickbacks. Every attribute may be changed while the sandbox runs.

    `collect_ms`: how long the collection of a file takes. `url_lifetime_ms`: how long its URL is valid. `stray_rows`: rows
    added to every file, whatever was requested. `file_base_url`: the base of the files' URLs; if empty, the host that
    the request for the URL was sent to.
    `urls`: every URL returned; `file_headers`: the headers of every request for a file.
    """

    def __init__(self, *, now: Callable[[], int], faults: Faults, rows_per_day: int, alias: str) -> None:
        self.collect_ms = 0
        self.url_lifetime_ms = HOUR_MS
        self.form = FileForm()
        self.stray_rows: list[Mapping[str, Any]] = []
        self.file_base_url = ""
        self.urls: list[str] = []
        self.file_headers: list[dict[str, str]] = []
        self._alias = alias
        self._now = now
        self._faults = faults
        self._lock = threading.Lock()
        self._records = Records(partial(generated_day, rows_per_day=rows_per_day, alias=alias))
        self._collections: list[_Collection] = []

    def set(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Serve only these kickbacks, each exactly as given."""
        self._records.set(rows)

    def of(self, day: date) -> list[dict[str, Any]]:
        """All kickbacks of the UTC day, including future ones, not altered by `Faults.transform_row`."""
        return [decode(row) for row in self._records.day(day).rows]

    def between(
        self, start: int, stop: int, retained_ms: int, *, newest_first: bool = False, limit: int | None
    ) -> list[bytes]:
        """The first `limit` retained rows with start <= time < stop that exist by now, altered by `transform_row`."""
        return self._faults.transformed(
            self._records.between(
                start, stop, now=self._now(), retained_ms=retained_ms, newest_first=newest_first, limit=limit
            )
        )

    def collect(self, start: int, stop: int, limit: int | None) -> bytes:
        """Start a collection; return the response's body.

        From now on, only its file is offered. Earlier files can still be fetched.
        """
        rows = [decode(row) for row in self.between(start, stop, HISTORY_MS, limit=limit)]
        rows += [dict(row) for row in self.stray_rows]
        # The exchange does not promise that files are ordered by time.
        rows.sort(key=lambda row: (str(row.get("asset")), int(row["time"])))

        with self._lock:
            random = Random(f"{self._alias}history {len(self._collections)} {start} {stop} {self._now()}")
            folder_id = UUID(int=random.getrandbits(128))
            file_id = UUID(int=random.getrandbits(128))
            path = f"{FILES}{folder_id}/part-00000-{file_id}-c000.csv"
            file = _csv(self.form, rows)
            if self.form.packed == "gzip":
                path = f"{path}.gz"
                file = gzip.compress(file)
            ready_ms = self._now() + self.collect_ms
            self._collections.append(_Collection(path, file, ready_ms, self.form))
        return COLLECTING

    def offer(self, host: str = "") -> bytes | None:
        """The response's body: the newest file's URL, or a message while the file is collected; None is an error.

        `host` is where the URL was requested. `Faults.pending` has precedence.
        """
        with self._lock:
            if self._faults.pending:
                return self._pending_body(self._faults.pending.popleft(), host)
            if not self._collections:
                return None
            newest = self._collections[-1]
            if newest.ready_ms > self._now():
                return COLLECTING
            return self._url_body(newest, host)

    def has_file(self, path: str) -> bool:
        """Whether a file of this client has the path."""
        return any(each.path == path for each in self._collections)

    def file(self, call: Call) -> Response:
        """The response of the file host; the call's headers are added to `file_headers`."""
        self.file_headers.append({name.lower(): value for name, value in call.headers.items()})
        if "x-mbx-apikey" in self.file_headers[-1]:
            return _refusal(400, "InvalidArgument", "A key of the exchange's API was sent to the file host")
        collection = next((each for each in self._collections if each.path == call.path), None)
        if collection is None:
            return _refusal(404, "NoSuchKey", "The specified key does not exist.")
        expires = call.params.get("Expires", "")
        if call.params.get("Signature") != _signature(call.path, expires):
            return _refusal(403, "SignatureDoesNotMatch", "The request signature does not match.")
        if int(expires) <= self._now() // 1000:
            return _refusal(403, "AccessDenied", "Request has expired")
        if collection.form.packed == "encoding":
            return Response(200, gzip.compress(collection.file), "text/csv", headers={"Content-Encoding": "gzip"})
        return Response(200, collection.file, "application/octet-stream")

    def _pending_body(self, fault: str, host: str) -> bytes | None:
        """The body that `offer` returns for a fault of `Faults.pending`."""
        match fault:
            case "message":
                return COLLECTING
            case "previous":
                ready = [each for each in self._collections[:-1] if each.ready_ms <= self._now()]
                return self._url_body(ready[-1], host) if ready else COLLECTING
            case "empty":
                return b""
            case "null":
                return b"null"
            case _:  # "error"
                return None

    def _url_body(self, collection: _Collection, host: str) -> bytes:
        """The body with a new URL of the collection's file; the URL is added to `urls`."""
        lifetime_ms = self.url_lifetime_ms
        if self._faults.expired_urls > 0:
            self._faults.expired_urls -= 1
            lifetime_ms = 0
        expires = f"{(self._now() + lifetime_ms) // 1000}"

        base_url = self.file_base_url or f"http://{host}"
        signature = _signature(collection.path, expires)
        token = signature[::-1]  # not verified, so any text
        url = (
            f"{base_url}{collection.path}?AWSAccessKeyId=ASIASANDBOX{len(self.urls):05d}&Expires={expires}"
            f"&x-amz-security-token={token}&Signature={signature}"
        )
        self.urls.append(url)
        return f'"{url}"'.encode() if collection.form.url == "json" else url.encode()


def generated_day(day: date, rows_per_day: int, alias: str = "") -> Day:
    """About `rows_per_day` kickbacks of the account's client, with times at the day's edges and odd amounts."""
    rnd = Random(f"{alias}kickbacks {day.isoformat()} {rows_per_day}").random
    count = int(rows_per_day * (0.7 + 0.6 * rnd()))
    markets = markets_of(day)
    mean = DAY_TOTAL * ONE // max(rows_per_day, MIN_ROWS)
    times: list[int] = []
    rows: list[bytes] = []
    for offset in offsets(rnd, count):
        at = start_of(day) + offset
        market, _, income = payment(rnd, mean, markets)
        times.append(at)
        row = {"income": str(income), "asset": market.asset, "symbol": market.symbol, "time": at}
        rows.append(encode(row))
    return Day(times, [""] * len(rows), rows, paid_later=False)


def _csv(form: FileForm, rows: Iterable[Mapping[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    if form.header:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(form.header)
        writer.writerows(_cells(form, rows))
    return text.getvalue().encode()


def _cells(form: FileForm, rows: Iterable[Mapping[str, Any]]) -> Iterator[list[str]]:
    for row in rows:
        cell_by_name = {name.lower(): str(value) for name, value in row.items()}
        if form.time == "text":
            cell_by_name["time"] = _utc(int(cell_by_name["time"]))
        # A header may be in capitals or have underscores.
        yield [cell_by_name.get(name.lower().replace("_", ""), "") for name in form.header]


def _utc(ms: int) -> str:
    """`YYYY-MM-DD HH:MM:SS`, with milliseconds where there are any."""
    seconds, rest = divmod(ms % DAY_MS, 1000)
    text = f"{day_of(ms)} {seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    if rest:
        text += f".{rest:03d}"
    return text


def _signature(path: str, expires: str) -> str:
    return hmac.new(_FILE_KEY, f"{path}\n{expires}".encode(), sha256).hexdigest()


def _refusal(status: int, code: str, message: str) -> Response:
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return Response(status, body.encode(), "application/xml")
