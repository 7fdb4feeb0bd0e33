"""Declarations of exchanges and endpoints, from which assets, tables and checks are built."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date, time, timedelta
from functools import partial
from typing import Generic, Self
from zoneinfo import ZoneInfo

from typing_extensions import TypeVar

from affiliate_pipeline.domain.days import DAY, start_ms
from affiliate_pipeline.domain.expected_days import Timetable
from affiliate_pipeline.domain.problem import SettingsError
from affiliate_pipeline.domain.settings import ALIAS_SEPARATOR
from affiliate_pipeline.exchanges.fetching import RequestPlan, Session, Strategy
from affiliate_pipeline.exchanges.identity import AccountKeys, Key, KeyIdentity, fingerprint_of
from affiliate_pipeline.exchanges.shared_state import SharedState
from affiliate_pipeline.schema.columns import Row

# The session that an exchange opens for its endpoints. An endpoint only gets sessions of its own exchange, so code for
# any exchange takes `Endpoint`, which means `Endpoint[Session]`.
SessionT = TypeVar("SessionT", bound=Session, default=Session, covariant=True)
VariableNames = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Exchange(Generic[SessionT]):
    """A service, its time zone, and how its accounts are configured."""

    name: str
    title: str
    zone: ZoneInfo
    # Opens a session for the endpoint, with the credentials in these variables.
    connect: Callable[["Endpoint", SharedState, Mapping[str, str]], SessionT]
    # The default account's variables of a role's credentials, the key first.
    credentials: Callable[[str], tuple[str, ...]]
    # The default account's variables that each further account has for itself, with a suffix.
    account_variables: tuple[str, ...]

    @property
    def base_url_variable(self) -> str:
        """The environment variable that overrides the base URL."""
        return f"{self.name.upper()}_BASE_URL"


@dataclass(frozen=True)
class Probe(Generic[SessionT]):
    """A minimal request that tests an account without landing anything.

    `params` makes its parameters from the session and the time (ms). `tested_variable` names the variable (of the
    default account) that is reported as the cause if the request is refused, or if the body has a `problem`; if empty,
    the account's credentials are.
    """

    params: Callable[[SessionT, int], Mapping[str, object]]
    tested_variable: str = ""
    # What the body of a successful response reports about the variable, as the rest of a sentence; empty: nothing.
    problem: Callable[[bytes], str] | None = None


@dataclass(frozen=True)
class Money:
    """The rows are money earned; `Records.sum_by` names its amount and coin.

    Endpoints of an account with the same `kind` report the same money, so only one of them counts per day.
    """

    kind: str
    # The columns that name the trader or the earner, of which the first non-empty one counts. If there are no such
    # columns, all money of the endpoint is our own.
    earners: tuple[str, ...]
    # The column with the amount in USDT, where the source gives it.
    usdt: str | None = None
    # A column of codes and the name of each code, which is appended to the kind: `commission spot`.
    kind_by: tuple[str, tuple[tuple[int, str], ...]] | None = None


@dataclass(frozen=True)
class Users:
    """The rows are about users, for the command `who`.

    `names` are the columns that name the user, of which the first non-empty one counts. If there are no such columns,
    every row is about the account's own client.
    """

    names: tuple[str, ...] = ()
    # What is displayed of a row: labels, each with its column.
    facts: tuple[tuple[str, str], ...] = ()
    # The column with the time at which the facts were current.
    as_of: str = "landed_at"


@dataclass(frozen=True)
class Retention(Generic[SessionT]):
    """How long the source promises to retain rows, and what is known about older ones."""

    promised: timedelta
    # Looks for a row older than the day, which proves that the source still has the day; returns its time (ms).
    proof: Callable[[SessionT, date, ZoneInfo], int | None] | None = None
    # Whether an expired day was requested in time, so that the source prepares it for download.
    requested_in_time: Callable[[SessionT, date], bool] | None = None
    # Another endpoint that has the same rows for longer.
    fallback: "Records[SessionT] | None" = None
    # Whether `trust_old` has no effect: an expired day is then fetched only if it was `requested_in_time`.
    is_final: bool = False


@dataclass(frozen=True, kw_only=True)
class Endpoint(Generic[SessionT]):
    """One endpoint of an account: its asset, its table and how it is fetched. Only `Records` have past days."""

    exchange: Exchange[SessionT]
    name: str
    # The role whose key it is requested with, such as `partner` or `client`; an account may have several roles.
    role: str
    description: str
    schema: type[Row]
    strategy: Strategy[SessionT]
    probe: Probe[SessionT] | None = None
    # The default account's variable that names a file, and a function that returns what is wrong with the file.
    file_check: tuple[str, Callable[[SessionT], Sequence[str]]] | None = None
    # Variables of the default account that it needs in addition to the credentials.
    requires: tuple[str, ...] = ()
    users: Users | None = None
    # When its daily schedule lands it, in the exchange's zone; None: it has no daily schedule.
    lands_at: time | None = None
    # The account's alias; empty: the exchange's default account.
    alias: str = ""
    # Pairs: a variable of the default account, and the name under which this account's value of that variable is found
    # and reported. Without pairs, this account's variable is the default account's with the alias as its suffix.
    names: VariableNames = ()

    @property
    def key(self) -> str:
        """The asset key as text: `binance/if_new_user`, of a further account `binance/acme/if_new_user`."""
        return self.key_of(self.name)

    def key_of(self, name: str) -> str:
        """The asset key, as text, of another endpoint or table of the same account."""
        return "/".join(filter(None, (self.exchange.name, self.alias, name)))

    @property
    def group(self) -> str:
        """The exchange, and the alias of a further account: `binance`, `binance_acme`."""
        return "_".join(filter(None, (self.exchange.name, self.alias)))

    @property
    def table(self) -> str:
        """The table, which all accounts share: `binance.if_new_user`."""
        return f"{self.exchange.name}.{self.name}"

    @property
    def path(self) -> str:
        """The path of its URL."""
        return self.strategy.path

    @property
    def credentials(self) -> tuple[str, ...]:
        """The variables of the credentials of its account and role."""
        return tuple(map(self.variable, self.exchange.credentials(self.role)))

    @property
    def variables(self) -> tuple[str, ...]:
        """The variables without which it cannot be fetched."""
        return (*self.credentials, *map(self.variable, self.requires))

    def variable(self, name: str) -> str:
        """The account's own name of a default account's variable: `LBANK_OPEN_ID__ACME`."""
        if self.names:
            return dict(self.names).get(name, name)
        if not self.alias or name not in self.exchange.account_variables:
            return name
        return f"{name}{ALIAS_SEPARATOR}{self.alias.upper()}"

    def refuse_shared_key(self, variables: Mapping[str, str]) -> None:
        """Raise `SettingsError` if an account whose variable sorts before this one's has the same key.

        Only the first of them is used: the same records would otherwise land in both accounts, and their sums would
        count them twice.
        """
        base, *_ = self.exchange.credentials(self.role)
        own_variable = self.variable(base)
        own_key = variables.get(own_variable)
        if not own_key:
            return
        for other in sorted(variables):
            is_key_variable = other == base or other.startswith(f"{base}{ALIAS_SEPARATOR}")
            if is_key_variable and other < own_variable and _key_in(other, variables) == own_key:
                raise SettingsError(
                    f"{own_variable} is the same key as {other}: its records would land and be counted twice",
                    f"Set {own_variable} to the key of another account, or remove the variables with its suffix",
                    variable=own_variable,
                )

    def key_identity(
        self,
        shared: SharedState,
        origin: str,
        api_key: str,
        request_identity: Callable[[], str | None] = lambda: None,
        expected: str | None = None,
    ) -> KeyIdentity:
        """The `KeyIdentity` of `api_key`; `origin`, `request_identity` and `expected` are explained there."""
        key = Key(self.exchange.name, self.role, self.alias, self.credentials[0], fingerprint_of(api_key))
        open_keys = partial(shared.open, AccountKeys, key, shared.has_landed)
        return KeyIdentity(key, origin, open_keys, request_identity, expected)

    def for_account(self, alias: str, names: VariableNames = ()) -> Self:
        """The same endpoint of another account."""
        return replace(self, alias=alias, names=names)

    def start_ms(self, day: date) -> int:
        """The first millisecond of the day in the exchange's zone."""
        return start_ms(day, self.exchange.zone)

    def end_ms(self, day: date) -> int:
        """The first millisecond after the day."""
        return start_ms(day + DAY, self.exchange.zone)

    @property
    def timetable(self) -> Timetable:
        """When its days land; an action log has no past days, like a snapshot."""
        return Timetable(
            self.key, self.exchange.zone, self.lands_at, settles_after=timedelta(0), retention=None, is_snapshot=True
        )


