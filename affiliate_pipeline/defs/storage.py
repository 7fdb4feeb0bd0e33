"""Dagster's own storage, in the one database of the project; `dagster.yaml` names this class."""

from typing import Any

from dagster._serdes import ConfigurableClass, ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage

from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline.postgres.urls import public_tables
from affiliate_pipeline.settings import Project


class Storage(DagsterPostgresStorage, ConfigurableClass):
    """`DagsterPostgresStorage` on the configured database, or on the embedded one, which it starts."""

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        return {}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: object) -> "Storage":
        # A bare postgresql:// means psycopg 3 to newer SQLAlchemy, with which dagster-postgres cannot write an event
        # (dagster issue 33958).
        schemas = {"affiliate", *(endpoint.exchange.name for endpoint in ENDPOINTS)}
        url = public_tables(Project.load().database_url(), schemas)
        return cls(url.replace("postgresql://", "postgresql+psycopg2://", 1), inst_data=inst_data)
