"""The accounts that API keys belong to, as the exchanges state them. Only this module names their table.

The ledger records the key that fetched a day. A new key of the same account may land that day too; a key of another
account is refused before any record is requested, because the records of two accounts would be mixed.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from hashlib import sha256
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.rows import class_row

from affiliate_pipeline.domain.wording import command
from affiliate_pipeline.http.errors import Fatal
from affiliate_pipeline.postgres.errors import as_store_unavailable
from affiliate_pipeline.postgres.locks import Lock, locked, try_locked
from affiliate_pipeline.postgres.table_store import TableStore

TABLE: Final = "affiliate.account"
PRIVILEGES = {TABLE: "select insert update delete"}
# After a key has been verified, its account is not requested again for this long.
VERIFIED_HOURS = 24


class KeyRefused(Fatal):
    """The API key is of another account."""

    def __init__(self, what: str, action: str) -> None:
        super().__init__(what, action, impact="No record has been requested with it")


class UnconfirmedKey(KeyRefused):
    """The API key may be of another account: the exchange does not state the account of every key."""


@dataclass(frozen=True)
class Key:
    """An API key, by its fingerprint, with the account and role that it is configured for."""

    exchange: str
    role: str
    alias: str
    # The name of its variable.
    variable: str
    fingerprint: str

    @property
    def account(self) -> str:
        """How messages name the account: `binance/acme (partner)`."""
        return _account(self.exchange, self.alias, self.role)

    @property
    def rotation(self) -> str:
        """The command that records it as a key of the account."""
        account = f" --account {self.alias}" if self.alias else ""
        return command(f"rotate-key {self.exchange}{account} --role {self.role}")


@dataclass(frozen=True)
class RecordedKey:
    """A key that is recorded for an account.

    `identity` is the account's (such as Binance's uid) if `is_stated`: the exchange has stated it. Otherwise it is a
    placeholder. `is_recent`: the key was verified less than `VERIFIED_HOURS` ago.
    """

    alias: str
    identity: str
    fingerprint: str
    first_seen: datetime
    is_stated: bool
    is_recent: bool


# Whether the ledger has a day of the account and role of `Key` that was fetched with the key of the fingerprint `str`,
# which may be another key of the account.
HasLanded = Callable[[psycopg.Connection[Any], Key, str], bool]


def nothing_landed(_connection: psycopg.Connection[Any], _key: Key, _fingerprint: str) -> bool:
    """False: there is no ledger."""
    return False


def fingerprint_of(api_key: str) -> str:
    """The text that identifies an API key without revealing it."""
    return sha256(api_key.encode()).hexdigest()[:12]


def recorded_keys(connection: psycopg.Connection[Any], key: Key) -> list[RecordedKey]:
    """The keys of all accounts of the key's exchange and role, the most recently verified one last."""
    with as_store_unavailable(), connection.cursor(row_factory=class_row(RecordedKey)) as cursor:
        return cursor.execute(
            "select alias, identity, fingerprint, first_seen, "
            # If the exchange has not stated an account's identity, the column `identity` has a placeholder: the
            # fingerprint of one of the account's keys.
            f"not exists (select from {TABLE} key_of_account "
            "where (key_of_account.exchange, key_of_account.role, key_of_account.alias, key_of_account.fingerprint) "
            "= (recorded.exchange, recorded.role, recorded.alias, recorded.identity)) as is_stated, "
            "coalesce(last_seen > now() - %s * interval '1 hour', false) as is_recent "
            f"from {TABLE} recorded "
            "where exchange = %s and role = %s "
            "order by coalesce(last_seen, first_seen), fingerprint",
            (VERIFIED_HOURS, key.exchange, key.role),
        ).fetchall()


