"""The resource of assets, sensors and schedules: the database, sessions with the exchanges, and the settings."""

import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import date
from functools import cached_property
from urllib.parse import urlsplit

from affiliate_pipeline.domain.environment import Environment, Mode
from affiliate_pipeline.domain.problem import SettingsError
from affiliate_pipeline.exchanges.endpoint import Endpoint, SessionT
from affiliate_pipeline.landing.pipeline import connected
from affiliate_pipeline.landing.store import Store
from affiliate_pipeline.postgres.rate_limiter import MAX_WAIT_S


class Installation:
    """What a run or tick works with, read at its first use.

    So the code location loads without any setting, network or database, an unusable setting fails the days that it
    concerns, and no secret is part of a resource's config.
    """

    def __init__(self, read: Callable[[], Environment]):
        self._read = read

    @cached_property
    def environment(self) -> Environment:
        """The same for the whole run or tick; raises `SettingsError` if it cannot be read."""
        return self._read()

    @property
    def start_date(self) -> date:
        """The first partition."""
        return self.environment.start_date

    def database_url(self) -> str:
        return self.environment.database_url()

    def is_configured(self, endpoint: Endpoint) -> bool:
        """Whether any credential of the endpoint's account is set."""
        return self.environment.is_any_set(endpoint.credentials)

    @contextmanager
    def store(self, run_id: str | None = None) -> Generator[Store, None, None]:
        """The database; with a run's id, for a step of that run, which counts as alive meanwhile."""
        with Store(self.database_url()) as store:
            if run_id is not None:
                store.work_for(run_id)
            yield store

    @contextmanager
    def session(
        self, endpoint: Endpoint[SessionT], store: Store, max_wait_s: float = MAX_WAIT_S
    ) -> Generator[SessionT, None, None]:
        """A session with the endpoint's account, which shares its rate limits through the database."""
        variables = self.environment.variables
        if self.environment.mode is Mode.SANDBOX:
            _require_sandbox(variables[endpoint.exchange.base_url_variable])
        with connected(endpoint, store, variables, max_wait_s) as session:
            yield session


def _require_sandbox(base_url: str) -> None:
    """Raises `SettingsError` at once: a session would try for minutes to reach a server that is not running."""
    url = urlsplit(base_url)
    try:
        socket.create_connection((url.hostname or "", url.port or 80), timeout=5).close()
    except OSError:
        raise SettingsError(
            f"the sandbox is not running at {base_url}", "Start it: `make up`, and leave that running"
        ) from None
