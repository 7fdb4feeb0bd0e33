"""The only reader of the environment: what is configured, typed, and one error that names everything wrong with it.

`.env` in the working directory wins over the environment, as Dagster itself has it. What is not configured is missing,
and named as such, with one exception: the application (`affiliate-pipeline`, and Dagster on `defs.storage.Storage`) may
use the embedded server and, in `.affiliate/settings.env`, the sandbox's values. `application` is the only place that
decides so. Nothing is read at import.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

EXCHANGE_VARIABLES = (
    "BINANCE_BASE_URL",
    "BINANCE_PARTNER_API_KEY",
    "BINANCE_PARTNER_API_SECRET",
    "BINANCE_CLIENT_API_KEY",
    "BINANCE_CLIENT_API_SECRET",
    "BINANCE_API_AGENT_CODE",
    "LBANK_BASE_URL",
    "LBANK_API_KEY",
    "LBANK_API_SECRET",
    "LBANK_OPEN_ID",
)
DATABASE_VARIABLE = "AFFILIATE_DATABASE_URL"
HOW_TO_SET = "Set what is named in the environment or in .env (see README, Real accounts)"


class SettingsError(Exception):
    """Something has to be configured; the text names every variable concerned, and no value."""


def root() -> Path:
    """The folder of `workspace.yaml`: the working directory or the nearest above it, else the package's own."""
    for folder in (Path.cwd(), *Path.cwd().parents, Path(__file__).resolve().parent.parent):
        if (folder / "workspace.yaml").is_file():
            return folder
    return Path.cwd()


def home() -> Path:
    """The folder of what is kept on this machine: the embedded database, logs, the sandbox's settings."""
    return root() / ".affiliate"


def reports() -> Path:
    """The folder of the pages that people open."""
    return root() / "reports"


def _chosen_file() -> Path:
    return home() / "settings.env"


def _configured() -> dict[str, str]:
    variables = {**os.environ, **dotenv_values(Path.cwd() / ".env")}
    return {name: value for name, value in variables.items() if value}


class Embedded(StrEnum):
    """The databases of the embedded server."""

    PRODUCTION = "affiliate"
    SANDBOX = "affiliate_sandbox"


@dataclass(frozen=True)
class Environment:
    """The variables that count, read at one moment so that all of a run uses the same, and the one database."""

    variables: Mapping[str, str] = field(repr=False)
    # None: the database is the one that AFFILIATE_DATABASE_URL names, or none.
    embedded: Embedded | None = None

    @property
    def is_sandbox(self) -> bool:
        """Whether the exchanges are the sandbox's."""
        return self.embedded is Embedded.SANDBOX

    @property
    def is_exchange_configured(self) -> bool:
        return self.is_any_set(EXCHANGE_VARIABLES)

    def is_any_set(self, names: Sequence[str]) -> bool:
        """Whether one of the variables at least has a value."""
        return any(name in self.variables for name in names)

    def database_url(self) -> str:
        """The `postgresql://` URL of the one database; the embedded server is started if it is used.

        Raises:
            SettingsError: no database is configured, and the embedded server may not be used.
        """
        if self.embedded is None:
            return self._configured_url()
        from affiliate_pipeline.postgres import server

        return server.ensure(home(), self.embedded)

    def existing_url(self) -> str | None:
        """The same URL with nothing started or created for it; None if the embedded server does not run."""
        if self.embedded is None:
            return self._configured_url()
        from affiliate_pipeline.postgres import server

        return server.url(home(), self.embedded) if server.is_running(home()) else None

    def is_embedded_at(self, url: str) -> bool:
        """Whether the URL is that of the embedded database, whichever port the server has."""
        from affiliate_pipeline.postgres import server

        if self.embedded is None:
            return False
        try:
            ours, given = urlsplit(server.url(home(), self.embedded)), urlsplit(url)
        except (server.ServerError, ValueError):
            return False
        # The password is random, so it identifies the server.
        return (ours.password, ours.path) == (given.password, given.path)

    def _configured_url(self) -> str:
        if DATABASE_VARIABLE not in self.variables:
            raise SettingsError(f"{DATABASE_VARIABLE} is not set. {HOW_TO_SET}")
        scheme, separator, rest = self.variables[DATABASE_VARIABLE].partition("://")
        if not separator or scheme.split("+")[0] not in ("postgresql", "postgres"):
            raise SettingsError(f"{DATABASE_VARIABLE} is not a postgresql:// URL")
        return f"postgresql://{rest}"


def configured() -> Environment:
    """What is configured, and nothing else."""
    return Environment(_configured())


def application() -> Environment:
    """What the application uses: its embedded server if no database is configured, and its sandbox if, besides, no
    exchange is configured and `up` has chosen the sandbox."""
    environment = configured()
    if DATABASE_VARIABLE in environment.variables:
        return environment
    if environment.is_exchange_configured or not _chosen_file().is_file():
        return Environment(environment.variables, Embedded.PRODUCTION)
    return Environment({**chosen(), **environment.variables}, Embedded.SANDBOX)