class AccountKeys(TableStore):
    """The recorded keys of the exchange and role of one `key`."""

    def __init__(self, url: str, key: Key, has_landed: HasLanded) -> None:
        super().__init__(url)
        self._key, self._has_landed = key, has_landed

    def all(self) -> list[RecordedKey]:
        """The keys of all accounts, the most recently verified one last."""
        return recorded_keys(self._connection, self._key)

    def try_exclusive(self) -> AbstractContextManager[bool]:
        """Lock the account's identity unless another session is requesting it; yields whether it is locked."""
        return try_locked(self._connection, *self._lock)

    def wait(self) -> None:
        """Wait until the session that requests the identity has ended its request."""
        with locked(self._connection, *self._lock):
            pass

    @property
    def _lock(self) -> tuple[Lock, str]:
        key = self._key
        return Lock(TABLE, f"{key.exchange} {key.role} {key.alias}"), f"the identity of {key.account}"

    def drop_unused(self, stated: str | None) -> None:
        """Delete the alias's keys whose identity is not `stated`, unless one of these keys has landed a day.

        If `stated` is None, these keys are all keys of the alias. So a wrong first key or openId can be corrected.
        """
        key = self._key
        fingerprints = [each.fingerprint for each in self.all() if each.alias == key.alias and each.identity != stated]
        if any(self._has_landed(self._connection, key, fingerprint) for fingerprint in fingerprints):
            return
        self._execute(
            f"delete from {TABLE} where exchange = %s and role = %s and alias = %s and fingerprint = any(%s)",
            (key.exchange, key.role, key.alias, fingerprints),
        )

    def record(self, stated: str | None, *, is_confirmed: bool = False) -> str:
        """Record the key as verified now, and return its identity; the parameters are those of `_identity`.

        The identity also replaces placeholders of the account's keys. Raises `KeyRefused` or `UnconfirmedKey`.
        """
        key, connection = self._key, self._connection
        account = (key.exchange, key.role, key.alias)
        with as_store_unavailable(), connection.transaction():
            # Otherwise two accounts could record the same identity at the same time.
            connection.execute(sql.SQL("select pg_advisory_xact_lock({})").format(Lock(TABLE).key))
            keys = self.all()
            identity = _identity(key, stated, keys, is_confirmed=is_confirmed)

            placeholders = _replaceable_placeholders(key, keys, is_confirmed=is_confirmed)
            connection.execute(
                f"update {TABLE} set identity = %s "
                "where exchange = %s and role = %s and alias = %s and identity = any(%s)",
                (identity, *account, placeholders),
            )
            connection.execute(
                f"insert into {TABLE} (exchange, role, alias, identity, fingerprint, first_seen, last_seen) "
                "values (%s, %s, %s, %s, %s, now(), now()) "
                "on conflict (exchange, role, alias, fingerprint) do update set last_seen = excluded.last_seen",
                (*account, identity, key.fingerprint),
            )
        return identity


class KeyIdentity:
    """An API key at one host, and the account it belongs to.

    `origin` is what `source` and each of `sources` begin with, before a key's fingerprint: the host, at Binance also
    the role. `request_identity` returns the identity that the exchange states now, None if it states none. `expected`
    is the identity that the account's settings name.
    """

    def __init__(
        self,
        key: Key,
        origin: str,
        open_keys: Callable[[], AccountKeys],
        request_identity: Callable[[], str | None] = lambda: None,
        expected: str | None = None,
    ) -> None:
        self.key = key
        self._origin = origin
        self._open_keys = open_keys
        self._request_identity = request_identity
        self._expected = expected
        self._stated: str | None = None
        self._sources: list[str] | None = None

    @property
    def source(self) -> str:
        """The source that the ledger records: the host, at Binance also the role, and the key's fingerprint."""
        return self._source(self.key.fingerprint)

    @property
    def sources(self) -> list[str]:
        """The sources of all keys of the account at this host, after verifying the key.

        Verifying sends one request, unless the key was verified less than `VERIFIED_HOURS` ago. Raises `KeyRefused`,
        `UnconfirmedKey`, or the `ExchangeError` of the request.
        """
        # Not a `cached_property`: in Python 3.11, all instances share its lock, so sessions of other threads would wait
        # during the request.
        if self._sources is None:
            identity = self._verified()
            self._sources = self._sources_of(identity, self._keys.all())
        return self._sources

    def recorded_sources(self, connection: psycopg.Connection[Any]) -> list[str]:
        """As `sources`, but only from what the database has recorded, without verifying; sends nothing.

        If the key is not recorded, they are only its own.
        """
        with as_store_unavailable():
            exists = connection.execute("select to_regclass(%s) is not null", (TABLE,)).fetchone() == (True,)
        keys = recorded_keys(connection, self.key) if exists else []
        own = _own(self.key, keys)
        return self._sources_of(own.identity, keys) if own else [self.source]

    def unconfirmed(self) -> list[RecordedKey]:
        """The recorded keys of the alias that `confirm` would assign to this key's account.

        Call it only after accessing `sources`, which verifies the key.
        """
        keys = [each for each in self._keys.all() if each.alias == self.key.alias]
        own = _own(self.key, keys)
        identity = own.identity if own else self._stated
        is_stated = own.is_stated if own else self._stated is not None
        others = [each for each in keys if each.identity != identity]
        if is_stated:
            # Two different stated identities are two accounts, which cannot be confirmed as one.
            others = [each for each in others if not each.is_stated]
        return others

    def confirm(self) -> None:
        """Record that the key and the unconfirmed ones are keys of one account; raises `KeyRefused`."""
        self._keys.record(self._stated, is_confirmed=True)

    def _verified(self) -> str:
        """The identity of the key's account, requested if it was not verified recently."""
        if (identity := self._recent()) is not None:
            return identity
        with self._keys.try_exclusive() as is_first:
            if is_first:
                return self._recent() or self._request_and_record()
        # The steps of a run need the identity at the same time. If the first one could not verify the key, the others
        # do not wait for each other: while the exchange does not respond, each request takes minutes.
        self._keys.wait()
        return self._recent() or self._request_and_record()

    def _request_and_record(self) -> str:
        """Request the identity of the key's account, record the key with it, and return it.

        If the key is new or its identity has changed, unused keys with another identity are deleted first.
        """
        # Send nothing with a key of another alias. While no identity is stated for an alias, the fingerprint of one of
        # its keys is recorded as its identity, so this key's fingerprint is compared with the recorded identities too.
        _refuse_other_alias(self.key, self._keys.all(), self.key.fingerprint)
        self._stated = self._request_identity()
        own = _own(self.key, self._keys.all())
        if own is None or self._stated not in (None, own.identity):
            self._keys.drop_unused(self._stated)
        return self._keys.record(self._stated)

    def _recent(self) -> str | None:
        """The identity, if it was verified recently and is the expected one."""
        own = _own(self.key, self._keys.all())
        if own is None or not own.is_recent:
            return None
        return own.identity if self._expected in (None, own.identity) else None

    @cached_property
    def _keys(self) -> AccountKeys:
        return self._open_keys()

    def _sources_of(self, identity: str, keys: Sequence[RecordedKey]) -> list[str]:
        """The sources of this key and of the alias's keys with this identity."""
        recorded = {each.fingerprint for each in keys if (each.alias, each.identity) == (self.key.alias, identity)}
        return [self._source(fingerprint) for fingerprint in sorted(recorded | {self.key.fingerprint})]

    def _source(self, fingerprint: str) -> str:
        return f"{self._origin} {fingerprint}"


