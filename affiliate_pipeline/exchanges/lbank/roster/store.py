"""LBank's roster: every user ever seen in the team list. Only this module names its table."""

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from affiliate_pipeline.exchanges.lbank.roster.members import AGENT_LEVELS, Member
from affiliate_pipeline.postgres.errors import unavailable
from affiliate_pipeline.postgres.locks import Lock, locked
from affiliate_pipeline.postgres.migrations import Migrations
from affiliate_pipeline.postgres.table_store import TableStore

TABLE: Final = "lbank.roster"
_COLUMNS: Final = ("open_id", "user_level", "transaction", "deposit", "direct_invitation", "code", "create_time")


class RosterStore(TableStore):
    """The roster, for runs with one source."""

    migrations = Migrations("lbank", Path(__file__).parents[1] / "migrations")

    def __init__(self, url: str, source: str) -> None:
        super().__init__(url)
        self._source = source

    def members(self) -> tuple[Member, ...]:
        # Unknown flags count as true, so that no user is skipped.
        rows = self._execute(
            "select open_id, ever_agent or coalesce(user_level between 1 and 21, true), coalesce(transaction, true) "
            f"from {TABLE} order by open_id"
        )
        return tuple(Member(*row) for row in rows)

    def other_source(self) -> str | None:
        """The source whose roster this is, if it is another one."""
        row = self._execute(f"select source from {TABLE} where source <> %s limit 1", (self._source,)).fetchone()
        return row[0] if row else None

    def as_of_ms(self) -> int | None:
        """When the team list was last requested for the roster; None before the first time."""
        row = self._execute(f"select max(last_seen) from {TABLE}").fetchone()
        return int(row[0].timestamp() * 1000) if row and row[0] else None

    @contextmanager
    def refreshing(self) -> Generator[None]:
        """Waits until no other process refreshes the roster."""
        with locked(self._connection, Lock(TABLE), "the roster of LBank"):
            yield

    def update(self, rows: Iterable[Mapping[str, object]], as_of_ms: int) -> None:
        """Adds and updates the users; none is ever removed."""
        seen = datetime.fromtimestamp(as_of_ms / 1000, UTC)
        with unavailable(), self._connection.transaction(), self._connection.cursor() as cursor:
            cursor.executemany(
                f"insert into {TABLE} as known (open_id, user_level, transaction, deposit, direct_invitation, code, "
                "create_time, first_seen, last_seen, source, ever_agent) "
                "values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) on conflict (open_id) do update set "
                "user_level = excluded.user_level, deposit = excluded.deposit, code = excluded.code, "
                "direct_invitation = excluded.direct_invitation, create_time = excluded.create_time, "
                "last_seen = excluded.last_seen, source = excluded.source, "
                # A former agent still has the commissions of that time, and a user who has traded still has the trades.
                "ever_agent = known.ever_agent or excluded.ever_agent, "
                "transaction = excluded.transaction or known.transaction is true",
                [
                    (*(row[name] for name in _COLUMNS), seen, seen, self._source, row["user_level"] in AGENT_LEVELS)
                    for row in rows
                ],
            )
