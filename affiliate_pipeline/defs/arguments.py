"""Two arguments of the public API, the database and the alerts; and how literals and variables are read."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import dagster as dg

from affiliate_pipeline.domain import variables
from affiliate_pipeline.domain.problem import AffiliateError
from affiliate_pipeline.domain.settings import FILE_SUFFIX, Digest, database_url_in, stripped
from affiliate_pipeline.monitoring.delivery import AlertSettings
from affiliate_pipeline.postgres.urls import parameters

# A literal, or the variable that has the value.
Text = str | dg.EnvVar
_PASSWORDS = ("password", "sslpassword")


class InvalidArgument(ValueError):
    """An argument of the public API cannot be used; raised when definitions are built."""


@dataclass(frozen=True, kw_only=True)
class AffiliateDatabase:
    """The database that records land in: PostgreSQL 14 or newer. A URL with a password is given by its variable."""

    url: Text = field(repr=False)

    def check(self) -> None:
        """Raise `InvalidArgument` for a literal that has a password or is no URL."""
        if isinstance(self.url, dg.EnvVar):
            return
        try:
            given = parameters(database_url_in("url", self.url))
        except AffiliateError as error:
            raise InvalidArgument(f"AffiliateDatabase: {error.problem.what}") from None
        if any(given.get(name) for name in _PASSWORDS):
            raise InvalidArgument(
                "AffiliateDatabase: the url is a literal with a password, which Dagster's UI and its storage would show. "
                'Give the name of its variable: dg.EnvVar("NAME")'
            )

    def resolved(self) -> str:
        """The `postgresql://` URL; raises `SettingsError` that names the variable."""
        return database_url_in(name_of(self.url, "the url of AffiliateDatabase"), secret_of(self.url))

    def resource(self) -> dg.ResourceDefinition:
        """The database as Dagster shows it."""
        return resource_of(self, "The PostgreSQL database that affiliate records land in.", {"url": shown_of(self.url)})


@dataclass(frozen=True, kw_only=True)
class Alerts:
    """Where alerts about this package's assets go: Apprise URLs, separated by commas."""

    urls: Text = field(repr=False)
    # A dead man's switch, called while no day is at risk.
    heartbeat_url: Text | None = field(default=None, repr=False)
    # The base of the links in alerts.
    ui_url: Text | None = None
    # How often a digest of the earnings is sent, with `commission=True` only.
    digest: Digest = "off"

    def check(self, *, has_commission: bool) -> None:
        """Raise `InvalidArgument` for a digest that could not be sent."""
        if self.digest not in ("daily", "weekly", "off"):
            raise InvalidArgument("Alerts: the digest is neither daily, weekly nor off")
        if self.digest != "off" and not has_commission:
            raise InvalidArgument("Alerts: a digest requires commission=True, which adds up the earnings")

    @property
    def names(self) -> dict[str, str]:
        """By this package's variable, the name under which the value is found and reported."""
        return {
            "ALERT_URLS": name_of(self.urls, "the urls of Alerts"),
            "HEARTBEAT_URL": name_of(self.heartbeat_url, "the heartbeat_url of Alerts"),
            "DAGSTER_UI_URL": name_of(self.ui_url, "the ui_url of Alerts"),
        }

    def settings(self) -> AlertSettings:
        """The alert settings, from the values that are set now; raises `SettingsError`."""
        names = self.names
        values = {
            names["ALERT_URLS"]: secret_of(self.urls),
            names["HEARTBEAT_URL"]: secret_of(self.heartbeat_url),
            names["DAGSTER_UI_URL"]: value_of(self.ui_url),
        }
        return AlertSettings.load(values, variable=names.__getitem__)


def value_of(value: object) -> str:
    """The variable's value, or the literal as text; empty if there is none."""
    if isinstance(value, dg.EnvVar):
        return stripped(value.get_value())
    return "" if value is None else stripped(str(value))


def secret_of(value: object) -> str:
    """As `value_of`; instead of a variable `NAME`, the file that `NAME_FILE` names may have the value.

    Raises `SettingsError` if the file cannot be used, or both variables are set.
    """
    if not isinstance(value, dg.EnvVar):
        return value_of(value)
    return variables.value_of(value.env_var_name, lambda name: dg.EnvVar(name).get_value())


def is_secret_set(value: object) -> bool:
    """Whether the secret, or the path of its file, is set; the file is not read."""
    if value_of(value):
        return True
    if not isinstance(value, dg.EnvVar):
        return False
    path = value_of(dg.EnvVar(f"{value.env_var_name}{FILE_SUFFIX}"))
    return bool(path)


def name_of(value: object, argument: str) -> str:
    """The variable's name; of a literal, that of the argument."""
    return value.env_var_name if isinstance(value, dg.EnvVar) else argument


def shown_of(value: object) -> str:
    """What Dagster shows of an argument: the variable's name, or the literal."""
    return value.env_var_name if isinstance(value, dg.EnvVar) else str(value)


def resource_of(given: object, description: str, shown: Mapping[str, str]) -> dg.ResourceDefinition:
    """A resource that is the object itself; its config only shows the arguments."""

    def create(_context: dg.InitResourceContext) -> object:
        return given

    # Dagster shows these names as the resource's type.
    create.__name__, create.__module__ = type(given).__name__, type(given).__module__
    fields = {name: dg.Field(str, is_required=False) for name in shown}
    return dg.ResourceDefinition(create, dg.Field(fields, default_value=dict(shown)), description)
