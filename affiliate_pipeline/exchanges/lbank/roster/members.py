"""Who is under the affiliate: which openIds can have rows at all. Without it, every user would have to be asked for
everything, at thirty requests a minute."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

AGENT_LEVELS = range(1, 22)


@dataclass(frozen=True)
class Member:
    """One user under the affiliate, as the team list says or said."""

    open_id: str
    # Whether it ever was one, or may be: only agents receive commission and have a team.
    is_agent: bool
    # Whether it ever traded, or may have.
    transaction: bool


@dataclass(frozen=True)
class Roster:
    """Everybody ever seen in the team list, and whose list it is."""

    own_open_id: str
    members: tuple[Member, ...]

    def agents(self) -> list[str]:
        return self._with_own(member.open_id for member in self.members if member.is_agent)

    def traders(self) -> list[str]:
        return self._with_own(member.open_id for member in self.members if member.transaction)

    def agents_and_traders(self) -> list[str]:
        return [member.open_id for member in self.members if member.is_agent or member.transaction]

    def _with_own(self, open_ids: Iterable[str]) -> list[str]:
        """Our own first: if it is refused, so is everything."""
        return list(dict.fromkeys([self.own_open_id, *open_ids]))


class RosterStore(Protocol):
    """Where the roster is kept between runs."""

    def members(self) -> tuple[Member, ...]: ...

    def other_source(self) -> str | None:
        """Another source whose roster this is, if it is."""

    def as_of_ms(self) -> int | None:
        """When the team list was last asked for the roster; None before the first time."""

    def refreshing(self) -> AbstractContextManager[None]:
        """Waits until nobody else refreshes."""

    def update(self, rows: Iterable[dict[str, object]], as_of_ms: int) -> None:
        """Adds and updates the users; none is ever removed."""
