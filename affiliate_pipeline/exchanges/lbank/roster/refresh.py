"""Keeping the roster fresh: reading it, and refreshing it from the team list once it is too old."""

from collections.abc import Callable, Mapping
from functools import partial

from affiliate_pipeline.exchanges.lbank.pagination import by_offset
from affiliate_pipeline.exchanges.lbank.roster.members import Roster
from affiliate_pipeline.exchanges.lbank.roster.store import RosterStore
from affiliate_pipeline.exchanges.lbank.schemas import User
from affiliate_pipeline.exchanges.lbank.session import rows_of
from affiliate_pipeline.exchanges.lists import get_list
from affiliate_pipeline.http.client import Client
from affiliate_pipeline.http.errors import Refused
from affiliate_pipeline.schema.decode import Invalid, parse

TEAM_LIST = "/affiliate-api/v2/invite/user/team/list"
USERS = partial(by_offset, instant="createTime", identity=("openId",))


def read_roster(
    store: RosterStore, open_id: str, team_list: Callable[[], Client], now_ms: Callable[[], int], not_before_ms: int
) -> Roster:
    """The roster as of `not_before_ms` or later; one process at a time refreshes it."""
    if other := store.other_source():
        raise Refused(
            f"the roster in this database is that of {other}, and only one LBank account can be kept in a database. Use its "
            "credentials and base URL, or another database"
        )
    if (store.as_of_ms() or 0) < not_before_ms:
        with store.refreshing():
            if (store.as_of_ms() or 0) < not_before_ms:
                _refresh(store, team_list, now_ms())
    return Roster(open_id, store.members())


def _refresh(store: RosterStore, team_list: Callable[[], Client], now_ms: int) -> None:
    """Request the team list from the beginning of time, whatever the first partition is."""
    with team_list() as client:

        def get(page: Mapping[str, object]) -> list[bytes]:
            rows, is_unlisted = get_list(client, TEAM_LIST, {"startTime": 0, "endTime": now_ms, **page}, rows_of)
            if is_unlisted and store.members():
                raise Refused("LBank twice sent null instead of the list of users, which was not empty before")
            return rows

        try:
            table = parse(User, USERS(get)).table
        except (Refused, Invalid) as error:
            raise Refused(f"the team list, which says whom to ask about, cannot be read: {error}") from None
    store.update(table.to_pylist(), now_ms)
