"""Every exchange of the product with its endpoints, and the accounts that variables configure."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from difflib import get_close_matches
from itertools import chain
from typing import Any

from pydantic import create_model

from affiliate_pipeline.domain.settings import (
    ALIAS_SEPARATOR,
    DEFAULT_START_DATE,
    Environment,
    Settings,
    StartDate,
    known_variables,
)
from affiliate_pipeline.exchanges.binance import endpoints as binance
from affiliate_pipeline.exchanges.endpoint import Endpoint, Exchange, Records, ReferenceTable
from affiliate_pipeline.exchanges.lbank import endpoints as lbank

_EXCHANGES = (binance, lbank)
# How similar an unknown variable must be to a known one for that to be suggested (1: equal).
MIN_SIMILARITY, MIN_SIMILARITY_WITHOUT_PREFIX = 0.7, 0.9
# Without `_file` at the end, which marks the path of a secret: `LBANK_API_SECRET__ACME_FILE`.
_ALIAS = re.compile(r"(?!.*__|.*_file$)[a-z][a-z0-9_]{0,30}")


@dataclass(frozen=True)
class Catalog:
    """The endpoints and reference tables of some accounts."""

    endpoints: tuple[Endpoint, ...]
    reference_tables: tuple[ReferenceTable, ...] = ()

    @property
    def earning(self) -> tuple[Records, ...]:
        """The endpoints whose rows are money earned."""
        return tuple(each for each in self.endpoints if isinstance(each, Records) and each.money)

    def with_accounts(self, aliases: Mapping[str, Iterable[str]]) -> "Catalog":
        """This catalog extended by further accounts; `aliases` has their aliases by exchange name."""
        endpoints = [
            each.for_account(alias) for each in self.endpoints for alias in aliases.get(each.exchange.name, ())
        ]
        tables = [
            each.for_account(alias)
            for each in self.reference_tables
            for alias in aliases.get(each.endpoint.exchange.name, ())
        ]
        by_account = sorted(endpoints, key=lambda each: each.alias)
        return Catalog((*self.endpoints, *by_account), (*self.reference_tables, *tables))


# The catalog of the exchanges' default accounts, each with all endpoints of its exchange, configured or not.
DEFAULT = Catalog(
    tuple(chain.from_iterable(each.ENDPOINTS for each in _EXCHANGES)),
    tuple(chain.from_iterable(each.REFERENCE_TABLES for each in _EXCHANGES)),
)
ENDPOINTS = DEFAULT.endpoints
EXCHANGES: tuple[Exchange, ...] = tuple({each.exchange.name: each.exchange for each in ENDPOINTS}.values())
_DATES: dict[str, Any] = {f"{each.name}_start_date": (StartDate, None) for each in EXCHANGES}
# The first day of each exchange, from the variable `<EXCHANGE>_START_DATE`.
StartDates = create_model("StartDates", __base__=Settings, **_DATES)
# The prefixes of our variables. Another variable probably belongs to another program.
_PREFIXES = ("AFFILIATE_", *(f"{each.name.upper()}_" for each in EXCHANGES))
# If any of these is set, for any account, real exchanges are configured.
EXCHANGE_VARIABLES = tuple(
    dict.fromkeys(
        name
        for endpoint in ENDPOINTS
        for name in (endpoint.exchange.base_url_variable, *endpoint.credentials, *endpoint.requires)
    )
)


@dataclass(frozen=True)
class UnusableVariable:
    """A variable that is ignored, and what to do."""

    name: str
    problem: str
    action: str


def configured_catalog(variables: Mapping[str, str], landed: Iterable[str] = ()) -> Catalog:
    """The catalog of the default accounts and of further ones that have a variable, or an asset in `landed` (keys)."""
    landed_endpoints = endpoints_of(landed)
    aliases: dict[str, list[str]] = {}
    for exchange in EXCHANGES:
        landed_aliases = {each.alias for each in landed_endpoints if each.exchange is exchange and each.alias}
        aliases[exchange.name] = sorted(_aliases(exchange, variables) | landed_aliases)
    return DEFAULT.with_accounts(aliases)


def start_date(exchange: Exchange, environment: Environment) -> date | None:
    """The first day that is configured for the exchange or for all of them; None: none is configured."""
    start_dates = dict(StartDates.load(environment.variables))
    return start_dates[f"{exchange.name}_start_date"] or environment.start_date


def first_day(endpoint: Endpoint, environment: Environment) -> date:
    """The first partition: as configured, otherwise as `up` chose it, otherwise the earliest that `up` chose for any asset.

    If `up` chose none, it is `DEFAULT_START_DATE`. A snapshot cannot be taken of days before the first `up`, whatever
    is configured.
    """
    earliest = min(environment.first_days.values(), default=DEFAULT_START_DATE)
    chosen = environment.first_days.get(endpoint.key, earliest)
    configured = start_date(endpoint.exchange, environment)
    if configured is None:
        return chosen
    return max(configured, chosen) if endpoint.timetable.is_snapshot else configured


def first_earning_day(catalog: Catalog, environment: Environment) -> date:
    """The first day of the catalog's earnings."""
    return min(first_day(each, environment) for each in catalog.earning)


