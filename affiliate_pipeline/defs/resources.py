"""The resource of assets, sensors and schedules: database, exchange sessions and settings."""

import socket
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from urllib.parse import urlsplit

from affiliate_pipeline.domain.problem import SettingsError
from affiliate_pipeline.domain.settings import Environment, Mode
from affiliate_pipeline.exchanges.endpoint import Endpoint, SessionT
from affiliate_pipeline.landing.pipeline import connected
from affiliate_pipeline.landing.store import Store
from affiliate_pipeline.postgres.rate_limiter import MAX_WAIT_S


class PipelineResource:
    """The database, exchange sessions and settings of a run or tick, read at their first use.

    So the code location loads without settings, network or database, an unusable setting fails only the days that need
    it, and no secret is part of a resource's config.
    """

    def __init__(self, read: Callable[[], Environment]):
        self._read = read

    @cached_property
    def environment(self) -> Environment:
        """The settings, the same for the whole run or tick; raises `SettingsError`."""
        return self._read()

    @contextmanager
    def store(self, run_id: str | None = None) -> Generator[Store, None, None]:
        """The database; with `run_id`, the run counts as live while the store is open."""
        with Store(self.environment.database_url()) as store:
            if run_id is not None:
                store.mark_run_live(run_id)
            yield store

    def session(
        self, endpoint: Endpoint[SessionT], store: Store, max_wait_s: float = MAX_WAIT_S
    ) -> AbstractContextManager[SessionT]:
        """A session with the endpoint's account, which shares its rate limits through the database.

        Raises `SettingsError` at once if the sandbox is not running: requests to it would be retried for minutes.
        """
        variables = self.environment.variables
        if self.environment.mode is Mode.SANDBOX:
            base_url = variables[endpoint.exchange.base_url_variable]
            url = urlsplit(base_url)
            try:
                socket.create_connection((url.hostname or "", url.port or 80), timeout=5).close()
            except OSError:
                raise SettingsError(
                    f"the sandbox is not running at {base_url}", "Start it: `make up`, and leave that running"
                ) from None
        return connected(endpoint, store, variables, max_wait_s)
