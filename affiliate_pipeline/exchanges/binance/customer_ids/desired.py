"""Which customer ids are wanted, as the settings say it. What is there already and how it is changed is not known here."""

import csv
import io
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

from affiliate_pipeline.domain.redaction import redact
from affiliate_pipeline.environment import Binance, SettingsError, text_of

HEADER = ["customerid", "email"]
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")


@dataclass(frozen=True)
class Wish:
    """A customer id wanted for somebody: an email, or the agent's code for ourselves. `where` it is asked for; `fault` is
    why it cannot be had."""

    where: str
    customer_id: str
    whose: str
    fault: str = ""

    def __str__(self) -> str:
        wish = f"{self.where} ({redact(self.customer_id)} for {masked(self.whose)})"
        return f"{wish}: {self.fault}" if self.fault else wish


def masked(whose: str) -> str:
    """Whoever it is, so that nobody else learns it, even if it is no email."""
    return redact(whose) if "@" in whose else f"{whose[:2]}***"


def of_partner(settings: Binance) -> list[Wish]:
    """The lines of the file `BINANCE_CUSTOMER_IDS`; raises SettingsError if it cannot be read."""
    if settings.binance_customer_ids is None:
        return []
    try:
        data = Path(settings.binance_customer_ids).expanduser().read_bytes()
        text = text_of(data, "the file that BINANCE_CUSTOMER_IDS names")
        lines = csv.reader(io.StringIO(text))
        rows = [(lines.line_num, [cell.strip() for cell in line]) for line in lines]
    except OSError as error:
        raise SettingsError(f"the file that BINANCE_CUSTOMER_IDS names cannot be read: {error.strerror}") from None
    except csv.Error:
        raise SettingsError("the file that BINANCE_CUSTOMER_IDS names is not a CSV file") from None
    wishes = [_wish(number, cells) for number, cells in rows if any(cells)]
    if wishes and [wishes[0].customer_id.lower(), wishes[0].whose.lower()] == HEADER:
        del wishes[0]
    return _without_twins(wishes)


def of_client(settings: Binance) -> list[Wish]:
    """The client's own, `BINANCE_USER_CUSTOMER_ID`."""
    if settings.binance_user_customer_id is None:
        return []
    assert settings.binance_api_agent_code
    return [Wish("BINANCE_USER_CUSTOMER_ID", settings.binance_user_customer_id, settings.binance_api_agent_code)]


def _wish(line: int, cells: list[str]) -> Wish:
    wish = Wish(f"line {line}", *(cells + ["", ""])[:2])
    if len(cells) != 2:
        return replace(wish, fault="it does not have the two fields customerId,email")
    if not wish.customer_id:
        return replace(wish, fault="it has no customerId")
    if not _EMAIL.fullmatch(wish.whose):
        return replace(wish, fault="its email is malformed")
    return wish


def _without_twins(wishes: list[Wish]) -> list[Wish]:
    """The same; those whose id or email stands on another line too are faulty."""
    by_id, by_email = defaultdict(list), defaultdict(list)
    for wish in wishes:
        by_id[wish.customer_id].append(wish.where)
        by_email[wish.whose.casefold()].append(wish.where)

    def checked(wish: Wish) -> Wish:
        for name, places in (("customerId", by_id[wish.customer_id]), ("email", by_email[wish.whose.casefold()])):
            if len(places) > 1 and not wish.fault:
                others = ", ".join(place for place in places if place != wish.where)
                return replace(wish, fault=f"its {name} is on {others} too")
        return wish

    return list(map(checked, wishes))