def is_any_exchange_configured(variables: Mapping[str, str]) -> bool:
    """Whether any account of a real exchange is configured, even incompletely."""
    return any(name.partition(ALIAS_SEPARATOR)[0] in EXCHANGE_VARIABLES for name in variables)


def unusable_variables(variables: Mapping[str, str]) -> Iterator[UnusableVariable]:
    """Unknown variables with our prefix or similar to a known one, and known ones with an unusable account suffix."""
    known = known_variables()
    account_variables = {name for exchange in EXCHANGES for name in exchange.account_variables}
    for name in sorted(variables):
        base, separator, suffix = name.partition(ALIAS_SEPARATOR)
        if base not in known:
            action = _action_for_unknown(name, known)
            if action:
                yield UnusableVariable(name, f"{base} is unknown", action)
        elif separator and base not in account_variables:
            yield UnusableVariable(
                name, f"{base} is not a variable of an account", f"Remove {name}: all accounts share {base}"
            )
        elif separator and _alias(suffix) is None:
            yield UnusableVariable(
                name,
                f"{suffix or 'an empty text'} is not the alias of an account",
                f"Rename {name}: an alias has up to 31 upper-case letters, digits and single underscores, the first one "
                f"a letter, and no _FILE at the end, as in {base}{ALIAS_SEPARATOR}ACME",
            )


def _action_for_unknown(name: str, known: Collection[str]) -> str | None:
    """What to do about a variable that is not a known one; None if it probably belongs to another program."""
    base, separator, suffix = name.partition(ALIAS_SEPARATOR)
    has_prefix = base.upper().startswith(_PREFIXES)
    cutoff = MIN_SIMILARITY if has_prefix else MIN_SIMILARITY_WITHOUT_PREFIX
    nearest = get_close_matches(base.upper(), known, n=1, cutoff=cutoff)
    if nearest:
        return f"Rename {name} to {nearest[0]}{separator}{suffix}, or remove it"
    return f"Remove {name}" if has_prefix else None


def endpoints_of(assets: Iterable[str], declared: Iterable[Endpoint] = ENDPOINTS) -> list[Endpoint]:
    """The endpoints of these assets, in order; an asset without a declared one is skipped."""
    declarations = {(each.exchange.name, each.name): each for each in declared}
    endpoints: list[Endpoint] = []
    for asset in assets:
        parts = asset.split("/")
        declaration = declarations.get((parts[0], parts[-1]))
        if declaration is None:
            continue
        # An account's alias is what is between exchange and name.
        endpoint = declaration.for_account("/".join(parts[1:-1]))
        # A text with an empty part, such as `binance//customization`, is no asset.
        if endpoint.key == asset:
            endpoints.append(endpoint)
    return endpoints


def _aliases(exchange: Exchange, variables: Mapping[str, str]) -> set[str]:
    """The aliases of the exchange's further accounts, from the suffixes of its variables."""
    aliases: set[str] = set()
    for name in variables:
        base, _, suffix = name.partition(ALIAS_SEPARATOR)
        alias = _alias(suffix)
        if alias and base in exchange.account_variables:
            aliases.add(alias)
    return aliases


def is_alias(text: str) -> bool:
    """Whether a further account may have this alias."""
    return _ALIAS.fullmatch(text) is not None


def _alias(suffix: str) -> str | None:
    """The alias whose upper-case form is this suffix of a variable; None if the suffix is malformed."""
    alias = suffix.lower()
    is_upper_case = alias.upper() == suffix
    return alias if is_upper_case and is_alias(alias) else None
