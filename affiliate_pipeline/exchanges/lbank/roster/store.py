"""LBank's roster in the database: what `exchanges.lbank.roster.RosterStore` is."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime

from affiliate_pipeline.exchanges.lbank.roster.members import AGENT_LEVELS, Member
from affiliate_pipeline.postgres import ddl
from affiliate_pipeline.postgres.connection import Lock, connect, execute_once, locked, unavailable

_COLUMNS = ("open_id", "user_level", "transaction", "deposit", "direct_invitation", "code", "create_time")


class Rosters:
    """The table `lbank.roster`."""

    def __init__(self, url: str, source: str):
        self._source = source
        self._connection = connect(url, autocommit=True)
        execute_once(self._connection, ddl.ROSTER)

    def close(self) -> None:
        self._connection.close()

    def members(self) -> tuple[Member, ...]:
        with unavailable():
            # Of whom the list does not say it, it may be so.
            rows = self._connection.execute(
                "select open_id, ever_agent or coalesce(user_level between 1 and 21, true), coalesce(transaction, true) "
                "from lbank.roster order by open_id"
            )
            return tuple(Member(*row) for row in rows)

    def other_source(self) -> str | None:
        with unavailable():
            row = self._connection.execute(
                "select source from lbank.roster where source <> %s limit 1", (self._source,)
            ).fetchone()
        return row[0] if row else None

    def as_of_ms(self) -> int | None:
        with unavailable():
            row = self._connection.execute("select max(last_seen) from lbank.roster").fetchone()
        return int(row[0].timestamp() * 1000) if row and row[0] else None

    @contextmanager
    def refreshing(self) -> Iterator[None]:
        with locked(self._connection, Lock("lbank.roster"), "the roster of LBank"):
            yield

    def update(self, rows: Iterable[Mapping[str, object]], as_of_ms: int) -> None:
        seen = datetime.fromtimestamp(as_of_ms / 1000, UTC)
        kept = ", ".join(
            f"{name} = excluded.{name}" for name in (*_COLUMNS[1:], "last_seen", "source") if name != "transaction"
        )
        # Whoever was an agent once has commissions of that time, whatever the level now.
        kept += ", ever_agent = roster.ever_agent or excluded.ever_agent"
        # Whoever has traded has traded for ever, whatever the list says later.
        kept += ", transaction = excluded.transaction or roster.transaction is true"
        with unavailable(), self._connection.transaction(), self._connection.cursor() as cursor:
            cursor.executemany(
                f"insert into lbank.roster ({', '.join(_COLUMNS)}, first_seen, last_seen, source, "
                f"ever_agent) values ({', '.join(['%s'] * len(_COLUMNS))}, %s, %s, %s, %s) on conflict (open_id) do update set {kept}",
                [
                    (*(row[name] for name in _COLUMNS), seen, seen, self._source, row["user_level"] in AGENT_LEVELS)
                    for row in rows
                ],
            )