@dataclass(frozen=True, kw_only=True)
class Snapshot(Endpoint[SessionT]):
    """The current state: a later snapshot of the day replaces an earlier one."""


@dataclass(frozen=True, kw_only=True)
class ActionLog(Endpoint[SessionT]):
    """Actions that runs have attempted at the exchange: each run appends its rows to the day."""


@dataclass(frozen=True, kw_only=True)
class Records(Endpoint[SessionT]):
    """Rows of a past day, fetchable for as long as the source retains them."""

    settles_after: timedelta
    # None: no limit is known.
    retention: Retention[SessionT] | None = None
    # The column with the instant that decides a row's day, if there is one.
    time_column: str | None = None
    # An amount, and the column by whose values it is summed.
    sum_by: tuple[str, str] | None = None
    # Two amounts of a row of which the first is never below the second.
    volume_and_fee: tuple[str, str] | None = None
    money: Money | None = None
    # The name of another endpoint that has the same rows: where both have landed a day, a check compares them.
    compared_with: str | None = None

    def for_account(self, alias: str, names: VariableNames = ()) -> Self:
        """The same endpoint of another account, whose fallback is that account's."""
        retention = self.retention
        if retention and retention.fallback:
            retention = replace(retention, fallback=retention.fallback.for_account(alias, names))
        return replace(self, alias=alias, names=names, retention=retention)

    @property
    def timetable(self) -> Timetable:
        """When its days land, settle and expire."""
        promised = self.retention.promised if self.retention else None
        fallback = self.retention.fallback if self.retention else None
        fallback_timetable = fallback.timetable if fallback else None
        return Timetable(
            self.key, self.exchange.zone, self.lands_at, self.settles_after, promised, fallback=fallback_timetable
        )


