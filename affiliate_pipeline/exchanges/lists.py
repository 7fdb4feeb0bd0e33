"""What a response without a list means where a list of rows belongs.

Many services send null, an empty text or an empty object, or leave the field out, where a list is empty; a server in
trouble may send the same. So it is requested once more, right away: alike twice, it is an empty list, and the day that
lands says so. It never replaces rows that had landed (`DayRows.unlisted`). Where there always is a row, such as a sum, it
is an error at once; so it is for Binance's records, which answer `[]` and cannot be requested again after a week.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar

from affiliate_pipeline.http.client import Client

NO_LIST = frozenset({b"null", b'""', b"{}"})

Rows = TypeVar("Rows")


def get_list(
    client: Client, path: str, params: Mapping[str, object], read: Callable[[bytes], Rows]
) -> tuple[Rows, bool]:
    """What `read` makes of the response, and whether it had no list; then of an empty one."""
    for _ in range(2):
        rows = client.get(path, params, lambda body: None if body.strip() in NO_LIST else read(body))
        if rows is not None:
            return rows, False
    return read(b"[]"), True


def unlisted_note(responses: int) -> str:
    """That responses had no list, for a day that lands nevertheless."""
    if not responses:
        return ""
    return (
        f"{responses} {'response' if responses == 1 else 'responses'} had no list (null), which counts as an empty one"
    )
