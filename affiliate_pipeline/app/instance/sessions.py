"""The settings of the sessions in which Dagster's storage works."""

from typing import Any

from sqlalchemy import URL, Engine, event
from sqlalchemy.dialects import plugins
from sqlalchemy.engine import CreateEnginePlugin

from affiliate_pipeline.postgres.connection import NETWORK_SETTINGS, settings_statement

_NAME = "affiliate_pipeline"


class SessionSettings(CreateEnginePlugin):
    """Applies the settings in every new session of an engine whose URL `with_session_settings` returned.

    A statement sets them rather than `options` in the URL, which poolers reject or ignore.
    """

    def __init__(self, url: URL, kwargs: dict[str, Any]) -> None:
        super().__init__(url, kwargs)
        self._settings = {**NETWORK_SETTINGS}
        # A role named like one of the data's schemas would otherwise have Dagster's tables in that schema.
        if "search_path" not in str(url.query.get("options", "")):
            self._settings["search_path"] = "public"

    def update_url(self, url: URL) -> URL:
        """The URL as it is: the plugin has no parameters of its own."""
        return url

    def engine_created(self, engine: Engine) -> None:
        """Listen to the engine's new connections, before SQLAlchemy looks up the default schema in the first one."""
        event.listen(engine, "connect", self._apply, insert=True)

    def _apply(self, connection: Any, _record: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute(*settings_statement(self._settings))
        connection.commit()


def with_session_settings(url: str) -> str:
    """The URL for SQLAlchemy with psycopg2; sessions of its engines get the settings of `SessionSettings`."""
    plugins.register(_NAME, __name__, SessionSettings.__name__)
    # Newer SQLAlchemy uses psycopg 3 for a bare postgresql://, with which dagster-postgres cannot write an event
    # (dagster issue 33958).
    address = url.replace("postgresql://", "postgresql+psycopg2://", 1)
    separator = "&" if "?" in address else "?"
    return f"{address}{separator}plugin={_NAME}"
