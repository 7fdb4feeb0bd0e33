"""The application's environment: variables and `.env`, read only here, become a frozen `Environment`.

A `.env` in the working directory takes precedence over the variables, as in Dagster itself. Importing this module reads
no settings and starts nothing.
"""

import codecs
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path

from dotenv import dotenv_values
from dotenv.parser import parse_stream

from affiliate_pipeline.domain.files import replacing, text_of
from affiliate_pipeline.domain.problem import SettingsError
from affiliate_pipeline.domain.settings import DATABASE_VARIABLE, Environment, Mode, stripped
from affiliate_pipeline.domain.variables import Variables
from affiliate_pipeline.exchanges.registry import is_any_exchange_configured
from affiliate_pipeline.http.network import VARIABLES as NETWORK_VARIABLES

_PROXY_VARIABLES = {"http_proxy", "https_proxy", "all_proxy", "no_proxy"}
_LOOPBACK_ENTRIES = "localhost,.localhost,127.0.0.0/8,::1"
# The environments of the Dagster storages that this process has loaded and that are on an embedded server, by the URL
# of the storage. The storage that was loaded last comes last.
_on_embedded_storage: dict[str, Environment] = {}


def root() -> Path:
    """The current folder or nearest parent with `workspace.yaml`, else this checkout, else the current."""
    for folder in (Path.cwd(), *Path.cwd().parents, Path(__file__).resolve().parent.parent):
        if (folder / "workspace.yaml").is_file():
            return folder
    return Path.cwd()


def home() -> Path:
    """`Environment.home`, available even if the environment cannot be read."""
    return Environment(Mode.PRODUCTION, root(), {}).home


def configured() -> Environment:
    """The configured variables only: no sandbox, no embedded server."""
    return _production(Variables(_configured_variables()))


def application() -> Environment:
    """The application's environment: what is configured, else the sandbox if `up` has started one.

    The sandbox applies only while neither a database nor any exchange is configured. Without a database,
    `embedded_server.server` adds the embedded one.
    """
    # A command started in a subfolder finds the project's `.affiliate`, so it has to read the project's `.env` too.
    configured_variables = _configured_variables(root())
    production = _production(Variables(configured_variables))
    is_configured = DATABASE_VARIABLE in production.variables or is_any_exchange_configured(production.variables)
    if is_configured or not _sandbox_file().is_file():
        return production
    variables = Variables({**sandbox_variables(), **configured_variables})
    return replace(production, mode=Mode.SANDBOX, variables=variables, first_days=_first_days(Mode.SANDBOX))


def register_embedded(storage_url: str, environment: Environment) -> None:
    """Apply the environment to instances whose Dagster storage is at this embedded URL."""
    # Remove it first, so that it becomes the newest.
    _on_embedded_storage.pop(storage_url, None)
    _on_embedded_storage[storage_url] = environment


def of_instance(instance: object) -> Environment:
    """The environment of a Dagster instance's runs and ticks.

    Only an instance with its storage on the embedded server gets the application's environment, others get the
    configured one. With the application's, another team's instance would report days as landed although their rows are
    in this embedded server or are sandbox data.
    """
    storage_url = getattr(getattr(instance, "event_log_storage", None), "postgres_url", "")
    return _on_embedded_storage.get(storage_url) or configured()


def of_process() -> Environment:
    """The environment while the code location loads: that of the embedded storage that Dagster loaded just before.

    Without one, the configured environment.
    """
    return next(reversed(_on_embedded_storage.values()), None) or configured()


def sandbox_variables() -> dict[str, str]:
    """The variables that `up` has saved for the sandbox."""
    return _nonempty(_variables_in(_sandbox_file()))


def save_sandbox_variables(variables: Mapping[str, str]) -> None:
    """Save the variables of the sandbox, which apply only while no exchange and no database is configured."""
    text = "# Written by `affiliate-pipeline up`; applies only while no exchange and no database is configured.\n"
    text += "".join(f"{name}={value}\n" for name, value in variables.items())
    _sandbox_file().write_text(text, encoding="utf-8")


def save_first_days(environment: Environment) -> None:
    """Save the first days that `up` has chosen, which apply to the environment's mode."""
    file = _first_days_file()
    chosen = {asset: f"{day}" for asset, day in environment.first_days.items()}
    unfinished = file.with_name(f"{file.name}.{os.getpid()}")
    unfinished.write_text(json.dumps({**_saved_first_days(), environment.mode: chosen}, indent=2), encoding="utf-8")
    unfinished.replace(file)