@dataclass(frozen=True)
class ReferenceTable(Generic[SessionT]):
    """An unpartitioned table of an exchange, refreshed by runs that need it, or on request."""

    name: str
    description: str
    # The endpoint that it is read from.
    endpoint: Endpoint[SessionT]
    # Refreshes the table; returns the asset's metadata: counts by name.
    refresh: Callable[[SessionT], Mapping[str, int]]
    # Each column's name, definition and description.
    columns: tuple[tuple[str, str, str], ...]
    # What a refresh costs; sends at most the request that verifies the key.
    plan: Callable[[SessionT], RequestPlan]
    users: Users | None = None
    # The endpoints whose runs read it, by name.
    read_by: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The asset key as text: `lbank/roster`, of a further account `lbank/acme/roster`."""
        return self.endpoint.key_of(self.name)

    @property
    def alias(self) -> str:
        """The account's alias; empty: the exchange's default account."""
        return self.endpoint.alias

    @property
    def table(self) -> str:
        """The table, which all accounts share: `lbank.roster`."""
        return f"{self.endpoint.exchange.name}.{self.name}"

    def is_read_by(self, endpoint: Endpoint) -> bool:
        """Whether the endpoint's runs read the table, and so may refresh it."""
        return endpoint.name in self.read_by and endpoint.group == self.endpoint.group

    def for_account(self, alias: str, names: VariableNames = ()) -> Self:
        """The same table's rows of another account."""
        return replace(self, endpoint=self.endpoint.for_account(alias, names))


def _key_in(name: str, variables: Mapping[str, str]) -> str | None:
    """The key in another account's variable; None if it cannot be read: that account then lands nothing."""
    with suppress(SettingsError):
        return variables[name]
    return None


def retention_of(endpoint: Endpoint) -> Retention | None:
    """The retention of the endpoint's records; None: no limit is known, or it has no records."""
    return endpoint.retention if isinstance(endpoint, Records) else None
