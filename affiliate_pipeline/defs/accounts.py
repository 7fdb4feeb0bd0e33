"""The accounts that a Dagster project gives, with credentials by variable name.

A variable is read in a step or tick, never earlier: Dagster fails a run with an unset `EnvVar` in a resource's
config before any step. No day would then be marked as failed, and no alert would name the days.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import dagster as dg

from affiliate_pipeline.defs.arguments import InvalidArgument, Text, name_of, resource_of, secret_of, shown_of, value_of
from affiliate_pipeline.domain.problem import AffiliateError, SettingsError, SettingsErrors
from affiliate_pipeline.domain.settings import SET_VARIABLES_ACTION, check_rate_scale, stripped, unset_error
from affiliate_pipeline.exchanges.binance.exchange import BINANCE
from affiliate_pipeline.exchanges.binance.exchange import credentials as binance_credentials
from affiliate_pipeline.exchanges.endpoint import Endpoint, Exchange, VariableNames
from affiliate_pipeline.exchanges.lbank.exchange import CREDENTIALS as LBANK_CREDENTIALS
from affiliate_pipeline.exchanges.lbank.exchange import LBANK
from affiliate_pipeline.exchanges.registry import is_alias


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """An API key and its secret, each by the name of its variable.

    A subclass that overrides `credentials` brings both from another place, such as a secret manager; it needs no
    variables.
    """

    key: dg.EnvVar | None = field(default=None, repr=False)
    secret: dg.EnvVar | None = field(default=None, repr=False)

    def credentials(self) -> tuple[str, str]:
        """The key and the secret, read when a session is opened; raises `SettingsError`."""
        values = secret_of(self.key), secret_of(self.secret)
        missing = [unset_error(name) for name, value in zip(self.names, values, strict=True) if not value]
        if missing:
            raise SettingsErrors(missing, SET_VARIABLES_ACTION)
        return values

    @property
    def names(self) -> tuple[str, str]:
        """The names under which key and secret are reported."""
        if self.is_overridden:
            source = f"{type(self).__name__}.credentials()"
            return f"the key of {source}", f"the secret of {source}"
        return name_of(self.key, "the key"), name_of(self.secret, "the secret")

    @property
    def is_overridden(self) -> bool:
        """Whether this is a subclass that overrides `credentials`."""
        return type(self).credentials is not ApiKey.credentials

    def check(self, argument: str) -> None:
        """Raise `InvalidArgument` if the key or the secret is a literal or was not given."""
        if self.is_overridden:
            return
        for name, value in (("key", self.key), ("secret", self.secret)):
            if isinstance(value, dg.EnvVar):
                continue
            problem = "is missing" if value is None else "is a literal, which Dagster's UI and its storage would show"
            raise InvalidArgument(f'{argument}: {name} {problem}. Give the name of its variable: dg.EnvVar("NAME")')


@dataclass(frozen=True, kw_only=True)
class Account(ABC):
    """An account of an exchange; without an alias, its default account."""

    exchange: ClassVar[Exchange]
    alias: str = ""
    # The exchange's default if None.
    base_url: Text | None = None
    # Multiplies the permitted rates. Above 1 only if `base_url` has a private address, or localhost.
    rate_scale: float = 1.0

    @property
    @abstractmethod
    def keys(self) -> Mapping[str, tuple[ApiKey | None, tuple[str, str]]]:
        """By role: the `ApiKey` or None, and the default account's variable names for its key and its secret."""

    @property
    @abstractmethod
    def arguments(self) -> Mapping[str, tuple[str, object]]:
        """Name and value of each argument that is not a key, by the default account's variable name."""

    @property
    def shared_limit(self) -> object:
        """What must be equal in all accounts of the exchange at one base URL; None: nothing.

        If it is not None, these accounts share one rate limit.
        """
        return None

    @property
    def title(self) -> str:
        """How messages name it: `BinanceAccount acme`."""
        return " ".join(filter(None, (type(self).__name__, self.alias)))

    @property
    def group(self) -> str:
        """The exchange, and the alias of a further account: `binance`, `binance_acme`."""
        return "_".join(filter(None, (self.exchange.name, self.alias)))

    @property
    def names(self) -> VariableNames:
        """Pairs: the default account's variable, and the name by which this account's value is found and reported."""
        return tuple(self._names())

    def _names(self) -> Iterator[tuple[str, str]]:
        for role, (key, variables) in self.keys.items():
            names_without_key = f"the {role} key of {self.title}", f"the {role} secret of {self.title}"
            names = key.names if key else names_without_key
            yield from zip(variables, names, strict=True)
        for variable, (argument, value) in self.arguments.items():
            yield variable, name_of(value, f"{argument} of {self.title}")

    def reaches(self, endpoint: Endpoint) -> bool:
        """Whether the endpoint is of this exchange, and the account has all that it requires."""
        if endpoint.exchange is not self.exchange:
            return False
        key, _ = self.keys[endpoint.role]
        if key is None:
            return False
        required = (self.arguments[name] for name in endpoint.requires)
        return all(value is not None for _, value in required)

    def values(self, role: str) -> dict[str, str]:
        """The values that are set now, of the arguments and of the role's key, by their names in `names`.

        Raises `SettingsError` if a subclass of `ApiKey` fails or the file of a secret cannot be used.
        """
        names = dict(self.names)
        values = {names[variable]: value_of(value) for variable, (_, value) in self.arguments.items()}
        key, _ = self.keys[role]
        if key and key.is_overridden:
            values |= zip(key.names, _from_subclass(key), strict=True)
        elif key:
            values |= zip(key.names, (secret_of(key.key), secret_of(key.secret)), strict=True)
        return {name: value for name, value in values.items() if value}

    def key_in_variable(self, role: str) -> tuple[str, str]:
        """Name and value of a role's key; the value is empty if an `ApiKey` subclass or unreadable file has it."""
        key, (variable, _) = self.keys[role]
        value = ""
        if key and not key.is_overridden:
            # The value is only compared with other accounts' keys, so that no records land twice: an account whose key
            # cannot be read lands none.
            with suppress(SettingsError):
                value = secret_of(key.key)
        return dict(self.names)[variable], value

    def check(self) -> None:
        """Raise `InvalidArgument` for errors that do not depend on the values of variables."""
        if self.alias and not is_alias(self.alias):
            raise InvalidArgument(
                f"alias {self.alias!r}: use up to 31 lower-case letters, digits and single underscores, the first one a "
                "letter, without _file at the end"
            )

        if not any(key for key, _ in self.keys.values()):
            raise InvalidArgument(f"{self.title} has no key")
        for role, (key, _) in self.keys.items():
            if key:
                key.check(f"the {role} key of {self.title}")

        if isinstance(self.base_url, dg.EnvVar):
            return
        try:
            check_rate_scale(self.base_url or "", self.rate_scale)
        except ValueError:
            what = f"{self.title}: rate_scale may be above 1 only where base_url has a private address, or localhost"
            raise InvalidArgument(what) from None

    def resource(self) -> dg.ResourceDefinition:
        """The account as Dagster shows it: variables by name, literals as they are."""
        shown = {role: ", ".join(key.names) for role, (key, _) in self.keys.items() if key}
        shown |= {argument: shown_of(value) for argument, value in self.arguments.values() if value is not None}
        return resource_of(self, f"An account of {self.exchange.title}. Credentials are shown by variable.", shown)


