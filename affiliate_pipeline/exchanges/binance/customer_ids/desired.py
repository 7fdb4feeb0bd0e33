"""The desired customer ids, as the settings have them. The current ones, and how to change them, are not known here."""

import csv
import io
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

from affiliate_pipeline.domain.problem import SettingsError
from affiliate_pipeline.domain.redaction import redact
from affiliate_pipeline.domain.settings import text_of
from affiliate_pipeline.exchanges.binance.exchange import Binance

HEADER = ["customerid", "email"]
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
_FILE = "the file that BINANCE_CUSTOMER_IDS names"


@dataclass(frozen=True)
class DesiredCustomerId:
    """An id desired for an owner: an email, or the agent's code for the client itself.

    `where` names the line or the variable; `rejection` is the reason why the id cannot be assigned.
    """

    where: str
    customer_id: str
    owner: str
    rejection: str = ""

    def __str__(self) -> str:
        text = f"{self.where} ({redact(self.customer_id)} for {masked(self.owner)})"
        return f"{text}: {self.rejection}" if self.rejection else text


def masked(owner: str) -> str:
    """The owner without what identifies a person, even if it is not an email."""
    return redact(owner) if "@" in owner else f"{owner[:2]}***"


def of_partner(settings: Binance) -> list[DesiredCustomerId]:
    """The lines of the file `BINANCE_CUSTOMER_IDS`; raises SettingsError if it cannot be read."""
    if settings.binance_customer_ids is None:
        return []
    try:
        data = Path(settings.binance_customer_ids).expanduser().read_bytes()
        lines = csv.reader(io.StringIO(text_of(data, _FILE)))
        desired = [
            _of_line(lines.line_num, [cell.strip() for cell in line]) for line in lines if any(map(str.strip, line))
        ]
    except OSError as error:
        raise SettingsError(f"{_FILE} cannot be read: {error.strerror}") from None
    except csv.Error:
        raise SettingsError(f"{_FILE} is not a CSV file") from None
    if desired and [desired[0].customer_id.lower(), desired[0].owner.lower()] == HEADER:
        del desired[0]
    return _without_duplicates(desired)


def of_client(settings: Binance) -> list[DesiredCustomerId]:
    """The client's own, `BINANCE_USER_CUSTOMER_ID`."""
    desired, agent = settings.binance_user_customer_id, settings.binance_api_agent_code
    return [DesiredCustomerId("BINANCE_USER_CUSTOMER_ID", desired, agent)] if desired is not None and agent else []


def _of_line(number: int, cells: list[str]) -> DesiredCustomerId:
    customer_id, owner, *_ = [*cells, "", ""]
    rejection = ""
    if len(cells) != 2:
        rejection = "it does not have the two fields customerId,email"
    elif not customer_id:
        rejection = "it has no customerId"
    elif not _EMAIL.fullmatch(owner):
        rejection = "its email is malformed"
    return DesiredCustomerId(f"line {number}", customer_id, owner, rejection)


def _without_duplicates(desired: list[DesiredCustomerId]) -> list[DesiredCustomerId]:
    """The same; each whose id or email is on another line too is rejected."""
    places: dict[tuple[str, str], list[str]] = defaultdict(list)
    for each in desired:
        for key in _keys(each):
            places[key].append(each.where)

    def rejection(each: DesiredCustomerId) -> str:
        for key in _keys(each):
            if others := ", ".join(place for place in places[key] if place != each.where):
                return f"its {key[0]} is on {others} too"
        return ""

    return [replace(each, rejection=each.rejection or rejection(each)) for each in desired]


def _keys(desired: DesiredCustomerId) -> tuple[tuple[str, str], tuple[str, str]]:
    return ("customerId", desired.customer_id), ("email", desired.owner.casefold())
