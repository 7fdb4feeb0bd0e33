"""The only reader of the environment: what is configured, typed, and one error that names everything wrong with it.

`.env` in the working directory wins over the environment, as Dagster itself has it. What is not configured is missing,
and named as such, with one exception: the application (`affiliate-pipeline`, and Dagster on `defs.storage.Storage`) may
use the embedded server and, in `.affiliate/settings.env`, the sandbox's values. `application` is the only place that
decides so. Nothing is read at import.
"""

import codecs
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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

from affiliate_pipeline.domain.problem import SettingsError

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
# No value begins or ends with any of these: white space, control characters, and what editors and web pages add unseen.
_SURROUNDING = r"[\s\x00-\x1f\x7f\xad\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]+"
_SURROUNDED = re.compile(rf"\A{_SURROUNDING}|{_SURROUNDING}\Z")
_QUOTES = "\"'`\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u2039\u203a\xab\xbb"
_LOOPBACK_ENTRIES = "localhost,.localhost,127.0.0.0/8,::1"
_LINE_END = re.compile(r"\r\n|\r|\n")


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


def text_of(data: bytes, file: str) -> str:
    """The text of a file that people write: UTF-8, or UTF-16 with its byte order mark; else raises a SettingsError."""
    marks = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    utf_32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
    encoding = "utf-16" if data.startswith(marks) and not data.startswith(utf_32) else "utf-8-sig"
    try:
        text = data.decode(encoding)
        end = text.find("\0")
        if end < 0:
            return text
        before, found = text[:end], "has a NUL character, as in UTF-16 without a byte order mark"
    except UnicodeDecodeError as error:
        before, found = data[: error.start].decode(encoding, "ignore"), "is not UTF-8 text"
    line = len(_LINE_END.findall(before)) + 1
    raise SettingsError(f"{file}, line {line}, {found}", "Save the file as UTF-8")


def _variables_in(file: Path) -> dict[str, str | None]:
    """The variables of an env file; none if there is no such file."""
    try:
        text = text_of(file.read_bytes(), f"{file}")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise SettingsError(
            f"{file} cannot be read ({error.strerror})", "Make it a file that the user who runs this may read"
        ) from None
    return dotenv_values(stream=io.StringIO(text))


def _set(variables: Mapping[str, str | None]) -> dict[str, str]:
    """The variables that have a value, without white space around it."""
    values = {name: _SURROUNDED.sub("", value or "") for name, value in variables.items()}
    return {name: value for name, value in values.items() if value}


def save_env_file_as_utf8() -> bool:
    """Rewrites a `.env` in UTF-16, which Dagster cannot read, as UTF-8; True if it was."""
    file = Path.cwd() / ".env"
    _variables_in(file)
    if not file.is_file() or not (data := file.read_bytes()).startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return False
    unfinished = file.with_name(f".env.{os.getpid()}")
    unfinished.touch(0o600)
    unfinished.write_bytes(text_of(data, f"{file}").encode())
    unfinished.chmod(file.stat().st_mode)
    unfinished.replace(file)
    return True


def _configured(*more: Path) -> dict[str, str]:
    variables = dict(os.environ)
    for folder in (*more, Path.cwd()):
        variables |= _variables_in(folder / ".env")
    return _set(variables)


