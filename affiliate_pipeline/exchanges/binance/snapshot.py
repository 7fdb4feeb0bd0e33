"""Fetching of endpoints that only have a current state: one request returns all rows."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from zoneinfo import ZoneInfo

from affiliate_pipeline.exchanges.binance.exchange import BinanceSession
from affiliate_pipeline.exchanges.fetching import DayBatch, DayError, RequestPlan
from affiliate_pipeline.exchanges.lists import get_list, rows_of, without_list_note
from affiliate_pipeline.http.errors import Refused, Transient
from affiliate_pipeline.schema.raw_row import texts, with_fields

# Row counts at which other endpoints truncate. No limit or paging is documented for these endpoints.
FULL_PAGES = (500, 1000)
AGENT_CODE = "apiAgentCode"


@dataclass(frozen=True)
class CurrentState:
    """Fetches `path` without a filter or, if `of_agent`, with the agent's code as a parameter.

    The code is added to rows that lack it.
    """

    path: str
    of_agent: bool = False

    def plan(self, session: BinanceSession, days: Sequence[date], zone: ZoneInfo) -> RequestPlan:
        """One request per day."""
        return RequestPlan(min_requests=len(days), max_requests=len(days), seconds=0)

    def fetch(self, session: BinanceSession, days: Sequence[date], zone: ZoneInfo) -> Generator[DayBatch | DayError]:
        """Yield the current state as the rows of each day."""
        for day in days:
            sent_before = session.client.requests_sent
            try:
                rows, lacks_list = self._get(session)
            except (Refused, Transient) as error:
                yield DayError(day, error)
                continue
            requests = session.client.requests_sent - sent_before
            # If the response had no list, the empty entry matches every landed row, so that none is removed.
            without_list: list[Mapping[str, object]] = [{}] if lacks_list else []
            note = without_list_note(len(without_list))
            warnings = _truncation_warnings(len(rows))
            yield DayBatch(day, rows, len(rows), requests, note=note, without_list=without_list, warnings=warnings)

    def _get(self, session: BinanceSession) -> tuple[list[bytes], bool]:
        """The rows, and whether the response had no list."""
        if not self.of_agent:
            return get_list(session.client, self.path, {})
        agent = {AGENT_CODE: session.settings.binance_api_agent_code}
        # One row, or null while there is none.
        rows, is_null = session.client.get(self.path, agent, lambda body: (rows_of(body), body.strip() == b"null"))
        rows_with_code: list[bytes] = []
        for row in rows:
            lacks_code = texts(row, AGENT_CODE) == (None,)
            rows_with_code.append(with_fields(row, agent) if lacks_code else row)
        return rows_with_code, is_null


def _truncation_warnings(rows: int) -> tuple[str, ...]:
    if rows not in FULL_PAGES:
        return ()
    return (
        f"exactly {rows} rows were returned, a number at which other endpoints of Binance truncate: check "
        "whether some are missing",
    )
