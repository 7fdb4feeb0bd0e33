"""What is configured, as one value: read once by the application and passed on."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum
from pathlib import Path

from affiliate_pipeline.domain.problem import SettingsError
from affiliate_pipeline.domain.settings import HOW_TO_SET, Settings, quotes_in

DATABASE_VARIABLE = "AFFILIATE_DATABASE_URL"


class Mode(StrEnum):
    """Whether the exchanges are real; the value names the mode's database on the embedded server."""

    PRODUCTION = "affiliate"
    SANDBOX = "affiliate_sandbox"


class Project(Settings):
    affiliate_start_date: date = date(2025, 1, 1)
    # Whether the schedules run without being started in the UI, as they do under `affiliate-pipeline up`.
    affiliate_schedules: bool = False


@dataclass(frozen=True)
class Environment:
    """The settings that apply. Each kind of them is typed when it is used: a malformed variable fails only what needs
    it."""

    mode: Mode
    # Holds `workspace.yaml`.
    root: Path
    variables: Mapping[str, str] = field(repr=False)
    # Set once the application has started the embedded server.
    embedded_url: str | None = field(default=None, repr=False)

    @property
    def home(self) -> Path:
        """The folder of what stays on this machine: the embedded database, logs, the sandbox's settings."""
        return self.root / ".affiliate"

    @property
    def reports(self) -> Path:
        """The folder of the pages that people open."""
        return self.root / "reports"

    @property
    def start_date(self) -> date:
        """The first partition."""
        return Project.load(self.variables).affiliate_start_date

    @property
    def runs_schedules(self) -> bool:
        return Project.load(self.variables).affiliate_schedules

    def is_any_set(self, names: Iterable[str]) -> bool:
        """Whether at least one of the variables has a value."""
        return any(name in self.variables for name in names)

    def database_url(self) -> str:
        """The `postgresql://` URL of the one database; raises `SettingsError` if none is configured or started."""
        if self.embedded_url:
            return self.embedded_url
        value = self.variables.get(DATABASE_VARIABLE)
        if not value:
            raise SettingsError(f"{DATABASE_VARIABLE} is not set", HOW_TO_SET)
        if problems := quotes_in(DATABASE_VARIABLE, value):
            raise SettingsError(*problems)
        scheme, separator, rest = value.partition("://")
        if not separator or scheme.split("+")[0] not in ("postgresql", "postgres"):
            raise SettingsError(f"{DATABASE_VARIABLE} is not a postgresql:// URL")
        return f"postgresql://{rest}"
