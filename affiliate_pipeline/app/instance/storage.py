"""Dagster's own storage, in the one database of the project; `dagster.yaml` names this class."""

from typing import Any

import click
from dagster_postgres import DagsterPostgresStorage

from affiliate_pipeline.app.embedded_server.server import started
from affiliate_pipeline.defs.dagster_internals import ConfigurableClass, ConfigurableClassData
from affiliate_pipeline.domain.problem import AffiliateError
from affiliate_pipeline.environment import application, remember_embedded, set_default
from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline.postgres.readiness import require_storage
from affiliate_pipeline.postgres.urls import public_tables

CONNECTION_USED_S = 1
NO_TIMEOUT = 0
ANY_NUMBER = -1
# The materializations that end a step. It is Dagster itself that reads this, from the environment.
EVENTS_WRITTEN_AT_ONCE = 1000


class StorageUnavailable(click.ClickException):
    """Dagster has no storage; its own commands show the reason, and no traceback."""


class Storage(DagsterPostgresStorage, ConfigurableClass):
    """`DagsterPostgresStorage` on the configured database, or on the embedded one, which it starts."""

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        return {}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: object) -> "Storage":
        try:
            environment = started(application())
            url = environment.database_url()
            require_storage(url)
        except AffiliateError as error:
            raise StorageUnavailable(f"{error}") from None
        # A bare postgresql:// means psycopg 3 to newer SQLAlchemy, with which dagster-postgres cannot write an event
        # (dagster issue 33958).
        schemas = {"affiliate", *(endpoint.exchange.name for endpoint in ENDPOINTS)}
        url = public_tables(url, schemas).replace("postgresql://", "postgresql+psycopg2://", 1)
        storage = cls(url, inst_data=inst_data)
        if environment.embedded_url:
            remember_embedded(url, environment)
        # A range of days writes three events a day, and would open seven connections a day for them: two thirds of what
        # such a run takes. A connection is used for a second at most, so that none is found dead after a restart of the
        # database.
        storage.event_log_storage.optimize_for_webserver(
            statement_timeout=NO_TIMEOUT, pool_recycle=CONNECTION_USED_S, max_overflow=ANY_NUMBER
        )
        set_default(DAGSTER_EVENT_BATCH_SIZE=EVENTS_WRITTEN_AT_ONCE)
        return storage