@dataclass(frozen=True, kw_only=True)
class BinanceAccount(Account):
    """An account of Binance Link, with the key of the partner, of the client, or both."""

    exchange: ClassVar[Exchange] = BINANCE
    partner: ApiKey | None = None
    client: ApiKey | None = None
    # The partner's apiAgentCode.
    agent_code: Text | None = None
    # The path of a CSV `customerId,email` with the desired ids of the partner's clients.
    customer_ids: Text | None = None
    # The client's own desired id.
    user_customer_id: Text | None = None
    # Further hosts of history files; each also permits its subdomains.
    file_hosts: Sequence[str] = ()
    # The weight per minute that all accounts together may use, of the 12,000 that Binance permits per IP address.
    weight_per_minute: int | None = None

    @property
    def shared_limit(self) -> object:
        """Weight and rate scale: Binance counts weight per IP address, so all accounts share one rate limit."""
        return self.weight_per_minute, self.rate_scale

    @property
    def keys(self) -> Mapping[str, tuple[ApiKey | None, tuple[str, str]]]:
        """By role: the `ApiKey` or None, and the default account's variable names for its key and its secret."""
        return {
            "partner": (self.partner, binance_credentials("partner")),
            "client": (self.client, binance_credentials("client")),
        }

    @property
    def arguments(self) -> Mapping[str, tuple[str, object]]:
        """Name and value of each argument that is not a key, by the default account's variable name."""
        return {
            "BINANCE_BASE_URL": ("base_url", self.base_url),
            "BINANCE_API_AGENT_CODE": ("agent_code", self.agent_code),
            "BINANCE_CUSTOMER_IDS": ("customer_ids", self.customer_ids),
            "BINANCE_USER_CUSTOMER_ID": ("user_customer_id", self.user_customer_id),
            "BINANCE_FILE_HOSTS": ("file_hosts", ",".join(self.file_hosts) or None),
            "BINANCE_WEIGHT_PER_MINUTE": ("weight_per_minute", self.weight_per_minute),
            "AFFILIATE_RATE_SCALE": ("rate_scale", self.rate_scale),
        }


@dataclass(frozen=True, kw_only=True)
class LBankAccount(Account):
    """An affiliate account of LBank, with the affiliate's own openId."""

    exchange: ClassVar[Exchange] = LBANK
    api: ApiKey
    open_id: Text
    signature_method: Literal["HmacSHA256", "RSA"] | dg.EnvVar | None = None

    @property
    def keys(self) -> Mapping[str, tuple[ApiKey | None, tuple[str, str]]]:
        """By role: the `ApiKey` or None, and the default account's variable names for its key and its secret."""
        key, secret, _ = LBANK_CREDENTIALS
        return {"affiliate": (self.api, (key, secret))}

    @property
    def arguments(self) -> Mapping[str, tuple[str, object]]:
        """Name and value of each argument that is not a key, by the default account's variable name."""
        return {
            "LBANK_BASE_URL": ("base_url", self.base_url),
            "LBANK_OPEN_ID": ("open_id", self.open_id),
            "LBANK_SIGNATURE_METHOD": ("signature_method", self.signature_method),
            "AFFILIATE_RATE_SCALE": ("rate_scale", self.rate_scale),
        }


def _from_subclass(key: ApiKey) -> tuple[str, str]:
    """The key and the secret that a subclass's `credentials` returns; raises `SettingsError` if it fails."""
    try:
        api_key, secret = key.credentials()
        # Stripped like the values of variables: if the method has read a mounted file, that often ends with a newline.
        return stripped(api_key), stripped(secret)
    except AffiliateError:
        raise
    except Exception as error:
        # The text of another package's error may quote a secret.
        what = f"{type(key).__name__}.credentials() failed ({type(error).__name__})"
        raise SettingsError(what, "Check the place that the credentials are read from") from None