def _identity(key: Key, stated: str | None, keys: Sequence[RecordedKey], *, is_confirmed: bool) -> str:
    """The identity to record for the key; raises `KeyRefused` or `UnconfirmedKey`.

    Args:
        stated: The identity that the exchange states for the key now; None: it states none.
        keys: As from `recorded_keys`, the most recently verified one last.
        is_confirmed: Whether the operator has confirmed by `rotate-key` that all keys of the alias are of one account.
    """
    _refuse_other_alias(key, keys, stated or key.fingerprint)
    of_alias = [each for each in keys if each.alias == key.alias]
    own = _own(key, keys)
    stated_before = {each.identity for each in of_alias if each.is_stated}
    if own and own.is_stated:
        # The identities of the alias's other keys do not matter.
        stated_before = {own.identity}
    if stated and stated_before and stated not in stated_before:
        raise KeyRefused(
            f"{key.variable} is a key of account {stated}, but the landed days of {key.account} are from account "
            f"{', '.join(sorted(stated_before))}",
            "Set a key of the account that has landed, or configure the other account with an alias of its own",
        )

    if not of_alias:
        # The first key of the alias; without a stated identity, its fingerprint is a placeholder.
        return stated or key.fingerprint
    if stated and (own or is_confirmed or stated in stated_before):
        return stated
    if own and (own.is_stated or not is_confirmed):
        return own.identity
    if is_confirmed:
        # The exchange has never stated the key's identity: use that of the most recently verified key, of those with a
        # stated identity if there are any.
        with_stated_identity = [each for each in of_alias if each.is_stated]
        return (with_stated_identity or of_alias)[-1].identity
    unstated = "of the earlier keys" if stated else f"of {key.variable}"
    raise UnconfirmedKey(
        f"{key.variable} is a new key of {key.account}, and the exchange does not state the account {unstated}, so it is "
        "unknown whether it is the same account",
        f"If it is, run `{key.rotation}`; otherwise set the former key, or configure the other account with an alias of "
        "its own",
    )


def _replaceable_placeholders(key: Key, keys: Sequence[RecordedKey], *, is_confirmed: bool) -> list[str]:
    """The placeholders that the key's identity replaces: all of the alias if it is confirmed, otherwise the key's own."""
    if is_confirmed:
        return list({each.identity for each in keys if each.alias == key.alias and not each.is_stated})
    own = _own(key, keys)
    return [own.identity] if own and not own.is_stated else []


def _refuse_other_alias(key: Key, keys: Sequence[RecordedKey], identity: str) -> None:
    """Raise `KeyRefused` if the key or the identity is recorded for another alias."""
    for other in keys:
        is_same_account = other.fingerprint == key.fingerprint or other.identity == identity
        if other.alias != key.alias and is_same_account:
            account = _account(key.exchange, other.alias, key.role)
            raise KeyRefused(
                f"{key.variable} is a key of the account that lands as {account}: its records would be counted twice, or the "
                "keys of the two accounts are swapped",
                f"Set the key of {key.account}; an account lands under one alias only",
            )


def _own(key: Key, keys: Sequence[RecordedKey]) -> RecordedKey | None:
    """The key itself as recorded for its alias; None: it is not recorded."""
    found = (each for each in keys if (each.alias, each.fingerprint) == (key.alias, key.fingerprint))
    return next(found, None)


def _account(exchange: str, alias: str, role: str) -> str:
    name = f"{exchange}/{alias}" if alias else exchange
    return f"{name} ({role})"