def chosen() -> dict[str, str]:
    """What was chosen for the sandbox."""
    return {name: value for name, value in dotenv_values(_chosen_file()).items() if value}


def choose(variables: Mapping[str, str]) -> None:
    """Writes what was chosen for the sandbox."""
    text = "# Written by `affiliate-pipeline up`; counts only while no exchange is configured.\n"
    _chosen_file().write_text(text + "".join(f"{name}={value}\n" for name, value in variables.items()))


def set_default(**variables: object) -> None:
    """What libraries of this process find in the environment, unless it is set there."""
    for name, value in variables.items():
        os.environ.setdefault(name, str(value))


def process_environment(**more: str) -> dict[str, str]:
    """The environment for a process that we start."""
    return {**os.environ, **more}


def _base_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:  # its own text quotes the URL
        raise ValueError("is not an http(s) URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
        raise ValueError("is not an http(s) URL")
    return url.rstrip("/")


def _host_suffixes(text: str) -> tuple[str, ...]:
    suffixes = tuple(
        each.strip().lower().removeprefix("*").removeprefix(".") for each in text.split(",") if each.strip()
    )
    # Neither an IP address nor a whole top-level domain.
    if not all(re.fullmatch(r"([a-z0-9-]+\.)+[a-z][a-z0-9-]+", each) for each in suffixes):
        raise ValueError("is not a list of host names, such as `files.example.com`, separated by commas")
    return suffixes


BaseUrl = Annotated[str, AfterValidator(_base_url)]
# Each stands for itself and everything below it.
HostSuffixes = Annotated[tuple[str, ...], BeforeValidator(_host_suffixes)]
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Settings(BaseModel):
    """One concern's variables; a field is the variable of its name in upper case."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    @classmethod
    def load(cls, *required: str, variables: Mapping[str, str] | None = None) -> Self:
        """The settings in these variables, by default in those that are configured.

        Raises:
            SettingsError: names all variables missing or malformed.
        """
        variables = _configured() if variables is None else variables
        given = {name: variables[name.upper()] for name in cls.model_fields if name.upper() in variables}
        problems = [f"{name.upper()} is not set" for name in required if name not in given]
        try:
            settings = cls.model_validate(given)
        except ValidationError as error:
            problems += [
                " ".join(
                    [*(str(name).upper() for name in problem["loc"][:1]), problem["msg"].removeprefix("Value error, ")]
                )
                for problem in error.errors(include_input=False, include_url=False)
            ]
        if problems:
            raise SettingsError(f"{'; '.join(problems)}. {HOW_TO_SET}")
        return settings


class Project(Settings):
    affiliate_start_date: date = date(2025, 1, 1)
    # Whether the schedules run without being started in the UI, as they do under `affiliate-pipeline up`.
    affiliate_schedules: bool = False


def check_rate_scale(base_url: str, scale: float) -> None:
    """Faster than the exchange permits is for a server of one's own."""
    if scale > 1 and urlsplit(base_url).hostname not in LOOPBACK:
        raise ValueError("AFFILIATE_RATE_SCALE may be above 1 only where the base URL is on loopback")


Scale = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Binance(Settings):
    binance_base_url: BaseUrl = "https://api.binance.com"
    # Hosts that files of the history may come from, besides those known.
    binance_file_hosts: HostSuffixes = ()
    binance_partner_api_key: SecretStr | None = None
    binance_partner_api_secret: SecretStr | None = None
    binance_client_api_key: SecretStr | None = None
    binance_client_api_secret: SecretStr | None = None
    binance_api_agent_code: str | None = None
    # The path of a CSV `customerId,email`.
    binance_customer_ids: str | None = None
    binance_user_customer_id: str | None = None
    binance_weight_per_minute: Annotated[int, Field(ge=1, le=12000)] = 6000
    affiliate_rate_scale: Scale = 1.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_rate_scale(self.binance_base_url, self.affiliate_rate_scale)
        return self


class LBank(Settings):
    lbank_base_url: BaseUrl = "https://affiliate.lbankverify.com"
    lbank_api_key: SecretStr | None = None
    lbank_api_secret: SecretStr | None = None
    lbank_signature_method: Literal["HmacSHA256", "RSA"] = "HmacSHA256"
    lbank_open_id: str | None = None
    affiliate_rate_scale: Scale = 1.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_rate_scale(self.lbank_base_url, self.affiliate_rate_scale)
        return self


class Alerts(Settings):
    alert_urls: SecretStr | None = None
    heartbeat_url: SecretStr | None = None
    dagster_ui_url: BaseUrl = "http://localhost:3000"

    def urls(self) -> Sequence[str]:
        """Apprise URLs; they hold secrets."""
        urls = self.alert_urls.get_secret_value() if self.alert_urls else ""
        # A URL has commas of its own (`to=a@x.com,b@x.com`), but no white space.
        return [url.strip() for url in re.split(r",(?=[\s,]|$|\w+://)", urls) if url.strip()]
