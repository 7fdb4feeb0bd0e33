"""How to read a response that has no list where a list of rows is expected.

Many services send null, an empty text or an empty object where a list is empty; a server in trouble may send the same. So
the request is repeated once: the second time it counts as an empty list, and the day lands with a note. Landed rows stay
(`DayBatch.unlisted`). Where there is always a row, as in a sum, and for Binance's records, which expire, it is an error.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar

from affiliate_pipeline.http.client import Client

NO_LIST = frozenset({b"null", b'""', b"{}"})

Rows = TypeVar("Rows")


def get_list(
    client: Client, path: str, params: Mapping[str, object], read: Callable[[bytes], Rows]
) -> tuple[Rows, bool]:
    """What `read` returns for the response (for `[]` if it had no list), and whether it had no list."""
    for _ in range(2):
        rows = client.get(path, params, lambda body: None if body.strip() in NO_LIST else read(body))
        if rows is not None:
            return rows, False
    return read(b"[]"), True


def unlisted_note(responses: int) -> str:
    """The note of a landed day whose responses had no list."""
    if not responses:
        return ""
    return (
        f"{responses} {'response' if responses == 1 else 'responses'} had no list (null), which counts as an empty one"
    )
