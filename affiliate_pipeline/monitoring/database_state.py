"""Looks at a database, read-only and without a lock: what of ours and of Dagster's it holds. What that means is said in
`doctor.py`."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from affiliate_pipeline.landing import ledger
from affiliate_pipeline.landing.store import rights
from affiliate_pipeline.postgres.connection import connect
from affiliate_pipeline.postgres.errors import StoreUnavailable, unavailable
from affiliate_pipeline.postgres.readiness import problems

# Dagster's daemons tell of themselves every 30 seconds, the scheduler once a minute.
ALIVE_S = 150


@dataclass(frozen=True)
class Daemon:
    """Which of Dagster's parts are silent, whether any schedule runs, and the names of schedules and sensors that somebody
    has stopped or whose last turn failed."""

    silent: list[str]
    any_schedule: bool
    stopped: list[str]
    failing: list[str]


class Examination:
    """One read-only connection."""

    def __init__(self, url: str):
        self._connection = connect(url, autocommit=True)
        self._connection.execute("set default_transaction_read_only = on")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    @property
    def version(self) -> int:
        return self._connection.info.server_version // 10000

    def problems(self, endpoints: Sequence[str]) -> Iterator[StoreUnavailable]:
        """What keeps days of these endpoints from landing in it."""
        return problems(self._connection, rights(endpoints))

    def ledgers(self) -> ledger.Ledgers:
        """What has landed, by asset and day."""
        return ledger.entries_since(self._connection) if ledger.exists(self._connection) else {}

    def daemon(self) -> Daemon:
        """Dagster's daemon, by what it writes down."""
        if not self._has("public.daemon_heartbeats"):
            return Daemon(["SENSOR", "SCHEDULER"], False, [], [])
        with unavailable():
            alive = self._connection.execute(
                "select daemon_type from daemon_heartbeats "
                "where timestamp > (now() at time zone 'utc') - %s * interval '1 second'",
                (ALIVE_S,),
            ).fetchall()
            states = self._connection.execute(
                "select instigator_type, status, instigator_body from instigators"
            ).fetchall()
            turns = self._connection.execute(
                "select distinct on (selector_id) status, tick_body from job_ticks "
                "where status <> 'STARTED' order by selector_id, id desc"
            ).fetchall()
        return Daemon(
            silent=[name for name in ("SENSOR", "SCHEDULER") if (name,) not in alive],
            any_schedule=any(kind == "SCHEDULE" and status != "STOPPED" for kind, status, _ in states),
            stopped=sorted(json.loads(body)["origin"]["job_name"] for _, status, body in states if status == "STOPPED"),
            failing=sorted(json.loads(body)["job_name"] for status, body in turns if status == "FAILURE"),
        )

    def _has(self, table: str) -> bool:
        with unavailable():
            row = self._connection.execute("select to_regclass(%s) is not null", (table,)).fetchone()
        return bool(row and row[0])
