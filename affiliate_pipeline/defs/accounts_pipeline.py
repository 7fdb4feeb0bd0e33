"""The resource of another Dagster project's code location, from the accounts, database and alerts it gives."""

from collections.abc import Mapping, Sequence
from datetime import date

import dagster as dg

from affiliate_pipeline.defs.accounts import Account
from affiliate_pipeline.defs.arguments import AffiliateDatabase, Alerts, is_secret_set, value_of
from affiliate_pipeline.defs.resources import PipelineResource
from affiliate_pipeline.domain.problem import SettingsError
from affiliate_pipeline.exchanges.binance.exchange import BINANCE
from affiliate_pipeline.exchanges.endpoint import Endpoint
from affiliate_pipeline.http.network import VARIABLES as NETWORK_VARIABLES
from affiliate_pipeline.http.network import Network
from affiliate_pipeline.monitoring.delivery import AlertSettings


class AccountsPipeline(PipelineResource):
    """The resource of another Dagster project's code location: what was given to `build_definitions`."""

    def __init__(
        self,
        accounts: Sequence[Account],
        database: AffiliateDatabase,
        start: date,
        alerts: Alerts | None,
        alert_scope: str,
    ):
        self._accounts = {(each.exchange.name, each.alias): each for each in accounts}
        self._database, self._start, self._alerts = database, start, alerts
        self.alert_scope = alert_scope

    def first_day(self, endpoint: Endpoint) -> date:  # noqa: ARG002 - the same for all
        """The first partition."""
        return self._start

    def database_url(self) -> str:
        """The database's URL; raises `SettingsError` that names its variable."""
        return self._database.resolved()

    def variable(self, name: str) -> str:
        """The project's own name for a variable of the alerts, such as ALERT_URLS; any other name unchanged."""
        return self._alerts.names.get(name, name) if self._alerts else name

    def variables_of(self, endpoint: Endpoint) -> Mapping[str, str]:
        """The account's values, and the process's proxies and certificates.

        Raises `SettingsError`, also if an account whose alias sorts before this one's has the same key.
        """
        own = self._account(endpoint).values(endpoint.role)
        key_name, *_ = endpoint.credentials
        self._require_unique_key(endpoint, key_name, own.get(key_name))
        return {**_network_variables(), **own}

    def price_variables(self) -> Mapping[str, str]:
        """The base URL of the first Binance account, if it is set, and the process's proxies and certificates."""
        urls = [value_of(each.base_url) for each in self._accounts.values() if each.exchange is BINANCE]
        variables = _network_variables()
        if urls and urls[0]:
            variables[BINANCE.base_url_variable] = urls[0]
        return variables

    def has_credentials(self, endpoint: Endpoint) -> bool:
        """Whether the key or the secret of the endpoint's role is set, or a subclass of `ApiKey` has them."""
        key, _ = self._account(endpoint).keys[endpoint.role]
        return key is not None and (key.is_overridden or is_secret_set(key.key) or is_secret_set(key.secret))

    def is_configured(self, endpoint: Endpoint) -> bool:
        """True: the account was given, so a day whose variables are not set fails and names them."""
        return True

    @property
    def has_alerts(self) -> bool:
        """Whether alerts are delivered; False if `alerts` or `monitoring` of `build_definitions` is None."""
        return self._alerts is not None

    def alerts(self) -> AlertSettings:
        """Where alerts go; raises `SettingsError`."""
        return self._alerts.settings() if self._alerts else AlertSettings()

    def network(self) -> Network:
        """How this machine reaches other hosts, from the variables of the process."""
        return Network(_network_variables())

    def _require_unique_key(self, endpoint: Endpoint, key_name: str, own_key: str | None) -> None:
        """Raise `SettingsError` if an account whose alias sorts before the endpoint's has the same key.

        With the same key, the same records would land in both accounts, and the sums would count them twice. Only the
        account with the first alias lands them.
        """
        for other in self._accounts.values():
            if other.exchange is not endpoint.exchange or other.alias >= endpoint.alias:
                continue
            other_name, other_key = other.key_in_variable(endpoint.role)
            if other_key and other_key == own_key:
                raise SettingsError(
                    f"{key_name} is the same key as {other_name}: its records would land and be counted twice",
                    f"Set {key_name} to the key of another account, or remove one of the accounts",
                    variable=key_name,
                )

    def _account(self, endpoint: Endpoint) -> Account:
        return self._accounts[endpoint.exchange.name, endpoint.alias]


def _network_variables() -> dict[str, str]:
    values = {name: value_of(dg.EnvVar(name)) for name in NETWORK_VARIABLES}
    return {name: value for name, value in values.items() if value}
