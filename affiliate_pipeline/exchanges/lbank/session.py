"""A session with an LBank account, and the rows of a response."""

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from affiliate_pipeline.exchanges.fetching import Session
from affiliate_pipeline.exchanges.lbank.response_cache import ResponseCache
from affiliate_pipeline.exchanges.lbank.roster.members import Roster
from affiliate_pipeline.exchanges.lists import NO_LIST
from affiliate_pipeline.http.bodies import may_hold_rows
from affiliate_pipeline.http.error_body import quote
from affiliate_pipeline.http.errors import Refused


@dataclass(frozen=True)
class LBankSession(Session):
    """A session that knows its own openId, the roster under it, and the responses to an unfinished run."""

    open_id: str
    response_cache: Callable[[], ResponseCache]
    slots_per_s: float
    burst: int
    # Refreshed if it is older than the instant given.
    roster: Callable[[int], Roster]
    now_ms: Callable[[], int]

    def finished(self) -> None:
        self.response_cache().clear()


def rows_of(payload: bytes) -> list[bytes]:
    """The rows of `data`, which is a list of rows or a single row."""
    if payload.strip() in NO_LIST:
        raise Refused("LBank reports success and sends no data, where there always is a row")
    try:
        if payload.lstrip()[:1] == b"{":
            return [payload]
        rows = list(map(bytes, msgspec.json.decode(payload, type=list[msgspec.Raw])))
    except msgspec.ValidationError:
        raise Refused(f"the response's data is neither a row nor a list of rows: {quote(payload)}") from None
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from None
    if not all(row.startswith(b"{") for row in rows):
        received = [payload] if may_hold_rows(payload) else []
        raise Refused(f"the response's data is a list of items that are not rows: {quote(payload)}").about(received)
    return rows
