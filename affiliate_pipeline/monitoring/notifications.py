"""What the monitor for overdue days reads and stores: the ledger's last days of all assets, and what was done about each
overdue day. `overdue.py` decides what to do."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from enum import IntEnum
from typing import Self

from affiliate_pipeline.landing.day_writer import Ledger
from affiliate_pipeline.postgres.connection import connect_prepared, unavailable


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


class WatchStore:
    """One connection to the ledger and the table of the watch."""

    def __init__(self, url: str):
        self._connection = connect_prepared(url, autocommit=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def ledgers(self, since: date) -> dict[str, dict[date, Ledger]]:
        """By asset, the first day that ever landed and those that landed of `since` and later."""
        with unavailable():
            days = self._connection.execute(
                "select asset, partition, rows, content_hash, settled, source, landed_at, checked_at "
                "from affiliate.landing where partition >= %s or (asset, partition) in "
                "(select asset, min(partition) from affiliate.landing group by asset) order by asset, partition",
                (since,),
            ).fetchall()
        ledgers: dict[str, dict[date, Ledger]] = defaultdict(dict)
        for asset, partition, *rest in days:
            ledgers[asset][partition] = Ledger(partition, *rest)
        return dict(ledgers)

    def states(self) -> dict[str, dict[date, State]]:
        """By asset, what was done about its missing days."""
        with unavailable():
            rows = self._connection.execute("select asset, partition, tries, asked_at, said from affiliate.watch")
            states: dict[str, dict[date, State]] = defaultdict(dict)
            for asset, partition, attempts, requested_at, level in rows:
                states[asset][partition] = State(attempts, requested_at, NotificationLevel[level.upper()])
        return dict(states)

    def keep(self, asset: str, states: Mapping[date, State]) -> None:
        """These, and no others, are the asset's missing days that something was done about."""
        with unavailable(), self._connection.transaction(), self._connection.cursor() as cursor:
            cursor.execute("delete from affiliate.watch where asset = %s", (asset,))
            cursor.executemany(
                "insert into affiliate.watch (asset, partition, tries, asked_at, said) values (%s, %s, %s, %s, %s)",
                [
                    (asset, day, state.attempts, state.requested_at, state.level.name.lower())
                    for day, state in sorted(states.items())
                ],
            )
