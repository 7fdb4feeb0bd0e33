"""What assets are given: the database and signed sessions with the exchanges. Both are made when a run needs them, so
that the code location loads without any setting, network or database, and no secret stands in a resource's config."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from affiliate_pipeline.environment import Binance, Environment
from affiliate_pipeline.exchanges.endpoint import Endpoint
from affiliate_pipeline.exchanges.fetching import Session
from affiliate_pipeline.landing.day_writer import Store
from affiliate_pipeline.landing.pipeline import connected
from affiliate_pipeline.postgres.rate_limiter import LONGEST_WAIT_S


class Postgres:
    """The one database."""

    @contextmanager
    def store(self, environment: Environment, run_id: str | None = None) -> Iterator[Store]:
        """A store; for a step of a run, which counts as alive meanwhile, if one is given."""
        with Store(environment.database_url()) as store:
            if run_id is not None:
                store.work_for(run_id)
            yield store


class Exchanges:
    """Signed clients, one per account, sharing their rate limits through the database."""

    @contextmanager
    def session(
        self, endpoint: Endpoint, store: Store, environment: Environment, longest_wait_s: float = LONGEST_WAIT_S
    ) -> Iterator[Session]:
        with (
            _sandbox(environment),
            connected(endpoint, store, longest_wait_s, variables=environment.variables) as session,
        ):
            yield session


def _sandbox(environment: Environment) -> AbstractContextManager[None]:
    """The sandbox, if it is what runs here: while no `affiliate-pipeline up` serves it, the run does."""
    if not environment.is_sandbox:
        return nullcontext()
    # Whoever has an account does without it.
    from affiliate_pipeline.sandbox.served import served

    settings = Binance.load(variables=environment.variables)
    return served(settings.binance_base_url, settings.affiliate_rate_scale)
