"""The assigned customerIds: those of the partner's clients, each with its email, and the client's own."""

import json
import re
import threading
from collections.abc import Mapping
from functools import cache

from affiliate_pipeline.sandbox.binance.rebates import customers_of

EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")


class Customers:
    """The customerIds, initially the same in every process.

    `by_id`: the emails of the partner's clients, by customerId.
    `own_id`: the client's customerId with its agent, the partner; "" while it has none.
    `taken_ids`: the ids that `assign_own` refuses, since other clients of the partner initially have them.
    """

    def __init__(self, alias: str) -> None:
        self.by_id = dict(_emails(alias))
        self.own_id = ""
        self.taken_ids = set(self.by_id)
        self._lock = threading.Lock()

    def assign(self, customer_id: str, email: str) -> bool:
        """Assign the id to the email instead of the email's previous id; False if another email has the id."""
        with self._lock:
            current_owner = self.by_id.get(customer_id)
            if current_owner is not None and current_owner.casefold() != email.casefold():
                return False
            previous_ids = [id for id, owner in self.by_id.items() if owner.casefold() == email.casefold()]
            for previous_id in previous_ids:
                del self.by_id[previous_id]
            self.by_id[customer_id] = email
            return True

    def assign_own(self, customer_id: str) -> bool:
        """Assign this id to the client; False if another client has it."""
        if customer_id in self.taken_ids:
            return False
        self.own_id = customer_id
        return True

    def rows(self, customer_id: str | None, email: str | None) -> list[Mapping[str, str]]:
        """The partner's clients; with an id or an email, only the one that has it."""
        with self._lock:
            return [
                {"customerId": key, "email": owner}
                for key, owner in self.by_id.items()
                if customer_id in (None, key) and (email is None or email.casefold() == owner.casefold())
            ]


@cache
def _emails(alias: str) -> dict[str, str]:
    """By customerId, an email that fits the masked one of the rebates."""
    emails: dict[str, str] = {}
    for number, (customer_id, row_beginning) in enumerate(customers_of(alias)):
        email = json.loads(row_beginning + "}")["email"].replace("*****", f".{number:03d}")
        if customer_id and EMAIL.fullmatch(email):
            emails[customer_id] = email
    return emails
