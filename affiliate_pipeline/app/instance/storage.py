"""Dagster's own storage, in the one database of the project; `dagster.yaml` names this class."""

from typing import Any

import click
from dagster_postgres import DagsterPostgresStorage

from affiliate_pipeline.app.embedded_server.server import started
from affiliate_pipeline.defs.dagster_internals import ConfigurableClass, ConfigurableClassData
from affiliate_pipeline.domain.problem import AffiliateError
from affiliate_pipeline.environment import application, register_embedded, set_default
from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline.postgres.readiness import require_storage
from affiliate_pipeline.postgres.urls import public_tables


class StorageUnavailable(click.ClickException):
    """Dagster has no storage; its own commands show the reason, and no traceback."""


class Storage(DagsterPostgresStorage, ConfigurableClass):
    """`DagsterPostgresStorage` on the configured database, or on the embedded one, which it starts."""

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        return {}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: object) -> "Storage":  # noqa: ARG003 - Dagster's interface
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
            register_embedded(url, environment)
        # A range of days writes three events a day, and without a pool would open seven connections a day for them: two
        # thirds of such a run's time. A connection is used for a second at most, so that none is found dead after a restart
        # of the database. No limit of time (0) or number (-1).
        storage.event_log_storage.optimize_for_webserver(statement_timeout=0, pool_recycle=1, max_overflow=-1)
        # Dagster itself reads this from the environment: how many of the materializations that end a step it writes at once.
        set_default(DAGSTER_EVENT_BATCH_SIZE=1000)
        return storage
