"""Reading of responses that are lists of rows, and of those that have no list.

Many services send null, an empty text or an empty object instead of an empty list; a failing server may do the same.
So the request is sent once more. A second response without a list counts as an empty list: the day lands with a note,
and no landed row is removed (`DayBatch.without_list`). If the request was for the page after a full one, the list also
has to be proven to end there (`by_id`). Where a row always exists (a sum), and in Binance's records, which expire, a
response without a list is an error.
"""

from collections.abc import Mapping
from contextlib import suppress

import msgspec

from affiliate_pipeline.domain.wording import count_of
from affiliate_pipeline.http.bodies import possible_rows
from affiliate_pipeline.http.client import Client
from affiliate_pipeline.http.error_body import quote
from affiliate_pipeline.http.errors import Refused

NO_LIST = frozenset({b"null", b'""', b"{}"})


def rows_of(body: bytes) -> list[bytes]:
    """The rows of a body that is a list of rows, a single row or null; raises `Refused`, or ValueError if not JSON."""
    # A single row; other JSON, such as a number, is refused below.
    rows = [body.strip()]
    with suppress(msgspec.ValidationError):
        value = msgspec.json.decode(body, type=list[msgspec.Raw] | dict[str, msgspec.Raw] | None)
        if value is None:
            rows = []
        elif not isinstance(value, dict):
            rows = list(map(bytes, value))
    if not all(row.startswith(b"{") for row in rows):
        what = f"the response is neither a row nor a list of rows. It was: {quote(body)}"
        raise Refused(what).about(possible_rows(body))
    return rows


def read_list(body: bytes) -> tuple[list[bytes], bool]:
    """The rows, and whether the response had no list."""
    return ([], True) if body.strip() in NO_LIST else (rows_of(body), False)


def get_list(client: Client, path: str, params: Mapping[str, object]) -> tuple[list[bytes], bool]:
    """What `read_list` returns for the response, or for a second one if the first had no list."""
    rows, lacks_list = client.get(path, params, read_list)
    return client.get(path, params, read_list) if lacks_list else (rows, False)


def without_list_note(responses: int) -> str:
    """The note of a landed day whose responses had no list."""
    return f"{count_of(responses, 'response')} had no list (null), which counts as an empty one" if responses else ""
