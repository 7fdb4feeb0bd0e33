"""The resource of assets, sensors and schedules: database, exchange sessions and settings."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import date
from functools import cached_property
from pathlib import Path

import dagster as dg

from affiliate_pipeline.domain.problem import AffiliateError
from affiliate_pipeline.domain.settings import Environment, Mode
from affiliate_pipeline.exchanges.binance.exchange import BINANCE
from affiliate_pipeline.exchanges.binance.klines import Klines, open_klines
from affiliate_pipeline.exchanges.endpoint import Endpoint, SessionT
from affiliate_pipeline.exchanges.registry import first_day, is_any_exchange_configured
from affiliate_pipeline.http.network import Network, require_sandbox
from affiliate_pipeline.landing.pipeline import connected
from affiliate_pipeline.landing.store import Store
from affiliate_pipeline.monitoring.delivery import AlertSettings
from affiliate_pipeline.monitoring.outbox import Outbox
from affiliate_pipeline.postgres.rate_limiter import MAX_WAIT_S


class RunEnded(AffiliateError):
    """A step was to start although its run has ended, such as a step that waited in a queue on another machine."""


def require_running(run: dg.DagsterRun | None) -> None:
    """Raise `RunEnded` if the run of a step has ended or is being cancelled."""
    if run and (run.is_finished or run.status == dg.DagsterRunStatus.CANCELING):
        raise RunEnded(
            f"run {run.run_id} has ended or is being cancelled ({run.status.value}): this step does not start, and "
            "requests nothing"
        )


class PipelineResource(ABC):
    """The database, exchange sessions and settings of a run or tick, read at their first use.

    So the code location loads without settings, network or database; an unusable setting fails only the days that need
    it; and no secret is part of a resource's config.
    """

    # Distinguishes these definitions' alerts from those of others that share the database.
    alert_scope = ""

    @property
    def reports(self) -> Path | None:
        """The folder of the HTML reports; None: reports are only in the metadata."""
        return None

    @property
    def is_sandbox(self) -> bool:
        """Whether the exchanges are the sandbox."""
        return False

    @property
    def is_any_exchange_configured(self) -> bool:
        """Whether any account of an exchange, or of the sandbox, is configured, even incompletely."""
        return True

    @property
    def has_alerts(self) -> bool:
        """Whether alerts are delivered, so that they may be raised."""
        return True

    @abstractmethod
    def first_day(self, endpoint: Endpoint) -> date:
        """The endpoint's first partition; raises `SettingsError`."""

    @abstractmethod
    def database_url(self) -> str:
        """The database's `postgresql://` URL; raises `SettingsError`."""

    @abstractmethod
    def variable(self, name: str) -> str:
        """The name by which messages refer to this package's variable `name`, such as ALERT_URLS.

        A Dagster project that uses this package may have named the variable differently. Only for variables that
        belong to no exchange.
        """

    @abstractmethod
    def variables_of(self, endpoint: Endpoint) -> Mapping[str, str]:
        """The variables that the endpoint's session reads; raises `SettingsError`."""

    @abstractmethod
    def has_credentials(self, endpoint: Endpoint) -> bool:
        """Whether at least one of the endpoint's credentials is set."""

    @abstractmethod
    def is_configured(self, endpoint: Endpoint) -> bool:
        """Whether the endpoint's days are expected to land."""

    @abstractmethod
    def alerts(self) -> AlertSettings:
        """Where alerts go; raises `SettingsError`."""

    @abstractmethod
    def network(self) -> Network:
        """How this machine reaches other hosts."""

    @contextmanager
    def store(self, context: dg.AssetExecutionContext | None = None) -> Generator[Store, None, None]:
        """The database; with a step's context, the run and the step count as live while the store is open."""
        with Store(self.database_url()) as store:
            if context is not None:
                # The name of an asset's op is the key of its step.
                store.mark_run_live(context.run.run_id, context.op_execution_context.op_def.name)
            yield store

    @abstractmethod
    def price_variables(self) -> Mapping[str, str]:
        """The variables that requests for market prices read; raises `SettingsError`."""

    def klines(self, first: date, last: date) -> AbstractContextManager[Klines]:
        """The market prices of these days; raises `SettingsError`."""
        return open_klines(self.price_variables(), self.database_url(), first, last)

    def outbox(self) -> Outbox:
        """The alerts of these definitions."""
        return Outbox(self.database_url(), self.alert_scope)

    def session(
        self, endpoint: Endpoint[SessionT], store: Store, max_wait_s: float = MAX_WAIT_S
    ) -> AbstractContextManager[SessionT]:
        """A session with the endpoint's account, which shares its rate limits through the database."""
        return connected(endpoint, store, self.variables_of(endpoint), max_wait_s)


class EnvironmentPipeline(PipelineResource):
    """The resource of this package's own code location, which its environment configures."""

    def __init__(self, read: Callable[[], Environment]):
        self._read = read

    @cached_property
    def environment(self) -> Environment:
        """The settings, the same for the whole run or tick; raises `SettingsError`."""
        return self._read()

    @property
    def reports(self) -> Path:
        """The folder of the HTML reports."""
        return self.environment.reports

    @property
    def is_sandbox(self) -> bool:
        """Whether the exchanges are the sandbox."""
        return self.environment.mode is Mode.SANDBOX

    @property
    def is_any_exchange_configured(self) -> bool:
        """Whether any account of an exchange, or of the sandbox, is configured, even incompletely."""
        return is_any_exchange_configured(self.environment.variables)

    def first_day(self, endpoint: Endpoint) -> date:
        """The endpoint's first partition; raises `SettingsError`."""
        return first_day(endpoint, self.environment)

    def database_url(self) -> str:
        """The configured database's URL, or the embedded one's; raises `SettingsError`."""
        return self.environment.database_url()

    def variable(self, name: str) -> str:
        """The name itself."""
        return name

    def variables_of(self, endpoint: Endpoint) -> Mapping[str, str]:
        """All variables; raises `SettingsError` at once if the exchange is a sandbox that is not running."""
        variables = self.environment.variables
        if self.is_sandbox:
            require_sandbox(variables[endpoint.exchange.base_url_variable])
        return variables

    def price_variables(self) -> Mapping[str, str]:
        """All variables; raises `SettingsError` at once if the exchange is a sandbox that is not running."""
        variables = self.environment.variables
        if self.is_sandbox:
            require_sandbox(variables[BINANCE.base_url_variable])
        return variables

    def has_credentials(self, endpoint: Endpoint) -> bool:
        """Whether at least one of the endpoint's credentials is set."""
        return self.environment.is_any_set(endpoint.credentials)

    def is_configured(self, endpoint: Endpoint) -> bool:
        """Whether at least one of the endpoint's credentials is set."""
        return self.has_credentials(endpoint)

    def alerts(self) -> AlertSettings:
        """Where alerts go; raises `SettingsError`."""
        return AlertSettings.load(self.environment.variables)

    def network(self) -> Network:
        """How this machine reaches other hosts."""
        return Network(self.environment.variables)