def network_variables(variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables of proxies and certificates, for `rest.network`, from these variables or the configured ones."""
    variables = _configured() if variables is None else variables
    names = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
    # An empty variable in lower case hides the one in upper case, as for curl.
    spelled = [name if name in variables or name in os.environ else name.upper() for name in names]
    return {name: variables[name] for name in (*spelled, "SSL_CERT_FILE", "SSL_CERT_DIR") if name in variables}


def keep_loopback_off_proxies() -> None:
    """Makes libraries that read NO_PROXY themselves bypass proxies for this machine's own servers."""
    entries = (os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")).strip()
    if entries != "*" and not entries.endswith(_LOOPBACK_ENTRIES):
        entries = f"{entries},{_LOOPBACK_ENTRIES}".strip(",")
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = entries


class Embedded(StrEnum):
    """The databases of the embedded server."""

    PRODUCTION = "affiliate"
    SANDBOX = "affiliate_sandbox"


@dataclass(frozen=True)
class Environment:
    """The settings that apply, read once so that a whole run uses the same, and the database."""

    variables: Mapping[str, str] = field(repr=False)
    # None: the database is that of AFFILIATE_DATABASE_URL, if set.
    embedded: Embedded | None = None

    @property
    def is_sandbox(self) -> bool:
        """Whether the exchanges are the sandbox's."""
        return self.embedded is Embedded.SANDBOX

    @property
    def is_exchange_configured(self) -> bool:
        return self.is_any_set(EXCHANGE_VARIABLES)

    def is_any_set(self, names: Sequence[str]) -> bool:
        """Whether at least one of the variables has a value."""
        return any(name in self.variables for name in names)

    def database_url(self) -> str:
        """The `postgresql://` URL of the one database; the embedded server is started if it is used.

        Raises:
            SettingsError: no database is configured, and the embedded server may not be used.
        """
        if self.embedded is None:
            return self._configured_url()
        from affiliate_pipeline.app.embedded_server import server

        return server.ensure(home(), self.embedded)

    def existing_url(self) -> str | None:
        """The same URL, without starting or creating anything; None if the embedded server does not run."""
        if self.embedded is None:
            return self._configured_url()
        from affiliate_pipeline.app.embedded_server import server

        return server.url(home(), self.embedded) if server.is_running(home()) else None

    def is_embedded_at(self, url: str) -> bool:
        """Whether the URL is that of the embedded database, whichever port the server has."""
        from affiliate_pipeline.app.embedded_server import server

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
            raise SettingsError(f"{DATABASE_VARIABLE} is not set", HOW_TO_SET)
        if faults := _faults(DATABASE_VARIABLE, self.variables[DATABASE_VARIABLE]):
            raise SettingsError(*faults)
        scheme, separator, rest = self.variables[DATABASE_VARIABLE].partition("://")
        if not separator or scheme.split("+")[0] not in ("postgresql", "postgres"):
            raise SettingsError(f"{DATABASE_VARIABLE} is not a postgresql:// URL")
        return f"postgresql://{rest}"


def configured() -> Environment:
    """What is configured, and nothing else."""
    return Environment(_configured())


def application() -> Environment:
    """What the application uses: its embedded server if no database is configured, and also its sandbox if no exchange is
    configured and `up` has chosen the sandbox."""
    # A command started in a subfolder finds the project's `.affiliate`, so it has to read the project's `.env` too.
    environment = Environment(_configured(root()))
    if DATABASE_VARIABLE in environment.variables:
        return environment
    if environment.is_exchange_configured or not _chosen_file().is_file():
        return Environment(environment.variables, Embedded.PRODUCTION)
    return Environment({**chosen(), **environment.variables}, Embedded.SANDBOX)


def chosen() -> dict[str, str]:
    """What was chosen for the sandbox."""
    return _set(_variables_in(_chosen_file()))


def choose(variables: Mapping[str, str]) -> None:
    """Writes what was chosen for the sandbox."""
    text = "# Written by `affiliate-pipeline up`; counts only while no exchange is configured.\n"
    text += "".join(f"{name}={value}\n" for name, value in variables.items())
    _chosen_file().write_text(text, encoding="utf-8")


def set_default(**variables: object) -> None:
    """What libraries of this process find in the environment, unless it is set there."""
    for name, value in variables.items():
        os.environ.setdefault(name, str(value))


def process_environment(**more: str) -> dict[str, str]:
    """The environment for a process that we start."""
    return {**os.environ, **more}


def _faults(name: str, value: str) -> list[str]:
    """What is wrong with the value of a variable, whatever the variable is for."""
    if value[0] in _QUOTES:
        return [f"{name} is in quotes, which count as a part of its value: remove them"]
    return []


@contextmanager
def naming(variable: str) -> Iterator[None]:
    """Turns a ValueError raised in the block into a SettingsError that names the variable."""
    try:
        yield
    except ValueError as error:
        raise SettingsError(f"{variable} cannot be used: {error}", "Correct it in the environment or in .env") from None


_HOST = re.compile(r"(?i)\[[0-9a-f:.]+\]|(?!.*\.\.)[a-z0-9_-]([a-z0-9_.-]{0,251}[a-z0-9_-])?\.?")


def _base_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:  # its own text quotes the URL
        raise ValueError("is not an http(s) URL") from None
    host = parts.netloc.rpartition(":")[0] if parts.port is not None else parts.netloc.removesuffix(":")
    # What the HTTP library would refuse with an error of its own.
    is_sendable = _HOST.fullmatch(host) and max(map(len, host.split("."))) <= 63 and re.fullmatch("[!-~]+", url)
    if parts.scheme not in ("http", "https") or not is_sendable or parts.query or parts.fragment:
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
        for name, value in given.items():
            # A secret that this caller does not require fails the account that requires it, and no other.
            if name in required or "SecretStr" not in str(cls.model_fields[name].annotation):
                problems += _faults(name.upper(), value)
        try:
            settings = cls.model_validate(given)
        except ValidationError as error:
            for problem in error.errors(include_input=False, include_url=False):
                names = [str(name).upper() for name in problem["loc"][:1]]
                if not any(f"{name} " in known for name in names for known in problems):
                    problems.append(" ".join([*names, problem["msg"].removeprefix("Value error, ")]))
        if problems:
            raise SettingsError("; ".join(problems), HOW_TO_SET)
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
        if urls and (faults := _faults("ALERT_URLS", urls)):
            raise SettingsError(*faults)
        # A URL has commas of its own (`to=a@x.com,b@x.com`), but no white space.
        return [url.strip() for url in re.split(r",(?=[\s,]|$|\w+://)", urls) if url.strip()]
