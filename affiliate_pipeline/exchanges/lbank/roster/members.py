"""Who is under the affiliate: which openIds can have rows at all. Without it, every user would have to be asked for
everything, at thirty requests a minute."""

from collections.abc import Iterable
from dataclasses import dataclass

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
