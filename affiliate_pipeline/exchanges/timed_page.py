"""A response that is a list of rows, each with the `time` by which a request's range selects it."""

from contextlib import suppress
from dataclasses import dataclass
from itertools import compress

import msgspec

from affiliate_pipeline.http.bodies import possible_rows
from affiliate_pipeline.http.error_body import quote
from affiliate_pipeline.http.errors import Refused
from affiliate_pipeline.schema.columns import MIN_MILLISECONDS
from affiliate_pipeline.schema.raw_row import instants_ms


class _Timed(msgspec.Struct, gc=False):
    time: int


@dataclass(frozen=True)
class Page:
    """A response: the rows' instants (ms) and their JSON texts, in the order received."""

    times: list[int]
    rows: list[msgspec.Raw]

    def __len__(self) -> int:
        return len(self.times)

    def between(self, first: int, last: int) -> "Page":
        """The rows from `first` to `last` (ms), both included."""
        is_between = [first <= time <= last for time in self.times]
        return Page(list(compress(self.times, is_between)), list(compress(self.rows, is_between)))


def read_page(body: bytes) -> Page:
    """The body's rows and their times; raises `Refused`."""
    try:
        rows = msgspec.json.decode(body, type=list[msgspec.Raw])
    except msgspec.ValidationError as error:
        what = f"the response is not a list of rows ({error}). It was: {quote(body)}"
        raise Refused(what).about(possible_rows(body)) from None
    return Page(_times(body, rows), rows)


def _times(body: bytes, rows: list[msgspec.Raw]) -> list[int]:
    """The time (ms) of each of the body's rows; raises `Refused`."""
    with suppress(msgspec.ValidationError):
        times = [row.time for row in msgspec.json.decode(body, type=list[_Timed])]
        if not times or min(times) >= MIN_MILLISECONDS:
            return times
    # Times in an unusual form: texts, which `_Timed` rejects, or seconds.
    try:
        return instants_ms(map(bytes, rows), "time")
    except (ValueError, msgspec.DecodeError) as error:
        text = f"a row's `time` is missing or not in milliseconds ({error})"
        raise Refused(text).about(map(bytes, rows)) from None
