"""Fetching what Binance tells only of now: one question, and all of the answer are today's rows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from zoneinfo import ZoneInfo

import msgspec

from affiliate_pipeline.exchanges.binance.exchange import BinanceSession
from affiliate_pipeline.exchanges.lists import get_list, unlisted_note
from affiliate_pipeline.exchanges.spec import DayError, DayRows, Plan
from affiliate_pipeline.http.bodies import may_hold_rows
from affiliate_pipeline.http.error_body import quote
from affiliate_pipeline.http.errors import ExchangeError, Fatal, Refused
from affiliate_pipeline.schema.decode import identities, with_fields

# What the records' answers are cut at. No document names a limit or pages for these endpoints.
FULL_PAGES = (500, 1000)
AGENT_CODE = "apiAgentCode"


@dataclass(frozen=True)
class Observation:
    """Asks `path` without a filter. `of_agent`: about the agent's code, which is given to rows that lack it."""

    path: str
    of_agent: bool = False

    def plan(self, session: BinanceSession, days: Sequence[date], zone: ZoneInfo) -> Plan:
        return Plan(len(days), len(days), 0)

    def fetch(self, session: BinanceSession, days: Sequence[date], zone: ZoneInfo) -> Iterator[DayRows | DayError]:
        params = {AGENT_CODE: session.settings.binance_api_agent_code} if self.of_agent else {}
        for day in days:
            sent = session.client.requests_sent
            try:
                rows, is_unlisted = self._get(session, params)
            except Fatal:
                raise
            except ExchangeError as error:
                yield DayError(day, error)
                continue
            if self.of_agent:
                rows = [_with_missing(row, params) for row in rows]
            problems = (
                [
                    f"exactly {len(rows)} rows came, which is where other endpoints of Binance cut their answers off: see "
                    "whether some are missing"
                ]
                if len(rows) in FULL_PAGES
                else []
            )
            yield DayRows(
                day,
                rows,
                len(rows),
                requests=session.client.requests_sent - sent,
                note=unlisted_note(is_unlisted),
                unlisted=[{}] * is_unlisted,
                problems=tuple(problems),
            )

    def _get(self, session: BinanceSession, params: Mapping[str, object]) -> tuple[list[bytes], bool]:
        """The rows, and whether the response had no list."""
        if not self.of_agent:
            return get_list(session.client, self.path, params, rows_of)
        # One row, or null while there is none.
        return session.client.get(self.path, params, lambda body: (rows_of(body), body.strip() == b"null"))

    def oldest_before(self, session: BinanceSession, day: date, zone: ZoneInfo) -> int | None:
        raise NotImplementedError("only now can be observed")


def rows_of(body: bytes) -> list[bytes]:
    """The rows of an answer that is a list of them, a single one, or null."""
    try:
        answer = msgspec.json.decode(body, type=list[dict[str, msgspec.Raw]] | dict[str, msgspec.Raw] | None)
    except msgspec.ValidationError:
        kept = [body] if may_hold_rows(body) else []
        raise Refused(f"the response is neither a row nor a list of rows. It was: {quote(body)}").about(kept) from None
    return list(map(msgspec.json.encode, [answer] if isinstance(answer, dict) else answer or []))


def _with_missing(row: bytes, fields: dict[str, str | None]) -> bytes:
    [own] = identities([row], tuple(fields))
    return with_fields(row, fields) if None in own else row