def save_env_file_as_utf8() -> bool:
    """Rewrite a UTF-16 `.env`, which Dagster cannot read, as UTF-8; return whether it was UTF-16."""
    file = Path.cwd() / ".env"
    _variables_in(file)  # raises `SettingsError` if the file cannot be read
    if not file.is_file():
        return False
    data = file.read_bytes()
    if not data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return False
    with replacing(file, 0o600) as utf8:
        utf8.write(text_of(data, f"{file}").encode())
        os.fchmod(utf8.fileno(), file.stat().st_mode)
    return True


def unreadable_lines() -> Iterator[str]:
    """File and number of each line of `.env` that is ignored, since it is not `NAME=value`; raises SettingsError.

    The line itself is left out, because it may contain a secret.
    """
    for folder in dict.fromkeys((root(), Path.cwd())):
        file = folder / ".env"
        for binding in parse_stream(io.StringIO(_text_in(file))):
            lacks_value = binding.key and binding.value is None
            if binding.error or lacks_value:
                yield f"{file}, line {binding.original.line}"


def export_network_variables(environment: Environment) -> None:
    """Make libraries of this process use the proxies and certificates of `.env`, as in a process of Dagster."""
    os.environ.update(
        {name: environment.variables[name] for name in NETWORK_VARIABLES if name in environment.variables}
    )


def exclude_loopback_from_proxies() -> None:
    """Make libraries that read NO_PROXY bypass proxies for this machine's own servers."""
    entries = (os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")).strip()
    if entries != "*" and not entries.endswith(_LOOPBACK_ENTRIES):
        entries = f"{entries},{_LOOPBACK_ENTRIES}".strip(",")
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = entries


def set_default(**variables: object) -> None:
    """Set variables for libraries of this process, unless they are already set."""
    for name, value in variables.items():
        os.environ.setdefault(name, str(value))


def process_environment(**more: str) -> dict[str, str]:
    """The environment variables for a child process: those of this process, and `more`."""
    return {**os.environ, **more}


def _production(variables: Mapping[str, str]) -> Environment:
    return Environment(Mode.PRODUCTION, root(), variables, first_days=_first_days(Mode.PRODUCTION))


def _sandbox_file() -> Path:
    return home() / "settings.env"


def _first_days_file() -> Path:
    return home() / "first_days.json"


def _first_days(mode: Mode) -> dict[str, date]:
    """By asset, the first day that `up` chose in this mode; raises SettingsError."""
    try:
        return {asset: date.fromisoformat(day) for asset, day in _saved_first_days().get(mode, {}).items()}
    except (AttributeError, TypeError, ValueError):
        what = f"{_first_days_file()} does not contain the first days that `up` chose"
        raise SettingsError(what, "Restore the file, or delete it: the next `up` then chooses them again") from None


def _saved_first_days() -> dict[str, dict[str, str]]:
    return json.loads(_text_in(_first_days_file(), if_missing="{}"))


def _variables_in(file: Path) -> dict[str, str | None]:
    """The variables of an env file; none if there is no such file."""
    return dotenv_values(stream=io.StringIO(_text_in(file)))


def _text_in(file: Path, if_missing: str = "") -> str:
    """The file's text, or `if_missing` if there is no such file; raises SettingsError."""
    try:
        return text_of(file.read_bytes(), f"{file}")
    except (FileNotFoundError, NotADirectoryError):
        return if_missing
    except OSError as error:
        what = f"{file} cannot be read ({error.strerror})"
        raise SettingsError(what, "Make it a file that this user may read") from None


def _nonempty(variables: Mapping[str, str | None]) -> dict[str, str]:
    """The variables that have a value, without surrounding white space."""
    values = {name: stripped(value) for name, value in variables.items()}
    return {name: value for name, value in values.items() if value}


def _configured_variables(*folders: Path) -> dict[str, str]:
    """The variables of the process, overridden by `.env` of each of these folders in order, then of the current one.

    Raises SettingsError.
    """
    variables: dict[str, str | None] = dict(os.environ)
    for folder in (*folders, Path.cwd()):
        variables |= _variables_in(folder / ".env")
    # As in urllib, a lower-case variable overrides the upper-case one, even if it is empty.
    for name in _PROXY_VARIABLES & variables.keys():
        variables.pop(name.upper(), None)
    return _nonempty(variables)
