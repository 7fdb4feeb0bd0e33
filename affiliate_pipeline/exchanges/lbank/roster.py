"""The roster: every user ever seen in the team list. Only this module names its table.

Requests are sent only for agents, who receive commission and have teams, and for traders, because LBank permits only
thirty requests a minute.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from affiliate_pipeline.exchanges.lbank.pagination import by_offset
from affiliate_pipeline.exchanges.lbank.schemas import User
from affiliate_pipeline.exchanges.lists import get_list
from affiliate_pipeline.http.client import Client
from affiliate_pipeline.http.errors import Refused
from affiliate_pipeline.postgres.errors import as_store_unavailable
from affiliate_pipeline.postgres.locks import Lock, locked
from affiliate_pipeline.postgres.migrations import Migrations
from affiliate_pipeline.postgres.table_store import TableStore
from affiliate_pipeline.schema.invalid import Invalid

TABLE: Final = "lbank.roster"
NAME: Final = "roster"
COLUMNS: Final = (
    ("open_id", "text not null", "The user."),
    ("user_level", "smallint", "The user's level; 1 to 21 are agents."),
    ("transaction", "boolean", "Whether the user has ever traded."),
    ("deposit", "boolean", "Whether the user has deposited."),
    ("direct_invitation", "boolean", "Whether the affiliate invited the user directly."),
    ("code", "text", "The invitation code."),
    ("create_time", "timestamptz", "When the user registered."),
    ("first_seen", "timestamptz not null", "When the user was first in the team list."),
    ("last_seen", "timestamptz not null", "When the user was last in the team list."),
    ("ever_agent", "boolean not null", "Whether the user has ever been an agent."),
    ("source", "text", "The host and the key that the user was read with."),
    ("account", "text not null", "The alias of the account; empty: the default account."),
)
TEAM_LIST = "/affiliate-api/v2/invite/user/team/list"
USER_PAGING = partial(by_offset, time_field="createTime", id_fields=("openId",))
AGENT_LEVELS = range(1, 22)


@dataclass(frozen=True)
class Member:
    """A user. `is_agent`: is or was an agent; `has_traded`: has ever traded. Unknown counts as true."""

    open_id: str
    is_agent: bool
    has_traded: bool


@dataclass(frozen=True)
class Roster:
    """All users ever seen in the team list of our own openId."""

    own_open_id: str
    members: tuple[Member, ...]

    def counts(self) -> dict[str, int]:
        """The metadata of the asset: how many users, agents and traders there are."""
        return {
            "dagster/row_count": len(self.members),
            "agents": sum(member.is_agent for member in self.members),
            "traders": sum(member.has_traded for member in self.members),
        }

    def agents(self) -> list[str]:
        """The openIds to request commissions and team trades of: our own, then those of agents."""
        return self._with_own(member.open_id for member in self.members if member.is_agent)

    def traders(self) -> list[str]:
        """The openIds to request trades of: our own, then those of users who have traded."""
        return self._with_own(member.open_id for member in self.members if member.has_traded)

    def agents_and_traders(self) -> list[str]:
        """The openIds to request details of: those of agents and of users who have traded."""
        return [member.open_id for member in self.members if member.is_agent or member.has_traded]

    def _with_own(self, open_ids: Iterable[str]) -> list[str]:
        """Our own openId, then these: if ours is refused, so is everything."""
        return list(dict.fromkeys([self.own_open_id, *open_ids]))


class RosterStore(TableStore):
    """The roster of one account; `team_list` opens the client that refreshes it.

    New rows have `source`, the host and the key in use; stored rows have to be of one of `sources`, which are those of all
    keys of the account.
    """

    migrations = Migrations("lbank", Path(__file__).parent / "migrations")

    def __init__(
        self,
        url: str,
        account: str,
        source: str,
        sources: Sequence[str],
        team_list: Callable[[], Client],
        now_ms: Callable[[], int],
    ) -> None:
        super().__init__(url)
        self._account, self._source, self._sources = account, source, list(sources)
        self._team_list, self._now_ms = team_list, now_ms

    def read(self, open_id: str, not_before_ms: int, refreshed: dict[str, Mapping[str, int]]) -> Roster:
        """The roster of our own `open_id`, refreshed by one process at a time if it is older than `not_before_ms`.

        An instant in the future counts as now. A refresh by this process adds the roster's counts to `refreshed`.
        Raises `Refused` if the stored roster is of another account, or the team list cannot be read.
        """
        self._require_own_account()
        not_before_ms = min(not_before_ms, self._now_ms())
        if self._as_of_ms() < not_before_ms:
            with locked(self._connection, Lock(TABLE, self._account or None), "the roster of LBank"):
                # Another process may have refreshed the roster before it released the lock.
                if self._as_of_ms() < not_before_ms:
                    self._refresh(self._now_ms())
                    refreshed[NAME] = Roster(open_id, self._members()).counts()
        return Roster(open_id, self._members())

    def _require_own_account(self) -> None:
        """Raise `Refused` if the stored roster is of another account."""
        query = f"select source from {TABLE} where account = %s and source <> all(%s) limit 1"
        row = self._execute(query, (self._account, self._sources)).fetchone()
        if row:
            (other_source,) = row
            raise Refused(
                f"the roster in this database is that of {other_source}. Use its credentials and base URL, or configure this "
                "account with an alias of its own"
            )

    def _members(self) -> tuple[Member, ...]:
        # Unknown flags count as true, so that no user is skipped.
        rows = self._execute(
            "select open_id, "
            "ever_agent or coalesce(user_level between 1 and 21, true), "
            "coalesce(transaction, true) "
            f"from {TABLE} where account = %s order by open_id",
            (self._account,),
        )
        return tuple(Member(*row) for row in rows)

    def _as_of_ms(self) -> int:
        """When the team list was last requested for the roster; 0 before the first time."""
        query = f"select max(last_seen) from {TABLE} where account = %s"
        ((last_seen,),) = self._execute(query, (self._account,)).fetchall()
        return int(last_seen.timestamp() * 1000) if last_seen else 0

    def _refresh(self, now_ms: int) -> None:
        """Update the table from the whole team list: the users who registered at any time."""
        users = self._fetch_users(now_ms)
        seen_at = datetime.fromtimestamp(now_ms / 1000, UTC)
        rows = [
            {
                **user,
                "seen_at": seen_at,
                "is_agent": user["user_level"] in AGENT_LEVELS,
                "source": self._source,
                "account": self._account,
            }
            for user in users
        ]
        with as_store_unavailable(), self._connection.transaction(), self._connection.cursor() as cursor:
            cursor.executemany(
                f"insert into {TABLE} as known "
                "(open_id, user_level, transaction, deposit, direct_invitation, code, create_time, "
                "first_seen, last_seen, ever_agent, source, account) "
                "values (%(open_id)s, %(user_level)s, %(transaction)s, %(deposit)s, %(direct_invitation)s, %(code)s, "
                "%(create_time)s, %(seen_at)s, %(seen_at)s, %(is_agent)s, %(source)s, %(account)s) "
                "on conflict (account, open_id) do update set "
                "user_level = excluded.user_level, deposit = excluded.deposit, code = excluded.code, "
                "direct_invitation = excluded.direct_invitation, create_time = excluded.create_time, "
                "last_seen = excluded.last_seen, source = excluded.source, "
                # A former agent still has the commissions of that time, and a user who has traded still has the trades.
                "ever_agent = known.ever_agent or excluded.ever_agent, "
                "transaction = excluded.transaction or known.transaction is true",
                rows,
            )

    def _fetch_users(self, now_ms: int) -> list[dict[str, Any]]:
        """The whole team list, by column of `User`; raises `Refused` if it cannot be read."""
        # Imported here: it imports pandas, pandera and pyarrow, which most processes never use.
        from affiliate_pipeline.schema.decode import parse

        with self._team_list() as client:

            def get(page_params: Mapping[str, object]) -> list[bytes]:
                rows, lacks_list = get_list(client, TEAM_LIST, {"startTime": 0, "endTime": now_ms, **page_params})
                is_later_page = bool(page_params.get("start"))
                if lacks_list and not is_later_page and self._members():
                    raise Refused("LBank twice sent null instead of the list of users, which was not empty before")
                return rows

            try:
                return parse(User, USER_PAGING(get)).table.to_pylist()
            except (Refused, Invalid) as error:
                raise Refused(f"the team list, which has the openIds to request, cannot be read: {error}") from None
