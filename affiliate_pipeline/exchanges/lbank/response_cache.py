"""Answers kept between runs: what `exchanges.fetching.Answers` is in the database."""

from datetime import UTC, datetime

from affiliate_pipeline.exchanges.fetching import Answer
from affiliate_pipeline.postgres.connection import connect, unavailable

KEPT_HOURS = 6


class AnswerStore:
    """The answers of one asset from one source. Safe to share between threads."""

    def __init__(self, url: str, asset: str, source: str):
        self._key = {"asset": asset, "source": source}
        # Losing the last ones with a crashing database costs a few requests.
        self._connection = connect(url, autocommit=True, durable=False)
        with unavailable():
            self._connection.execute(
                "delete from affiliate.answer where asked_at < now() - %s * interval '1 hour'", (KEPT_HOURS,)
            )

    def close(self) -> None:
        self._connection.close()

    def get(self, request: str) -> Answer | None:
        with unavailable():
            row = self._connection.execute(
                "select payload, asked_at from affiliate.answer "
                "where asset = %(asset)s and source = %(source)s and request = %(request)s",
                {**self._key, "request": request},
            ).fetchone()
        return Answer(row[0], int(row[1].timestamp() * 1000)) if row else None

    def put(self, request: str, payload: bytes, asked_ms: int) -> None:
        with unavailable():
            self._connection.execute(
                "insert into affiliate.answer values (%(asset)s, %(source)s, %(request)s, %(payload)s, %(asked_at)s) "
                "on conflict (asset, source, request) do update "
                "set payload = excluded.payload, asked_at = excluded.asked_at",
                {
                    **self._key,
                    "request": request,
                    "payload": payload,
                    "asked_at": datetime.fromtimestamp(asked_ms / 1000, UTC),
                },
            )

    def clear(self) -> None:
        """The run has told of all its days: nothing is left to resume."""
        with unavailable():
            self._connection.execute(
                "delete from affiliate.answer where asset = %(asset)s and source = %(source)s", self._key
            )
