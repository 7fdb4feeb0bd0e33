"""Dagster's storage in the project's database; `dagster.yaml` names this class."""

from typing import Any

import click
from dagster_postgres import DagsterPostgresStorage

from affiliate_pipeline.app.embedded_server.server import start_database
from affiliate_pipeline.app.instance.sessions import with_session_settings
from affiliate_pipeline.defs.dagster_internals import ConfigurableClass, ConfigurableClassData
from affiliate_pipeline.domain.problem import AffiliateError
from affiliate_pipeline.environment import application, register_embedded, set_default
from affiliate_pipeline.postgres.readiness import require_storage
from affiliate_pipeline.postgres.urls import sqlalchemy_url


class StorageUnavailable(click.ClickException):
    """Dagster has no storage; its commands show the reason without a traceback."""


class Storage(DagsterPostgresStorage, ConfigurableClass):
    """`DagsterPostgresStorage` on the configured database, else on the embedded one it starts."""

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """Without options: the environment configures the storage."""
        return {}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: object) -> "Storage":  # noqa: ARG003 - Dagster's interface
        """The storage in the application's database; starts the embedded server if it is used.

        Raises `StorageUnavailable`.
        """
        try:
            environment = start_database(application())
            url = environment.database_url()
            require_storage(url)
        except AffiliateError as error:
            raise StorageUnavailable(f"{error}") from None
        storage_url = with_session_settings(sqlalchemy_url(url))
        storage = cls(storage_url, inst_data=inst_data)
        if environment.embedded_url:
            register_embedded(storage_url, environment)
        # A run over a range writes three events per day. Without a pool, they take seven connections per day and two
        # thirds of the run's time. Connections are recycled after a second: none is stale after a database restart.
        # Statements have no timeout (0), and the number of connections no limit (-1).
        storage.event_log_storage.optimize_for_webserver(statement_timeout=0, pool_recycle=1, max_overflow=-1)
        # Read by Dagster: the batch size for writing the final materializations of a step.
        set_default(DAGSTER_EVENT_BATCH_SIZE=1000)
        return storage
