"""What was done about each overdue day: runs requested and notifications sent. `overdue` decides what follows from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from enum import IntEnum
from typing import Final

from affiliate_pipeline.landing import ledger
from affiliate_pipeline.postgres.errors import unavailable
from affiliate_pipeline.postgres.table_store import TableStore

TABLE: Final = "affiliate.watch"


class NotificationLevel(IntEnum):
    """What was last reported of an overdue day, in order of urgency."""

    NOTHING = 0
    GIVEN_UP = 1
    BELOW_48_HOURS = 2
    BELOW_12_HOURS = 3
    SECOND_CHANCE = 4
    LOST = 5


@dataclass(frozen=True)
class State:
    """How often an overdue day was requested, when (UTC) last, and what was reported of it."""

    attempts: int = 0
    requested_at: datetime | None = None
    level: NotificationLevel = NotificationLevel.NOTHING


class WatchStore(TableStore):
    """The table of the monitor, and the ledger that it compares with."""

    def ledgers(self, since: date) -> ledger.Ledgers:
        """By asset, the first day that ever landed and those that landed of `since` and later."""
        return ledger.entries_since(self._connection, since)

    def states(self) -> dict[str, dict[date, State]]:
        """By asset, what was done about its missing days."""
        states: dict[str, dict[date, State]] = {}
        for asset, day, attempts, requested_at, level in self._execute(
            f"select asset, partition, tries, asked_at, said from {TABLE}"
        ):
            states.setdefault(asset, {})[day] = State(attempts, requested_at, NotificationLevel[level.upper()])
        return states

    def keep(self, asset: str, states: Mapping[date, State]) -> None:
        """Replaces what was done about the asset's missing days."""
        rows = [
            (asset, day, state.attempts, state.requested_at, state.level.name.lower())
            for day, state in sorted(states.items())
        ]
        with unavailable(), self._connection.transaction(), self._connection.cursor() as cursor:
            cursor.execute(f"delete from {TABLE} where asset = %s", (asset,))
            cursor.executemany(
                f"insert into {TABLE} (asset, partition, tries, asked_at, said) values (%s, %s, %s, %s, %s)", rows
            )
