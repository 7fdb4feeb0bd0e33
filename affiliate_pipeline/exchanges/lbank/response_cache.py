"""Cached responses, so that a killed run can be resumed without requesting them again."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from affiliate_pipeline.postgres.table_store import TableStore

TABLE: Final = "affiliate.answer"
TTL_HOURS = 6


class ResponseCache(TableStore):
    """The responses of one asset with any key of one account. Safe to share between threads."""

    def __init__(self, url: str, asset: str, source: str, sources: Sequence[str]) -> None:
        # Losing the last responses in a crash of the database costs only a few requests.
        super().__init__(url, durable=False)
        self._asset, self._source, self._sources = asset, source, list(sources)
        self._execute(f"delete from {TABLE} where asked_at < now() - %s * interval '1 hour'", (TTL_HOURS,))

    def get(self, request: str) -> tuple[bytes, int] | None:
        """The response's payload, and when (ms) it was requested; None: it is not cached."""
        row = self._execute(
            f"select payload, asked_at from {TABLE} "
            "where asset = %s and source = any(%s) and request = %s "
            "order by asked_at desc limit 1",
            (self._asset, self._sources, request),
        ).fetchone()
        if row is None:
            return None
        payload, requested_at = row
        return payload, int(requested_at.timestamp() * 1000)

    def put(self, request: str, payload: bytes, requested_ms: int) -> None:
        """Cache the payload of the response to a request that was sent at `requested_ms`."""
        self._execute(
            f"insert into {TABLE} values (%s, %s, %s, %s, %s) "
            "on conflict (asset, source, request) "
            "do update set payload = excluded.payload, asked_at = excluded.asked_at",
            (self._asset, self._source, request, payload, datetime.fromtimestamp(requested_ms / 1000, UTC)),
        )

    def clear(self) -> None:
        """Delete the asset's responses: called once a run has an outcome for every day."""
        self._execute(f"delete from {TABLE} where asset = %s and source = any(%s)", (self._asset, self._sources))
