"""The application's environment, and typed settings from its variables."""

import re
from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError, ValidationInfo

from affiliate_pipeline.domain.problem import SettingsError, SettingsErrors

DATABASE_VARIABLE = "AFFILIATE_DATABASE_URL"
DEFAULT_START_DATE = date(2025, 1, 1)
# Between a variable of the default account and the alias of a further one, in upper case.
ALIAS_SEPARATOR = "__"
# The variable with the path of a secret's file has the name of the secret variable and this suffix.
FILE_SUFFIX = "_FILE"
_PLACES = "in the environment or in .env"
SET_VARIABLES_ACTION = f"Set these variables {_PLACES} (see README, Real accounts)"
# Networks whose servers are not an exchange: loopback, private and link-local addresses.
_PRIVATE = [
    *map(ip_network, ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16")),
    *map(ip_network, ("::1/128", "fc00::/7", "fe80::/10")),
]
_QUOTES = "\"'`\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u2039\u203a\xab\xbb"
# Stripped from values: white space, control characters, and invisible characters that editors and web pages add.
_SURROUNDING = r"[\s\x00-\x1f\x7f\xad\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]+"
_EDGES = re.compile(rf"\A{_SURROUNDING}|{_SURROUNDING}\Z")
_NOT_HTTP = "is not an http(s) URL"
_HOST = re.compile(r"(?i)\[[0-9a-f:.]+\]|(?!.*\.\.)[a-z0-9_-]([a-z0-9_.-]{0,251}[a-z0-9_-])?\.?")


class Settings(BaseModel):
    """The settings of one concern; a field is read from the variable of its upper-case name.

    The message about a malformed value is that of the field's own validator; if no validator raised it, the field's
    description names the form of the value.
    """

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    @classmethod
    def load(
        cls, variables: Mapping[str, str], *required: str, variable: Callable[[str], str] = lambda name: name
    ) -> Self:
        """The settings; raises one SettingsError, whose `errors` are about one missing or malformed variable each.

        An empty variable counts as not set.

        Args:
            required: The default account's names of the variables that must be set. If there are any, other secrets
                are not read: a malformed one fails only the account that requires it.
            variable: Returns the account's own name of a default account's variable.
        """
        own_names = {name: variable(name.upper()) for name in cls.model_fields}
        given, errors = cls._values(variables, own_names, required)
        try:
            settings = cls.model_validate(given)
            if not errors:
                return settings
        except ValidationError as error:
            for each in error.errors(include_input=False, include_url=False):
                field = str(each["loc"][0])
                problem = f"is not {cls.model_fields[field].description}"
                if each["type"] == "value_error":
                    problem = each["msg"].removeprefix("Value error, ")
                # Report one problem of each variable.
                if own_names[field] not in [known.variable for known in errors]:
                    errors.append(malformed(own_names[field], problem))
        raise errors[0] if len(errors) == 1 else SettingsErrors(errors, SET_VARIABLES_ACTION)

    @classmethod
    def _values(
        cls, variables: Mapping[str, str], own_names: Mapping[str, str], required: Collection[str]
    ) -> tuple[dict[str, str], list[SettingsError]]:
        """The values by field, and the errors about variables that are missing, in quotes or in an unreadable file."""
        secrets = cls.secrets()
        given: dict[str, str] = {}
        errors: list[SettingsError] = []
        for name, own_name in own_names.items():
            is_required = name.upper() in required
            is_secret_not_required = name in secrets and not is_required
            if required and is_secret_not_required:
                continue
            try:
                # `Variables` may read the value from a file.
                value = variables.get(own_name)
            except SettingsError as error:
                errors.append(error)
                continue

            if value:
                given[name] = value
                # Without `required`, every secret is read; its quotes are an error only for a call that requires it.
                if not is_secret_not_required:
                    errors += quotation_mark_errors(own_name, value)
            elif is_required:
                errors.append(unset_error(own_name))
        return given, errors

    @classmethod
    def secrets(cls) -> set[str]:
        """The fields that are secret."""
        return {name for name, field in cls.model_fields.items() if "SecretStr" in str(field.annotation)}

    def secret(self, variable: str) -> str:
        """The value of a secret; `variable` is its name among those `required` when the settings were loaded."""
        value: SecretStr = getattr(self, variable.lower())
        return value.get_secret_value()


def unset_error(variable: str) -> SettingsError:
    """The error about a variable that is missing."""
    action = f"Set {variable} {_PLACES} (see README, Real accounts)"
    return SettingsError(f"{variable} is not set", action, variable=variable)


def malformed(variable: str, problem: str) -> SettingsError:
    """The error about a variable whose value cannot be used; `problem` is the rest of a sentence about the variable."""
    return SettingsError(f"{variable} {problem}", f"Correct {variable} {_PLACES}", variable=variable)


def quotation_mark_errors(name: str, value: str) -> list[SettingsError]:
    """One error if the value begins with a quote that the env file's syntax did not remove, otherwise none."""
    if value[0] in _QUOTES:
        return [malformed(name, "is in quotes, which count as a part of its value: remove them")]
    return []


def stripped(value: str | None) -> str:
    """The value of a variable without surrounding white space; empty if it is not set."""
    return _EDGES.sub("", value or "")


class DatabaseUrl(str):
    """A `postgresql://` URL, and the name of the variable or argument that it was given by."""

    name: str


def database_url_in(name: str, value: str | None) -> DatabaseUrl:
    """The value of this variable or argument as a `postgresql://` URL; raises `SettingsError`."""
    if not value:
        raise unset_error(name)
    for error in quotation_mark_errors(name, value):
        raise error
    scheme, separator, rest = value.partition("://")
    if not separator or scheme.split("+")[0] not in ("postgresql", "postgres"):
        raise malformed(name, "is not a postgresql:// URL")
    url = DatabaseUrl(f"postgresql://{rest}")
    url.name = name
    return url


@contextmanager
def as_settings_error(variable: str) -> Generator[None, None, None]:
    """Raise a ValueError of the `with` block as a SettingsError that names the variable."""
    try:
        yield
    except ValueError as error:
        raise malformed(variable, f"cannot be used: {error}") from None


def check_http_url(url: str) -> None:
    """Raise ValueError, which quotes nothing, unless a request can be sent to the URL."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises if the port is malformed
    except ValueError:  # the error's own text quotes the URL
        raise ValueError(_NOT_HTTP) from None
    address = parts.netloc.rpartition("@")[2]
    host = address.rpartition(":")[0] if parts.port is not None else address.removesuffix(":")
    # The HTTP library would raise its own error for any other host or character.
    is_host = _HOST.fullmatch(host) and max(map(len, host.split("."))) <= 63
    is_printable_ascii = re.fullmatch("[!-~]+", url)
    if parts.scheme not in ("http", "https") or not is_host or not is_printable_ascii:
        raise ValueError(_NOT_HTTP)


def _base_url(url: str) -> str:
    check_http_url(url)
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(_NOT_HTTP)
    return url.rstrip("/")


def check_rate_scale(base_url: str, scale: float) -> None:
    """Raise ValueError for a rate above the permitted one, except for a server at a private address.

    Names are not resolved: a name could lead to an exchange.
    """
    if scale > 1 and not _is_private(urlsplit(base_url).hostname or ""):
        raise ValueError("may be above 1 only where the base URL has a private address, or localhost")


def _is_private(host: str) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        return host == "localhost"
    return any(address in each for each in _PRIVATE)


def _permitted_scale(scale: float, info: ValidationInfo) -> float:
    # A malformed URL is not among the values.
    for name, value in info.data.items():
        if name.endswith("_base_url"):
            check_rate_scale(value, scale)
    return scale


BaseUrl = Annotated[str, AfterValidator(_base_url)]
StartDate = Annotated[date | None, Field(description="a day such as 2026-10-01")]
Digest = Annotated[Literal["daily", "weekly", "off"], Field(description="daily, weekly or off")]
# Declare the field after those of the base URLs: its validator gets only the values of earlier fields.
RateScale = Annotated[
    float, Field(gt=0, allow_inf_nan=False, description="a number above 0"), AfterValidator(_permitted_scale)
]


class Mode(StrEnum):
    """Whether the exchanges are real; the value is the name of the mode's embedded database."""

    PRODUCTION = "affiliate"
    SANDBOX = "affiliate_sandbox"


class Project(Settings):
    """The settings that do not depend on an exchange."""

    affiliate_start_date: StartDate = None
    # Whether schedules run without being started in the UI, as under `affiliate-pipeline up`.
    affiliate_schedules: Annotated[bool, Field(description="true or false")] = False
    # Whether coins are valued at market prices.
    affiliate_prices: Annotated[Literal["on", "off"], Field(description="on or off")] = "on"
    # How often a digest of the earnings is sent through the alerts.
    affiliate_digest: Digest = "off"


def _check_ports(urls: str) -> None:
    try:
        for url in urls.split(";"):  # Celery permits several brokers
            _ = urlsplit(url).port
    except ValueError:
        raise ValueError("has a malformed host or port: percent-encode the special characters of a password") from None


def _redis_url(value: SecretStr) -> SecretStr:
    url = value.get_secret_value()
    if not re.match("rediss?://.", url):
        raise ValueError(
            "is not a redis:// URL; another backend, such as rpc://, does not show what failed on a worker"
        )
    if url.startswith("rediss:") and "ssl_cert_reqs=" not in url:
        raise ValueError("is a rediss:// URL, to which Celery requires ?ssl_cert_reqs=CERT_REQUIRED to be added")
    _check_ports(url)
    return value


def _broker_url(value: SecretStr) -> SecretStr:
    if not re.match("(rediss?|(py)?amqps?)://.", value.get_secret_value()):
        raise ValueError("is not a redis:// or amqp:// URL")
    _check_ports(value.get_secret_value())
    return value


class Execution(Settings):
    """Where the steps of runs are executed."""

    affiliate_executor: Annotated[
        Literal["multiprocess", "celery", "k8s"], Field(description="multiprocess, celery or k8s")
    ] = "multiprocess"
    affiliate_celery_broker: Annotated[SecretStr | None, AfterValidator(_broker_url)] = None
    affiliate_celery_backend: Annotated[SecretStr | None, AfterValidator(_redis_url)] = None


CELERY_VARIABLES = ("AFFILIATE_CELERY_BROKER", "AFFILIATE_CELERY_BACKEND")


def execution_in(variables: Mapping[str, str]) -> Execution:
    """Where steps are executed; raises `SettingsError`, also about a variable that the executor requires."""
    settings = Execution.load(variables)
    if settings.affiliate_executor == "celery":
        return Execution.load(variables, *CELERY_VARIABLES)
    return settings


def known_variables() -> set[str]:
    """The variables of all settings, without those of further accounts."""
    names = {name.upper() for kind in Settings.__subclasses__() for name in kind.model_fields}
    return names | {DATABASE_VARIABLE} | {f"{name}{FILE_SUFFIX}" for name in secret_variables()}


def secret_variables() -> set[str]:
    """The variables of all settings that are secret, without those of further accounts."""
    return {name.upper() for kind in Settings.__subclasses__() for name in kind.secrets()} | {DATABASE_VARIABLE}


@dataclass(frozen=True)
class Environment:
    """The mode, folders and variables of this process.

    Variables are parsed when they are used, so that a malformed one fails only what needs it.
    """

    mode: Mode
    # The project's folder: that of `workspace.yaml`, if there is one.
    root: Path
    variables: Mapping[str, str] = field(repr=False)
    # Set once the application has started the embedded server.
    embedded_url: str | None = field(default=None, repr=False)
    # By asset, the first day that `up` chose.
    first_days: Mapping[str, date] = field(default_factory=dict[str, date], repr=False)

    @property
    def home(self) -> Path:
        """The folder for local state: the embedded database, logs, the sandbox's settings."""
        return self.root / ".affiliate"

    @property
    def reports(self) -> Path:
        """The folder of the HTML reports; without a `workspace.yaml`, everything is written to `home`."""
        folder = self.root if (self.root / "workspace.yaml").is_file() else self.home
        return folder / "reports"

    @property
    def start_date(self) -> date | None:
        """The first day that is configured for all exchanges; None: none is configured."""
        return Project.load(self.variables).affiliate_start_date

    @property
    def runs_schedules(self) -> bool:
        """Whether schedules run without being started in the UI."""
        return Project.load(self.variables).affiliate_schedules

    @property
    def has_prices(self) -> bool:
        """Whether coins are valued at market prices."""
        return Project.load(self.variables).affiliate_prices == "on"

    @property
    def digest(self) -> Digest:
        """How often a digest of the earnings is sent."""
        return Project.load(self.variables).affiliate_digest

    def is_any_set(self, names: Iterable[str]) -> bool:
        """Whether at least one of the variables has a value."""
        return any(name in self.variables for name in names)

    def database_url(self) -> str:
        """The database's `postgresql://` URL; raises `SettingsError` if none is started, set or well-formed."""
        if self.embedded_url:
            return self.embedded_url
        return database_url_in(DATABASE_VARIABLE, self.variables.get(DATABASE_VARIABLE))
